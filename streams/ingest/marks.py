"""What the headers of a record say: its kind, its encoding, and whether it is a CloudEvent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.wire import CONTENT_TYPE_HEADER, KIND_HEADER
from streams.ingest import cloudevents
from streams.ingest.cloudevents import Attributes
from streams.records import RawHeaders


class Mark(NamedTuple):
    """What a record's headers say. `kind` "": nothing; `encoding`: json, arrow, cloudevent, "" or a foreign type."""

    kind: str
    encoding: str
    event: Attributes | None


PLAIN = Mark("", "", None)


def mark_of(headers: RawHeaders) -> Mark:
    """The mark of one record's headers."""
    if not headers:
        return PLAIN
    kind = encoding = ""
    for name, content in headers:
        lower = name.lower()
        if lower == KIND_HEADER:
            kind = (content or b"")[:256].decode("latin-1").strip()
        elif lower == CONTENT_TYPE_HEADER:
            encoding = _claimed((content or b"")[:256].decode("latin-1").split(";")[0].strip().lower())
    event = cloudevents.of_headers(headers) if encoding != "cloudevent" else None
    if event is not None and not kind:
        kind = event.kind
    return Mark(kind, encoding, event)


def _claimed(content_type: str) -> str:
    if content_type in ("", "application/octet-stream", "text/plain"):
        return ""
    if content_type.startswith(cloudevents.STRUCTURED):
        return "cloudevent"
    if "json" in content_type:
        return "json"
    return "arrow" if "arrow" in content_type else content_type


def marks_of(headers: Sequence[RawHeaders]) -> list[Mark]:
    """The mark of each record. Neighbours mostly have equal headers, so that they are read once."""
    if not any(headers):
        return [PLAIN] * len(headers)
    marks: list[Mark] = []
    seen: RawHeaders = None
    mark = PLAIN
    for these in headers:
        if these != seen:
            seen, mark = these, mark_of(these)
        marks.append(mark)
    return marks
