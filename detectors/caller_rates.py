"""Callers of one endpoint over their pattern: thresholds, offenders, readings of kind `caller_rate`.

Evidence is sequential: the count of the last second is a lower bound of what that second will hold, so an early report may
cross the limit as soon as the count does. Within a report shorter than a second, a count is also compared with the limit
times the square root of the time it covers: between one burst (the whole limit) and an even flow (its share).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detectors.base import LogPoint, Reading, ReportAt
from detectors.caller_table import BUCKET_MS, DTYPES, CallerTable, Floats, Slots, caller_key
from detectors.caller_windows import CallerWindows
from detectors.guards import MAX_ASKED, WINDOW_MS, Counted, interval_of
from detectors.rate_pattern import (
    MIN_CALLERS,
    MIN_COUNT,
    OWN_PATTERN_AFTER_S,
    WARM_UP_S,
    PatternFactors,
    callers_to_come,
    hard_limit,
    lift_by_others,
    own_floors,
    own_limits,
    predictive_peak,
)
from schemas.config import EndpointConfig
from schemas.events import CallerAuth
from schemas.signals import Severity

MAX_OFFENDERS = 64
"""Verified callers, and as many claimed ones, that are followed until they have been calm for long; beyond, the one calm
longest of the same kind makes room (200 bytes each)."""
SAY_EVERY_MS = 1_000
SHORTEST_MS = 250
CRITICAL_FACTOR = 3.0
ATLAS = ("AML.T0029",)

ReadingOf = Callable[..., Reading]


@dataclass(slots=True)
class Offender:
    """A caller that passed its limit, followed by name until it has been calm for long."""

    caller: str
    auth: CallerAuth
    threshold: float
    exit: float
    reason: str
    first_ms: int
    firing: bool = True
    calm_since_ms: int | None = None
    said_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Judged:
    """One report's callers: rows of the table, what each asked, its statistic and limits."""

    names: Sequence[tuple[str, CallerAuth]]
    rows: Slots
    asked: Floats
    interval_ms: int
    score: Floats
    limit: Floats
    firing: np.ndarray[Any, np.dtype[np.bool_]]


class CallerRates:
    """State of one endpoint's callers. `alarms`: the budget of false alarms in 30 days.

    `crowd`: gives the endpoint's pattern, where these callers have no part in it.
    """

    def __init__(
        self,
        config: EndpointConfig | None,
        alarms: float,
        max_callers: int,
        linger_ms: int,
        factors: PatternFactors,
        reading_of: ReadingOf,
        crowd: Callable[[], float] | None = None,
    ) -> None:
        self.table = CallerTable(max_callers)
        self.hard_limit = hard_limit(config.caller_rate_max if config is not None else None)
        self.crowd_limit = math.inf
        self._alarms = alarms
        self._linger_ms = linger_ms
        self._factors = factors
        self._reading_of = reading_of
        self._crowd = crowd
        self.windows = CallerWindows()
        self._offenders: dict[int, Offender] = {}
        self._first_ms = 0
        self._first_hour = [0, 0]
        self._refreshed_s = 0

    @property
    def known(self) -> bool:
        """True once anything can be said of a caller without an own pattern."""
        return math.isfinite(self.crowd_limit) or math.isfinite(self.hard_limit)

    def report(self, event: ReportAt, counted: Counted) -> list[Reading]:
        """Judges the callers of a report at its arrival."""
        now_ms = event.at.ms
        if not self._first_ms and event.report.callers:
            self._first_ms = (
                now_ms  # an idle endpoint shows no pattern: its first seconds of traffic must be waited for
            )
        self._refresh(now_ms)
        judged = self._judge(event, counted)
        self._follow(event.at, judged)
        return self._say(event.at, judged)

    def tick(self, at: LogPoint, guards_live: bool) -> list[Reading]:
        """Time has passed: offenders that no report names any more."""
        self._refresh(at.ms)
        return self._say(at, None, known=guards_live)

    def weights(self, event: ReportAt) -> dict[tuple[str, CallerAuth], float]:
        """Counts of the last second, over all guards, of the callers that `event` names."""
        found = {}
        for caller, auth in {(caller.caller, auth_in(event, caller.caller_auth)) for caller in event.report.callers}:
            slot = self.table.slot_of(caller_key(caller, auth))
            count = 0.0 if slot is None else self.windows.total(slot, event.at.ms)
            if count > 0:
                found[caller, auth] = count
        return found

    def usual_rates(self, names: Sequence[tuple[str, CallerAuth]], now_ms: int) -> Floats:
        """What known callers usually ask a second [names]; 0 of those that came in the last 10 s."""
        slots = [self.table.slot_of(caller_key(*name)) for name in names]
        rows = np.array([-1 if slot is None else slot for slot in slots], np.int64)
        return np.where(rows < 0, 0.0, np.nan_to_num(self.table.usual_rates(rows, now_ms)))

    def _refresh(self, now_ms: int) -> None:
        """Closes buckets of the log's time, and reads the crowd's limit off the table again: each second until known."""
        second = now_ms // 1000
        rolled = second * 1000 // BUCKET_MS > self._refreshed_s * 1000 // BUCKET_MS
        if second <= self._refreshed_s or not (rolled or math.isinf(self.crowd_limit)):
            return
        if rolled:
            self.table.roll(self.table.occupied, now_ms)
        self._refreshed_s = second
        age_s = (now_ms - self._first_ms) / 1000.0 if self._first_ms else 0.0
        if age_s <= OWN_PATTERN_AFTER_S:
            self._first_hour = [self.table.created[False], self.table.created[True]]
        self.crowd_limit = self._crowd() if self._crowd is not None else self._crowd_limit(age_s)

    def _crowd_limit(self, age_s: float) -> float:
        columns, (rows, only_verified) = self.table.columns, self._crowd_rows()
        if len(rows) < MIN_CALLERS or age_s < WARM_UP_S:
            return math.inf
        counted = [True] if only_verified else [True, False]
        known = sum(self.table.created[kind] for kind in counted)
        first_hour = sum(self._first_hour[kind] for kind in counted)
        alpha = min(max(self._alarms / callers_to_come(known, first_hour, age_s), 1e-6), 0.05)
        return max(MIN_COUNT, predictive_peak(columns["peak"][rows].astype(np.float64), alpha, self._factors))

    def _crowd_rows(self) -> tuple[Slots, bool]:
        """Callers who make the endpoint's pattern; True if only verified ones do, as they are enough: anybody may invent others."""
        columns, rows = self.table.columns, self.table.occupied
        rows = rows[(columns["firing"][rows] == 0) & (columns["peak"][rows] > 0)]
        verified = rows[columns["verified"][rows] == 1]
        return (verified, True) if len(verified) >= MIN_CALLERS else (rows, False)

    def _judge(self, event: ReportAt, counted: Counted) -> _Judged:
        asked_by: dict[int, tuple[str, CallerAuth, int]] = {}
        for caller in event.report.callers:
            auth = auth_in(event, caller.caller_auth)
            key = caller_key(caller.caller, auth)
            before = asked_by.get(key)
            asked = min(caller.asked + (before[2] if before else 0), MAX_ASKED)
            asked_by[key] = (caller.caller, auth, asked)
        now_ms, interval_ms = event.at.ms, interval_of(event.report)
        placed = self._place(asked_by, now_ms)
        rows = np.array([slot for slot, _ in placed], np.int64)
        asks = np.array([asked_by[key][2] for _, key in placed], np.float64)
        self.table.roll(rows, now_ms)
        window = self.windows.count(counted, rows, asks, interval_ms, now_ms)
        # a report is judged by what it says itself, whatever of it could be kept beside what others said
        total = np.maximum(self.windows.totals(rows, now_ms), window)
        short = asks / math.sqrt(max(interval_ms, SHORTEST_MS) / WINDOW_MS) * (interval_ms < WINDOW_MS)
        counts = total - window + np.maximum(window, short)
        score = np.where(asks >= MIN_COUNT, counts, total)
        limit = self._limits(rows, now_ms)
        over = (score > limit) & (total >= MIN_COUNT)
        if over.any():
            limit[over] *= self._lifts(rows[over], rows, counts, now_ms)
        firing = (over & (score > limit)) | (total > self.hard_limit)
        names = [asked_by[key][:2] for _, key in placed]
        self.table.note(rows[~firing], asks[~firing], total[~firing], now_ms)
        self.table.columns["seen_s"][rows] = now_ms // 1000
        return _Judged(names, rows, asks, interval_ms, score, np.minimum(limit, self.hard_limit), firing)

    def _limits(self, rows: Slots, now_ms: int) -> Floats:
        limit = np.minimum(own_limits(self.table, rows, now_ms, self._factors), self.crowd_limit)
        floor = np.maximum(own_floors(self.table, rows, now_ms, self._factors), MIN_COUNT)
        return np.maximum(limit, floor)

    def _lifts(self, over: Slots, rows: Slots, counts: Floats, now_ms: int) -> Floats:
        """Of the callers `over` their limit: by what all others ask now, `counts` where a report of `rows` says more of them.

        Looks at the whole table: 0.1 ms for each, in the largest.
        """
        crowd, _ = self._crowd_rows()
        peaks, now = self.table.columns["peak"].astype(np.float64), np.zeros(self.table.capacity)
        now[crowd] = self.windows.totals(crowd, now_ms)
        now[rows] = counts
        lifts = np.full(len(over), lift_by_others(now[crowd], peaks[crowd]))
        own_part = np.flatnonzero(np.isin(over, crowd))[:MAX_OFFENDERS]
        for place in own_part:  # who is one of the crowd does not speak for itself
            others = crowd[crowd != over[place]]
            lifts[place] = lift_by_others(now[others], peaks[others])
        return lifts

    def _place(self, asked_by: Mapping[int, tuple[str, CallerAuth, int]], now_ms: int) -> list[tuple[int, int]]:
        """A row for each caller, (row, key); the least interesting others make room."""
        slots = {key: self.table.slot_of(key) for key in asked_by}
        new = [key for key, slot in slots.items() if slot is None]
        kept = np.array([slot for slot in slots.values() if slot is not None], np.int64)
        for key in new:
            slot = self.table.add(key, asked_by[key][1], now_ms)
            if slot is None:
                self.windows.forget(self.table.make_room(now_ms, kept))
                slot = self.table.add(key, asked_by[key][1], now_ms)
            if slot is not None:
                slots[key] = slot
                kept = np.append(kept, slot)
        self.windows.grow(self.table.capacity)
        return [(slot, key) for key, slot in slots.items() if slot is not None]

    def _follow(self, at: LogPoint, judged: _Judged) -> None:
        """Takes up new offenders."""
        columns = self.table.columns
        for index in map(int, np.flatnonzero(judged.firing)):
            slot = int(judged.rows[index])
            key = int(columns["key"][slot])
            limit, peak = float(judged.limit[index]), float(columns["peak"][slot])
            offender = self._offenders.get(key)
            if offender is not None and offender.calm_since_ms is None:
                continue
            caller, auth = judged.names[index]
            if offender is None and not self._room_for(auth):
                continue
            exit_at = min(max(limit / 2.0, peak), 0.9 * limit)
            said_ms = 0 if offender is None else offender.said_ms
            first_ms = at.ms - judged.interval_ms
            self._offenders[key] = Offender(
                caller, auth, limit, exit_at, self._reason(limit), first_ms, said_ms=said_ms
            )
            columns["firing"][slot] = 1
            columns["newest"][slot] = min(float(columns["newest"][slot]), exit_at)

    def _reason(self, limit: float) -> str:
        if limit >= self.hard_limit:
            return "hard_bound"
        return "endpoint_pattern" if limit >= self.crowd_limit else "own_pattern"

    def _room_for(self, auth: CallerAuth) -> bool:
        """Whether one more caller of a kind can be followed; the one calm longest makes room, and is heard of no more."""
        alike = {key: one for key, one in self._offenders.items() if one.auth == auth}
        if len(alike) < MAX_OFFENDERS:
            return True
        calm = {key: one.calm_since_ms for key, one in alike.items() if one.calm_since_ms is not None}
        if not calm:
            return False
        del self._offenders[min(calm, key=lambda key: (calm[key], key))]
        return True

    def _say(self, at: LogPoint, judged: _Judged | None, *, known: bool = True) -> list[Reading]:
        """Readings of offenders: at each change, else once a second."""
        readings = []
        index_of = {} if judged is None else {int(row): index for index, row in enumerate(judged.rows)}
        for key, offender in list(self._offenders.items()):
            slot = self.table.slot_of(key)
            index = None if slot is None else index_of.get(slot)
            count = 0.0 if slot is None else self.windows.total(slot, at.ms)
            score = count if judged is None or index is None else float(judged.score[index])
            changed = self._calmed(offender, slot, score, at.ms) if known else False
            if offender.calm_since_ms is not None and at.ms - offender.calm_since_ms > self._linger_ms:
                del self._offenders[key]
                continue
            if not changed and offender.said_ms and at.ms - offender.said_ms < SAY_EVERY_MS:
                continue
            offender.said_ms = at.ms
            rate = count
            if judged is not None and index is not None:
                rate = max(count, float(judged.asked[index]) * 1000.0 / max(judged.interval_ms, SHORTEST_MS))
            readings.append(self._reading(at, offender, slot, score, rate, known))
        return readings

    def _calmed(self, offender: Offender, slot: int | None, score: float, now_ms: int) -> bool:
        """Follows an offender through its exit threshold; True if that changed anything or nothing was said yet."""
        before = (offender.firing, offender.calm_since_ms is not None) if offender.said_ms else None
        if score > offender.threshold:
            offender.firing, offender.calm_since_ms = True, None
        else:
            offender.firing = False
            if score >= offender.exit:
                offender.calm_since_ms = None
            elif offender.calm_since_ms is None:
                offender.calm_since_ms = now_ms
        if slot is not None:
            self.table.columns["firing"][slot] = offender.calm_since_ms is None
        return before != (offender.firing, offender.calm_since_ms is not None)

    def _reading(
        self, at: LogPoint, offender: Offender, slot: int | None, score: float, rate: float, known: bool
    ) -> Reading:
        usual: float | None = None
        evidence: dict[str, Any] = {"reason": offender.reason, "count_of_a_second": round(score, 3)}
        if slot is not None:
            rows = np.array([slot])
            found = float(self.table.usual_rates(rows, at.ms)[0])
            usual = None if math.isnan(found) else found
            evidence["own_peak"] = float(self.table.columns["peak"][slot])
            evidence["history_s"] = float(self.table.age_s(rows, at.ms)[0])
        if math.isfinite(self.crowd_limit):
            evidence["endpoint_limit"] = self.crowd_limit
        severity: Severity = "critical" if score > CRITICAL_FACTOR * offender.threshold else "warning"
        return self._reading_of(
            kind="caller_rate",
            subject_kind="caller",
            subject=offender.caller,
            caller_auth=offender.auth,
            score=score,
            threshold=offender.threshold,
            firing=known and offender.firing,
            calm=known and offender.calm_since_ms is not None,
            known=known,
            severity=severity,
            at=at,
            first_ms=offender.first_ms,
            rate=rate,
            usual_rate=usual,
            shares=((offender.caller, offender.auth, 1.0),),
            evidence=evidence,
            atlas=ATLAS,
        )

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and columns for a snapshot."""
        windows, columns = self.windows.saved(self.table.occupied)
        values = {
            "crowd_limit": self.crowd_limit if math.isfinite(self.crowd_limit) else None,
            "first_ms": self._first_ms,
            "first_hour": self._first_hour,
            "refreshed_s": self._refreshed_s,
            "created": [self.table.created[False], self.table.created[True]],
            "windows": windows,
            "offenders": [[str(key), *asdict(offender).values()] for key, offender in self._offenders.items()],
        }
        return values, {**self.table.saved(), **columns}

    def take_back(self, values: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """What `saved` gave; KeyError, TypeError, ValueError or IndexError on anything else."""
        self.table.take_back({name: columns[name] for name in DTYPES})
        self.table.created = {False: int(values["created"][0]), True: int(values["created"][1])}
        self.windows.take_back(values["windows"], columns, len(self.table), self.table.capacity)
        self.crowd_limit = math.inf if values["crowd_limit"] is None else float(values["crowd_limit"])
        self._first_ms, self._refreshed_s = int(values["first_ms"]), int(values["refreshed_s"])
        self._first_hour = list(values["first_hour"])
        self._offenders = {int(key): Offender(*rest) for key, *rest in values["offenders"]}


def auth_in(event: ReportAt, auth: CallerAuth) -> CallerAuth:
    """What a caller's identity is worth: nothing that an unsigned report says is verified."""
    return auth if event.trusted else "claimed"
