"""How often the sequential test alarms by chance, and so what score an endpoint's budget takes.

The test is run over long stretches of the table drawn at random, each piece of them judged by spreads that were measured
without it: judged by its own, a table is calmer than what comes after it (cross-validation in blocks, Burman et al.
1994). Beyond what the table knows the rate falls as the predictive distribution of an exponential tail of unknown scale
says, which is wider than the tail itself as Student's t is wider than the normal.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from detectors.cells import CELLS
from detectors.drift_thresholds import (
    FOLD_STARTS,
    LIKE_INDEPENDENT,
    UNIT_ROWS,
    OrderedTable,
    drawn_starts,
    feature_spreads,
)
from detectors.drift_windows import WINDOW_ROWS, Spreads, divergence, faded, relative, scores
from detectors.profile import LOOK_ROWS, AlarmTail, FeatureSpread
from schemas.blocks import BLOCK_ROWS, Floats, Longs

SIMULATED_ROWS = {32: 1_000_000, 256: 4_000_000}
INDEPENDENT_ROWS = {32: 500_000, 256: 4_000_000}
WARM_ROWS = 4096
"""A simulated stream counts from here on: before, both windows hold the same rows and there are fewer chances."""
UNKNOWN_SCORE = 16.0
"""Threshold where the table is too short to fill a window: what 1 alarm in 10 M rows would take of exact tails."""
STREAMS = 32
FOLDS, PIECES = 4, 16
"""The table is cut into so many pieces; every fourth is left out at a time, so that no season is left out as a whole."""
TAIL_ALARMS = 60
TAIL_EVENTS = 20.0
"""The tail begins where simulated streams alarm so often, and no further out than where the table itself does so often:
met again in a hundred passes, one storm is still one."""
PRIOR_EVENTS = 20.0
"""What is thought of a tail before any event was seen weighs as so many: the score counts in -ln of chance, so its mean
excess is 1. Chosen on made services of other seeds and memories than those it is judged on."""


class _Folds:
    """Each fold's cell shares and spreads, of the table without its pieces."""

    def __init__(self, table: OrderedTable) -> None:
        piece = np.arange(table.units) * PIECES // table.units
        self._fold = piece % FOLDS
        tables = [_kept(table, self._fold != fold) for fold in range(FOLDS)]
        each = [(part, feature_spreads(part, FOLD_STARTS)) for part in tables]
        self._expected = np.stack([part.expected for part, _ in each])
        every = [Spreads.of(spreads, part.rows) for part, spreads in each]
        self._table = np.concatenate([spreads.table for spreads in every])
        self._rows = np.concatenate([spreads.rows for spreads in every])
        self._most = [
            np.array([[getattr(of, name) for of in spreads] for _, spreads in each])
            for name in ("alien_largest", "missing_largest")
        ]

    def of(self, at: Longs) -> tuple[Floats, Spreads, tuple[Floats, Floats]]:
        """What judges blocks at units `at` [streams]: expected shares, spreads, largest alien and missing shares."""
        fold = self._fold[at]
        alien, missing = (most[fold][:, None] for most in self._most)
        return self._expected[fold], Spreads(self._table[fold], self._rows[fold]), (alien, missing)


def _kept(table: OrderedTable, kept: npt.NDArray[np.bool_]) -> OrderedTable:
    """The table of the units that are `kept` [units]."""
    counts = np.diff(table.counts, axis=0)[kept]
    expected = counts.sum(axis=0) / float(len(counts) * UNIT_ROWS)
    running = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])
    return replace(table, counts=running, expected=expected, rows=max(int(table.rows * kept.mean()), 1))


class _Simulation:
    """The sequential test on `streams` streams of blocks of one size, side by side."""

    def __init__(self, features: int, streams: int, size: int) -> None:
        self._size = float(size)
        self._left = faded(np.array(float(size)))
        self._windows = np.zeros((streams, len(WINDOW_ROWS), features, CELLS))
        self._weight = np.zeros((streams, len(WINDOW_ROWS)))
        self._squares = np.zeros((streams, len(WINDOW_ROWS)))
        self._age = np.zeros(streams)

    def take(self, shares: Floats, there: npt.NDArray[np.bool_]) -> None:
        """One more block of cell `shares` [streams, features, CELLS]; streams that are not `there` begin anew."""
        self._windows *= (self._left * there[:, None])[:, :, None, None]
        self._windows += shares[:, None] * self._size
        self._weight = self._weight * self._left * there[:, None] + self._size
        self._squares = self._squares * self._left**2 * there[:, None] + self._size
        self._age = np.where(there, self._age + 1, 0)

    @property
    def warm(self) -> npt.NDArray[np.bool_]:
        """Whose long window is full [streams]."""
        return np.asarray(self._age * self._size > WARM_ROWS)

    def look(self, expected: Floats, spreads: Spreads) -> tuple[Floats, Floats, Floats, Floats]:
        """The score [streams]; the deviations, effective rows and largest that `relative` takes. `expected`: [streams,
        features, CELLS], or of all streams [features, CELLS]."""
        rows = self._weight * self._weight / self._squares
        far, moved = divergence(
            self._windows / self._weight[:, :, None, None], None, expected.reshape(-1, 1, *expected.shape[-2:]), rows
        )
        level, scale, shape, largest = spreads.at(rows)
        return scores(far, level, scale, shape).max(axis=(1, 2)), moved, rows, largest


def ordered_scores(
    table: OrderedTable, folds: _Folds | None, size: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Scores and ln of the statistic in units of the largest, each [steps, streams], of blocks of `size` rows over
    stretches of the table in its order; NaN where none. The latter only of full blocks."""
    units = size // UNIT_ROWS
    starts = drawn_starts(table, units, STREAMS, SIMULATED_ROWS[size], rng)
    nothing = np.full((1, STREAMS), np.nan)
    if folds is None or starts.shape[1] * size <= WARM_ROWS:  # no stretch of so short a table fills the long window
        return nothing, nothing
    groups = table.alien.astype(np.float64), table.missing.astype(np.float64)
    found: list[Floats] = []
    gross: list[Floats] = []
    for stretch in starts:
        simulation = _Simulation(len(table.expected), STREAMS, size)
        for at in stretch:
            there = (at >= 0) & (at <= table.units - units)
            begun = np.where(there, at, 0)
            simulation.take(table.shares(begun, units), there)
            expected, spreads, most = folds.of(begun)
            score, moved, rows, largest = simulation.look(expected, spreads)
            found.append(np.where(simulation.warm, score, np.nan))
            if size == BLOCK_ROWS:
                far = relative(moved, expected[:, None], largest, groups, most, rows).max(axis=(1, 2))
                gross.append(np.where(simulation.warm, np.log(np.maximum(far, 1e-9)), np.nan))
        found.append(nothing[0])
        gross.append(nothing[0])
    return np.array(found), np.array(gross)


def independent_scores(
    table: OrderedTable, spreads: tuple[FeatureSpread, ...], size: int, rng: np.random.Generator
) -> Floats:
    """Scores [steps, streams] of blocks of `size` rows drawn one by one, each feature by itself."""
    simulation = _Simulation(len(table.expected), STREAMS, size)
    of = Spreads.of(spreads, table.rows)
    of = Spreads(of.table.repeat(STREAMS, axis=0), of.rows.repeat(STREAMS))
    there = np.ones(STREAMS, np.bool_)
    expected = table.expected / table.expected.sum(axis=1, keepdims=True)
    found = []
    for _ in range(INDEPENDENT_ROWS[size] // (size * STREAMS)):
        simulation.take(rng.multinomial(size, expected, (STREAMS, len(expected))) / size, there)
        found.append(np.where(simulation.warm, simulation.look(table.expected, of)[0], np.nan))
    return np.array(found)


def alarms_at(series: Floats, levels: Floats, calm: float) -> Longs:
    """Alarms [levels] in `series` [steps, streams]: a score above the level, the first since one at or below `calm`.
    NaN is no score."""
    armed = np.ones((len(levels), series.shape[1]), np.bool_)
    count = np.zeros(len(levels), np.int64)
    quiet = np.minimum(calm, levels)[:, None]
    for row in series:
        fired = armed & (row > levels[:, None])
        count += fired.sum(axis=1)
        armed = (armed & ~fired) | (row <= quiet)
    return count


def alarm_tail(series: Floats, size: int, table_rows: float = math.inf, usual_excess: float = 1.0) -> AlarmTail:
    """The tail of alarms a row over the score, from `series` [steps, streams] of blocks of `size` rows. `table_rows` of
    the table that the streams come from again and again: what it holds `TAIL_EVENTS` times is known of the tail, and no
    more. `usual_excess`: how far above a level alarms go on average, before any was seen."""
    known = series[~np.isnan(series)]
    rows = max(len(known), 1) * size
    if len(known) == 0:
        return AlarmTail(score=UNKNOWN_SCORE, rate=1.0, far_score=UNKNOWN_SCORE, far_rate=1.0, decay=1.0, calm=5.0)
    calm = float(np.quantile(known, 0.95))
    levels = np.linspace(calm, float(known.max()), 200)[:-1] if known.max() > calm else np.array([calm])
    count = np.maximum(alarms_at(series, levels, calm), 1)
    passes = max(rows / table_rows, 1.0)
    at = int(np.flatnonzero(count >= min(max(TAIL_ALARMS, TAIL_EVENTS * passes), count.max()))[-1])
    step = (levels[-1] - levels[0]) / max(len(levels) - 1, 1)
    excess = float(count[at:].sum() * step / count[at])  # of a cluster's highest score above the level
    events = count[at] / passes
    mean = (events * excess + PRIOR_EVENTS * usual_excess) / (events + PRIOR_EVENTS)
    return AlarmTail(
        score=float(levels[at]),
        rate=float(count[at] / rows),
        far_score=float(levels[at]),
        far_rate=float(count[at] / rows),
        decay=1.0 / mean,
        calm=calm,
        events=float(events + PRIOR_EVENTS),
    )


def alarm_tails(
    table: OrderedTable, spreads: tuple[FeatureSpread, ...], seed: int
) -> tuple[tuple[AlarmTail, ...], AlarmTail | None]:
    """The tails of ordered rows at each of `LOOK_ROWS`, then those of rows drawn one by one; and the tail of ln of the
    statistic in units of the largest in the profile, None for a table too short to fill a window."""
    ordered: list[AlarmTail] = []
    alone: list[AlarmTail] = []
    folds = _Folds(table) if table.units * UNIT_ROWS > WARM_ROWS else None
    for size in LOOK_ROWS:
        found, gross = ordered_scores(table, folds, size, np.random.default_rng([seed, size]))
        ordered.append(alarm_tail(found, size, float(table.rows)))
        drawn = independent_scores(table, spreads, size, np.random.default_rng([seed, size]))
        alone.append(alarm_tail(drawn, size))
        if ordered[-1].score <= LIKE_INDEPENDENT * alone[-1].threshold(ordered[-1].rate):
            ordered[-1] = ordered[-1].model_copy(update={"decay": alone[-1].decay, "events": alone[-1].events})
    if np.isnan(gross).all():
        return (*ordered, *alone), None
    # The largest of n deviations of normal sums is so far out that their ln exceeds it by 1 / ln n on average.
    blocks = max(table.rows / BLOCK_ROWS, math.e)
    tail = alarm_tail(gross, BLOCK_ROWS, float(table.rows), 1.0 / math.log(blocks))
    # A tail exponential in ln is heavier than theirs: no more is added for what is not known of it.
    return (*ordered, *alone), tail.model_copy(update={"events": None})
