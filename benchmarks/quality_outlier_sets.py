"""Tables with outliers for `make bench-quality`: real flights and made tables into which four kinds are planted, by the
recipes of ADBench (Han et al., 2022), and every .npz (X, y) of a folder. No detector was tuned on any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.stationary_rows import AIRPORTS, NUMERIC, flights_table
from schemas.blocks import Codes, Floats

ROWS = 10_000
OUTLIER_SHARE = 0.05
KINDS = ("local", "global", "dependency", "clustered")
MOST_GIVEN = 16_000
"""Rows of a larger file that are drawn."""


@dataclass(frozen=True)
class Labelled:
    """n rows: numeric [n, numeric] with NaN = missing, categorical [n, categorical] codes below `sizes`; y [n] is 1 for
    outliers."""

    name: str
    numeric: Floats
    categorical: Codes
    sizes: tuple[int, ...]
    y: Codes


def labelled_sets(seed: int, folder: Path | None, *, quick: bool) -> Iterator[Labelled]:
    """Of each table a set for each kind of outliers; then the folder's, as they are."""
    tables: dict[str, Callable[[np.random.Generator], tuple[Floats, Codes]]] = {
        **{f"flights {airport}": lambda rng, airport=airport: _flights(airport, rng) for airport in AIRPORTS},
        "made mixture": _mixture,
        "made heavy tails": _heavy,
        "made mixed types": _mixed,
    }
    for name in ("flights JFK", "made mixture") if quick else tables:
        rng = np.random.default_rng([seed, *name.encode()])
        numeric, categorical = tables[name](rng)
        for kind in KINDS:
            yield planted(f"{name}, {kind}", kind, numeric, categorical, rng)
    for path in sorted(folder.glob("*.npz")) if folder else ():
        yield _given(path, np.random.default_rng(seed))


def planted(name: str, kind: str, numeric: Floats, categorical: Codes, rng: np.random.Generator) -> Labelled:
    """The table with outliers of `kind` as 5 % of its rows; they have the categories of rows drawn at random."""
    many = int(len(numeric) * OUTLIER_SHARE / (1.0 - OUTLIER_SHARE))
    drawn = rng.integers(0, len(numeric), many)
    filled = np.where(np.isnan(numeric), np.nanmedian(numeric, axis=0), numeric)
    odd = _OUTLIERS[kind](filled, drawn, rng)
    whole = np.all(filled == np.rint(filled), axis=0)
    odd[:, whole] = np.rint(odd[:, whole])
    odd[np.isnan(numeric[drawn])] = np.nan
    classes = categorical[drawn]
    if kind == "dependency":
        classes = np.stack([rng.permutation(column) for column in classes.T], axis=1) if classes.size else classes
    y = np.concatenate([np.zeros(len(numeric)), np.ones(many)]).astype(np.int32)
    sizes = tuple(int(column.max()) + 1 for column in categorical.T)
    return Labelled(name, np.concatenate([numeric, odd]), np.concatenate([categorical, classes]), sizes, y)


def _local(filled: Floats, drawn: Codes, rng: np.random.Generator) -> Floats:
    """Gaussian mixture with five times the covariance of each part."""
    from sklearn.mixture import GaussianMixture

    centre, scale = filled.mean(axis=0), np.maximum(filled.std(axis=0), 1e-9)
    fitted = GaussianMixture(5, random_state=0, reg_covar=1e-4).fit((filled - centre) / scale)
    part = rng.choice(5, len(drawn), p=fitted.weights_ / fitted.weights_.sum())
    roots = np.linalg.cholesky(5.0 * fitted.covariances_)
    noise = rng.standard_normal((len(drawn), filled.shape[1]))
    return np.asarray(centre + scale * (fitted.means_[part] + np.einsum("nij,nj->ni", roots[part], noise)))


def _global(filled: Floats, drawn: Codes, rng: np.random.Generator) -> Floats:
    """Uniform over each number's range, a tenth wider."""
    low, high = filled.min(axis=0), filled.max(axis=0)
    return rng.uniform(low - 0.05 * (high - low), high + 0.05 * (high - low), (len(drawn), filled.shape[1]))


def _dependency(filled: Floats, drawn: Codes, rng: np.random.Generator) -> Floats:
    """Each number by itself as it was, but not together."""
    return np.stack([filled[rng.integers(0, len(filled), len(drawn)), k] for k in range(filled.shape[1])], axis=1)


def _clustered(filled: Floats, drawn: Codes, rng: np.random.Generator) -> Floats:
    """One dense group, four standard deviations from the centre in a third of the numbers."""
    sd = filled.std(axis=0)
    moved = rng.random(filled.shape[1]) < 1 / 3
    moved[rng.integers(len(moved))] = True
    centre = filled.mean(axis=0) + 4.0 * sd * moved * rng.choice([-1.0, 1.0], len(moved))
    return np.asarray(centre + 0.3 * (filled[drawn] - filled.mean(axis=0)))


_OUTLIERS: dict[str, Callable[[Floats, Codes, np.random.Generator], Floats]] = {
    "local": _local,
    "global": _global,
    "dependency": _dependency,
    "clustered": _clustered,
}


def _flights(airport: str, rng: np.random.Generator) -> tuple[Floats, Codes]:
    table = flights_table(airport)
    table = table.iloc[rng.choice(len(table), ROWS, replace=False)]
    codes = [np.unique(table[name].astype(str), return_inverse=True)[1] for name in ("carrier", "dest")]
    return table[list(NUMERIC)].to_numpy(np.float64), np.stack(codes, axis=1).astype(np.int32)


def _mixture(rng: np.random.Generator) -> tuple[Floats, Codes]:
    """Five correlated clouds in 12 numbers."""
    part = rng.choice(5, ROWS, p=rng.dirichlet(np.full(5, 3.0)))
    turns = rng.normal(0, 1, (5, 12, 12)) * np.geomspace(1.0, 0.15, 12)
    points = rng.normal(0, 3, (5, 12))[part] + np.einsum("nij,nj->ni", turns[part], rng.standard_normal((ROWS, 12)))
    return points, np.zeros((ROWS, 0), np.int32)


def _heavy(rng: np.random.Generator) -> tuple[Floats, Codes]:
    """Ten dependent numbers, most of them with heavy tails, some often zero or missing."""
    points = rng.standard_normal((ROWS, 4)) @ rng.normal(0, 1, (4, 10)) + 0.5 * rng.standard_normal((ROWS, 10))
    points /= points.std(axis=0)
    points[:, :3] = np.exp(1.5 * points[:, :3])
    points[:, 3:5] = points[:, 3:5] * np.sqrt(3.0 / rng.chisquare(3, (ROWS, 2)))
    points[:, 5] = np.maximum(points[:, 5] - 0.5, 0.0)
    points[rng.random((ROWS, 10)) < np.where(np.arange(10) == 7, 0.05, 0.0)] = np.nan
    return points, np.zeros((ROWS, 0), np.int32)


def _mixed(rng: np.random.Generator) -> tuple[Floats, Codes]:
    """Eight numbers whose place depends on three categories."""
    sizes = (4, 12, 40)
    codes = np.stack([rng.choice(k, ROWS, p=rng.dirichlet(np.full(k, 0.7))) for k in sizes], axis=1)
    points = 0.6 * rng.standard_normal((ROWS, 3)) @ rng.normal(0, 1, (3, 8)) + 0.4 * rng.standard_normal((ROWS, 8))
    for k, size in enumerate(sizes):
        points += rng.normal(0, 1.0, (size, 8))[codes[:, k]] * (rng.random(8) < 0.5)
    return points, codes.astype(np.int32)


def _given(path: Path, rng: np.random.Generator) -> Labelled:
    """An .npz of X [n, d] and y [n]; raises ValueError on another."""
    with np.load(path) as found:
        if not {"X", "y"} <= set(found):
            raise ValueError(f"{path} holds {', '.join(found)}: X and y are needed")
        numeric, y = found["X"].astype(np.float64), found["y"].ravel().astype(np.int32)
    if len(numeric) > MOST_GIVEN:
        picked = rng.choice(len(numeric), MOST_GIVEN, replace=False)
        numeric, y = numeric[picked], y[picked]
    return Labelled(path.stem, numeric.reshape(len(y), -1), np.zeros((len(y), 0), np.int32), (), y)
