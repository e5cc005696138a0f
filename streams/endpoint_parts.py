"""What the logs of reports and of labels share: their state is one part an endpoint, each with a bank of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from detectors.bank import Bank, Place
from detectors.base import LogPoint
from schemas.signals import Signal
from streams.one_event import Home
from streams.outgoing import dead_record, said
from streams.records import Outgoing, Records


class EndpointPart(Protocol):
    """What runs for one endpoint. `dirty`: changed since it was saved."""

    bank: Bank[Any]
    dirty: bool


Part = TypeVar("Part", bound=EndpointPart)


class EndpointParts(Generic[Part]):
    """The parts of one partition of a log whose records are one event each; `make` makes that of an endpoint, cold."""

    def __init__(self, home: Home, make: Callable[[str], Part]) -> None:
        self._home = home
        self._make = make
        self._running: dict[str, Part] = {}
        self._next = 0

    @property
    def restart(self) -> int:
        """Where a process that has all parts as they are now would read on."""
        return self._next

    def lost(self, first: int, last: int, at: LogPoint) -> list[Outgoing]:
        """What these endpoints' detectors concluded is not known to hold any more: records between were removed unread."""
        signals: list[Signal] = []
        for name, running in sorted(self._running.items()):
            signals += running.bank.lost([Place(name, name, None, at)], first, last)
            running.dirty = True
        return [said(signal) for signal in signals]

    def pass_over(self, record: Records, reason: str, quiet_below: int) -> list[Outgoing]:
        """The dead letter of the one record on which `take` raises."""
        (offset,) = record.offsets
        self._next = offset + 1
        letter = dead_record(self._home.topic, self._home.partition, record, 0, "handler_failed", reason)
        return [letter] if offset >= quiet_below else []

    def dirty(self) -> list[str]:
        """Parts that changed since they were saved."""
        return [name for name, running in self._running.items() if running.dirty]

    def unsaved(self, part: str) -> None:
        """The snapshot that was taken last did not reach the store."""
        self._running[part].dirty = True

    def forget(self, part: str) -> None:
        """Drops a part; it starts cold."""
        self._running.pop(part, None)

    def _part(self, name: str) -> Part:
        running = self._running.get(name)
        if running is None:
            running = self._running[name] = self._make(name)
        return running
