"""A saved part of a log: a JSON head that says what it has applied, then the detectors' bytes, all under one hash."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

MAGIC = b"PALISADE-SAVED-1\n"
_START = len(MAGIC) + 32


def with_head(head: Mapping[str, Any], body: bytes) -> bytes:
    """Magic, SHA-256 of what follows, length of the head (u32, little-endian), the head as JSON, the body."""
    encoded = json.dumps(head).encode()
    content = struct.pack("<I", len(encoded)) + encoded + body
    return MAGIC + hashlib.sha256(content).digest() + content


def split_head(state: bytes) -> tuple[Any, bytes]:
    """The head and the body of `with_head`. Raises ValueError on anything else.

    One damaged byte of a head would be an offset that was never applied: rows counted twice, or never.
    """
    content = state[_START:]
    if not state.startswith(MAGIC) or hashlib.sha256(content).digest() != state[len(MAGIC) : _START]:
        raise ValueError("it is damaged, or of another version: its hash does not match")
    try:
        (size,) = struct.unpack_from("<I", content)
        return json.loads(content[4 : 4 + size]), content[4 + size :]
    except (struct.error, RecursionError) as error:
        raise ValueError(str(error)) from error
