"""Rows as points: numbers, categories and missing values in one Euclidean space where strange rows lie far away.

A number becomes 2 asinh(v / 2) of its distance v from the median in robust standard deviations: as it is in the middle,
its logarithm far out, so that a heavy tail does not set the scale for everybody. A category lies where its rows lie
(the mean of their numbers, in the few directions in which categories differ most), and has a coordinate for how rare it
is; so has the set of a row's missing values, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemas.blocks import UNSEEN, Codes, Floats

DIRECTIONS = 3
"""Coordinates of a categorical feature beside its rarity."""
SHRINK_ROWS = 5.0
"""A category's place counts as if so many rows at the centre had it, too."""
PLAIN_CLIP = 8.0
MAX_VALUE = 1e30
"""Numbers beyond it count as missing, as they do at decoding."""
_IQR_OF_NORMAL = 1.349

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CategoryPlaces:
    """Where a categorical feature's values lie: [2 + categories, coordinates], rows 0 and 1 for unseen and missing."""

    places: Floats

    def of(self, codes: Codes) -> Floats:
        """Places [n, coordinates] of `codes` [n]; what is no code of the feature is unseen."""
        return self.places[_index(codes, len(self.places))]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """From a row's features to its point.

    centre, scale [numeric] are median and robust deviation, mean, sd [numeric] the plain ones; `absence` [numeric] are
    the nats of a missing value. q coordinates: the numbers, one for what is missing, then those of each category.
    """

    centre: Floats
    scale: Floats
    mean: Floats
    sd: Floats
    absence: Floats
    categories: tuple[CategoryPlaces, ...]

    @cached_property
    def size(self) -> int:
        return len(self.centre) + 1 + sum(int(each.places.shape[1]) for each in self.categories)

    def points(self, numeric: Floats, categorical: Codes) -> Floats:
        """Points [n, q] of numbers [n, numeric], NaN = missing, and category codes [n, categorical]; all finite."""
        out = np.zeros((len(numeric), self.size))
        width = len(self.centre)
        gone = ~(np.abs(numeric) <= MAX_VALUE)
        with np.errstate(invalid="ignore", over="ignore"):
            away = (numeric - self.centre) / (2 * self.scale)
        if gone.any():
            away[gone] = 0.0
            out[:, width] = gone @ self.absence
        np.multiply(np.arcsinh(away), 2.0, out=out[:, :width])
        at = width + 1
        for places, codes in zip(self.categories, categorical.T, strict=True):
            out[:, at : at + places.places.shape[1]] = places.of(codes)
            at += places.places.shape[1]
        return out

    def plain(self, points: Floats) -> Floats:
        """The same points [n, q] with numbers in plain standard deviations, at most 8 of them: what is far out is not
        drawn in, so that the two views err differently."""
        width = len(self.centre)
        out = points.copy()
        away = 2.0 * np.sinh(np.clip(points[:, :width], -40.0, 40.0) / 2.0)
        shift = (self.centre - self.mean) / self.sd
        out[:, :width] = np.clip(away * (self.scale / self.sd) + shift, -PLAIN_CLIP, PLAIN_CLIP)
        return out

    @classmethod
    def fit(cls, numeric: Floats, categorical: Codes, sizes: Sequence[int]) -> Coordinates:
        """Of a table: numeric [n, numeric], categorical [n, categorical] whose codes are below `sizes`."""
        numbers = [_scales(column) for column in numeric.T]
        centre, scale, mean, sd = (
            (np.array(part) for part in zip(*numbers, strict=True)) if numbers else (np.zeros(0),) * 4
        )
        gone = ~(np.abs(numeric) <= MAX_VALUE)
        absence = _nats(gone.sum(axis=0), len(numeric))
        bare = cls(centre, scale, mean, sd, absence, ())
        points = bare.points(numeric, categorical[:, :0])
        views = np.clip(points[:, : len(centre)], -PLAIN_CLIP, PLAIN_CLIP)
        rarities = [_rarity(categorical[:, j], size, len(numeric)) for j, size in enumerate(sizes)]
        of_rows = [rarity[_index(categorical[:, j], len(rarity))] for j, rarity in enumerate(rarities)]
        categories = []
        for j, rarity in enumerate(rarities):
            others = np.column_stack([views, *(rows for k, rows in enumerate(of_rows) if k != j)])
            means = _means(_index(categorical[:, j], len(rarity)), len(rarity), others)
            categories.append(CategoryPlaces(np.column_stack([rarity, means])))
        return cls(centre, scale, mean, sd, absence, tuple(categories))


def _scales(column: Floats) -> tuple[float, float, float, float]:
    """Median, robust deviation, mean, standard deviation of the present values; never a zero deviation."""
    present = column[np.abs(column) <= MAX_VALUE]
    if len(present) == 0:
        return 0.0, 1.0, 0.0, 1.0
    low, median, high = np.quantile(present, [0.25, 0.5, 0.75]).tolist()
    mean, sd = float(present.mean()), float(present.std())
    # a constant has no scale of its own: a twentieth of it is far away
    alone = max(0.05 * abs(median), 1e-3)
    if sd <= 1e-9 * abs(mean):
        return median, alone, median, alone
    robust = (high - low) / _IQR_OF_NORMAL
    return median, robust if robust > 0.1 * sd else sd, mean, sd


def _nats(counts: npt.NDArray[np.int64], rows: int) -> Floats:
    """How surprising something is that `counts` of the rows have; what none has is one in rows + 1."""
    return np.asarray(-np.log(np.maximum(counts, 1.0 / (1 + 1 / max(rows, 1))) / max(rows, 1)))


def _index(codes: Codes, size: int) -> npt.NDArray[np.int64]:
    """Codes as rows of a table of `size`: unseen (and what is no code) 0, missing 1, the categories from 2 on."""
    at = codes.astype(np.int64) - UNSEEN
    return np.where((at >= 0) & (at < size), at, 0)


def _rarity(codes: Codes, size: int, rows: int) -> Floats:
    """Nats of each value [2 + size], beside their mean over the rows: unseen, missing, the categories."""
    counts = np.bincount(_index(codes, size + 2), minlength=size + 2)
    nats = _nats(counts, rows)
    return np.asarray(nats - float(nats @ counts) / max(rows, 1))


def _means(value: npt.NDArray[np.int64], values: int, others: Floats) -> Floats:
    """Where each of `values` lies among the `others` [n, k]: its rows' mean, drawn to the centre where they are few, in
    the at most three directions in which values differ most. [values, directions]."""
    if others.shape[1] == 0 or len(others) == 0:
        return np.zeros((values, 0))
    standard = (others - others.mean(axis=0)) / np.maximum(others.std(axis=0), 1e-9)
    counts = np.bincount(value, minlength=values).astype(np.float64)
    sums = np.stack([np.bincount(value, column, minlength=values) for column in standard.T], axis=1)
    means = sums / (counts + SHRINK_ROWS)[:, None]
    spread = (means * counts[:, None]).T @ means / len(others)
    strength, directions = np.linalg.eigh(spread)
    kept = np.flatnonzero(strength > 1e-6)[::-1][:DIRECTIONS]
    return np.asarray(means @ directions[:, kept])
