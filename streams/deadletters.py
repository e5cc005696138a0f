"""Dead letters: made where decoding fails, explained where people read them."""

from __future__ import annotations

import base64
import hashlib
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pydantic_core import from_json

from schemas.deadletter import EXPLAINED, KEPT_BYTES, DeadLetter, DeadReason
from schemas.ids import clean_id

MAX_HEADERS = 32
MAX_HEADER_CHARS = 256
"""Headers that a dead letter keeps, and characters of each name and value."""
MAX_DETAIL_CHARS = 500
MAX_ERROR_CHARS, MAX_FRAMES = 250, 5
"""Of what raised: characters of its words, and frames of its traceback, innermost first."""
_PEEKED_BYTES = 65_536
_FIELD = re.compile(rb'"(endpoint|caller)"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,512}")')


@dataclass(frozen=True, slots=True)
class Place:
    """Where on Kafka a record or row lies."""

    topic: str
    partition: int
    offset: int
    broker_ms: int
    row: int = 0


def dead_letter(
    place: Place,
    reason: DeadReason,
    detail: str,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] | None = None,
    endpoint: str | None = None,
    caller: str | None = None,
) -> DeadLetter:
    """The dead letter of `value`: a record's bytes, or one row's. Endpoint and caller are looked for in it if not given."""
    data = value or b""
    found = peek(data) if endpoint is None or caller is None else {}
    endpoint = found.get("endpoint") if endpoint is None else endpoint
    caller = found.get("caller") if caller is None else caller
    return DeadLetter(
        log_topic=place.topic,
        log_partition=place.partition,
        log_offset=place.offset,
        log_row=place.row,
        reason=reason,
        detail=printable(detail)[:MAX_DETAIL_CHARS],
        endpoint=endpoint,
        caller=caller,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        head=base64.b64encode(data[:KEPT_BYTES]).decode(),
        headers={
            printable(name)[:MAX_HEADER_CHARS]: printable((content or b"").decode("utf-8", "replace"))[
                :MAX_HEADER_CHARS
            ]
            for name, content in (headers or ())[:MAX_HEADERS]
        },
        broker_ms=place.broker_ms,
    )


def peek(data: bytes) -> dict[str, str]:
    """`endpoint` and `caller` where the bytes show them, cleaned; best effort, whatever the bytes are."""
    found: dict[str, str] = {}
    for match in _FIELD.finditer(data[:_PEEKED_BYTES]):
        name, text = match.group(1).decode(), match.group(2)
        try:
            found.setdefault(name, clean_id(from_json(text)))
        except ValueError:
            found.setdefault(name, clean_id(text.decode("utf-8", "surrogateescape")))
    return found


def told(step: str, error: BaseException, *, words: bool = True) -> str:
    """What raised, as the detail of a dead letter: the step, type and words of the error, and its innermost frames.
    words: off where features are sensitive, for an error may quote them."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    where = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    said = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS] if words else type(error).__name__
    return f"{step}: {said}" + (f"; at {where}" if where else "")


def printable(text: str) -> str:
    """`text` with everything that a terminal or a log could mistake for an instruction written as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def explain(letter: DeadLetter) -> str:
    """What happened and what to do, in words that a service owner understands."""
    where = f"{letter.log_topic}[{letter.log_partition}] offset {letter.log_offset}"
    if letter.log_row:
        where += f", row {letter.log_row}"
    who = ", ".join(
        f"{name} {text}" for name, text in (("endpoint", letter.endpoint), ("caller", letter.caller)) if text
    )
    lines = [f"{letter.reason}: {where}" + (f" ({who})" if who else ""), EXPLAINED[letter.reason]]
    if letter.detail:
        lines.append(f"Detail: {letter.detail}")
    return "\n".join(lines)
