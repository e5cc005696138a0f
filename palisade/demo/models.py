"""The models that the demo serves: scikit-learn logistic regressions on binned features, one an airport.

A fitted pipeline is additive: one weight a bin, one a category. So its exact answer needs a binary search a number and a
look-up a category (some microseconds) instead of pandas (milliseconds a call).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from palisade.demo.data import ANSWER_COLUMN, CATEGORICAL, FEATURES, LABEL_COLUMN, NUMERIC, Value

BINS = 10
REGULARIZATION = 0.1
"""`C` of the logistic regression."""
MINUTES_AN_HOUR = 60


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Log-odds = intercept + one weight a feature; probability of more than 15 minutes late.

    `edges[f]` are the inner bin edges of a number, ascending; `bin_weights[f]` has one entry more. `missing[f]` is taken
    for an absent or NaN number. A category that training did not hold weighs nothing.
    """

    intercept: float
    edges: dict[str, list[float]]
    bin_weights: dict[str, list[float]]
    missing: dict[str, float]
    category_weights: dict[str, dict[str, float]]

    def __call__(self, features: Mapping[str, Value]) -> float:
        """Raises TypeError or ValueError where a number is none."""
        score = self.intercept
        for name, edges in self.edges.items():
            value = features.get(name)
            number = math.nan if value is None else float(value)
            if number != number:
                number = self.missing[name]
            score += self.bin_weights[name][bisect_right(edges, number)]
        for name, weights in self.category_weights.items():
            score += weights.get(str(features.get(name)), 0.0)
        return 1 / (1 + math.exp(-score))


@dataclass(frozen=True, slots=True)
class HourlyShare:
    """The known-good fallback: the share of late flights in training, by the hour of the scheduled departure.

    `by_hour` has 24 entries; an hour without training flights, or no hour at all, has the `overall` share.
    """

    by_hour: list[float]
    overall: float

    def __call__(self, features: Mapping[str, Value]) -> float:
        departs = features.get("departs")
        if not isinstance(departs, int | float) or not 0 <= departs < len(self.by_hour) * MINUTES_AN_HOUR:
            return self.overall
        return self.by_hour[int(departs // MINUTES_AN_HOUR)]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a serving process loads: the model and its fallback, as one JSON file named by its digest."""

    model: Scorecard
    fallback: HourlyShare

    def save(self, path: Path) -> str:
        """Writes the file and returns its digest."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        path.write_bytes(content)
        return _digest(content)

    @classmethod
    def load(cls, path: Path) -> tuple[Artifact, str]:
        """The artifact and the digest of its file. Raises OSError, ValueError, KeyError or TypeError on any other file."""
        content = path.read_bytes()
        parts = json.loads(content)
        return cls(Scorecard(**parts["model"]), HourlyShare(**parts["fallback"])), _digest(content)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def train(table: pa.Table) -> Artifact:
    """Model and fallback from a training table (`data.training_table`); rows without a label are left out."""
    return Artifact(scorecard_of(fit_pipeline(table)), _hourly_share(table))


def with_answers(table: pa.Table, model: Scorecard) -> pa.Table:
    """The table with what the model answers on each row, as `ANSWER_COLUMN` (some microseconds a row)."""
    rows = zip(*(table[name].to_pylist() for name in FEATURES), strict=True)
    return table.append_column(
        ANSWER_COLUMN, pa.array([model(dict(zip(FEATURES, row, strict=True))) for row in rows], pa.float64())
    )


def fit_pipeline(table: pa.Table) -> Any:
    """The scikit-learn pipeline, fitted (about a second for 55,000 rows)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    columns = list(range(len(NUMERIC)))
    encode = ColumnTransformer(
        [
            ("numeric", _binning(), columns),
            (
                "categorical",
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                [len(columns) + at for at in range(len(CATEGORICAL))],
            ),
        ]
    )
    pipeline = make_pipeline(encode, LogisticRegression(C=REGULARIZATION, solver="newton-cholesky"))
    known = table.filter(table[LABEL_COLUMN].is_valid())
    # Beside busy processes the threads of BLAS wait for each other: four times slower than one thread alone.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Rain is mostly 0 and sight mostly 10 miles: equal quantiles become one bin, as they should.
        warnings.filterwarnings("ignore", message="Bins whose width are too small", category=UserWarning)
        return pipeline.fit(feature_matrix(known), known[LABEL_COLUMN].to_numpy())


def _binning() -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KBinsDiscretizer

    bins = KBinsDiscretizer(
        BINS, encode="onehot-dense", strategy="quantile", quantile_method="averaged_inverted_cdf", subsample=None
    )
    return make_pipeline(SimpleImputer(strategy="median"), bins)


def feature_matrix(table: pa.Table) -> npt.NDArray[np.object_]:
    """[n, features] as the pipeline takes them: numbers first, then categories, both in the order of `data.FEATURES`."""
    return np.column_stack([table[name].to_numpy().astype(object) for name in (*NUMERIC, *CATEGORICAL)])


def scorecard_of(pipeline: Any) -> Scorecard:
    """The same function as `pipeline.predict_proba(...)[:, 1]`, read off its fitted coefficients."""
    encode, regression = pipeline[0], pipeline[-1]
    imputer, bins = encode.named_transformers_["numeric"]
    one_hot = encode.named_transformers_["categorical"]
    weights = iter(regression.coef_[0].tolist())
    counts = bins.n_bins_.tolist()
    return Scorecard(
        intercept=float(regression.intercept_[0]),
        edges={name: edges[1:-1].tolist() for name, edges in zip(NUMERIC, bins.bin_edges_, strict=True)},
        bin_weights={name: [next(weights) for _ in range(count)] for name, count in zip(NUMERIC, counts, strict=True)},
        missing={name: float(value) for name, value in zip(NUMERIC, imputer.statistics_, strict=True)},
        category_weights={
            name: {str(value): next(weights) for value in values}
            for name, values in zip(CATEGORICAL, one_hot.categories_, strict=True)
        },
    )


def _hourly_share(table: pa.Table) -> HourlyShare:
    known = table.filter(table[LABEL_COLUMN].is_valid())
    late = known[LABEL_COLUMN].to_numpy().astype(np.float64)
    hour = (known["departs"].to_numpy() // MINUTES_AN_HOUR).astype(np.int64)
    overall = float(late.mean())
    flights = np.bincount(hour, minlength=24)
    shares = np.where(flights > 0, np.bincount(hour, late, minlength=24) / np.maximum(flights, 1), overall)
    return HourlyShare(by_hour=shares.tolist(), overall=overall)
