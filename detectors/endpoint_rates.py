"""What an endpoint is asked in all, against its own pattern: too much (`endpoint_rate`) and nothing (`silence`).

Both warn only: a crowd is no attack by itself, and an adaptive alarm alone never asks for an endpoint-wide action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detectors.base import LogPoint, Reading
from detectors.caller_table import BUCKET_MS, CallerTable
from detectors.guards import GUARD_LIVE_MS, WINDOW_MS
from detectors.rate_pattern import DAYS_30_S, MIN_COUNT, PatternFactors, own_limits, with_count_noise
from schemas.events import CallerAuth
from schemas.signals import Evidence

WARM_UP_MS = 60_000
LEVEL_MS = 300_000
"""Time constant of the level that says whether an endpoint is in use."""
IN_USE_PER_S = 1.0
SHORTEST_GAP_MS = 10_000
NEVER_MS = 30.0 * 86_400_000
LONGEST_LEARNED_GAP_MS = 1_200_000
GAP_HALF_LIFE_MS = 7 * 86_400_000
ADAPT_AFTER_MS = 900_000
"""A level that has lasted so long above its threshold is learned: it is the new pattern."""
SAY_EVERY_MS, SAY_QUIET_EVERY_MS = 1_000, 10_000

ReadingOf = Callable[..., Reading]
Shares = tuple[tuple[str, CallerAuth, float], ...]
Who = Callable[[], tuple[Shares, Evidence]]
"""Asked where a reading is due: whose asks these are, and who asked more than usual."""
_KEY = 1


@dataclass(slots=True)
class _Alarm:
    """Hysteresis and pace of one kind of reading. `open_since_ms`: it fired, and has not been calm since."""

    threshold: float = 0.0
    open_since_ms: int | None = None
    first_ms: int = 0
    calm_since_ms: int = 0
    said_ms: int = 0
    said: int = -1

    def due(self, now_ms: int, linger_ms: int, firing: bool, calm: bool, known: bool) -> bool:
        """True at each change, once a second while open or lately so, else each ten seconds."""
        state = 4 * firing + 2 * calm + known
        lately = self.first_ms > 0 and now_ms - self.calm_since_ms < linger_ms
        pace = SAY_EVERY_MS if self.open_since_ms is not None or lately else SAY_QUIET_EVERY_MS
        if state == self.said and now_ms - self.said_ms < pace:
            return False
        self.said, self.said_ms = state, now_ms
        return True

    def follow(self, now_ms: int, firing: bool, calm: bool, first_ms: int) -> None:
        """Opens when it fires, closes when calm."""
        if firing and self.open_since_ms is None:
            self.open_since_ms, self.first_ms = now_ms, first_ms
        elif calm and self.open_since_ms is not None:
            self.open_since_ms, self.calm_since_ms = None, now_ms


class EndpointRates:
    """State of one endpoint's sum. `rate_alarms`, `gap_alarms`: budgets of false alarms in 30 days."""

    def __init__(
        self, rate_alarms: float, gap_alarms: float, linger_ms: int, factors: PatternFactors, reading_of: ReadingOf
    ) -> None:
        self._table = CallerTable(1)
        self._gap_alarms = gap_alarms
        buckets = DAYS_30_S / 5.0
        # a normal quantile of log peaks of buckets, at the budget over the buckets of 30 days
        spread = math.sqrt(2.0 * math.log(buckets / max(rate_alarms, 1e-9)))
        self._factors = PatternFactors(own=factors.own_pattern, own_pattern=factors.own, own_spread=spread)
        self._linger_ms = linger_ms
        self._reading_of = reading_of
        self._rate, self._gap = _Alarm(), _Alarm()
        self._first_ms = self._asked_ms = self._reported_ms = 0
        self._level = 0.0
        self._limit, self._limit_bucket = MIN_COUNT, 0
        self._longest_gap_ms = self._longest_pause_ms = 0.0

    def usual_rate(self, now_ms: int) -> float:
        """What the endpoint is usually asked a second; 0 in its first 10 s."""
        return float(np.nan_to_num(self._table.usual_rates(np.zeros(1, np.int64), now_ms)[0]))

    def report(self, at: LogPoint, asked: int, window: float, who: Who) -> list[Reading]:
        """`asked` in this report, `window`: count of the last second over all guards."""
        if not self._first_ms:
            self._first_ms = self._asked_ms = self._reported_ms = at.ms
            self._table.add(_KEY, "verified", at.ms)
        readings = self._silence(at, asked > 0)
        self._learn_gaps(at.ms, asked)
        return readings + self._level_of(at, asked, window, who)

    def tick(self, at: LogPoint, window: float) -> list[Reading]:
        """Time has passed."""
        return self._silence(at, False) + self._level_of(at, 0, window, lambda: ((), {}))

    def _level_of(self, at: LogPoint, asked: int, window: float, who: Who) -> list[Reading]:
        rows, now_ms, alarm, columns = np.zeros(1, np.int64), at.ms, self._rate, self._table.columns
        if now_ms // BUCKET_MS != self._limit_bucket:
            self._table.roll(rows, now_ms)
            self._limit_bucket, self._limit = now_ms // BUCKET_MS, self._pattern_limit(now_ms)
        known = now_ms - self._first_ms >= WARM_UP_MS
        limit, peak = self._limit, float(columns["peak"][0])
        if alarm.open_since_ms is None:
            alarm.threshold = limit
        elif now_ms - alarm.open_since_ms > ADAPT_AFTER_MS:
            alarm.threshold = max(alarm.threshold, limit)
        firing = known and window > alarm.threshold
        calm = known and window < min(max(alarm.threshold / 2.0, peak), 0.9 * alarm.threshold)
        alarm.follow(now_ms, firing, calm, now_ms - WINDOW_MS)
        learns = alarm.open_since_ms is None or now_ms - alarm.open_since_ms > ADAPT_AFTER_MS
        columns["firing"][0] = not learns
        self._table.note(rows, np.array([float(asked)]), np.array([window]), now_ms)
        if not alarm.due(now_ms, self._linger_ms, firing, calm, known):
            return []
        shares, attributed = who()
        evidence: dict[str, Any] = {"own_peak": peak, "usual_per_s": float(columns["rate"][0])} | (
            attributed if firing else {}
        )
        return [self._said("endpoint_rate", at, alarm, window, (firing, calm, known), shares, evidence)]

    def _pattern_limit(self, now_ms: int) -> float:
        """Own pattern after an hour; before it, a margin over the peak so far. It moves only when a bucket closes."""
        rows = np.zeros(1, np.int64)
        early = float(with_count_noise(self._table.columns["peak"][rows].astype(np.float64), self._factors.own)[0])
        pattern = float(own_limits(self._table, rows, now_ms, self._factors)[0])
        return max(MIN_COUNT, early if math.isinf(pattern) else pattern)

    def _silence(self, at: LogPoint, asked: bool) -> list[Reading]:
        now_ms, alarm = at.ms, self._gap
        known = now_ms - self._first_ms >= WARM_UP_MS
        gap, pause = now_ms - self._asked_ms, now_ms - self._reported_ms
        gap_limit, pause_limit = self._gap_limits()
        by_pause = pause / pause_limit > gap / gap_limit
        silent_ms, limit = (pause, pause_limit) if by_pause else (gap, gap_limit)
        firing = known and not asked and silent_ms > limit
        calm = known and (asked or silent_ms < limit / 2.0)
        alarm.follow(now_ms, firing, calm, now_ms - silent_ms)
        alarm.threshold = limit / 1000.0
        if not alarm.due(now_ms, self._linger_ms, firing, calm, known):
            return []
        evidence: dict[str, Any] = {"asked_per_s_before": self._level, "reports_missing": pause > GUARD_LIVE_MS}
        return [self._said("silence", at, alarm, silent_ms / 1000.0, (firing, calm, known), (), evidence)]

    def _gap_limits(self) -> tuple[float, float]:
        """Milliseconds without an ask, and without a report, that are out of pattern."""
        pause = max(float(SHORTEST_GAP_MS), 3.0 * self._longest_pause_ms)
        if self._level < IN_USE_PER_S:
            return NEVER_MS, pause
        # of exponential gaps at this level, 30 days hold level * DAYS_30_S: the longest one at the budget
        poisson = 1000.0 * math.log(self._level * DAYS_30_S / self._gap_alarms) / self._level
        return max(float(SHORTEST_GAP_MS), 3.0 * self._longest_gap_ms, poisson), pause

    def _learn_gaps(self, now_ms: int, asked: int) -> None:
        """Gaps are learned when they end; one that alarmed counts a third, so that its like is just expected next time."""
        divisor = 3.0 if self._gap.first_ms >= self._asked_ms else 1.0
        pause, gap = now_ms - self._reported_ms, now_ms - self._asked_ms
        fade = 0.5 ** (pause / GAP_HALF_LIFE_MS)
        self._longest_pause_ms = min(max(self._longest_pause_ms * fade, pause / divisor), LONGEST_LEARNED_GAP_MS)
        self._longest_gap_ms *= fade
        self._reported_ms = now_ms
        if asked <= 0:
            return
        self._longest_gap_ms = min(max(self._longest_gap_ms, gap / divisor), LONGEST_LEARNED_GAP_MS)
        memory_ms = min(max(now_ms - self._first_ms, 1), LEVEL_MS)
        self._level += (1.0 - math.exp(-gap / memory_ms)) * (asked * 1000.0 / max(gap, 1) - self._level)
        self._asked_ms = now_ms

    def _said(
        self,
        kind: str,
        at: LogPoint,
        alarm: _Alarm,
        score: float,
        state: tuple[bool, bool, bool],
        shares: Shares,
        evidence: dict[str, Any],
    ) -> Reading:
        firing, calm, known = state
        return self._reading_of(
            kind=kind,
            subject_kind="endpoint",
            score=score,
            threshold=alarm.threshold,
            firing=firing,
            calm=calm,
            known=known,
            severity="warning",
            at=at,
            first_ms=alarm.first_ms if firing else at.ms,
            shares=shares,
            evidence=evidence,
        )

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and columns for a snapshot."""
        times = [self._first_ms, self._asked_ms, self._reported_ms]
        levels = [self._level, self._longest_gap_ms, self._longest_pause_ms]
        alarms = [list(asdict(alarm).values()) for alarm in (self._rate, self._gap)]
        return {
            "times": times,
            "levels": levels,
            "alarms": alarms,
            "limit": [self._limit, self._limit_bucket],
        }, self._table.saved()

    def take_back(self, values: Mapping[str, Any], columns: dict[str, Any]) -> None:
        """What `saved` gave; KeyError, TypeError or ValueError on anything else."""
        self._first_ms, self._asked_ms, self._reported_ms = values["times"]
        self._level, self._longest_gap_ms, self._longest_pause_ms = values["levels"]
        self._limit, self._limit_bucket = values["limit"]
        self._rate, self._gap = (_Alarm(*alarm) for alarm in values["alarms"])
        self._table.take_back(columns)
