"""Rows that cannot be decoded but show whose they are: evidence against their caller, so that nobody becomes invisible by
being malformed. Their outcome stays a dead letter; `gather.MalformedRow` says how they reach the detectors.

Whose they are is said by the event's own top level, where the writer of the topic puts it, as in every good row. What a
caller sends lies deeper, in `features`, and is not looked at: no caller can put another one's name there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic_core import from_json

from schemas.deadletter import DeadReason
from schemas.events import Prediction
from schemas.ids import clean_id
from streams.decode.gather import MalformedRow, Target
from streams.decode.headers import SPACE

OF_CALLER: frozenset[DeadReason] = frozenset({"too_large", "too_deep", "not_json", "wrong_shape"})
"""What a caller's request can lead to. A wrong partition, key, kind or encoding is the writer's fault."""
HEAD_BYTES, MAX_TOKENS = 8_192, 1_024
"""So much of an event is looked at, up to so many strings, brackets and commas (0.2 ms at most)."""
_NAMES = (b'"endpoint"', b'"caller"', b'"caller_auth"', b'"model_version"')
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\],:]', re.DOTALL)
_VERSION, _AUTH = (Prediction.model_fields[name].default for name in ("model_version", "caller_auth"))


def top_level(data: bytes) -> dict[str, str]:
    """`endpoint`, `caller`, `caller_auth` and `model_version` as text members of the object that the first `HEAD_BYTES`
    begin with, at its top level alone; a name that is there twice is not believed. Never raises."""
    found: dict[str, str] = {}
    seen: set[bytes] = set()
    depth, name, value, at_value = 0, b"", b"", False
    for count, match in enumerate(_TOKEN.finditer(data[:HEAD_BYTES].lstrip(SPACE))):
        token = match.group()
        if (count == 0 and (token != b"{" or match.start())) or count >= MAX_TOKENS:
            break
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token == b":":
            at_value = True
        elif depth == 1 and token != b",":
            # a second text where one value belongs is no JSON: what it says is not believed
            name, value = (token, b"") if not at_value else (b"" if value else name, token)
        if depth == 0 or (depth == 1 and token == b","):
            _note(found, seen, name, value)
            name, value, at_value = b"", b"", False
        if depth == 0:
            break
    return found


def _note(found: dict[str, str], seen: set[bytes], name: bytes, value: bytes) -> None:
    if name not in _NAMES:
        return
    key = name[1:-1].decode()
    if name in seen:
        found.pop(key, None)
        return
    seen.add(name)
    try:
        text = from_json(value)
    except ValueError:
        return
    if isinstance(text, str):
        found[key] = text


def malformed_row(
    at: tuple[int, int],
    value: bytes,
    key: bytes | None,
    target_of: Callable[[str, str], Target],
    home: Callable[[str], str],
) -> MalformedRow | None:
    """The row `at` (record, row) if `value` shows its caller, and an endpoint (else the record's `key`) that belongs on
    this partition; else None."""
    shown = top_level(value)
    endpoint = shown.get("endpoint") or (key or b"").decode("utf-8", "surrogateescape")
    caller = shown.get("caller")
    if not caller or not endpoint or home(endpoint):
        return None
    target = target_of(endpoint, shown.get("model_version") or _VERSION)
    return MalformedRow(*at, target, clean_id(caller), shown.get("caller_auth", _AUTH) == "verified")
