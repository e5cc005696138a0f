"""Health of one version of an endpoint: failing, timed out and slow calls of its primary and of probes to it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import astuple, dataclass, field
from typing import Any

from detectors.base import ReportAt
from detectors.guards import calls_of, interval_of
from detectors.sequential import ShareWatch, threshold
from schemas.config import EndpointConfig
from schemas.events import LATENCY_BOUNDS_MS, LATENCY_BUCKETS, Report
from schemas.signals import Evidence, SignalKind

GOOD_RUN = 10
"""Good calls of the primary in a row that make a failing endpoint calm."""
CRITICAL_SHARE, CRITICAL_CALLS = 0.5, 10.0
WARM_UP_MS = 60_000
SECONDS_30_DAYS = 30 * 86_400
REPORTS_PER_S = 2.0
"""Reports a second and guard that the budget is reckoned with: one, and early ones."""
SAY_EVERY_MS, SAY_QUIET_EVERY_MS = 1_000, 10_000
EXTRA_EVIDENCE = 3.0
SLOW_BUCKETS, VERY_SLOW_BUCKETS = 2, 6
"""Slow is over twice the learned 99 % quantile (two buckets), very slow over eight times it."""
SLOW_MS, VERY_SLOW_MS = 25.0, 100.0
"""Without the owner's bound, never slow below these: what a busy machine does is no fault of a model."""
HANG_IN_FLIGHT, HANG_MS, HANG_KNOWN_CALLS = 10, 1_000, 50.0
HARD_LATENCY_SHARE = 0.05
"""Calls that may be over `latency_max_ms`: it bounds the 95 % quantile."""


@dataclass(slots=True)
class Alarm:
    """What is said of one kind. `open_since_ms`: it fired, and has not been calm for long since."""

    score: float = 0.0
    threshold: float = 1.0
    firing: bool = False
    calm: bool = False
    known: bool = False
    critical: bool = False
    open_since_ms: int | None = None
    calm_since_ms: int = 0
    first_ms: int = 0
    said_ms: int = 0
    said: int = -1
    evidence: Evidence = field(default_factory=dict)

    def due(self, now_ms: int, linger_ms: int, known: bool) -> bool:
        """True at each change, once a second while open, else each ten seconds. Ends an alarm that is long calm."""
        if self.open_since_ms is not None and self.calm and now_ms - self.calm_since_ms > linger_ms:
            self.open_since_ms = None
        state = 8 * self.critical + 4 * self.firing + 2 * self.calm + known
        pace = SAY_EVERY_MS if self.open_since_ms is not None else SAY_QUIET_EVERY_MS
        if state == self.said and now_ms - self.said_ms < pace:
            return False
        self.said, self.said_ms = state, now_ms
        return True

    def follow(self, now_ms: int, *, firing: bool, calm: bool, first_ms: int) -> None:
        """Notes what was concluded, and since when."""
        if firing and self.open_since_ms is None:
            self.open_since_ms, self.first_ms = now_ms, first_ms
        if calm and not self.calm:
            self.calm_since_ms = now_ms
        self.firing, self.calm = firing, calm


def _watches() -> dict[str, ShareWatch]:
    return {
        "errors": ShareWatch(0.005, 0.02),
        "timeouts": ShareWatch(0.005, 0.02),
        "slow": ShareWatch(0.02, 0.02),
        "very_slow": ShareWatch(0.02, 0.02),
        "over_bound": ShareWatch(HARD_LATENCY_SHARE, HARD_LATENCY_SHARE),
    }


class VersionHealth:
    """State of one version: about 3 kB as JSON."""

    def __init__(self) -> None:
        self.alarms: dict[SignalKind, Alarm] = {"errors": Alarm(), "timeouts": Alarm(), "latency": Alarm()}
        self.watches = _watches()
        self.first_ms = 0
        self.good_run = 0
        self.bad_since_ms = 0
        self.latency = [0.0] * LATENCY_BUCKETS
        """Learned counts by bucket."""
        self.answered_ms = 0
        self.longest_stall_ms = 0.0

    def take(self, event: ReportAt, config: EndpointConfig | None, in_flight: int, alarms: float, guards: int) -> None:
        """Judges a report. `in_flight`: over all guards; `alarms`: budget of each kind in 30 days."""
        report, now_ms = event.report, event.at.ms
        self.first_ms = self.first_ms or now_ms
        entry = threshold(SECONDS_30_DAYS * REPORTS_PER_S * guards, alarms)
        routes = [one for one in report.routes if one.route != "fallback" and one.version == report.live_version]
        calls = sum(calls_of(route) for route in routes)
        failed = {"errors": sum(one.errors for one in routes), "timeouts": sum(one.timeouts for one in routes)}
        timed = _histogram(report)
        slow_from, very_slow_from = self._slow_from()
        over_from = LATENCY_BUCKETS if config is None or config.latency_max_ms is None else _over(config.latency_max_ms)
        failed |= {"slow": sum(timed[slow_from:]), "very_slow": sum(timed[very_slow_from:])}
        failed |= {"over_bound": sum(timed[over_from:])}
        hung_ms = self._hung_ms(now_ms, calls, in_flight)
        self._count_run(event, calls, failed, hung=hung_ms > 0)
        for name, watch in self.watches.items():
            watch.add(failed[name], calls if name in ("errors", "timeouts") else sum(timed), entry + EXTRA_EVIDENCE)
        error_max = config.error_share_max if config is not None else None
        self._judge_failures("errors", now_ms, entry, error_max)
        self._judge_failures("timeouts", now_ms, entry, error_max, hung_ms, in_flight)
        self._judge_latency(now_ms, entry, slow_from)
        self._learn(failed, calls, timed, now_ms)

    def _judge_failures(
        self,
        kind: SignalKind,
        now_ms: int,
        entry: float,
        share_max: float | None,
        hung_ms: int = 0,
        in_flight: int = 0,
    ) -> None:
        watch, alarm = self.watches[kind], self.alarms[kind]
        enough = watch.recent_calls >= CRITICAL_CALLS
        over_bound = share_max is not None and enough and watch.recent_share > share_max
        alarm.evidence = {
            "failed": round(watch.recent_failed, 2),
            "calls": round(watch.recent_calls, 2),
            "usual_share": watch.base,
            "good_in_a_row": self.good_run,
            "reason": "hung" if hung_ms else "hard_bound" if over_bound else "sequential_test",
        }
        if hung_ms:
            alarm.evidence |= {"in_flight": in_flight, "unanswered_ms": hung_ms}
        alarm.critical = bool(hung_ms) or over_bound or (enough and watch.recent_share >= CRITICAL_SHARE)
        self._conclude(alarm, (watch,), now_ms, entry, certain=over_bound or hung_ms > 0)

    def _judge_latency(self, now_ms: int, entry: float, slow_from: int) -> None:
        slow, very_slow, over = (self.watches[name] for name in ("slow", "very_slow", "over_bound"))
        alarm = self.alarms["latency"]
        over_bound = over.evidence >= entry
        alarm.evidence = {
            "slow": round(slow.recent_failed, 2),
            "calls": round(slow.recent_calls, 2),
            "slow_ms": LATENCY_BOUNDS_MS[slow_from - 1],
            "usual_share": slow.base,
            "good_in_a_row": self.good_run,
            "reason": "hard_bound" if over_bound else "sequential_test",
        }
        enough = very_slow.recent_calls >= CRITICAL_CALLS
        alarm.critical = over_bound or (enough and very_slow.recent_share >= CRITICAL_SHARE)
        watches = (slow, over) if slow.known else (over,)
        self._conclude(alarm, watches, now_ms, entry, certain=False)

    def _conclude(
        self, alarm: Alarm, watches: tuple[ShareWatch, ...], now_ms: int, entry: float, *, certain: bool
    ) -> None:
        """Enters by evidence or certainty; leaves by good calls in a row, or by a share that is the usual one again."""
        evidence = max(watch.evidence for watch in watches)
        well = not certain and (self.good_run >= GOOD_RUN or all(watch.usual_again for watch in watches))
        if alarm.open_since_ms is not None and well:
            for watch in watches:
                watch.reset()
            evidence = 0.0
        alarm.score, alarm.threshold = (max(evidence, entry + 1.0) if certain else evidence), entry
        firing = certain or evidence >= entry
        alarm.critical = alarm.critical and firing
        old_enough = now_ms - self.first_ms >= WARM_UP_MS and all(watch.known for watch in watches)
        alarm.known = firing or alarm.open_since_ms is not None or old_enough
        calm = not firing and (alarm.open_since_ms is None or well)
        alarm.follow(now_ms, firing=firing, calm=calm, first_ms=self.bad_since_ms or now_ms)

    def _count_run(self, event: ReportAt, calls: int, failed: dict[str, int], *, hung: bool) -> None:
        """Good calls in a row. Within a report no order is known: one bad call and none of it counts."""
        slow = failed["slow"] + failed["over_bound"] if self.alarms["latency"].open_since_ms is not None else 0
        if failed["errors"] or failed["timeouts"] or slow or hung:
            if self.good_run >= GOOD_RUN or not self.bad_since_ms:
                self.bad_since_ms = event.at.ms - interval_of(event.report)
            self.good_run = 0
        else:
            self.good_run = min(self.good_run + calls, 1_000_000)

    def _hung_ms(self, now_ms: int, calls: int, in_flight: int) -> int:
        """Milliseconds for which many calls have been in flight and none came back, if that is out of pattern; else 0."""
        if not self.answered_ms or not in_flight:
            self.answered_ms = now_ms
        stall = now_ms - self.answered_ms
        limit = max(HANG_MS, 3.0 * self.longest_stall_ms, 4.0 * LATENCY_BOUNDS_MS[min(self._quantile(), 31)])
        if calls:
            if stall <= limit:
                self.longest_stall_ms = max(self.longest_stall_ms, float(stall))
            self.answered_ms = now_ms
            return 0
        known = self.watches["timeouts"].calls >= HANG_KNOWN_CALLS
        return stall if known and in_flight >= HANG_IN_FLIGHT and stall >= limit else 0

    def _learn(self, failed: dict[str, int], calls: int, timed: list[int], now_ms: int) -> None:
        """Takes a report as usual while nothing is open."""
        if any(alarm.open_since_ms is not None for alarm in self.alarms.values()):
            return
        for name, watch in self.watches.items():
            watch.learn(failed[name], calls if name in ("errors", "timeouts") else sum(timed), now_ms)
        if sum(timed):
            keep = 0.5 ** (sum(timed) / 100_000)
            self.latency = [old * keep + new for old, new in zip(self.latency, timed, strict=True)]

    def _quantile(self) -> int:
        """The bucket that holds the learned 99 % quantile."""
        left, at = 0.99 * sum(self.latency), 0
        while at < LATENCY_BUCKETS - 1 and left > self.latency[at]:
            left -= self.latency[at]
            at += 1
        return at

    def _slow_from(self) -> tuple[int, int]:
        """The first buckets that are slow, and very slow."""
        usual = self._quantile()
        slow = max(usual + 1 + SLOW_BUCKETS, _over(SLOW_MS))
        very_slow = max(usual + 1 + VERY_SLOW_BUCKETS, _over(VERY_SLOW_MS))
        return min(slow, LATENCY_BUCKETS - 1), min(very_slow, LATENCY_BUCKETS - 1)

    def saved(self) -> dict[str, Any]:
        """Plain values for a snapshot."""
        return {
            "alarms": [list(astuple(alarm)) for alarm in self.alarms.values()],
            "watches": [watch.saved() for watch in self.watches.values()],
            "run": [self.first_ms, self.good_run, self.bad_since_ms, self.answered_ms, self.longest_stall_ms],
            "latency": self.latency,
        }

    @classmethod
    def of(cls, saved: dict[str, Any]) -> VersionHealth:
        """What `saved` gave; KeyError, TypeError or ValueError on anything else."""
        health = cls()
        health.alarms = {kind: Alarm(*alarm) for kind, alarm in zip(health.alarms, saved["alarms"], strict=True)}
        health.watches = {
            name: ShareWatch.of(watch) for name, watch in zip(health.watches, saved["watches"], strict=True)
        }
        run = saved["run"]
        health.first_ms, health.good_run, health.bad_since_ms, health.answered_ms, health.longest_stall_ms = run
        health.latency = [float(count) for count in saved["latency"]]
        if len(health.latency) != LATENCY_BUCKETS:
            raise ValueError("a latency histogram has another number of buckets")
        return health


def _histogram(report: Report) -> list[int]:
    """Latency counts of the live version's primary and probes; absent buckets are empty."""
    counts = [0] * LATENCY_BUCKETS
    for route in report.routes:
        if route.route != "fallback" and route.version == report.live_version:
            for bucket, count in enumerate(route.latency):
                counts[bucket] += max(count, 0)
    return counts


def _over(bound_ms: float) -> int:
    """The first bucket of which every call took longer than `bound_ms`."""
    return bisect_left(LATENCY_BOUNDS_MS, bound_ms) + 1
