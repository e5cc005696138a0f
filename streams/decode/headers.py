"""What a record's headers say: its kind, and the encoding that they claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.events import Prediction
from schemas.wire import CONTENT_TYPE_HEADER, KIND_HEADER
from streams.decode.columns import Headers

ARROW_MAGIC = b"\xff\xff\xff\xff"
SPACE = b" \t\r\n"
_SAY_NOTHING = ("", "application/octet-stream", "text/plain")


class Mark(NamedTuple):
    """`encoding` is "json", "arrow", a foreign content type, or "" where none is claimed. `plain`: a JSON prediction may
    be tried without another look."""

    kind: str
    encoding: str
    plain: bool


UNMARKED = Mark(Prediction.KIND, "", True)


def marks_of(headers: Sequence[Headers | None]) -> list[Mark]:
    """The mark of each record. Neighbours mostly have equal headers, so that they are read once."""
    marks: list[Mark] = []
    seen: Headers | None = None
    mark = UNMARKED
    for these in headers:
        if not these:
            marks.append(UNMARKED)
            continue
        if these != seen:
            seen, mark = these, _mark(these)
        marks.append(mark)
    return marks


def _mark(headers: Headers) -> Mark:
    kind, encoding = Prediction.KIND, ""
    for name, content in headers:
        text = (content or b"")[:256].decode("latin-1").strip()
        lower = name.lower()
        if lower == KIND_HEADER:
            kind = text
        elif lower == CONTENT_TYPE_HEADER:
            encoding = _claimed(text.split(";")[0].strip().lower())
    return Mark(kind, encoding, kind == Prediction.KIND and encoding in ("", "json"))


def _claimed(content_type: str) -> str:
    if content_type in _SAY_NOTHING:
        return ""
    if "json" in content_type:
        return "json"
    return "arrow" if "arrow" in content_type else content_type


def shown(value: bytes) -> str:
    """The encoding that the first bytes show, "" if none."""
    if value.startswith(ARROW_MAGIC):
        return "arrow"
    return "json" if value.lstrip(SPACE)[:1] in (b"{", b"[") else ""
