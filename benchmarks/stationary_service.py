"""A stationary service as its reports: the timetable of an airport asks, and every answer has the same chance to fail.

Requests become the reports that a serving process would write: one a second, and early ones by the rule of the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from detectors.base import LogPoint, ReportAt, ReportEvent, TickAt
from palisade.demo.data import nyc_table
from schemas.events import LATENCY_BOUNDS_MS, CallerCounts, Report, RouteCounts

START_MS = 1_700_000_000_000
EARLY_EVERY_MS, EARLY_COUNT, REPORT_MS, IDLE_MS, MEMORY_MS = 250, 20, 1_000, 3_000, 60_000
MAX_NAMED = 100

ERRORS, TIMEOUTS = 0.004, 0.001
MEDIAN_MS, SPREAD = 8.0, 0.5
"""Log-normal latency."""
MOOD_MS = 10_000
CHUNK = 4_096

Requests = Iterable[tuple[int, str]]
Answered = Callable[[int, int], list[RouteCounts]]
"""The routes' counts of a report that ends at a moment (ms) after so many calls."""


def all_served(_: int, calls: int) -> list[RouteCounts]:
    return [RouteCounts(route="primary", served=calls)]


class ReportingGuard:
    """Writes the reports of one serving process; all calls are answered at once, as `answers` says."""

    def __init__(self, endpoint: str, answers: Answered = all_served) -> None:
        self.endpoint, self._answers = endpoint, answers
        self._seq = 0
        self._asked: Counter[str] = Counter()
        self._highest: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def reports(self, requests: Requests) -> Iterator[ReportEvent]:
        """Reports and ticks of `requests` (ms, caller), in time order. Quiet spells over 3 s are skipped."""
        opened, pending = -1, False
        for ms, caller in requests:
            if opened < 0:
                opened = ms
            while ms - opened >= REPORT_MS or (pending and ms - opened >= EARLY_EVERY_MS):
                quiet = not self._asked and ms - opened > IDLE_MS
                close = opened + (EARLY_EVERY_MS if pending else REPORT_MS)
                yield self._report(opened, close)
                yield TickAt(self._at(close + 10))
                opened, pending = (ms - ms % REPORT_MS if quiet else close), False
            self._asked[caller] += 1
            if not pending and self._early(caller, ms):
                pending = True
                if ms - opened >= EARLY_EVERY_MS:
                    yield self._report(opened, ms)
                    opened, pending = ms, False

    def _early(self, caller: str, ms: int) -> bool:
        asked = self._asked[caller]
        if asked <= EARLY_COUNT:
            return False
        recent = [count for at, count in self._highest[caller] if ms - at <= MEMORY_MS]
        return asked > 2 * max(recent, default=0)

    def _report(self, opened: int, close: int) -> ReportAt:
        for caller, count in self._asked.items():
            kept = [(at, seen) for at, seen in self._highest[caller] if close - at <= MEMORY_MS and seen > count]
            self._highest[caller] = [*kept, (close, count)]
        ranked = self._asked.most_common()
        total = sum(self._asked.values())
        callers = [
            CallerCounts(caller=caller, caller_auth="verified", asked=count, served=count)
            for caller, count in ranked[:MAX_NAMED]
        ]
        report = Report(
            endpoint=self.endpoint,
            guard_id="guard-1",
            boot_id="boot",
            seq=self._seq,
            from_ms=opened,
            to_ms=close,
            asked=total,
            routes=self._answers(close, total),
            callers=callers,
            rest_asked=sum(count for _, count in ranked[MAX_NAMED:]),
        )
        self._asked.clear()
        return ReportAt(report, True, self._at(close))

    def _at(self, ms: int) -> LogPoint:
        self._seq += 1
        return LogPoint("palisade.reports", 0, self._seq, 0, ms)


def flights(airport: str, per_s: float = 50.0, longest_gap_s: float = 0.5) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The departures of an airport in the order of the timetable, replayed: times in ms and carriers."""
    table = nyc_table("flights")
    table = table[table["origin"] == airport]
    minute = (table["month"] * 31 + table["day"]) * 1440 + table["hour"] * 60 + table["minute"]
    order = np.argsort(minute.to_numpy(), kind="stable")
    gaps = np.diff(minute.to_numpy()[order], prepend=minute.to_numpy()[order[0]]).astype(float)
    low, high = 0.0, 100.0
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(gaps * scale, longest_gap_s).mean() < 1 / per_s else (low, scale)
    times = np.cumsum(np.minimum(gaps * low, longest_gap_s)) * 1000
    return START_MS + times.astype(np.int64), [str(name) for name in table["carrier"].to_numpy()[order]]


class Answers:
    """What a healthy primary answers: errors, timeouts and latencies of chance.

    `bunched`: each ten seconds have shares and a speed of their own (gamma of mean 1 and variance 1, log-normal of 0.25),
    as where a cache, a neighbour or a network has its moods; else every call is by itself.
    """

    def __init__(self, rng: np.random.Generator, *, bunched: bool) -> None:
        self._rng, self._bunched = rng, bunched
        self._mood = -1
        self._shares = self._drawn(1.0, 1.0)

    def __call__(self, at_ms: int, calls: int) -> list[RouteCounts]:
        """Counts of `calls` answered by `at_ms`."""
        if self._bunched and at_ms // MOOD_MS != self._mood:
            self._mood = at_ms // MOOD_MS
            self._shares = self._drawn(float(self._rng.gamma(1.0)), float(np.exp(0.25 * self._rng.standard_normal())))
        errors, timeouts, *latency = self._rng.multinomial(calls, self._shares).tolist()
        return [RouteCounts(route="primary", served=sum(latency), errors=errors, timeouts=timeouts, latency=latency)]

    @staticmethod
    def _drawn(failing: float, slowness: float) -> npt.NDArray[np.float64]:
        """Chances of an error, of a timeout, and of each bucket of the latency histogram."""
        bad = np.array([ERRORS, TIMEOUTS]) * failing
        below = norm.cdf(np.log(np.array(LATENCY_BOUNDS_MS) / (MEDIAN_MS * slowness)) / SPREAD)
        return np.concatenate([bad, (1.0 - bad.sum()) * np.diff(below, prepend=0.0, append=1.0)])


def hours_of(
    times: npt.NDArray[np.int64], callers: list[str], hours: float, rng: np.random.Generator, *, in_order: bool
) -> Iterator[tuple[int, str]]:
    """Requests (ms, caller) of some hours at the rate of the timetable: from a moment of it on, round and round; or with
    gaps and callers drawn one by one."""
    ends_ms = START_MS + int(hours * 3_600_000)
    gaps = np.diff(times, prepend=times[0])
    at, ms = int(rng.integers(len(times))), float(START_MS)
    while ms < ends_ms:
        if in_order:
            order = (at + np.arange(CHUNK)) % len(times)
            steps = gaps[order].astype(np.float64)
            at += CHUNK
        else:
            order, steps = rng.integers(0, len(times), CHUNK), rng.exponential(gaps.mean(), CHUNK)
        moments = ms + np.cumsum(steps)
        yield from zip(moments.astype(np.int64).tolist(), [callers[k] for k in order.tolist()], strict=True)
        ms = float(moments[-1])
