"""Cells: the histogram into which every feature falls, the same for a profile and for a live block.

A numeric feature has a cell for missing values, one far below and one far above everything the profile saw ("alien"),
and up to 21 bins between. A categorical one has a cell for unseen values, one for missing ones, and one a category;
categories beyond the 21 most frequent share the last. A fixed width lets arrays hold many endpoints side by side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.blocks import Codes, Floats

CELLS = 24
EDGES = 22
"""Far below, up to 20 between bins, far above; fewer are filled up with +inf."""
ALIEN_MARGIN = 0.25
"""A value is alien beyond the profile's extremes by so much of its range (0.1 % to 99.9 %). A storm stronger than any
in the training year passes the extremes by a few percent; a unit change passes them by half the range or more."""

NUMERIC_MISSING, NUMERIC_BELOW = 0, 1
CATEGORICAL_UNSEEN, CATEGORICAL_MISSING = 0, 1
FIRST_CELL = 2

CellNumbers = npt.NDArray[np.uint8]

_LEVELS = np.concatenate([[0.01], np.linspace(0.06, 0.94, EDGES - 4), [0.99]])


def numeric_edges(values: Floats) -> Floats:
    """Rising cell edges [2 to `EDGES`] of the finite `values` of one feature; cells are closed below, open above.

    Few distinct values (at most 21) get a cell each; ties and constants give fewer, never empty, bins.
    """
    if len(values) == 0:
        return np.array([-np.finfo(np.float64).max, np.finfo(np.float64).max])
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = np.quantile(values, [0.001, 0.999])
    margin = ALIEN_MARGIN * float(inner_high - inner_low) or ALIEN_MARGIN * (high - low) or 0.05 * abs(high) or 1e-6
    distinct = np.unique(values)
    if len(distinct) <= EDGES - 1:
        inner = (distinct[1:] + distinct[:-1]) / 2
    else:
        inner = np.unique(np.quantile(values, _LEVELS, method="inverted_cdf"))
    inner = inner[(inner > low) & (inner <= high)]
    # A value of 1e300 has no neighbour `margin` away: the next float is its edge then.
    below, above = min(low - margin, np.nextafter(low, -np.inf)), max(high + margin, np.nextafter(high, np.inf))
    return np.concatenate([[below], inner, [above]])


def padded_edges(edges: Floats) -> Floats:
    """`edges` filled up with +inf to [EDGES]."""
    return np.concatenate([edges, np.full(EDGES - len(edges), np.inf)])


def numeric_cells(values: Floats, edges: Floats) -> CellNumbers:
    """Cells of `values` [m, features, rows] by `edges` [m, features, EDGES]; NaN is missing."""
    cells = np.ones(values.shape, np.uint8)
    above = np.empty(values.shape, np.bool_)
    for k in range(EDGES):
        # One comparison an edge beats a binary search a value: no branch, one pass, any number of profiles at once.
        np.greater_equal(values, edges[..., k, None], out=above)
        cells += above.view(np.uint8)
    cells *= (values == values).view(np.uint8)
    return cells


def categorical_cells(codes: Codes) -> CellNumbers:
    """Cells of category `codes` of any shape (`MISSING`, `UNSEEN` or an index into the categories)."""
    return np.clip(codes + FIRST_CELL, 0, CELLS - 1).astype(np.uint8)


def alien_cells(numeric_edge_counts: list[int], categorical: int) -> npt.NDArray[np.bool_]:
    """Which cells [features, CELLS] hold what the profile never saw: far values and unseen categories."""
    alien = np.zeros((len(numeric_edge_counts) + categorical, CELLS), np.bool_)
    for feature, edges in enumerate(numeric_edge_counts):
        alien[feature, [NUMERIC_BELOW, edges + 1]] = True
    alien[len(numeric_edge_counts) :, CATEGORICAL_UNSEEN] = True
    return alien


def missing_cells(numeric: int, categorical: int) -> npt.NDArray[np.bool_]:
    """Which cells [features, CELLS] hold missing values."""
    missing = np.zeros((numeric + categorical, CELLS), np.bool_)
    missing[:numeric, NUMERIC_MISSING] = True
    missing[numeric:, CATEGORICAL_MISSING] = True
    return missing
