"""Blocks to sums: cell histograms and means of many blocks of many profiles by one numpy call each.

Every sum is taken by `bincount`, which adds in row order, and every other step is element by element: a block gives
the same bits whatever blocks are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detectors.adwin import FEED_ROWS, MAX_STANDARD
from detectors.caller_weights import capped_row_weights, row_weights
from detectors.cells import CELLS, categorical_cells, numeric_cells
from detectors.drift_resolution import odd_events
from detectors.drift_shelf import Shelf
from detectors.drift_thresholds import ADAPTIVE_FEATURES
from schemas.blocks import MIN_TICK_ROWS, MISSING, Block, Floats, Longs

CHUNK_VALUES = 1 << 17
"""Values worked on at once: 1 MB of float64 stays in the second-level cache."""


WIDTHS = (32, 48, 64, 96, 128, 192, 256)
"""Rows that blocks are padded to: at most half is padding, a sixth as a rule."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Of m blocks: cell weights `seen` and `capped` [m, features, CELLS] by own and by capped caller weights, `over` [m]
    whether a caller was over the cap (else `capped` is left 0 and means `seen`), `weight`
    and `squares` [m] of the rows' own weights, `rows` [m] rows that weigh, `odd` and `odd_capped` [m, numeric features]
    events off the grid by both weights, as if every row weighed 1, and for ADWIN the capped sums of
    standardised values and of their weights [m, ADAPTIVE_FEATURES], 0 for blocks under 32 rows."""

    seen: Floats
    capped: Floats
    over: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    weight: Floats
    squares: Floats
    rows: Floats
    odd: Floats
    odd_capped: Floats
    value_sum: Floats
    value_weight: Floats


def sums(blocks: Sequence[Block], shelf: Shelf, slots: Longs) -> Sums:
    """The sums of `blocks`, whose parts lie in `slots` of `shelf`."""
    m, features = len(blocks), shelf.numeric + shelf.categorical
    weights = row_weights(blocks)
    capped = capped_row_weights(blocks, weights)
    over = np.array([lighter is not None for lighter in capped])
    result = Sums(
        np.zeros((m, features, CELLS)),
        np.zeros((m if over.any() else 0, features, CELLS)),
        over,
        np.array([float(np.add.reduce(weight)) for weight in weights]),
        np.array([float(np.add.reduce(weight * weight)) for weight in weights]),
        np.array([float(np.count_nonzero(weight)) for weight in weights]),
        np.zeros((m, shelf.numeric)),
        np.zeros((m if over.any() else 0, shelf.numeric)),
        np.zeros((m, ADAPTIVE_FEATURES)),
        np.zeros((m, ADAPTIVE_FEATURES)),
    )
    for which, width in _chunks([len(block) for block in blocks], features):
        _chunk_sums(blocks, shelf, slots, which, width, weights, capped, result)
    return result


def _chunks(lengths: Sequence[int], features: int) -> Iterator[tuple[Longs, int]]:
    """Blocks to work on together, and the rows they are padded to: the next of `WIDTHS`, or of their last's multiples."""
    longest = WIDTHS[-1]
    most = np.array([*WIDTHS, *range(2 * longest, max(lengths) + longest, longest)])
    widths = most[np.searchsorted(most, lengths)]
    for width in np.unique(widths).tolist():
        which = np.flatnonzero(widths == width)
        at_once = max(CHUNK_VALUES // (width * features), 1)
        for at in range(0, len(which), at_once):
            yield which[at : at + at_once], width


def _chunk_sums(
    blocks: Sequence[Block],
    shelf: Shelf,
    slots: Longs,
    which: Longs,
    width: int,
    weights: Sequence[Floats],
    capped: Sequence[Floats | None],
    into: Sums,
) -> None:
    m, features = len(which), shelf.numeric + shelf.categorical
    numbers = np.full((m, shelf.numeric, width), np.nan)
    codes = np.full((m, shelf.categorical, width), MISSING, np.int32)
    own, fair = np.zeros((m, width)), np.zeros((m, width))
    over = []
    for k, block_at in enumerate(which.tolist()):
        block, n = blocks[block_at], len(blocks[block_at])
        numbers[k, :, :n] = block.numeric.T
        codes[k, :, :n] = block.categorical.T
        own[k, :n] = weights[block_at]
        lighter = capped[block_at]
        fair[k, :n] = weights[block_at] if lighter is None else lighter
        if lighter is not None:
            over.append(k)
    of = slots[which]
    index = np.empty((m, features, width), np.int64)
    np.add(
        _bases(m, shelf.numeric, features, 0), numeric_cells(numbers, shelf.edges[of]), out=index[:, : shelf.numeric]
    )
    np.add(
        _bases(m, shelf.categorical, features, shelf.numeric), categorical_cells(codes), out=index[:, shelf.numeric :]
    )
    seen = _by_cell(index, own, m * features * CELLS).reshape(m, features, CELLS)
    into.seen[which] = seen
    if over:
        heavy = np.array(over)
        sub = index[heavy] - (heavy - np.arange(len(heavy)))[:, None, None] * (features * CELLS)
        fair_cells = _by_cell(sub, fair[heavy], len(heavy) * features * CELLS)
        into.capped[which[heavy]] = fair_cells.reshape(len(heavy), features, CELLS)
    _odd_sums(numbers, own, fair if over else None, shelf, of, which, into)
    _feed_sums(numbers, fair, shelf, of, which, into)


def _odd_sums(
    numbers: Floats, own: Floats, fair: Floats | None, shelf: Shelf, of: Longs, which: Longs, into: Sums
) -> None:
    events = odd_events(numbers, shelf.origin[of, :, None], shelf.step[of, :, None])
    if not events.any():
        return
    at, feature, row = np.nonzero(events)
    lane, size = at * shelf.numeric + feature, len(which) * shelf.numeric
    unit = (into.rows[which] / np.maximum(into.weight[which], 1e-300))[:, None]
    into.odd[which] = np.bincount(lane, own[at, row], size).reshape(-1, shelf.numeric) * unit
    if fair is not None:
        into.odd_capped[which] = np.bincount(lane, fair[at, row], size).reshape(-1, shelf.numeric) * unit


def _bases(m: int, features: int, all_features: int, first: int) -> Longs:
    """The first cell's index [m, features, 1] of each feature of each block."""
    return (np.arange(m)[:, None, None] * all_features + first + np.arange(features)[None, :, None]) * CELLS


def _by_cell(index: Longs, weight: Floats, cells: int) -> Floats:
    """Weight [cells] by `index` [m, features, rows] of row `weight` [m, rows]."""
    wide = np.broadcast_to(weight[:, None, :], index.shape)
    return np.bincount(index.ravel(), wide.ravel(), minlength=cells).astype(np.float64, copy=False)


def _feed_sums(numbers: Floats, fair: Floats, shelf: Shelf, of: Longs, which: Longs, into: Sums) -> None:
    big = np.flatnonzero((into.rows[which] >= MIN_TICK_ROWS) & (shelf.watched[of] >= 0).any(axis=1))
    if len(big) == 0:
        return
    watched = shelf.watched[of[big]]
    values = numbers[big[:, None], watched]
    values -= shelf.mean[of[big], :, None]
    values /= shelf.sd[of[big], :, None]
    here = (values == values) & (watched >= 0)[:, :, None]
    np.clip(values, -MAX_STANDARD, MAX_STANDARD, out=values)
    values[~here] = 0.0
    weight = fair[big, None, :] * here
    lane = np.repeat(np.arange(len(big) * ADAPTIVE_FEATURES), values.shape[2])
    size = len(big) * ADAPTIVE_FEATURES
    into.value_sum[which[big]] = np.bincount(lane, (values * weight).ravel(), size).reshape(-1, ADAPTIVE_FEATURES)
    into.value_weight[which[big]] = np.bincount(lane, weight.ravel(), size).reshape(-1, ADAPTIVE_FEATURES)


def feed_ready(rows: float) -> bool:
    """Whether so many gathered rows make a mean: three quarters of `FEED_ROWS`, as some rows of a block are refused."""
    return rows >= 0.75 * FEED_ROWS
