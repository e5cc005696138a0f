"""The profile of the training data: what a model's inputs looked like, and how much they moved by themselves.

Numbers and strings only, so that it can lie on a Kafka topic by its hash and be read by any version of ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from detectors.cells import CELLS, EDGES
from detectors.outlier_section import OutlierSection
from schemas.blocks import FeatureSchema
from schemas.errors import ConfigError

MAX_FEATURES = 512
MAX_CATEGORIES = 200
MAX_NAME = 256
MAX_PROFILE_BYTES = 8 << 20
"""512 features of 200 categories of 40 bytes, with their calibration; 20 numeric features take about 40 kB, and 250 kB more
for outliers."""
MIN_ROWS = 512
"""Fewer rows say nothing about how blocks of 256 rows differ."""
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SPAN_ROWS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Row counts at which the spread of contiguous stretches of the table was measured."""
LOOK_ROWS = (32, 256)
"""Block sizes at which the rate of chance alarms was measured."""
AIMED = 0.6
"""Part of the allowed chance alarms that thresholds aim at: a calibration is one drawing, so alarms may come half or twice as
often as aimed; 0.3 to 1.3 of what is allowed is promised, and this is the middle of it by ratio."""
GROSS_SHARE, RESOLUTION_SHARE = 0.2, 0.15
"""Of the chance alarms, what those by the statistic in units of the largest may be, and those by values off their grid."""
MAX_GROSS = 50.0
"""Of its ln: further out there is nothing."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _without_none(data: dict[str, Any], *names: str) -> dict[str, Any]:
    """What is dumped of a part, without those of `names` that are None."""
    return {name: value for name, value in data.items() if value is not None or name not in names}


class Resolution(_Part):
    """Values are `origin` + k * `step`, nearly all of them; one that is not would come in some `brings` events of a block
    (`drift_resolution`)."""

    origin: float
    step: float = Field(gt=0)
    brings: float = Field(gt=0)


class NumericFeature(_Part):
    """One numeric feature. `probabilities` [CELLS] are of the cells of `edges`; moments are of present values. `resolution`
    is None where values have none, and in profiles of releases before it."""

    name: Name
    edges: tuple[float, ...] = Field(min_length=2, max_length=EDGES)
    probabilities: tuple[Share, ...] = Field(min_length=CELLS, max_length=CELLS)
    mean: float
    sd: float = Field(ge=0)
    quantiles: tuple[float, ...] = Field(min_length=len(QUANTILE_LEVELS), max_length=len(QUANTILE_LEVELS))
    missing_rate: Share
    resolution: Resolution | None = None

    @model_serializer(mode="wrap")
    def _without_resolution(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A feature of a release before `resolution` has the bytes that it had there."""
        return _without_none(dumped(self), "resolution")

    @model_validator(mode="after")
    def _edges_rise(self) -> Self:
        if any(left >= right for left, right in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"the edges of {self.name!r} do not rise")
        return self


class CategoricalFeature(_Part):
    """One categorical feature: its categories, most frequent first, at most 200.

    `unseen_rate` is the share of rows whose value is not among them (a column of thousands of values).
    """

    name: Name
    categories: tuple[str, ...] = Field(max_length=MAX_CATEGORIES)
    category_rates: tuple[Share, ...] = Field(max_length=MAX_CATEGORIES)
    probabilities: tuple[Share, ...] = Field(min_length=CELLS, max_length=CELLS)
    missing_rate: Share
    unseen_rate: Share

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.categories) != len(self.category_rates) or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"the categories of {self.name!r} are not distinct, or have no rate each")
        return self


class FeatureSpread(_Part):
    """How far contiguous stretches of the table lie from the whole, one number for each of `SPAN_ROWS`.

    Of the divergence: `level` is exceeded by 1 stretch in 10; what exceeds it has a generalised Pareto tail of `scale`
    and `shape` (>= 0: never lighter than exponential); `largest` is the most seen of the coarse
    divergence. `alien_largest` and `missing_largest` are the largest shares of alien and missing values in 256 rows.
    """

    level: tuple[float, ...] = Field(min_length=len(SPAN_ROWS), max_length=len(SPAN_ROWS))
    scale: tuple[float, ...] = Field(min_length=len(SPAN_ROWS), max_length=len(SPAN_ROWS))
    shape: tuple[Annotated[float, Field(ge=0, le=0.5)], ...] = Field(
        min_length=len(SPAN_ROWS), max_length=len(SPAN_ROWS)
    )
    largest: tuple[float, ...] = Field(min_length=len(SPAN_ROWS), max_length=len(SPAN_ROWS))
    alien_largest: Share
    missing_largest: Share

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if min(min(self.level), min(self.scale), min(self.largest)) <= 0:
            raise ValueError("a spread is not above 0")
        return self


class AlarmTail(_Part):
    """Chance alarms of the sequential test in blocks of one size: `rate` a row above `score`, `far_rate` above
    `far_score`, and beyond it fewer by exp(-`decay`) for each unit of the score; with `events`, by the predictive
    distribution of so many events, (1 + `decay` x / `events`) ** -`events` at x units: their mean is no more certain
    than that. `calm`: 95 % of blocks are below."""

    score: float
    rate: float = Field(gt=0, le=1)
    far_score: float
    far_rate: float = Field(gt=0, le=1)
    decay: float = Field(gt=0)
    calm: float
    events: float | None = Field(default=None, gt=0)

    @model_serializer(mode="wrap")
    def _without_events(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A tail of a release before `events` has the bytes that it had there."""
        return _without_none(dumped(self), "events")

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.far_score < self.score or self.far_rate > self.rate:
            raise ValueError("chance alarms do not fall with the score")
        return self

    def threshold(self, alarms_per_row: float) -> float:
        """The score above which chance alarms are at most `alarms_per_row`; never below `score`."""
        if alarms_per_row >= self.rate:
            return self.score
        if alarms_per_row > self.far_rate:
            part = math.log(self.rate / alarms_per_row) / math.log(self.rate / self.far_rate)
            return self.score + part * (self.far_score - self.score)
        fewer = math.log(self.far_rate / alarms_per_row)
        if self.events is not None:
            fewer = self.events * math.expm1(fewer / self.events)
        return self.far_score + fewer / self.decay


class AdaptiveTail(_Part):
    """Chance detections of ADWIN on one feature's block means: jumps of at least x standard deviations come
    `rate` * exp(-(x - `jump`) / `scale`) times a row, for x >= `jump`."""

    feature: int = Field(ge=0, lt=MAX_FEATURES)
    jump: float = Field(ge=0)
    rate: float = Field(gt=0, le=1)
    scale: float = Field(gt=0)


class Calibration(_Part):
    """What is needed to set thresholds for any budget: from stretches of the table, in its order.

    `tails` are of rows in the table's order at each of `LOOK_ROWS`, then of rows drawn one by one at each. `gross` is
    the tail of ln of the statistic in units of the largest in the table, in full blocks; None in profiles of releases
    before it. `resolution` is that of events off the grid in the fuller window, in units of what a rare value brings;
    None, too, where no feature has a resolution.
    """

    spreads: tuple[FeatureSpread, ...] = Field(max_length=MAX_FEATURES)
    tails: tuple[AlarmTail, ...] = Field(min_length=2 * len(LOOK_ROWS), max_length=2 * len(LOOK_ROWS))
    adaptive: tuple[AdaptiveTail, ...] = Field(max_length=MAX_FEATURES)
    gross: AlarmTail | None = None
    resolution: AlarmTail | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A calibration of a release before `gross` or `resolution` has the bytes that it had there."""
        return _without_none(dumped(self), "gross", "resolution")

    def thresholds(self, alarms_per_row: float) -> tuple[list[float], list[float]]:
        """Entry score and calm score at each of `LOOK_ROWS`, whichever kind of rows needs the higher one."""
        if self.gross is not None:
            alarms_per_row *= AIMED * (1.0 - GROSS_SHARE - (RESOLUTION_SHARE if self.resolution is not None else 0.0))
        looks = len(LOOK_ROWS)
        pairs = [(self.tails[k], self.tails[looks + k]) for k in range(looks)]
        enter = [max(tail.threshold(alarms_per_row) for tail in pair) for pair in pairs]
        leave = [max(tail.calm for tail in pair) for pair in pairs]
        return enter, [min(calm, 0.9 * score) for calm, score in zip(leave, enter, strict=True)]

    def gross_limit(self, alarms_per_row: float) -> float:
        """The statistic in units of the largest in the table that chance passes no more often than its part of
        `alarms_per_row`; 0 where that is not known."""
        if self.gross is None:
            return 0.0
        return math.exp(min(self.gross.threshold(AIMED * GROSS_SHARE * alarms_per_row), MAX_GROSS))

    def resolution_limit(self, alarms_per_row: float) -> float:
        """The events off the grid, in units of what a rare value brings, that chance passes no more often than their part of
        `alarms_per_row`; inf where no feature has a resolution."""
        if self.resolution is None:
            return math.inf
        return max(self.resolution.threshold(AIMED * RESOLUTION_SHARE * alarms_per_row), 1.0)


def cell_probabilities(
    numeric: Sequence[NumericFeature], categorical: Sequence[CategoricalFeature]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Cell probabilities [features, CELLS], numeric features first."""
    return np.array([*(of.probabilities for of in numeric), *(of.probabilities for of in categorical)])


SCORE, CONFIDENCE, LABEL = "score", "confidence", "label"
"""The columns of a profile of outputs: `value`, `confidence` and `label` of a block."""


class Profile(_Part):
    """The profile of a training table.

    `order_by` names the column that ordered the rows; None means that the rows' own order in the table was taken.
    Spreads are in the order of `numeric`, then `categorical`. `outputs`: the profile of what the model answered on the same
    rows, whose features are `SCORE` and `CONFIDENCE`, numbers, and `LABEL`; as many of them as it answers.
    `outliers` is None in profiles of releases before it, and of tables too wide for it.
    """

    format: Literal[1] = 1
    rows: int = Field(ge=MIN_ROWS)
    order_by: Name | None
    seed: int
    order: tuple[Name, ...] = Field(max_length=MAX_FEATURES)
    numeric: tuple[NumericFeature, ...] = Field(max_length=MAX_FEATURES)
    categorical: tuple[CategoricalFeature, ...] = Field(max_length=MAX_FEATURES)
    calibration: Calibration
    outputs: Profile | None = None
    outliers: OutlierSection | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A profile without outputs, or without outliers, has the bytes, and so the name, that it had before profiles
        could have any."""
        return _without_none(dumped(self), "outputs", "outliers")

    @model_validator(mode="after")
    def _outputs_are_outputs(self) -> Self:
        if self.outputs is None:
            return self
        numbers, labels = ({each.name for each in of} for of in (self.outputs.numeric, self.outputs.categorical))
        if not numbers <= {SCORE, CONFIDENCE} or not labels <= {LABEL} or self.outputs.outputs is not None:
            raise ValueError("the outputs are no score, confidence and label")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [*(feature.name for feature in self.numeric), *(feature.name for feature in self.categorical)]
        if not names or sorted(names) != sorted(self.order) or len(set(names)) != len(names):
            raise ValueError("the features and their order do not match")
        if len(self.calibration.spreads) != len(names):
            raise ValueError("the calibration is of other features")
        if any(tail.feature >= len(self.numeric) for tail in self.calibration.adaptive):
            raise ValueError("the adaptive calibration is of a feature that is not numeric")
        sizes = [len(feature.categories) for feature in self.categorical]
        if self.outliers is not None and not self.outliers.fits(len(self.numeric), sizes):
            raise ValueError("the section of outliers is of other features")
        return self

    @property
    def features(self) -> FeatureSchema:
        """What the decoder needs: names, categories and order of the features."""
        return FeatureSchema(
            numeric=tuple(feature.name for feature in self.numeric),
            categorical=tuple(feature.name for feature in self.categorical),
            categories=tuple(feature.categories for feature in self.categorical),
            order=self.order,
            labels=self.labels,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model answers, most frequent first; empty if it gives no labels, or the profile has no outputs."""
        known = () if self.outputs is None else self.outputs.categorical
        return known[0].categories if known else ()

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of `to_bytes()`: the profile's name everywhere. Kept: a profile of 200 kB takes 1 ms to write, and each
        of a thousand endpoints asks twice."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy has a hash of its own: it may have been changed."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("hash", None)
        return copied

    def to_bytes(self) -> bytes:
        """The profile as JSON: equal profiles give equal bytes, and `from_bytes` gives back every bit."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """Takes back what `to_bytes` gave; raises ConfigError on anything else."""
        if len(data) > MAX_PROFILE_BYTES:
            raise ConfigError(f"a profile of {len(data)} bytes: at most {MAX_PROFILE_BYTES} are read")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"]) or "profile"
            raise ConfigError(f"not a profile of this version: {where}: {first['msg']}; build it again") from error

    def probabilities(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Cell probabilities [features, CELLS], numeric features first."""
        return cell_probabilities(self.numeric, self.categorical)
