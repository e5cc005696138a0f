"""What an Arrow IPC stream declares, read from its metadata before anything of it is decompressed.

Encapsulated messages and flatbuffer tables as of the Arrow columnar format 1.5 ("IPC streaming format", Message.fbs).
Nothing here trusts an offset: whatever points outside of the bytes is a broken stream.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.deadletter import DeadReason
from schemas.events import MAX_ROWS_PER_RECORD

MAX_DECODED_BYTES = 64 << 20
"""Bytes of all buffers of a stream, decompressed."""
_CONTINUATION = 0xFFFFFFFF
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_BYTE, _SHORT, _INT, _UINT, _LONG = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<q"))


class ArrowRefused(Exception):
    """A stream that cannot be decoded, with the reason of its dead letter."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: DeadReason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream whose messages are whole: rows of its batches, and bytes of its buffers when decompressed.

    `schema` and `batches` are the bytes of its schema message and of those after it without the end mark. Streams of
    equal `schema` and equal `dictionaries` (ids in order; each batch comes after its dictionaries) can be read as one;
    `dictionaries` is None where that does not hold.
    """

    schema: bytes
    batches: bytes
    dictionaries: tuple[int, ...] | None
    rows: int
    decoded_bytes: int


def inspect(value: bytes, most_rows: int = MAX_ROWS_PER_RECORD) -> Stream:
    """What the stream declares; raises ArrowRefused if it is cut short, damaged, or declares too much."""
    rows = size = at = schema_end = 0
    dictionaries: list[int] = []
    kinds: list[int] = []
    while True:
        if _read(_UINT, value, at) != _CONTINUATION:
            raise ArrowRefused("arrow_broken", f"no message begins at byte {at}")
        length = _read(_INT, value, at + 4)
        if length == 0:
            break
        start = at + 8
        if length < 0 or start + length > len(value):
            raise ArrowRefused("arrow_broken", f"the message at byte {at} is cut short")
        metadata = value[start : start + length]
        message = _read(_UINT, metadata, 0)
        body_length = _field(metadata, message, 3, _LONG)
        body = start + length
        if body_length < 0 or body + body_length > len(value):
            raise ArrowRefused("arrow_broken", f"the body of the message at byte {at} is cut short")
        kind = _field(metadata, message, 1, _BYTE)
        kinds.append(kind)
        batch = _child(metadata, message, 2)
        if kind == _DICTIONARY_BATCH and batch is not None:
            dictionaries.append(-1 if _field(metadata, batch, 2, _BYTE) else _field(metadata, batch, 0, _LONG))
            batch = _child(metadata, batch, 1)
        if kind in (_DICTIONARY_BATCH, _RECORD_BATCH):
            if batch is None:
                raise ArrowRefused("arrow_broken", "a batch without its header")
            rows += _rows(metadata, batch) if kind == _RECORD_BATCH else 0
            size += _decoded_bytes(metadata, batch, value, body, body_length)
            _check_caps(rows, size, most_rows)
        at = body + body_length
        schema_end = schema_end or at
    if at + 8 != len(value):
        raise ArrowRefused("arrow_broken", f"{len(value) - at - 8} bytes follow the end of the stream")
    mergeable = kinds == [_SCHEMA, *[_DICTIONARY_BATCH] * len(dictionaries), _RECORD_BATCH] and -1 not in dictionaries
    return Stream(value[:schema_end], value[schema_end:at], tuple(dictionaries) if mergeable else None, rows, size)


def joined(streams: Sequence[Stream]) -> bytes:
    """One stream of the batches of all, which have equal schemas and dictionaries."""
    return b"".join((streams[0].schema, *(stream.batches for stream in streams), END))


def _check_caps(rows: int, size: int, most_rows: int) -> None:
    if rows > most_rows:
        raise ArrowRefused("too_large", f"more than {most_rows} rows")
    if size > MAX_DECODED_BYTES:
        raise ArrowRefused("too_large", f"more than {MAX_DECODED_BYTES} bytes when decompressed")


def _rows(metadata: bytes, batch: int) -> int:
    rows = _field(metadata, batch, 0, _LONG)
    if rows < 0:
        raise ArrowRefused("arrow_broken", "a batch of fewer than no rows")
    return rows


def _decoded_bytes(metadata: bytes, batch: int, value: bytes, body: int, body_length: int) -> int:
    """Bytes of all buffers of a RecordBatch when decompressed: a compressed one begins with its size, -1 if stored."""
    buffers = _child(metadata, batch, 2)
    if buffers is None:
        return 0
    count = _read(_UINT, metadata, buffers)
    if buffers + 4 + 16 * count > len(metadata):
        raise ArrowRefused("arrow_broken", "a list of buffers beyond its message")
    spans = np.frombuffer(metadata, dtype="<i8", count=2 * count, offset=buffers + 4).reshape(count, 2)
    offset, length = spans[:, 0], spans[:, 1]
    if count and (spans.min() < 0 or spans.max() > body_length or int((offset + length).max()) > body_length):
        raise ArrowRefused("arrow_broken", "a buffer beyond its message")
    stored = length.tolist()
    if _child(metadata, batch, 3) is None:
        return sum(stored)
    read = _LONG.unpack_from
    unpacked = [
        read(value, body + at)[0] if size >= 8 else -1 for at, size in zip(offset.tolist(), stored, strict=True)
    ]
    return sum(size if whole < 0 else whole for size, whole in zip(stored, unpacked, strict=True))


def _read(form: struct.Struct, data: bytes, at: int) -> int:
    if at < 0 or at + form.size > len(data):
        raise ArrowRefused("arrow_broken", "the stream is cut short: it has no end-of-stream mark")
    return int(form.unpack_from(data, at)[0])


def _slot(data: bytes, table: int, number: int) -> int | None:
    """Where field `number` of a flatbuffer table lies, None if it is absent."""
    vtable = table - _read(_INT, data, table)
    if 4 + 2 * number >= _read(_SHORT, data, vtable):
        return None
    offset = _read(_SHORT, data, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _field(data: bytes, table: int, number: int, form: struct.Struct) -> int:
    """A scalar field, 0 if it is absent."""
    at = _slot(data, table, number)
    return 0 if at is None else _read(form, data, at)


def _child(data: bytes, table: int, number: int) -> int | None:
    """Where the table or vector that field `number` refers to lies."""
    at = _slot(data, table, number)
    return None if at is None else at + _read(_UINT, data, at)
