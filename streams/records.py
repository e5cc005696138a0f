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

    def halves(self) -> tuple[Records, Records]:
        """Two parts of at least one record each, of two records or more: what bisection looks at next."""
        half = len(self) // 2
        return self.part(0, half), self.part(half, len(self))


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


def headers_of_all(messages: Sequence[Headed]) -> list[RawHeaders]:
    """The headers of messages [n] of one class, whatever they are; None or [] of one without.

    Whoever may write a topic can send a name that is not UTF-8: such a record has the one header that says that they cannot
    be read. confluent-kafka 2.16 answers there with a list *and* an exception. Called from C (`map`) that is found out at
    once; the interpreter's own fast call (PEP 659) would go on with the half-made list.
    """
    found: list[RawHeaders] = []
    asked = map(type(messages[0]).headers, messages) if messages else iter(())
    while len(found) < len(messages):
        try:
            found.extend(asked)
        except (SystemError, UnicodeDecodeError):
            unreadable = [(KIND_HEADER, UNREADABLE_KIND)]
            # it has kept the half-made list: asked for it again, the process would die
            messages[len(found)].set_headers(unreadable)
            found.append(unreadable)
    return found


def headers_of(message: Headed) -> list[tuple[str, bytes | None]]:
    """`headers_of_all` of one message; [] if it has none."""
    return list(headers_of_all([message])[0] or ())


def listed(headers: Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]] | None) -> RawHeaders:
    """Headers as confluent-kafka types them, as (name, bytes) pairs."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]
