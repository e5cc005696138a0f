"""What an Arrow IPC stream declares, read from its metadata before anything of it is decompressed.

Encapsulated messages and flatbuffer tables as of the Arrow columnar format 1.5 ("IPC streaming format", Message.fbs).
Nothing here trusts an offset: whatever points outside of the bytes is a broken stream.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from schemas.deadletter import DeadReason
from schemas.events import MAX_ROWS_PER_RECORD

MAX_DECODED_BYTES = 64 << 20
"""Bytes of all buffers of a stream, decompressed."""
_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


class ArrowRefused(Exception):
    """A stream that cannot be decoded, with the reason of its dead letter."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: DeadReason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Declared:
    """Rows of all record batches, and bytes of all buffers when decompressed."""

    rows: int
    decoded_bytes: int


def declared(value: bytes) -> Declared:
    """What the stream declares; raises ArrowRefused if it is cut short, damaged, or declares too much."""
    rows = size = at = 0
    while True:
        marker = _read("<I", value, at)
        if marker != _CONTINUATION:
            raise ArrowRefused("arrow_broken", f"no message begins at byte {at}")
        length = _read("<i", value, at + 4)
        if length == 0:
            break
        start = at + 8
        if length < 0 or start + length > len(value):
            raise ArrowRefused("arrow_broken", f"the message at byte {at} is cut short")
        metadata = value[start : start + length]
        body_length = _message_field(metadata, 3, "<q", 0)
        body = start + length
        if body_length < 0 or body + body_length > len(value):
            raise ArrowRefused("arrow_broken", f"the body of the message at byte {at} is cut short")
        batch_rows, batch_size = _batch(metadata, value, body, body_length)
        rows, size = rows + batch_rows, size + batch_size
        if rows > MAX_ROWS_PER_RECORD:
            raise ArrowRefused("too_large", f"more than {MAX_ROWS_PER_RECORD} rows")
        if size > MAX_DECODED_BYTES:
            raise ArrowRefused("too_large", f"more than {MAX_DECODED_BYTES} bytes when decompressed")
        at = body + body_length
    if at + 8 != len(value):
        raise ArrowRefused("arrow_broken", f"{len(value) - at - 8} bytes follow the end of the stream")
    return Declared(rows, size)


def _batch(metadata: bytes, value: bytes, body: int, body_length: int) -> tuple[int, int]:
    """Rows and decompressed bytes of a message that is a record or dictionary batch; (0, 0) of any other."""
    kind = _message_field(metadata, 1, "<B", 0)
    if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return 0, 0
    batch = _child(metadata, _root(metadata), 2)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = _child(metadata, batch, 1)
    if batch is None:
        raise ArrowRefused("arrow_broken", "a batch without its header")
    rows = _field(metadata, batch, 0, "<q", 0) if kind == _RECORD_BATCH else 0
    if rows < 0:
        raise ArrowRefused("arrow_broken", "a batch of fewer than no rows")
    buffers = _child(metadata, batch, 2)
    if buffers is None:
        return rows, 0
    compressed = _child(metadata, batch, 3) is not None
    count = _read("<I", metadata, buffers)
    if buffers + 4 + 16 * count > len(metadata):
        raise ArrowRefused("arrow_broken", "a list of buffers beyond its message")
    size = 0
    for at in range(buffers + 4, buffers + 4 + 16 * count, 16):
        offset, length = _read("<q", metadata, at), _read("<q", metadata, at + 8)
        if offset < 0 or length < 0 or offset + length > body_length:
            raise ArrowRefused("arrow_broken", "a buffer beyond its message")
        unpacked = _read("<q", value, body + offset) if compressed and length >= 8 else -1
        size += length if unpacked < 0 else unpacked
    return rows, size


def _read(form: str, data: bytes, at: int) -> int:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise ArrowRefused("arrow_broken", "the stream is cut short: it has no end-of-stream mark")
    return int(struct.unpack_from(form, data, at)[0])


def _root(metadata: bytes) -> int:
    return _read("<I", metadata, 0)


def _message_field(metadata: bytes, number: int, form: str, default: int) -> int:
    return _field(metadata, _root(metadata), number, form, default)


def _slot(data: bytes, table: int, number: int) -> int | None:
    """Where field `number` of a flatbuffer table lies, None if it is absent."""
    vtable = table - _read("<i", data, table)
    if 4 + 2 * number >= _read("<H", data, vtable):
        return None
    offset = _read("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _field(data: bytes, table: int, number: int, form: str, default: int) -> int:
    at = _slot(data, table, number)
    return default if at is None else _read(form, data, at)


def _child(data: bytes, table: int, number: int) -> int | None:
    """Where the table or vector that field `number` refers to lies."""
    at = _slot(data, table, number)
    return None if at is None else at + _read("<I", data, at)
