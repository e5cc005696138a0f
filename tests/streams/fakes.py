"""Stand-ins for what a role sends to and saves in, whose confirmations the test decides about."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streams.snapshots import Saved
from streams.transport.ledger import Ledger
from streams.transport.outbox import Confirmed
from streams.transport.run import TP, Run
from tests.transport.fakes import FakeRecord


@dataclass
class Sent:
    """A record that was sent; the test settles its future."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    partition: int | None
    future: asyncio.Future[Confirmed]


class FakeOutbox:
    """An outbox in memory. `confirms`: whether records are confirmed as they are sent."""

    def __init__(self, *, confirms: bool = True) -> None:
        self.confirms = confirms
        self.sent: list[Sent] = []

    def send(
        self, topic: str, key: Any, value: bytes | None, headers: Any = (), partition: int | None = None
    ) -> asyncio.Future[Confirmed]:
        future: asyncio.Future[Confirmed] = asyncio.get_running_loop().create_future()
        self.sent.append(Sent(topic, key, value, dict(headers), partition, future))
        if self.confirms:
            self.confirm()
        return future

    async def room(self, size: int) -> None:
        """There is always room."""

    def confirm(self) -> None:
        """The broker has all that was sent so far."""
        for number, sent in enumerate(self.sent):
            if not sent.future.done():
                sent.future.set_result(Confirmed(sent.topic, sent.partition or 0, number, 0))

    def lose(self, error: Exception) -> None:
        """The broker took none of what waits."""
        for sent in self.sent:
            if not sent.future.done():
                sent.future.set_exception(error)

    def of(self, topic: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.topic == topic]


@dataclass
class FakeStore:
    """A snapshot store in memory; `away`: it raises. `saves` are the manifests in the order in which they came."""

    parts: dict[tuple[str, int], dict[str, bytes]] = field(default_factory=dict)
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    saves: list[tuple[dict[str, bytes], int]] = field(default_factory=list)
    away: bool = False

    async def load(self, log: str, partition: int) -> Saved:
        place = (log, partition)
        return Saved(self.starts.get(place), dict(self.parts.get(place, {})))

    async def save(self, log: str, partition: int, parts: Mapping[str, bytes], start: int) -> None:
        if self.away:
            raise OSError("the store is away")
        self.parts.setdefault((log, partition), {}).update(parts)
        self.starts[log, partition] = start
        self.saves.append((dict(parts), start))


def run_of(tp: TP, first: int, count: int, failures: list[BaseException] | None = None) -> Run:
    """A run of `count` records from offset `first`, as the transport hands it over."""
    lost = failures if failures is not None else []
    ledger = Ledger(on_failure=lambda _, error: lost.append(error))
    ledger.add(tp, [FakeRecord(offset, topic=tp.topic) for offset in range(first, first + count)], 0.0)
    (run,) = ledger.take({tp})[tp]
    return run


async def no_pause() -> float:
    """Work that has the loop for itself; it is told that some of it took long."""
    return 0.02


async def settled() -> None:
    """Lets everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)
