"""A saved part of a log: a JSON head that says what it has applied, then the detectors' bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any


def with_head(head: Mapping[str, Any], body: bytes) -> bytes:
    """Length of the head (u32, little-endian), the head as JSON, the body."""
    encoded = json.dumps(head).encode()
    return struct.pack("<I", len(encoded)) + encoded + body


def split_head(state: bytes) -> tuple[Any, bytes]:
    """The head and the body of `with_head`. Raises ValueError on anything else."""
    try:
        (size,) = struct.unpack_from("<I", state)
        return json.loads(state[4 : 4 + size]), state[4 + size :]
    except (struct.error, RecursionError) as error:
        raise ValueError(str(error)) from error
