"""Reports and ticks for tests: a guard that counts what it is told, in a log whose time the test sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from detectors.base import LogPoint, Reading, ReportAt, ReportEvent, TickAt
from schemas.events import LATENCY_BUCKETS, CallerCounts, Report, RouteCounts

START_MS = 1_700_000_000_000
ENDPOINT = "credit"


class Log:
    """Appends reports and ticks to one partition; `at_ms` is the log's time since its start."""

    def __init__(self, partition: int = 0) -> None:
        self.at_ms = 0
        self._partition = partition
        self._offset = 0
        self._seq: dict[str, int] = {}

    def point(self) -> LogPoint:
        self._offset += 1
        return LogPoint("palisade.reports", self._partition, self._offset, 0, START_MS + self.at_ms)

    def tick(self, after_ms: int = 1_000) -> TickAt:
        self.at_ms += after_ms
        return TickAt(self.point())

    def report(
        self,
        asked: Mapping[str, int] | None = None,
        *,
        after_ms: int = 1_000,
        interval_ms: int | None = None,
        guard: str = "g1",
        endpoint: str = ENDPOINT,
        auth: str = "verified",
        refused: Mapping[str, int] | None = None,
        trusted: bool = True,
        routes: Sequence[RouteCounts] | None = None,
        **fields: Any,
    ) -> ReportAt:
        """A guard's report `after_ms` later, of the `interval_ms` before it."""
        self.at_ms += after_ms
        asked, refused = asked or {}, refused or {}
        self._seq[guard] = self._seq.get(guard, 0) + 1
        to_ms = START_MS + self.at_ms
        callers = [
            CallerCounts(
                caller=name,
                caller_auth=auth,
                asked=count,
                served=count - refused.get(name, 0),
                refused=refused.get(name, 0),
            )
            for name, count in asked.items()
        ]
        report = Report(
            endpoint=endpoint,
            guard_id=guard,
            boot_id="boot",
            seq=self._seq[guard],
            from_ms=to_ms - (interval_ms or after_ms or 1_000),
            to_ms=to_ms,
            callers=callers,
            routes=list(routes) if routes is not None else [primary(sum(asked.values()))],
            **{"asked": sum(asked.values()), "refused": sum(refused.values()), "fallback_ok": True, **fields},
        )
        return ReportAt(report, trusted, self.point())


def primary(served: int, *, errors: int = 0, timeouts: int = 0, bucket: int = 4, route: str = "primary") -> RouteCounts:
    """A route's counts; all answers took as long as `bucket` of the histogram says (4: 0.7 to 1 ms)."""
    latency = [0] * LATENCY_BUCKETS
    latency[bucket] = served
    return RouteCounts(route=route, served=served, errors=errors, timeouts=timeouts, latency=latency)


def crowd(seed: int, callers: int = 12, rate: float = 50.0) -> Callable[[], dict[str, int]]:
    """Seconds of real-looking traffic: the heaviest caller has about a third of `rate`, the lightest next to nothing."""
    random = np.random.default_rng(seed)
    shares = 0.6 ** np.arange(callers)
    shares = shares / shares.sum()

    def second() -> dict[str, int]:
        counts = random.poisson(shares * rate)
        return {f"caller-{number}": int(count) for number, count in enumerate(counts) if count}

    return second


def quiet_log(seed: int, seconds: int, log: Log | None = None) -> list[ReportEvent]:
    """Seconds of a crowd's reports with ticks between."""
    log, second = log or Log(), crowd(seed)
    events: list[ReportEvent] = []
    for _ in range(seconds):
        events += [log.report(second()), log.tick(after_ms=0)]
    return events


def firing(readings: Sequence[Reading], kind: str) -> list[Reading]:
    return [reading for reading in readings if reading.kind == kind and reading.firing]


def cuts(events: Sequence[ReportEvent], seed: int) -> list[Sequence[ReportEvent]]:
    """The same events in batches of random size."""
    random, batches, at = np.random.default_rng(seed), [], 0
    while at < len(events):
        size = int(random.integers(1, 9))
        batches.append(events[at : at + size])
        at += size
    return batches
