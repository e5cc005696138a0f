"""Do values still come at the resolution that they had in the training table?

What a sensor, a price list or a rounding makes lies on a grid: origin + k * step, whole degrees or cents. A change of unit,
of scale or of location by anything but whole steps leaves it at once, whatever the season: so this test sees what
histograms against a year of weather cannot. It counts odd values, those off the grid. A value that stays (the weather
of an hour) is one event, told again every `UNIT_ROWS` rows. Calibrated like the histograms: each piece of the table is
judged by the grid of the others, and what the table does not know is predictive (`alarm_tail`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detectors.cells import NUMERIC_BELOW, CellNumbers, numeric_cells
from detectors.drift_alarm_tails import FOLDS, PIECES, alarm_tail
from detectors.drift_thresholds import UNIT_ROWS
from detectors.drift_windows import faded
from detectors.profile import AlarmTail, NumericFeature, Resolution
from schemas.blocks import BLOCK_ROWS, Floats, Longs

NEAR = 0.05
"""A value within so many steps of the grid is on it: of values that know no grid, 9 in 10 are odd."""
LEAST_STEP = 1e-5
"""Least step over the largest usual value: float32 moves values by 1e-7 of them, a hundredth of such a step."""
MOST_ODD, MOST_ODD_VALUES = 1e-3, 0.05
"""Rows, and distinct values, that may lie off the grid of their own table."""
LEAST_VALUES = 6
"""Of fewer distinct values any numbers have a common step."""
PARTS = 12
"""The smallest gap between values of a table is at most so many steps."""
DECIMALS = 6
TRIED_VALUES = 2_048
MET_AGAIN = (32, 256)
"""The smallest gap is looked for among so many of the most frequent values, too: a few broken rows have any gap."""
USUAL_EXCESS = 0.5
"""How far above a level odd values go on average, before any was met, in units of what a rare value brings. Of 187 series
and columns of 18 public tables whose first half keeps a grid, two left it in the second half (3.0 M values), by 0.8 at most."""

Flags = npt.NDArray[np.bool_]


def odd(values: Floats, origin: Floats | float, step: Floats | float) -> Flags:
    """Which `values` of any shape lie off the grid; NaN and inf, and all where `step` is inf, do not."""
    with np.errstate(invalid="ignore"):
        away = np.subtract(values, origin)
        away *= 1.0 / step
        away -= np.rint(away)
        np.abs(away, out=away)
        return np.asarray(away > NEAR)


def odd_events(values: Floats, origin: Floats | float, step: Floats | float) -> Flags:
    """Odd `values` [..., rows] that differ from the one before, or stay for another `UNIT_ROWS`."""
    found = odd(values, origin, step)
    if found.any():
        found &= _new(values)
    return found


def _new(values: Floats) -> Flags:
    """Which `values` [..., rows] begin an event: another than the one before, or the first of a unit."""
    new = np.ones(values.shape, np.bool_)
    np.not_equal(values[..., 1:], values[..., :-1], out=new[..., 1:])
    new[..., ::UNIT_ROWS] = True
    return new


def odd_scores(events: Floats, capped: Floats | None, most: Floats, threshold: Floats, features: int) -> Floats:
    """Scores [m, windows, features] that pass `threshold` [m] where `events` [m, windows, numeric features] pass `most` [m,
    numeric features]; by capped weights too, unless they are None. Beyond it they grow by the logarithm: who sends many odd
    values must not outshine what else moved."""
    found = np.zeros((*events.shape[:2], features))
    part = (events if capped is None else np.minimum(events, capped)) / most[:, None]
    found[:, :, : events.shape[2]] = np.minimum(part, 1.0) * threshold[:, None, None] + np.log(np.maximum(part, 1.0))
    return found


def told_cells(values: Floats, edges: Floats, grid: Floats) -> CellNumbers:
    """Cells of `values` [features, rows] by `edges` [features, EDGES], odd ones among those far below: so who sends them
    can be told from everybody. `grid` [2, features] are origins and steps."""
    cells: CellNumbers = numeric_cells(values[None], edges[None])[0]
    cells[odd(values, grid[0][:, None], grid[1][:, None])] = NUMERIC_BELOW
    return cells


def with_resolutions(
    numeric: Sequence[NumericFeature], columns: Sequence[Floats]
) -> tuple[list[NumericFeature], AlarmTail | None]:
    """The features with the resolution of their `columns` [rows], ordered and NaN where missing; and how often odd values
    come by chance, None if no feature has a resolution. Rows are a whole number of units."""
    features, together = list(numeric), None
    for k, column in enumerate(columns):
        found = _judged(column)
        if found is not None:
            features[k] = numeric[k].model_copy(update={"resolution": found[0]})
            together = found[1] if together is None else np.maximum(together, found[1])
    if together is None:
        return features, None
    rows = len(columns[0])
    tail = alarm_tail(together[:, None], BLOCK_ROWS, float(rows), USUAL_EXCESS)
    return features, tail


def _judged(column: Floats) -> tuple[Resolution, Floats] | None:
    """The resolution of one column, and events in the fuller window [blocks] in units of what a rare value brings, each
    piece judged by the grid of the others; None if it has none, or not in all parts of the table."""
    present = ~np.isnan(column)
    values, of_row = np.unique(column[present], return_inverse=True)
    unit = np.arange(len(column)) // UNIT_ROWS
    fold = unit * PIECES // max(len(column) // UNIT_ROWS, 1) % FOLDS
    counts = np.bincount(fold[present] * len(values) + of_row, minlength=FOLDS * len(values)).reshape(FOLDS, -1)
    grid = _grid(values, counts.sum(axis=0))
    if grid is None:
        return None
    events = np.zeros(len(column), np.bool_)
    for left_out in range(FOLDS):
        kept = counts.sum(axis=0) - counts[left_out]
        of_others = _grid(values[kept > 0], kept[kept > 0])
        if of_others is None:
            return None
        here = fold == left_out
        events |= here & odd_events(column, *of_others)
    if events.mean() > MOST_ODD:
        return None
    origin, step = grid
    brings = _rare_brings(column, present, of_row)
    return Resolution(origin=origin, step=step, brings=brings), _fullest(events) / brings


def _grid(values: Floats, counts: Longs) -> tuple[float, float] | None:
    """Origin and the largest step of rising distinct `values` that came `counts` times; None if they have none."""
    if len(values) < LEAST_VALUES:
        return None
    order = np.argsort(-counts, kind="stable")
    share = counts / counts.sum()
    origin = float(values[order[0]])
    by_size = np.argsort(np.abs(values), kind="stable")
    usual = by_size[np.searchsorted(share[by_size].cumsum(), 1.0 - MOST_ODD)]
    least = LEAST_STEP * abs(float(values[usual]))
    gaps: set[float] = set()
    for many in (*MET_AGAIN, len(values)):
        between = np.diff(np.sort(values[order[:many]]))
        gaps |= {float(between[between > least].min(initial=np.inf))}
    steps = {gap / part for gap in gaps if gap < np.inf for part in range(1, PARTS + 1)}
    steps |= {float(f"{step:.6g}") for step in steps}  # of float32 a gap is known to so many digits
    steps |= {10.0**-decimals for decimals in range(DECIMALS + 1)}
    some = values[:: max(len(values) // TRIED_VALUES, 1)]
    for step in sorted(steps, reverse=True):
        if not least < step <= 1.01 * max(gap for gap in (*gaps, 0.0) if gap < np.inf):
            continue
        if odd(some, origin, step).mean() > MOST_ODD_VALUES:
            continue
        off = odd(values, origin, step)
        if off.mean() <= MOST_ODD_VALUES and share[off].sum() <= MOST_ODD:
            return origin, step
    return None


def _rare_brings(column: Floats, present: Flags, of_row: Longs) -> float:
    """How many events a rare value would bring in the block of 256 rows in which it comes; `of_row` numbers the present
    values. Values count the more the fewer blocks know them, by the square."""
    rows = np.flatnonzero(present)
    events = np.bincount(of_row, _new(column)[rows])
    blocks = len(column) // BLOCK_ROWS + 1
    met = np.unique(of_row * blocks + rows // BLOCK_ROWS) // blocks
    in_blocks = np.bincount(met, minlength=len(events))
    return float((events / in_blocks**2).sum() / (1.0 / in_blocks).sum())


def _fullest(events: Flags) -> Floats:
    """Events in the fuller of both windows [blocks] after each block of a table's `events` [rows]."""
    whole = len(events) // BLOCK_ROWS * BLOCK_ROWS
    by_block = events[:whole].reshape(-1, BLOCK_ROWS).sum(axis=1)
    left = faded(np.array(float(BLOCK_ROWS)))
    held, found = np.zeros(len(left)), np.empty(len(by_block))
    for k, more in enumerate(by_block.tolist()):
        held = held * left + more
        found[k] = held.max()
    return found
