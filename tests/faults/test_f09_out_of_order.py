"""F9, duplicates and disorder: a producer's retries write a tenth of all records twice, and all come late by up to half a minute."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from responders.signing import SigningKey
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.ingest.predictions import INGEST_HEADER
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from tests.faults.ground import Ground
from tests.faults.load import Headers, Load
from tests.faults.stage import Setup, Stage
from tests.ingest.making import rows_of
from tests.support.waiting import until

pytestmark = [pytest.mark.fault("F9"), pytest.mark.shared, pytest.mark.slow]

TWICE = 0.1
BEATS = 200


class Disordered(Load):
    """Each record waits for a time of its own before it is sent, and some are sent twice: a request where its response is."""

    def __init__(self, stage: Stage, late_s: float, clock: Callable[[], float] = time.time) -> None:
        key = SigningKey.load(stage.stack.keys.producer)
        super().__init__(stage.connection, key, bounded=stage.setup.bounded, clock=clock)
        self._random = random.Random(9)
        self._late_s = late_s
        self._number = count()
        self._waiting: list[tuple[float, int, tuple[str, str, bytes, Headers, int]]] = []
        self.twice = 0
        self.calls: Counter[str] = Counter()

    def _send(self, topic: str, key: str, value: bytes, headers: Headers, rows: int) -> None:
        chosen = random.Random(key if topic in (REQUESTS, RESPONSES) else value)
        copies = 1 + (chosen.random() < TWICE)
        self.twice += copies - 1
        self.calls[topic] += copies
        for _ in range(copies):
            due = time.monotonic() + self._random.uniform(0.0, self._late_s)
            heapq.heappush(self._waiting, (due, next(self._number), (topic, key, value, headers, rows)))
        self._send_due(time.monotonic())

    def _send_due(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            super()._send(*heapq.heappop(self._waiting)[2])

    def stop(self) -> None:
        self._halt.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._send_due(float("inf"))
        super().stop()


def test_records_that_come_twice_and_in_another_order_end_once_each(ground: Ground) -> None:
    with ground.stage(Setup(kafka=ground.full)) as stage:
        load = Disordered(stage, late_s=30.0 if ground.full else 4.0)
        stage.load = load
        load.start()
        until(lambda: load.beats > (6 if ground.full else 1) * BEATS, "beats to be sent", 300.0, 0.2)
        stage.settle()
        ended_once_each(stage, ground, load)
        stage.prove()


def ended_once_each(stage: Stage, ground: Ground, load: Disordered) -> None:
    ground.made(load.twice)
    assert load.twice > 50
    assert paired(stage) == {"ok": load.calls[REQUESTS]}, "each copy of a request is a call, and found a response"


def paired(stage: Stage) -> Counter[str]:
    """By status, what ingest made of requests."""
    found: Counter[str] = Counter()
    for partition in range(stage.setup.partitions):
        for message in read_to_end(stage.connection, PREDICTIONS, partition):
            if header_of(headers_of(message), INGEST_HEADER) is not None:
                found.update(row["status"] for row in rows_of(message.value() or b""))
    return found
