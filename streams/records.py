"""Consecutive records of one partition as parallel lists, and the records that we send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from schemas.wire import KIND_HEADER

RawHeaders = Sequence[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True)
class Records:
    """n records of one partition in offset order; offsets may have gaps. timestamps: broker's ms."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    headers: Sequence[RawHeaders]
    offsets: Sequence[int]
    timestamps: Sequence[int]

    def __len__(self) -> int:
        return len(self.offsets)

    def part(self, start: int, stop: int) -> Records:
        """Records [start, stop)."""
        cut = slice(start, stop)
        return Records(self.values[cut], self.keys[cut], self.headers[cut], self.offsets[cut], self.timestamps[cut])


class Outgoing(NamedTuple):
    """A record to send; partition None: by the key."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    partition: int | None = None


def header_of(headers: RawHeaders, name: str) -> bytes | None:
    """The first header of that name."""
    for key, value in headers or ():
        if key == name:
            return value
    return None


class Headed(Protocol):
    """What has headers: a `confluent_kafka.Message`."""

    def headers(self) -> Any: ...
    def set_headers(self, headers: Any, /) -> Any: ...


UNREADABLE_KIND = b"unreadable"
"""The kind of records whose headers cannot be read; no topic holds it."""


def headers_of(message: Headed) -> RawHeaders:
    """The headers of a message, whatever they are."""
    try:
        return listed(message.headers())
    except SystemError:
        return replaced_headers(message)


def replaced_headers(message: Headed) -> list[tuple[str, bytes | None]]:
    """What stands for headers that raised SystemError: a name is not UTF-8, which whoever may write a topic can send.

    confluent-kafka 2.16 keeps its half-made list: asked for it again the process dies (cimpl `Message.headers`), so the
    message gets these in its place.
    """
    headers: list[tuple[str, bytes | None]] = [(KIND_HEADER, UNREADABLE_KIND)]
    message.set_headers(headers)
    return headers


def listed(headers: Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]] | None) -> RawHeaders:
    """Headers as confluent-kafka types them, as (name, bytes) pairs."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]
