"""How strange is one row? Distances to the rows of the training table, and what chance gives.

A row's point is whitened (Mahalanobis, 1936) and compared with at most 4,096 rows of the table, the references. Each
measure is turned into nats of surprise by rows that were held out. The distance to the nearest reference (Ramaswamy et
al., 2000) sees what lies between usual rows, and no dense group of strange rows in the table itself; the distance to the
mass, from a row to a reference and on to many others (Chazal et al., 2011; Buchet et al., 2016), sees such a group if it
lies apart, and the distance from the centre if it lies far out. As p-values they are put together by their harmonic mean
(Wilson, 2019): what one of them finds is strange, whatever the others say. The rich tier adds the distance to the nearest
reference in units of that reference's own neighbourhood (the idea of LOF, Breunig et al., 2000). P-values are conformal:
the share of held-out rows that are at least as strange (Vovk et al., 2005; Bates et al., 2023), so that on rows
exchangeable with the table a share of at most alpha is below it.

Whitened points lie on a grid of 1/32: products and sums of float32 are then whole numbers below 2^24, hence exact, and
equal on any machine for points within 64 deviations. Beyond that they are as exact as float32 is, at one padded shape.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.outlier_coordinates import Coordinates, Floats32
from schemas.blocks import BLOCK_ROWS, Codes, Floats, Longs
from schemas.errors import ConfigError

Tier = Literal["fast", "rich"]
TIERS: tuple[Tier, ...] = ("fast", "rich")
REFERENCES: dict[Tier, int] = {"fast": 1024, "rich": 4096}
"""1,024 references of 20 features take 0.2 ms a block of 256 rows."""
MAX_REFERENCE_NUMBERS = 1 << 19
"""Coordinates of all references: 1 MB of half precision; tables of more than 128 coordinates have fewer references."""
GROUPS = 4
"""Random samples of the references: the distance to the nearest one is a mean over them (Sugiyama and Borgwardt, 2013)."""
LEAST_ROWS = 32
"""Fewer rows have no shape."""
WHITEN_RIDGE, PLAIN_RIDGE = 1e-3, 0.1
"""Added to each direction's variance, in parts of the mean one."""
FIT_ROWS = 1 << 17
"""Rows of a larger table that set scales and directions, evenly spread."""
GRID = 32.0
NEIGHBOURHOOD = 20
"""A reference's neighbourhood reaches to its 20th nearest one, an eighth of them at most."""
MASS, MASS_REFERENCES = 0.05, 512
"""A reference's distance to the mass reaches to a twentieth of all references: a group of strange rows that is smaller has
no mass of its own. Rows reach it by way of the first 512 references: all of them tell no more, and take longer."""
NEAR_WEIGHT: dict[Tier, float] = {"fast": 2.0, "rich": 1.0}
LOCAL_WEIGHT = 0.25
"""Of nearness in the harmonic mean beside the two others, and of local nearness beside that mean. Chosen on tuning data,
one choice for all."""
SUM_WEIGHTS: dict[Tier, tuple[float, ...]] = {"fast": (1.0, 0.5), "rich": (1.0, 1.0, 0.5)}
"""In profiles of releases before `remoteness` nats are added: of the distance to the nearest reference, of that from the
centre and, in the rich tier, of local nearness."""
HOLD_OUT_ROWS = 8192
"""From so many rows on a quarter is held out for calibration; below it five folds take turns, each held out once from
what judges it, and the references are of all rows."""
FOLDS = 5
MAX_CALIBRATION = 1 << 16
TAIL_FROM = 0.1
"""Surprise is counted in held-out rows up to this share; beyond it an exponential tail in the logarithm of the measure."""
CURVE_KNOTS = 48
TAIL_SCORES, BODY_SCORES = 1024, 256
"""The largest calibration scores are kept one by one, of the others every so-and-so-manieth."""
_FARTHEST = 2.0**50
"""Of a coordinate on the grid: its square is a float32."""

Halves = npt.NDArray[np.float16]


class Scored(NamedTuple):
    """Of rows [n]: scores in nats (larger is stranger) and conformal p-values in (0, 1]."""

    scores: Floats
    p_values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """From a measure to nats of surprise: -ln of the share of held-out rows that reach it. at [k] rise (ln of the measure)."""

    at: Floats
    nats: Floats
    slope: float

    def of(self, measure: Floats) -> Floats:
        logs = np.log(np.maximum(measure, 1e-12))
        beyond = np.maximum(logs - self.at[-1], 0.0)
        return np.asarray(np.interp(logs, self.at, self.nats) + beyond * self.slope)

    @classmethod
    def fit(cls, measure: Floats) -> Curve:
        logs = np.sort(np.log(np.maximum(measure, 1e-12)))
        shares = np.geomspace(1.0, TAIL_FROM, CURVE_KNOTS)
        knots = np.quantile(logs, 1.0 - shares)
        over = logs[logs >= knots[-1]] - knots[-1]
        slope = 1.0 / max(float(over.mean()), 1e-6) if len(over) else 1.0
        at, first = np.unique(knots[::-1], return_index=True)  # of equal knots the most surprising is the first here
        return cls(at, -np.log(shares[::-1][first]), slope)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What held-out rows scored. `scores` [k] rise; `above` [k + 1] are the held-out rows above the score before each (all
    of the `rows`, ..., none above the last)."""

    curves: tuple[Curve, ...]
    scores: Floats
    above: Longs
    rows: int

    def p_values(self, scores: Floats) -> Floats:
        """(1 + held-out rows at least as strange) / (1 + held-out rows); more, never less, where not all are kept."""
        return np.asarray((1.0 + self.above[np.searchsorted(self.scores, scores, "left")]) / (1.0 + self.rows))

    @classmethod
    def fit(cls, curves: tuple[Curve, ...], scores: Floats) -> Calibration:
        ranked = np.sort(scores)
        rows = len(ranked)
        body = np.linspace(0, max(rows - TAIL_SCORES, 0), BODY_SCORES).astype(np.int64)
        kept = np.unique(ranked[np.concatenate([body, np.arange(max(rows - TAIL_SCORES, 0), rows)]).clip(0, rows - 1)])
        above = rows - np.searchsorted(ranked, kept, "right")
        return cls(curves, kept, np.concatenate([[rows], above]).astype(np.int64), rows)


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """y = (x - centre) @ matrix: no direction varies more than another. centre [q], matrix [q, q]."""

    centre: Floats
    matrix: Floats

    def of(self, points: Floats) -> Floats32:
        """Whitened points [n, q] in units of the grid, whole numbers."""
        whitened = (points - self.centre) @ self.matrix
        return np.clip(np.rint(whitened * GRID), -_FARTHEST, _FARTHEST).astype(np.float32)

    @classmethod
    def fit(cls, points: Floats, ridge: float, least: Floats) -> Whitening:
        """Of `points` [n, q]; a coordinate varies at least by `least` [q]."""
        centre = points.mean(axis=0)
        spread = np.atleast_2d((points - centre).T @ (points - centre)) / max(len(points) - 1, 1)
        spread[np.diag_indices_from(spread)] = np.maximum(spread.diagonal(), least)
        strength, directions = np.linalg.eigh(spread)
        floor = ridge * max(float(strength.mean()), 1e-9)
        matrix = directions / np.sqrt(np.maximum(strength, 0.0) + floor)
        return cls(centre, matrix.astype(np.float32).astype(np.float64))  # a profile keeps it in single precision


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What a table's rows look like: how they become points, how points are whitened, some of them, and the squared radius
    of each one's neighbourhood in the plain view. `remoteness`, in the whitened one: the first ones' squared distances to the
    mass, whole units of the grid; None in profiles of releases before it."""

    coordinates: Coordinates
    whitening: Whitening
    plain: Whitening
    references: Halves
    radii: Floats32
    remoteness: Floats32 | None

    @classmethod
    def fit(cls, numeric: Floats, categorical: Codes, sizes: Sequence[int]) -> Shape:
        """Of rows in random order: the first become references."""
        some = slice(0, FIT_ROWS)
        coordinates = Coordinates.fit(numeric[some], categorical[some], sizes)
        points = coordinates.points(numeric[some], categorical[some])
        least = np.zeros(coordinates.size)
        least[len(coordinates.centre)] = 1.0  # one nat: a value that was never missing is strange, not infinitely so
        most = min(REFERENCES["rich"], MAX_REFERENCE_NUMBERS // coordinates.size, len(points))
        references = points[: most - most % GROUPS].astype(np.float16)
        plain = Whitening.fit(coordinates.plain(points), PLAIN_RIDGE, least)
        kept = references.astype(np.float64)
        seen = plain.of(coordinates.plain(kept))
        radii = _Distances(seen).to_neighbours(seen, min(NEIGHBOURHOOD, len(seen) // 8))
        radii = np.maximum(radii, max(float(np.quantile(radii, 0.05)), 1.0))  # never next to nothing
        whitening = Whitening.fit(points, WHITEN_RIDGE, least)
        seen = whitening.of(kept)
        remoteness = np.maximum(_Distances(seen).to_neighbours(seen[:MASS_REFERENCES], int(MASS * len(seen))), 0.0)
        return cls(coordinates, whitening, plain, references, radii, remoteness)


class Measures:
    """The measures of one tier, ready to be taken: 100 kB in the fast tier at 20 coordinates, 800 kB in the rich one. Not for
    several threads at once."""

    def __init__(self, shape: Shape, tier: Tier) -> None:
        self._shape = shape
        self._tier = tier
        points = shape.references[: REFERENCES[tier]].astype(np.float64)
        self._near = _Distances(shape.whitening.of(points))
        self._remoteness = None if shape.remoteness is None else shape.remoteness[:, None]
        if tier == "rich":
            self._local = _Distances(shape.plain.of(shape.coordinates.plain(points)))
            self._closeness = 1.0 / shape.radii[:, None]

    def of(self, numeric: Floats, categorical: Codes) -> list[Floats]:
        """The tier's measures [n] of rows [n, ...], block by block, so that a row's bits do not depend on other blocks."""
        found: list[list[Floats]] = []
        for start in range(0, len(numeric), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            found.append(self._block(numeric[block], categorical[block]))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else []

    def _block(self, numeric: Floats, categorical: Codes) -> list[Floats]:
        rows = len(numeric)
        points = np.zeros((BLOCK_ROWS, self._shape.coordinates.size))
        points[:rows] = self._shape.coordinates.points(numeric, categorical)
        whitened = self._shape.whitening.of(points)
        squares = np.einsum("ij,ij->i", whitened, whitened)
        distances = self._near.to(whitened, squares)
        measures = []
        if self._remoteness is not None:
            measures.append(_lengths(_by_sample(distances).min(axis=0)))
            distances = distances[: len(self._remoteness)]
            distances += self._remoteness
        measures += [_lengths(_by_sample(distances)).mean(axis=0), squares.astype(np.float64) / GRID**2]
        if self._tier == "rich":
            plain = self._shape.plain.of(self._shape.coordinates.plain(points))
            local = self._local.to(plain, np.einsum("ij,ij->i", plain, plain))
            local *= self._closeness
            measures.append(np.maximum(local.min(axis=0), 0.0).astype(np.float64))
        return [measure[:rows] for measure in measures]


class _Distances:
    """Squared distances from references [m, q] on the grid to a block's points, one matrix product."""

    def __init__(self, references: Floats32) -> None:
        squares = np.einsum("ij,ij->i", references, references)
        ones = np.ones_like(squares)
        self._left = np.column_stack([-2.0 * references, squares, ones]).astype(np.float32)
        self._right = np.ones((BLOCK_ROWS, self._left.shape[1]), np.float32)

    def to(self, points: Floats32, squares: Floats32) -> Floats32:
        """To `points` [256, q] with `squares` [256]: [m, 256], overwritten by the next call."""
        self._right[:, :-2] = points
        self._right[:, -1] = squares
        return np.dot(self._left, self._right.T, out=_workspace(len(self._left)))

    def to_neighbours(self, some: Floats32, k: int) -> Floats32:
        """The squared distance [n] from each of `some` references [n, q] to the k-th nearest other one, at least the first."""
        many, k = len(some), max(k, 1)
        padded = np.zeros((-(-many // BLOCK_ROWS) * BLOCK_ROWS, some.shape[1]), np.float32)
        padded[:many] = some
        found = np.empty(len(padded), np.float32)
        for start in range(0, many, BLOCK_ROWS):
            block = padded[start : start + BLOCK_ROWS]
            distances = self.to(block, np.einsum("ij,ij->i", block, block))
            found[start : start + BLOCK_ROWS] = np.partition(distances, k, axis=0)[k]  # itself is one of the k + 1
        return found[:many]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Numbers of the rows held out, rising, and the p-value of each in each tier."""

    rows: Longs
    p_values: dict[Tier, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class OutlierModel:
    """The shape of a table, and each tier's calibration."""

    shape: Shape
    calibrations: dict[Tier, Calibration]

    @classmethod
    def fit(
        cls, numeric: Floats, categorical: Codes | None = None, sizes: Sequence[int] = (), *, seed: int = 0
    ) -> OutlierModel:
        """Of a table in any order: numeric [n, numeric] with NaN = missing, categorical [n, categorical] of codes below
        `sizes`, `MISSING` or `UNSEEN`. A second or two at 100,000 rows of 20 features. Raises ConfigError below 32 rows."""
        return cls.fit_held_out(numeric, categorical, sizes, seed=seed)[0]

    @classmethod
    def fit_held_out(
        cls, numeric: Floats, categorical: Codes | None = None, sizes: Sequence[int] = (), *, seed: int = 0
    ) -> tuple[OutlierModel, HeldOut]:
        """As `fit`, and what it found of the rows held out."""
        rows = len(numeric)
        if categorical is None:
            categorical = np.zeros((rows, 0), np.int32)
        if rows < LEAST_ROWS:
            raise ConfigError(f"{rows} rows show no shape: outliers need at least {LEAST_ROWS}")
        order = np.random.default_rng(seed).permutation(rows)
        parts: dict[Tier, list[list[Floats]]] = {tier: [] for tier in TIERS}
        held: list[Longs] = []
        shape = None
        for fitted, held_out in _plan(order):
            held.append(held_out)
            shape = Shape.fit(numeric[fitted], categorical[fitted], sizes)
            for tier in TIERS:
                parts[tier].append(Measures(shape, tier).of(numeric[held_out], categorical[held_out]))
        if rows < HOLD_OUT_ROWS or shape is None:
            shape = Shape.fit(numeric[order], categorical[order], sizes)
        which = np.concatenate(held)
        rising = np.argsort(which)
        calibrations: dict[Tier, Calibration] = {}
        p_values: dict[Tier, Floats] = {}
        for tier, found in parts.items():
            measures = [np.concatenate(each) for each in zip(*found, strict=True)]
            curves = tuple(map(Curve.fit, measures))
            scores = _combined(tier, curves, measures, summed=False)
            calibrations[tier] = Calibration.fit(curves, scores)
            p_values[tier] = calibrations[tier].p_values(scores)[rising]
        return cls(shape, calibrations), HeldOut(which[rising], p_values)


class OutlierScorer:
    """Scores rows by a model in one tier: at most 2 us a row of 20 features (`fast`), 20 us (`rich`)."""

    def __init__(self, model: OutlierModel, tier: Tier = "fast") -> None:
        self.tier = tier
        self._measures = Measures(model.shape, tier)
        self._summed = model.shape.remoteness is None
        self._calibration = model.calibrations[tier]

    def score(self, numeric: Floats, categorical: Codes | None = None) -> Scored:
        """Of rows: numeric [n, numeric], categorical [n, categorical], as the model's table had them."""
        if categorical is None:
            categorical = np.zeros((len(numeric), 0), np.int32)
        if len(numeric) == 0:
            return Scored(np.zeros(0), np.zeros(0))
        measures = self._measures.of(numeric, categorical)
        scores = _combined(self.tier, self._calibration.curves, measures, summed=self._summed)
        return Scored(scores, self._calibration.p_values(scores))


_own = threading.local()


def _workspace(references: int) -> Floats32:
    """Room for distances [references, 256], one a thread: 1 MB in the fast tier, 4 MB in the rich one. Taking it anew for
    each block would cost a fifth of the time."""
    room: Floats32 | None = getattr(_own, "room", None)
    if room is None or len(room) < references:
        room = _own.room = np.empty((references, BLOCK_ROWS), np.float32)
    return room[:references]


def _plan(order: Longs) -> Iterator[tuple[Longs, Longs]]:
    """Which rows make the shape, and which are held out for calibration; rows in random order."""
    if len(order) >= HOLD_OUT_ROWS:
        held_out = min(len(order) // 4, MAX_CALIBRATION)
        yield order[held_out:], order[:held_out]
        return
    for fold in range(FOLDS):
        held = np.arange(len(order)) % FOLDS == fold
        yield order[~held], order[held]


def _by_sample(squares: Floats32) -> Floats32:
    """The least of squared distances [references, n] in each sample of the references: [GROUPS, n]."""
    return np.asarray(squares.reshape(-1, GROUPS, squares.shape[1]).min(axis=0))


def _lengths(squares: Floats32) -> Floats:
    """Distances of squared ones on the grid, in standard deviations."""
    return np.asarray(np.sqrt(np.maximum(squares, 0.0).astype(np.float64)) / GRID)


def _combined(tier: Tier, curves: Sequence[Curve], measures: Sequence[Floats], *, summed: bool) -> Floats:
    """Scores [n]: the nats of the tier's measures put together."""
    nats = [curve.of(measure) for curve, measure in zip(curves, measures, strict=True)]
    if summed:
        return np.asarray(sum(weight * each for weight, each in zip(SUM_WEIGHTS[tier], nats, strict=True)))
    near, far, depth, *local = nats
    harmonic = np.logaddexp(np.logaddexp(near + math.log(NEAR_WEIGHT[tier]), far), depth)
    return np.asarray(harmonic + sum(LOCAL_WEIGHT * each for each in local))
