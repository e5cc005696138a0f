"""Has the share of wrong predictions of one version risen above what it was? A sequential test on single labels.

Shiryaev-Roberts over a mixture of alternatives, as in `sequential`: R <- (R + 1) * L, so that alarms in 30 days are at most the
labels of 30 days / c while the share is at most `base`. Base is the learned share with three standard errors on top, because
it is learned itself; alternatives are odds of 1.25 to 3 times the base's. Errors that come in bunches: ratios are taken to
the power 1 / dispersion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

ODDS = (1.25, 1.5, 2.0, 3.0)
KNOWN_LABELS = 300
"""Labels before which nothing is known."""
LEARNED_LABELS = 100_000.0
"""Half-life, in labels, of what is learned."""
RECENT_LABELS = 200.0
"""Half-life, in labels, of the window that says how bad it is now, and whether it is as usual again."""
BUCKET_LABELS = 100
LATE_BUCKETS = 10
MAX_SPREAD = 9.0
"""Three standard deviations: one bad bucket is no proof of bunches."""
MIN_BASE, MAX_BASE = 0.002, 0.95
_KEEP_LEARNED, _KEEP_RECENT = 0.5 ** (BUCKET_LABELS / LEARNED_LABELS), 0.5 ** (1 / RECENT_LABELS)
_FLOOR = -50.0


@dataclass(slots=True)
class ErrorShare:
    """Evidence that a version errs more than it did. `labels`, `wrong`: learned; `r*`: logs of the statistics."""

    labels: float = 0.0
    wrong: float = 0.0
    recent_labels: float = 0.0
    recent_wrong: float = 0.0
    dispersion: float = 1.0
    buckets: int = 0
    bucket_labels: int = 0
    bucket_wrong: int = 0
    r0: float = _FLOOR
    r1: float = _FLOOR
    r2: float = _FLOOR
    r3: float = _FLOOR
    late: list[int] = field(default_factory=list)
    """Wrong ones of each hundred labels that are not learned yet, oldest first."""

    @property
    def known(self) -> bool:
        return self.labels >= KNOWN_LABELS

    @property
    def share(self) -> float:
        """The learned share."""
        return self.wrong / self.labels if self.labels > 0 else 0.0

    @property
    def base(self) -> float:
        """The highest share that may still be the usual one."""
        share = self.share
        error = math.sqrt(max(share * (1.0 - share), 1e-4) * self.dispersion / max(self.labels, 1.0))
        return min(max(share + 3.0 * error, MIN_BASE), MAX_BASE)

    @property
    def recent_share(self) -> float:
        return self.recent_wrong / self.recent_labels if self.recent_labels > 0 else 0.0

    @property
    def evidence(self) -> float:
        """Log of the mixture's statistic."""
        highest = max(self.r0, self.r1, self.r2, self.r3)
        total = sum(math.exp(value - highest) for value in (self.r0, self.r1, self.r2, self.r3))
        return highest + math.log(total / len(ODDS))

    @property
    def usual_again(self) -> bool:
        """Whether the labels of late are as the learned ones, within their own chance."""
        share = self.share
        spread = math.sqrt(max(share * (1.0 - share), 1e-4) * self.dispersion / max(self.recent_labels, 1.0))
        return self.recent_share <= max(self.base, share + spread)

    def test(self, wrong: bool, most: float) -> None:
        """One label against what is learned. Evidence is kept at most `most` (log), so that it falls again afterwards."""
        self.recent_labels = self.recent_labels * _KEEP_RECENT + 1.0
        self.recent_wrong = self.recent_wrong * _KEEP_RECENT + wrong
        if not self.known:
            return
        base = self.base
        odds = base / (1.0 - base)
        scale = 1.0 / self.dispersion
        values = []
        for value, factor in zip((self.r0, self.r1, self.r2, self.r3), ODDS, strict=True):
            share = odds * factor / (1.0 + odds * factor)
            ratio = math.log(share / base) if wrong else math.log((1.0 - share) / (1.0 - base))
            grown = max(value, 0.0) + math.log1p(math.exp(-abs(value)))  # log(R + 1)
            values.append(min(max(grown + ratio * scale, _FLOOR), most))
        self.r0, self.r1, self.r2, self.r3 = values

    def learn(self, wrong: bool) -> None:
        """Takes a label as a usual one: the first 300 at once, later ones 1,000 labels late, 100 at a time, so that what is
        about to be told as worse is not taken for usual before."""
        if not self.known:
            self.labels += 1.0
            self.wrong += wrong
            return
        self.bucket_labels += 1
        self.bucket_wrong += wrong
        if self.bucket_labels >= BUCKET_LABELS:
            self.late.append(self.bucket_wrong)
            self.bucket_labels = self.bucket_wrong = 0
        if len(self.late) > LATE_BUCKETS:
            self._learn_bucket(self.late.pop(0))

    def distrust(self) -> None:
        """Learns nothing of the labels of late: they are what is told as worse."""
        self.late.clear()
        self.bucket_labels = self.bucket_wrong = 0

    def saved(self) -> list[Any]:
        """The numbers in the order of the fields, then the buckets that wait."""
        return [*(getattr(self, each.name) for each in fields(self)[:-1]), list(self.late)]

    @classmethod
    def of(cls, saved: list[Any]) -> ErrorShare:
        """What `saved` gave; TypeError on anything else."""
        found = cls(*saved)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in (*saved[:-1], *found.late)):
            raise TypeError("a share is not a number")
        if len(found.late) > LATE_BUCKETS:
            raise TypeError("more labels wait than ever do")
        return found

    def _learn_bucket(self, wrong: int) -> None:
        """Also how errors among 100 labels in a row differ from a binomial count: 1 if they come alone, more if in bunches."""
        expected = BUCKET_LABELS * self.share
        spread = (wrong - expected) ** 2 / max(expected * (1.0 - self.share), 0.5)
        self.buckets = min(self.buckets + 1, 1_000)
        self.dispersion += (min(spread, MAX_SPREAD) - self.dispersion) / (self.buckets + 10)
        self.dispersion = max(self.dispersion, 1.0)
        self.labels = self.labels * _KEEP_LEARNED + BUCKET_LABELS
        self.wrong = self.wrong * _KEEP_LEARNED + wrong
