"""A sequential test of a share of failing calls against its usual one, from counts that come in at any pace.

Statistic: Shiryaev-Roberts over a mixture of alternatives, R <- (R + 1) * L, L = the mixture's likelihood ratio. While the
share is at most `base`, each L is an e-value (mean at most 1), so R - t is a supermartingale in the number t of steps, and
the expected number of steps to a false alarm at R >= c is at least c (optional stopping, Ville's inequality; Shin, Ramdas
and Rinaldo, E-detectors, 2023). So alarms in 30 days are at most steps in 30 days / c. Bunched failures: ratios are taken
to the power 1 / dispersion, which keeps them e-values (Jensen).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

ALTERNATIVES = (0.05, 0.2, 0.5, 0.9)
MAX_BASE = 0.3
RECENT_CALLS = 12.0
"""Half-life, in calls, of the window that says how bad it is now."""
LONG_CALLS = 200.0
"""Half-life, in calls, of the window that says whether it is as usual again."""
KNOWN_CALLS = 300.0
LEARNED_CALLS = 1e6
BUCKET_MS = 10_000
MAX_DISPERSION = 4.0
_OVER = 3.0
_FLOOR = -50.0


@dataclass(slots=True)
class ShareWatch:
    """Evidence that a share exceeds `base_min` or twice the learned one. `young_base` stands in until 300 calls are known."""

    base_min: float
    young_base: float
    calls: float = 0.0
    failed: float = 0.0
    recent_calls: float = 0.0
    recent_failed: float = 0.0
    long_calls: float = 0.0
    long_failed: float = 0.0
    dispersion: float = 1.0
    buckets: int = 0
    bucket: int = 0
    bucket_calls: int = 0
    bucket_failed: int = 0
    r0: float = _FLOOR
    r1: float = _FLOOR
    r2: float = _FLOOR
    r3: float = _FLOOR

    @property
    def known(self) -> bool:
        return self.calls >= KNOWN_CALLS

    @property
    def base(self) -> float:
        """The share that counts as usual: twice the learned one with three standard errors on top, at least `base_min`."""
        if not self.known:
            return self.young_base
        share = self.failed / self.calls
        return min(max(self.base_min, 2.0 * share + 3.0 * math.sqrt(share / self.calls)), MAX_BASE)

    @property
    def evidence(self) -> float:
        """Log of the Shiryaev-Roberts statistic."""
        return _log_sum((self.r0, self.r1, self.r2, self.r3)) - math.log(len(ALTERNATIVES))

    @property
    def recent_share(self) -> float:
        return self.recent_failed / self.recent_calls if self.recent_calls > 0 else 0.0

    @property
    def usual_again(self) -> bool:
        """True if many calls say that failures are at their usual share."""
        return self.long_calls >= LONG_CALLS and self.long_failed <= 1.5 * self.base * self.long_calls + 1.0

    def add(self, failed: int, calls: int, most: float) -> None:
        """Counts of one report. Evidence is kept at most `most` (log), so that it falls again soon after the cause ends."""
        if calls <= 0:
            return
        failed = min(failed, calls)
        self.recent_calls, self.recent_failed = _fade(
            self.recent_calls, self.recent_failed, calls, failed, RECENT_CALLS
        )
        self.long_calls, self.long_failed = _fade(self.long_calls, self.long_failed, calls, failed, LONG_CALLS)
        base = self.base
        ratios = [_log_ratio(failed, calls, base, alternative) / self.dispersion for alternative in ALTERNATIVES]
        values = (self.r0, self.r1, self.r2, self.r3)
        self.r0, self.r1, self.r2, self.r3 = (
            min(max(_log_sum((value, 0.0)) + ratio, _FLOOR), most) for value, ratio in zip(values, ratios, strict=True)
        )

    def learn(self, failed: int, calls: int, now_ms: int) -> None:
        """Takes counts as usual ones."""
        failed = min(failed, calls)
        bucket = now_ms // BUCKET_MS
        if bucket != self.bucket:
            self._close_bucket()
            self.bucket, self.bucket_calls, self.bucket_failed = bucket, 0, 0
        self.bucket_calls += calls
        self.bucket_failed += failed
        self.calls, self.failed = _fade(self.calls, self.failed, calls, failed, LEARNED_CALLS)

    def reset(self) -> None:
        """Forgets the evidence: the cause has ended."""
        self.r0 = self.r1 = self.r2 = self.r3 = _FLOOR

    def _close_bucket(self) -> None:
        """Failures in ten seconds against a binomial count: 1 if they come alone, more if they come in bunches."""
        if not self.known or not self.bucket_calls:
            return
        share = max(self.failed / self.calls, 1e-9)
        expected = self.bucket_calls * share
        spread = (self.bucket_failed - expected) ** 2 / max(expected * (1.0 - share), 0.5)
        self.buckets = min(self.buckets + 1, 1_000)
        self.dispersion += (spread - self.dispersion) / (self.buckets + 20)
        self.dispersion = min(max(self.dispersion, 1.0), MAX_DISPERSION)

    def saved(self) -> list[float]:
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def of(cls, saved: list[Any]) -> ShareWatch:
        """What `saved` gave; TypeError on anything else."""
        watch = cls(*saved)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in watch.saved()):
            raise TypeError("a share is not a number")
        return watch


def threshold(steps: float, alarms: float) -> float:
    """Log of the c that gives at most `alarms` false alarms in `steps` steps."""
    return math.log(max(steps / max(alarms, 1e-9), 2.0))


def _log_ratio(failed: int, calls: int, base: float, alternative: float) -> float:
    """Log likelihood ratio of a share of `alternative`, or three times the usual one if that is more."""
    share = min(max(alternative, _OVER * base), 0.95)
    return failed * math.log(share / base) + (calls - failed) * math.log((1.0 - share) / (1.0 - base))


def _log_sum(values: tuple[float, ...]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))


def _fade(calls: float, failed: float, more: int, more_failed: int, half_life: float) -> tuple[float, float]:
    keep = 0.5 ** (more / half_life)
    return calls * keep + more, failed * keep + more_failed
