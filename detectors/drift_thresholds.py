"""Calibration: how far the training table's own rows, in their order, lie from the whole of the table.

Moving-block bootstrap (Kuensch 1989; Liu & Singh 1992): real rows in real order are no independent draws, so spreads
come from contiguous stretches. How often the test alarms by chance comes from them too: `drift_alarm_tails`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, chdtri

from detectors.adwin import FEED_ROWS, JumpWatch
from detectors.drift_windows import COARSE_SHARE, coarse, divergence, faded
from detectors.profile import SPAN_ROWS, AdaptiveTail, FeatureSpread
from schemas.blocks import BLOCK_ROWS, Floats, Longs

UNIT_ROWS = SPAN_ROWS[0]
MAX_STARTS, FOLD_STARTS = 8192, 2048
"""Stretches measured of a table, and of each part of it that others are judged by."""
ADAPTIVE_ROWS = 8_000_000
FILL_STEPS, FILL_STARTS = 40, 512
PRIOR_EVENTS, PRIOR_SHAPE = 20.0, 0.25
"""A tail seen in few events is drawn towards a shape (Martins & Stedinger 2000 do so for floods): left alone, it comes out
as light as the few that happened to be met. Chosen on made services of other seeds than those it is judged on."""
LIKE_INDEPENDENT = 1.2
"""Rows in order whose level is within so much of that of rows drawn one by one are taken as such: their tail is known."""
ADAPTIVE_FEATURES = 8
"""ADWIN watches the 8 steadiest features: 0.5 us and about 1.5 kB of state each, so that a part stays within 32 kB.
The anchored test watches all."""
ADAPTIVE_STREAMS = 8
PRIOR_JUMPS = 4
"""What is thought of a jump's scale before any was met, the spread of the means, weighs as so many: often one or two are met."""
ADAPTIVE_PIECE = 16
"""Means of 256 rows that come in order: ADWIN has adapted to them when the next piece comes."""
MIN_LEVEL, MIN_SCALE, MIN_LARGEST = 2.0, 1.0, 12.0
"""Least divergence times rows: features that never move in the table (one category) still have a row's noise."""
MIN_SCALE_SHARE = 0.1
"""Least scale over level: a feature that is always as far out as it can be (the month) has next to no spread."""


@dataclass(frozen=True, slots=True)
class OrderedTable:
    """A table in order, summed up by units of 32 rows.

    counts [units + 1, features, CELLS] are running cell counts; sums, present [units + 1, numeric features] running
    sums of standardised values and their number. alien, missing [features, CELLS] mark cells.
    """

    counts: Longs
    sums: Floats
    present: Floats
    expected: Floats
    rows: int
    alien: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
    missing: np.ndarray[tuple[int, int], np.dtype[np.bool_]]

    @property
    def units(self) -> int:
        return len(self.counts) - 1

    @property
    def ordinary(self) -> Floats:
        """1 for cells that are neither alien nor missing, else 0."""
        return np.asarray(1.0 - self.alien - self.missing, np.float64)

    def shares(self, starts: Longs, units: int) -> Floats:
        """Cell shares [starts, features, CELLS] of stretches of `units` units."""
        return (self.counts[starts + units] - self.counts[starts]) / float(units * UNIT_ROWS)


def feature_spreads(table: OrderedTable, stretches: int = MAX_STARTS) -> tuple[FeatureSpread, ...]:
    """The spread of each of `SPAN_ROWS` rows: up to a block as contiguous stretches, above it as the long window that
    has filled up to so many effective rows (a fading window over a week is no week: its weekdays differ).

    Sizes that fit less than four times into the table repeat the one before.
    """
    columns: list[list[Floats]] = [[], [], [], []]
    alien = missing = np.zeros(len(table.expected))
    filled = _filled_divergences(table)
    for size in SPAN_ROWS:
        if size <= BLOCK_ROWS:
            far, usual, groups = _stretch_divergences(table, size, stretches)
            if size == BLOCK_ROWS:
                alien, missing = groups
        elif size in filled:
            far, usual = filled[size]
        else:
            for column in columns:
                column.append(column[-1])
            continue
        floor, scale_floor = independent_spread(table.expected, size)
        upper = np.maximum(np.quantile(far, 0.9, axis=0), np.maximum(floor, MIN_LEVEL / size))
        scale, shape = pareto_tail(np.maximum(far - upper, 0.0))
        events, known = np.maximum(excursions(far, upper), 1), upper <= LIKE_INDEPENDENT * floor
        shape = np.where(known, shape, (events * shape + PRIOR_EVENTS * PRIOR_SHAPE) / (events + PRIOR_EVENTS))
        scale = np.where(known, scale, scale * (1.0 + 1.0 / np.sqrt(events)))
        scale = np.maximum(scale, scale_floor)
        # A table of few independent stretches knows little of their tail: sqrt(1 / stretches) of the level at least.
        share = max(MIN_SCALE_SHARE, math.sqrt(size / table.rows))
        scale = np.maximum(scale, np.maximum(MIN_SCALE / size, share * upper))
        by_chance = independent_largest(table.expected * table.ordinary, size)
        if size > BLOCK_ROWS:  # of long windows the table holds few: the largest of so few is passed by the next ones
            usual = usual * (1.0 + 1.0 / np.sqrt(events))
        largest = np.maximum(usual, np.maximum(by_chance, MIN_LARGEST / size))
        for column, measured in zip(columns, (upper, scale, shape, largest), strict=True):
            column.append(measured)
    level, scale_, shape_, largest_ = (np.stack(column, axis=1).tolist() for column in columns)
    return tuple(
        FeatureSpread(
            level=level[f],
            scale=scale_[f],
            shape=shape_[f],
            largest=largest_[f],
            alien_largest=float(min(alien[f], 1.0)),
            missing_largest=float(min(missing[f], 1.0)),
        )
        for f in range(len(table.expected))
    )


def _stretch_divergences(table: OrderedTable, size: int, most: int) -> tuple[Floats, Floats, tuple[Floats, Floats]]:
    """Divergences [stretches, features] of contiguous `size` rows; the largest over ordinary cells [features]; the
    largest alien and missing excess [features]."""
    units = size // UNIT_ROWS
    last = table.units - units
    starts = np.unique(np.linspace(0, last, min(most, last + 1)).astype(np.int64))
    far = np.empty((len(starts), len(table.expected)))
    largest = np.zeros((3, len(table.expected)))
    for at in range(0, len(starts), 1024):
        shares = table.shares(starts[at : at + 1024], units)
        rows = np.full(len(shares), float(size))
        far[at : at + 1024], moved = divergence(shares, None, table.expected, rows)
        more = np.maximum(moved, 0.0)
        groups = [(more * cells).sum(axis=-1) for cells in (table.alien, table.missing)]
        parts = [coarse(moved, table.expected, table.ordinary, rows), *groups]
        largest = np.maximum(largest, [part.max(axis=0) for part in parts])
    return far, largest[0], (largest[1], largest[2])


def _filled_divergences(table: OrderedTable) -> dict[int, tuple[Floats, Floats]]:
    """Divergences [starts, features] of the long window when it holds each of the `SPAN_ROWS` above a block, and the
    largest over ordinary cells [features].

    Half of the windows hold one stretch; the other half begin in another one and change over at some block, as a
    stream does that pauses and goes on at another hour of the week. Stretches go on at the table's begin behind its end
    (Politis & Romano 1992), so that a window of two blocks meets its last weeks as often as the others.
    """
    units, size = BLOCK_ROWS // UNIT_ROWS, float(BLOCK_ROWS)
    left = float(faded(np.array(size))[-1])
    steps = min(FILL_STEPS, table.units // units // 2)
    places = table.units - units + 1
    plain = np.unique(np.linspace(0, places - 1, min(FILL_STARTS, places)).astype(np.int64))
    starts = np.concatenate([plain, plain])
    others = np.concatenate([plain, np.roll(plain, len(plain) // 2 + 1)])
    change_at = np.arange(len(starts)) % steps
    window = np.zeros((len(starts), *table.expected.shape))
    weight = squares = 0.0
    found: dict[int, tuple[Floats, Floats]] = {}
    wanted = [rows for rows in SPAN_ROWS if BLOCK_ROWS < rows <= table.units * UNIT_ROWS // 4]
    for step in range(steps):
        window *= left
        window += table.shares((np.where(step < change_at, others, starts) + step * units) % places, units) * size
        weight, squares = weight * left + size, squares * left * left + size
        rows = weight * weight / squares
        # A window of 2,048 rows tends to 4,100 effective ones and is measured as 4,096 once 98 % full.
        if wanted and rows >= 0.98 * wanted[0]:
            shares = window / weight
            size_now = np.full(len(starts), rows)
            far, moved = divergence(shares, None, table.expected, size_now)
            usual = coarse(moved, table.expected, table.ordinary, size_now)
            found[wanted.pop(0)] = far, usual.max(axis=0)
    return found


def pareto_tail(excess: Floats) -> tuple[Floats, Floats]:
    """Scale and shape of a generalised Pareto tail from `excess` [n, features] (0 = none), by moments (Hosking &
    Wallis 1987); the shape is held in 0 to 0.4: never lighter than exponential."""
    many = np.maximum((excess > 0).sum(axis=0), 1)
    mean = excess.sum(axis=0) / many
    variance = np.maximum((excess * excess).sum(axis=0) / many - mean * mean, 1e-300)
    shape = np.clip(0.5 * (1.0 - mean * mean / variance), 0.0, 0.4)
    return mean * (1.0 - shape), shape


def excursions(far: Floats, level: Floats) -> Floats:
    """How often `far` [stretches, features], in the table's order, rises above `level` [features]: so many events are
    the whole of what is known of the tail, however many stretches overlap them."""
    above = far > level
    return np.asarray(above[0] + (above[1:] & ~above[:-1]).sum(axis=0), np.float64)


def independent_spread(expected: Floats, size: int) -> tuple[Floats, Floats]:
    """Level and scale [features] of the divergence of `size` rows drawn one by one from cell probabilities `expected`
    [features, CELLS]: chi-square over `size`, with as many degrees of freedom as its mean. Ordered rows may differ
    less than that (a timetable repeats itself), but nobody promised that they will."""
    freedom = np.maximum((expected * (1.0 - expected) / np.maximum(expected, 1.0 / size)).sum(axis=1), 0.5)
    level = chdtri(freedom, 0.1)
    excess = freedom * chdtrc(freedom + 2.0, level) / 0.1 - level
    return level / size, excess / size


def independent_largest(expected: Floats, size: int) -> Floats:
    """The coarse divergence [features] that 1 in `MAX_STARTS` draws of `size` independent rows exceeds: about the largest
    of as many stretches. `expected` [features, CELLS] are ordinary cells (0 elsewhere). A weighted sum of chi-squares,
    taken as one of the same mean and variance (Satterthwaite 1946)."""
    weights = expected * (1.0 - expected) / np.maximum(expected, max(COARSE_SHARE, 1.0 / size)) / size
    mean = np.maximum(weights.sum(axis=1), 1e-300)
    unit = np.maximum((weights * weights).sum(axis=1) / mean, 1e-300)
    return np.asarray(unit * chdtri(np.maximum(mean / unit, 1e-3), 1.0 / MAX_STARTS))


def drawn_starts(
    table: OrderedTable, units: int, streams: int, rows: int, rng: np.random.Generator, steps: int | None = None
) -> Longs:
    """Where each block of `units` units begins [stretches, steps, streams]: stretches drawn at random, in order within,
    each of `steps` blocks, else of half the table. A start may lie before the table and an end behind it (where blocks begin at -1 or less, or too late to be
    whole, there are none), so that the rows of both ends come as often as the others."""
    steps = max(table.units // 2, 2) // units + 1 if steps is None else steps
    stretches = max(rows // (streams * steps * units * UNIT_ROWS), 1)
    draws = rng.integers(-steps * units, table.units, (stretches, 1, streams))
    return np.asarray(draws + np.arange(steps)[:, None] * units)


def adaptive_tails(table: OrderedTable, seed: int) -> tuple[AdaptiveTail, ...]:
    """The jumps that ADWIN finds by chance in the block means of the steadiest numeric features, over pieces of the table
    in any order: ADWIN knows the stream alone, and one that comes back after a pause steps from season to season."""
    units = FEED_ROWS // UNIT_ROWS
    rng = np.random.default_rng([seed, FEED_ROWS])
    starts = drawn_starts(table, units, ADAPTIVE_STREAMS, ADAPTIVE_ROWS, rng, ADAPTIVE_PIECE)
    starts = np.clip(starts, 0, table.units - units).reshape(-1, ADAPTIVE_STREAMS)
    rows = starts.size * FEED_ROWS
    present = table.present[starts + units] - table.present[starts]
    means = (table.sums[starts + units] - table.sums[starts]) / np.maximum(present, 1.0)
    tails = []
    for feature in range(means.shape[2]):
        if not np.ptp(means[:, :, feature]):
            continue
        jumps: list[float] = []
        for stream in range(starts.shape[1]):
            watch = JumpWatch()
            seen = present[:, stream, feature] > 0
            jumps += [jump for jump in map(watch.update, means[seen, stream, feature].tolist()) if jump > 0]
        tails.append(_jump_tail(feature, np.sort(jumps), rows, float(means[:, :, feature].std())))
    steady = sorted(tails, key=lambda tail: (tail.jump + tail.scale * math.log(tail.rate / 1e-9), tail.feature))
    return tuple(sorted(steady[:ADAPTIVE_FEATURES], key=lambda tail: tail.feature))


def _jump_tail(feature: int, jumps: Floats, rows: int, spread: float) -> AdaptiveTail:
    """Exponential, through the upper half of the sorted jumps or through their largest, whichever lies further out: a
    storm in the table is met again in each pass through it, and is no chance of a light tail. `spread`: of the means."""
    if len(jumps) == 0:
        return AdaptiveTail(feature=feature, jump=0.0, rate=1.0 / rows, scale=spread)
    upper = jumps[len(jumps) // 2 :]
    excess = float((upper - upper[0]).sum())
    scale = max((excess + PRIOR_JUMPS * spread) / (len(upper) + PRIOR_JUMPS), spread / 4)
    median, largest = float(upper[0]), float(upper[-1])
    if largest > median + scale * math.log(len(upper)):
        return AdaptiveTail(feature=feature, jump=largest, rate=1.0 / rows, scale=scale)
    return AdaptiveTail(feature=feature, jump=median, rate=len(upper) / rows, scale=scale)
