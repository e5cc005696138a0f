"""The last report of each live guard of an endpoint: what several serving processes do is judged as one sum.

A guard that has not reported for `GUARD_LIVE_MS` of log time no longer counts. Reports that a producer's retry wrote twice
are told by `(boot_id, seq)` and count once. A report that nobody vouches for never stands in for a guard's signed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from detectors.base import ReportAt
from schemas.events import RouteCounts

GUARD_LIVE_MS = 3_000
MIN_INTERVAL_MS = 50
MAX_INTERVAL_MS = 5_000
WINDOW_MS = 1_000
"""Rates are counts of the last second: what was asked in any shorter time is a lower bound of it."""
MAX_GUARDS = 128
"""Guards of one endpoint at most; beyond, the unsigned or else the one silent longest makes room (120 bytes each)."""
_GRAIN = 256
"""Window counts are multiples of 1/256, so that sums of them are exact in any order."""


@dataclass(frozen=True, slots=True)
class GuardLine:
    """What counts of a guard's last report. `asked`: of its last second; `on_fallback`: it served fallback or probed."""

    guard: str
    boot: str
    seq: int
    at_ms: int
    interval_ms: int
    trusted: bool
    asked: float
    refused: int
    in_flight: int
    epoch: int
    fallback_ok: bool
    killed: bool
    live_version: str
    on_fallback: bool


def interval_of(event: ReportAt) -> int:
    """Milliseconds that a report covers, within 50 to 5,000 whatever it says."""
    return min(max(event.report.to_ms - event.report.from_ms, MIN_INTERVAL_MS), MAX_INTERVAL_MS)


def window_count(asked: int, interval_ms: int, before: float) -> float:
    """Asks of the last second: those of the report, and of the second before it what still lies inside.

    `before` is the last such count; it is taken as evenly spread (the sliding window counter).
    """
    count = asked * min(1.0, WINDOW_MS / interval_ms) + before * max(0.0, 1.0 - interval_ms / WINDOW_MS)
    return round(count * _GRAIN) / _GRAIN


class LiveGuards:
    """The guards of one endpoint, by `guard_id` and by whether their reports are believed."""

    def __init__(self) -> None:
        self._lines: dict[str, GuardLine] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[GuardLine]:
        return iter(self._lines.values())

    def _importance(self, key: str) -> tuple[bool, int, str]:
        """Who makes room first: unsigned reports of ever new guards must not push out a signed one's."""
        line = self._lines[key]
        return line.trusted, line.at_ms, key

    @staticmethod
    def key_of(event: ReportAt) -> str:
        return f"{'+' if event.trusted else '-'}{event.report.guard_id}"

    def take(self, event: ReportAt) -> bool:
        """Lets a report count as its guard's last; False if it was counted before."""
        report, key = event.report, self.key_of(event)
        last = self._lines.get(key)
        if last is not None and last.boot == report.boot_id and report.seq <= last.seq:
            return False
        if last is None and len(self._lines) >= MAX_GUARDS:
            del self._lines[min(self._lines, key=self._importance)]
        interval = interval_of(event)
        self._lines[key] = GuardLine(
            guard=report.guard_id,
            boot=report.boot_id,
            seq=report.seq,
            at_ms=event.at.ms,
            interval_ms=interval,
            trusted=event.trusted,
            asked=window_count(report.asked, interval, last.asked if last is not None else 0.0),
            refused=report.refused,
            in_flight=report.in_flight,
            epoch=report.epoch_applied,
            fallback_ok=report.fallback_ok,
            killed=report.killed,
            live_version=report.live_version,
            on_fallback=any(route.route != "primary" and calls_of(route) > 0 for route in report.routes),
        )
        return True

    def expire(self, now_ms: int) -> list[str]:
        """Drops the guards that have been silent too long by `now_ms`; gives their keys."""
        gone = [key for key, line in self._lines.items() if now_ms - line.at_ms > GUARD_LIVE_MS]
        for key in gone:
            del self._lines[key]
        return gone

    def believed(self) -> list[GuardLine]:
        """The guards whose reports are signed; all of them if none is."""
        trusted = [line for line in self._lines.values() if line.trusted]
        return trusted or list(self._lines.values())

    @property
    def asked(self) -> float:
        """Asks of the last second, over all live guards."""
        return sum(line.asked for line in self._lines.values())

    def saved(self) -> list[tuple[Any, ...]]:
        """Plain values for a snapshot, in order."""
        return [astuple(line) for line in self._lines.values()]

    def take_back(self, saved: Sequence[Sequence[Any]]) -> None:
        """What `saved` gave; TypeError on anything else."""
        lines = [GuardLine(*line) for line in saved]
        self._lines = {f"{'+' if line.trusted else '-'}{line.guard}": line for line in lines}


def calls_of(route: RouteCounts) -> int:
    """Calls that a route finished: an error or a timeout is not `served`."""
    return route.served + route.errors + route.timeouts
