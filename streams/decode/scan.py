"""What can be told of JSON bytes without parsing them: how deep they nest, and whether any decoder may see them.

Decoders recurse, and Python's stack is not the sender's to spend.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from schemas.events import MAX_JSON_DEPTH

MAX_OPEN_BYTES = 4_096
"""Longer events go to decoders that refuse unknown fields (`fast` says why)."""
_CHUNK = 128
"""Values scanned together: what was just read is then still in the processor's cache when it is decoded."""
_PLAIN = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"?')
_STEP = np.zeros(256, dtype=np.int32)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def too_deep(value: bytes) -> bool:
    """Whether brackets outside of strings nest deeper than `MAX_JSON_DEPTH`. Of malformed JSON it may say either."""
    if value.count(b"[") + value.count(b"{") <= MAX_JSON_DEPTH:
        return False
    if b"\\" in value:
        value = _ESCAPE.sub(b"", value)
    brackets = value.translate(None, _PLAIN).replace(b'""', b"")
    if b'"' in brackets:
        brackets = _STRING.sub(b"", brackets)
    if not brackets:
        return False
    return int(np.cumsum(_STEP[np.frombuffer(brackets, dtype=np.uint8)]).max()) > MAX_JSON_DEPTH


def simple(values: Sequence[bytes | None]) -> list[bool]:
    """Of each value: whether it is short ASCII without escapes and with too few brackets to be deep. None is not."""
    found: list[bool] = []
    for first in range(0, len(values), _CHUNK):
        chunk = values[first : first + _CHUNK]
        found += _simple_together(chunk) or [_simple(value) for value in chunk]
    return found


def _simple(value: bytes | None) -> bool:
    return (
        value is not None
        and len(value) <= MAX_OPEN_BYTES
        and value.isascii()
        and b"\\" not in value
        and value.count(b"[") + value.count(b"{") <= MAX_JSON_DEPTH
    )


def _simple_together(values: Sequence[bytes | None]) -> list[bool] | None:
    """`_simple` of all at once; None where one is odd and each must be looked at."""
    if len(values) < 8 or None in values:
        return None
    lengths = [len(value) for value in values if value is not None]
    if max(lengths) > MAX_OPEN_BYTES:
        return None
    text = b"".join(values)  # type: ignore[arg-type]  # none is None
    if not text.isascii() or b"\\" in text or b"[" in text:
        return None
    braces = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("{"))
    if len(braces) <= MAX_JSON_DEPTH:
        return [True] * len(values)
    before = np.searchsorted(braces, np.cumsum(lengths)).tolist()
    return [here - there <= MAX_JSON_DEPTH for here, there in zip(before, [0, *before], strict=False)]
