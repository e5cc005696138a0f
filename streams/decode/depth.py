"""How deep JSON nests, found without parsing it: decoders recurse, and Python's stack is not the sender's to spend."""

from __future__ import annotations

import re

import numpy as np

from schemas.events import MAX_JSON_DEPTH

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
