"""The sequential statistic of feature drift: cell histograms over a short and a long window, against the profile.

Used by the live detector and by the calibration alike, so that a threshold is of the very statistic it is put on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detectors.profile import SPAN_ROWS, FeatureSpread
from schemas.blocks import Floats

WINDOW_ROWS = (128.0, 2048.0)
"""Rows after which what a window holds has faded to 1/e. The short one is a full block for its greater part (14 % of
what was before is left) and gathers the blocks of 30 to 50 rows of a slow endpoint until they say as much as a full
one; the long one finds small shifts in 8 to 16 blocks."""
LEVEL_SCORE = 2.302585092994046
"""-ln(1/10): the score of a divergence that 1 stretch of the table in 10 exceeds."""
COARSE_SHARE = 0.03
CRITICAL_SHARE_FLOOR = 0.04
"""Alien or missing values in fewer rows than this (or 2 rows) count as this many in the profile."""


def divergence(seen: Floats, capped: Floats | None, expected: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Pearson divergence sum((p - q)^2 / q) [..., features] of cell shares p from the `expected` q, and the deviations
    p - q [..., features, CELLS].

    `seen` and `capped` [..., features, CELLS] are shares by the callers' own and by their capped weights; `rows` [...]
    the effective number of rows. A cell counts with the smaller of both deviations, and not at all where they disagree
    in sign: the cap alone moves the mix when heavy callers differ, and a heavy caller alone moves what is seen. So a
    deviation is never more than what capped callers bring together, and without drift never more than chance.
    Shares below one row are taken as one row: a single row in an empty cell is no news. `capped` None says that it
    equals `seen`, to the same bits.
    """
    moved = seen - expected
    if capped is not None:
        fair = capped - expected
        agree = moved * fair > 0
        np.copyto(moved, fair, where=np.abs(fair) < np.abs(moved))
        moved *= agree
    floor = 1.0 / np.maximum(rows, 1.0)
    terms = moved * moved
    terms /= np.maximum(expected, floor[..., None, None])
    return terms.sum(axis=-1), moved


def coarse(moved: Floats, expected: Floats, ordinary: Floats, rows: Floats) -> Floats:
    """The divergence [..., features] over `ordinary` cells (1, else 0), no cell taken as rarer than 3 % of the rows.

    The coldest day of a year fills the coldest 1 % of the training rows, and is no broken pipeline: so counted, a block
    of slow weather is at most some twice as far out as the training blocks were, and a unit change of a steady feature
    is still ten times.
    """
    terms = moved * moved
    terms /= np.maximum(expected, np.maximum(1.0 / np.maximum(rows, 1.0), COARSE_SHARE)[..., None, None])
    terms *= ordinary
    return np.asarray(terms.sum(axis=-1))


@dataclass(frozen=True, slots=True)
class Spreads:
    """Spreads of m profiles side by side: `table` [m, 4, features, len(SPAN_ROWS)] holds ln level, ln scale, shape and
    ln largest; `rows` [m] those of the profiles."""

    table: Floats
    rows: Floats

    @classmethod
    def of(cls, spreads: Sequence[FeatureSpread], rows: int) -> Spreads:
        """Of one profile (m = 1)."""
        logs = [np.log([getattr(s, name) for s in spreads]) for name in ("level", "scale", "largest")]
        return cls(np.array([[logs[0], logs[1], [s.shape for s in spreads], logs[2]]]), np.array([float(rows)]))

    def at(self, rows: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """level, scale, shape, largest, each [m, windows, features], for effective `rows` [m, windows].

        Between the measured row counts on a log-log line; below the first as 1/rows, above the last as the last.
        The profile is a sample itself: its own error adds rows / profile rows.
        """
        steps = np.log2(np.maximum(rows, 1.0) / SPAN_ROWS[0])
        place = np.clip(steps, 0.0, len(SPAN_ROWS) - 1.0)
        left = np.minimum(place.astype(np.intp), len(SPAN_ROWS) - 2)
        part = (place - left)[:, :, None, None]
        # The advanced indices go round the sliced axes: [m, windows, 4, features].
        which = np.arange(len(rows))[:, None]
        low, high = self.table[which, :, :, left], self.table[which, :, :, left + 1]
        found = low + part * (high - low)
        shift = np.exp(np.log1p(rows / self.rows[:, None]) - np.log(2.0) * np.minimum(steps, 0.0))[..., None]
        level, scale, largest = (np.exp(found[:, :, k]) * shift for k in (0, 1, 3))
        return level, scale, found[:, :, 2], largest


def scores(divergences: Floats, level: Floats, scale: Floats, shape: Floats) -> Floats:
    """Divergences as -ln of how rare they are among stretches of the table: a generalised Pareto tail above `level`
    (peaks over threshold), a straight line below it."""
    out = (divergences - level) / scale
    shape = np.maximum(shape, 1e-6)
    return LEVEL_SCORE + np.where(out > 0, np.log1p(shape * np.maximum(out, 0.0)) / shape, out)


def relative(
    moved: Floats,
    expected: Floats,
    largest: Floats,
    groups: tuple[Floats, Floats],
    group_largest: tuple[Floats, Floats],
    rows: Floats,
) -> Floats:
    """The statistic [..., features] in units of the largest in the profile: of the coarse divergence, of the alien share
    and of the missing share, whichever is most out.

    `groups` [..., features, CELLS], 0 or 1, mark alien and missing cells, which have their own scale: a new category in
    1 row of 20 is news, but no reason to stop a model.
    """
    alien, missing = groups
    ratio = coarse(moved, expected, 1.0 - alien - missing, rows) / largest
    floor = np.maximum(CRITICAL_SHARE_FLOOR, 2.0 / np.maximum(rows, 1.0))[..., None]
    more = np.maximum(moved, 0.0)
    for cells, most in zip(groups, group_largest, strict=True):
        ratio = np.maximum(ratio, (more * cells).sum(axis=-1) / np.maximum(most, floor))
    return np.asarray(ratio)


def faded(rows: Floats) -> Floats:
    """What is left of each window [..., windows] after `rows` [...] more rows."""
    return np.asarray(np.exp(-rows[..., None] / np.array(WINDOW_ROWS)))
