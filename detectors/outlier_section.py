"""The part of a profile that says which rows are strange: a table's shape, calibration, and how shares vary."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from detectors.outlier_coordinates import CategoryPlaces, Coordinates
from detectors.outlier_scores import (
    GROUPS,
    LEAST_ROWS,
    REFERENCES,
    SUM_WEIGHTS,
    TIERS,
    Calibration,
    Curve,
    OutlierModel,
    Shape,
    Tier,
    Whitening,
)
from detectors.outlier_shares import ALL_ROWS, LEVELS, UsualShares
from schemas.blocks import Codes, Floats, Longs

MAX_SECTION_BYTES = 5 << 20
"""513 coordinates take 4 MB (two matrices and 1,022 references), 20 take 250 kB. A wider table's profile has no section."""
MAX_ROWS = 3 << 16
"""Rows that a larger table is judged by, drawn from all of it: 131,072 for the shape, 65,536 for calibration."""
MAX_COORDINATES = 640
"""Wider ones would not fit: they are not even tried."""

_DTYPES = Literal["<f2", "<f4", "<f8", "<i8"]
_Level = Annotated[
    tuple[Annotated[float, Field(gt=0, le=ALL_ROWS)], ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Numbers(_Part):
    """An array: little-endian numbers, row by row, in base64. All finite."""

    dtype: _DTYPES
    shape: tuple[Annotated[int, Field(ge=0)], ...] = Field(max_length=2)
    data: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not np.isfinite(self.array).all():
            raise ValueError("an array holds what is no number")
        return self

    @property
    def array(self) -> npt.NDArray[np.float64]:
        """As float64, whatever it is kept as. Raises ValueError."""
        try:
            raw = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("an array is no base64") from error
        if len(raw) != np.dtype(self.dtype).itemsize * math.prod(self.shape):
            raise ValueError("an array is not of its shape")
        return np.frombuffer(raw, self.dtype).reshape(self.shape).astype(np.float64)

    @classmethod
    def of(cls, array: npt.NDArray[np.generic], dtype: _DTYPES = "<f8") -> Numbers:
        data = base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()
        return cls(dtype=dtype, shape=tuple(array.shape), data=data)


class CurveNumbers(_Part):
    """See `outlier_scores.Curve`."""

    at: Numbers
    nats: Numbers
    slope: float = Field(gt=0)


class TierNumbers(_Part):
    """One tier: its calibration, and the usual shares of its strange rows at each of `LEVELS`. `of_callers` is None
    where the table did not say whose its rows are."""

    curves: tuple[CurveNumbers, ...]
    scores: Numbers
    above: Numbers
    rows: int = Field(ge=LEAST_ROWS)
    of_endpoint: _Level
    of_callers: _Level | None = None


class OutlierSection(_Part):
    """Everything that scoring rows needs. `tiers` in the order of `TIERS`. `remoteness` is None in profiles of releases
    before it, whose rows are scored as they were there."""

    centre: Numbers
    scale: Numbers
    mean: Numbers
    sd: Numbers
    absence: Numbers
    categories: tuple[Numbers, ...]
    whitening: tuple[Numbers, Numbers]
    plain: tuple[Numbers, Numbers]
    references: Numbers
    radii: Numbers
    remoteness: Numbers | None = None
    tiers: tuple[TierNumbers, ...] = Field(min_length=len(TIERS), max_length=len(TIERS))

    @model_serializer(mode="wrap")
    def _without_remoteness(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A section of a release before `remoteness` has the bytes that it had there."""
        data: dict[str, Any] = dumped(self)
        if self.remoteness is None:
            del data["remoteness"]
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        coordinates = self._coordinates()
        numbers = len(coordinates.centre)
        if any(len(each.array) != numbers for each in (self.scale, self.mean, self.sd, self.absence)):
            raise ValueError("the scales of outliers are of other features")
        if min(coordinates.scale.min(initial=1.0), coordinates.sd.min(initial=1.0)) <= 0:
            raise ValueError("a scale of outliers is not above 0")
        size = coordinates.size
        for centre, matrix in (self.whitening, self.plain):
            if centre.shape != (size,) or matrix.shape != (size, size):
                raise ValueError("the directions of outliers are of other coordinates")
        many = self.references.shape[0]
        if self.references.shape[1:] != (size,) or many < GROUPS or many % GROUPS:
            raise ValueError("the references of outliers are of other coordinates, or too few")
        if self.radii.shape != (many,) or self.radii.array.min() <= 0:
            raise ValueError("the neighbourhoods of outliers are of other references, or empty")
        if self.remoteness is not None:
            _check_remoteness(self.remoteness.array, min(many, REFERENCES["fast"]))
        for tier, of_tier in zip(TIERS, self.tiers, strict=True):
            _check_calibration(of_tier, len(SUM_WEIGHTS[tier]) + (self.remoteness is not None))
        return self

    @cached_property
    def model(self) -> OutlierModel:
        """The model, to score rows with."""
        shape = Shape(
            self._coordinates(),
            Whitening(*(part.array for part in self.whitening)),
            Whitening(*(part.array for part in self.plain)),
            self.references.array.astype(np.float16),
            self.radii.array.astype(np.float32),
            None if self.remoteness is None else self.remoteness.array.astype(np.float32),
        )
        return OutlierModel(shape, {tier: _calibration(of) for tier, of in zip(TIERS, self.tiers, strict=True)})

    def usual(self, tier: Tier) -> UsualShares:
        """The usual shares of strange rows."""
        of = self.tiers[TIERS.index(tier)]
        return UsualShares(of.rows, of.of_endpoint, of.of_callers)

    def fits(self, numeric: int, categorical: Sequence[int]) -> bool:
        """Whether it is of so many numbers, and categorical features of so many categories each."""
        sizes = [each.shape[0] for each in self.categories]
        return self.centre.shape == (numeric,) and sizes == [size + 2 for size in categorical]

    def _coordinates(self) -> Coordinates:
        if any(len(each.shape) != 2 or each.shape[0] < 2 for each in self.categories):
            raise ValueError("the places of a category are no table")
        centre, scale, mean, sd, absence = (
            part.array.reshape(-1) for part in (self.centre, self.scale, self.mean, self.sd, self.absence)
        )
        places = tuple(CategoryPlaces(each.array) for each in self.categories)
        return Coordinates(centre, scale, mean, sd, absence, places)


def section_of(
    numeric: Floats, categorical: Codes, sizes: Sequence[int], callers: Longs | None, seed: int
) -> OutlierSection | None:
    """The section of a table in its order: numeric [n, numeric], categorical [n, categorical] of codes below `sizes`,
    callers [n] as numbers, negative where nobody knows. None for a table too wide for one."""
    if len(numeric) > MAX_ROWS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(numeric), MAX_ROWS, replace=False))
        numeric, categorical = numeric[drawn], categorical[drawn]
        callers = None if callers is None else callers[drawn]
    if numeric.shape[1] + categorical.shape[1] >= MAX_COORDINATES:
        return None
    model, held_out = OutlierModel.fit_held_out(numeric, categorical, sizes, seed=seed)
    shape, coordinates = model.shape, model.shape.coordinates
    if coordinates.size > MAX_COORDINATES:
        return None
    whose = None if callers is None else callers[held_out.rows]
    tiers = tuple(_tier(model.calibrations[tier], UsualShares.fit(held_out.p_values[tier], whose)) for tier in TIERS)
    section = OutlierSection(
        centre=Numbers.of(coordinates.centre),
        scale=Numbers.of(coordinates.scale),
        mean=Numbers.of(coordinates.mean),
        sd=Numbers.of(coordinates.sd),
        absence=Numbers.of(coordinates.absence),
        categories=tuple(Numbers.of(each.places) for each in coordinates.categories),
        whitening=(Numbers.of(shape.whitening.centre), Numbers.of(shape.whitening.matrix, "<f4")),
        plain=(Numbers.of(shape.plain.centre), Numbers.of(shape.plain.matrix, "<f4")),
        references=Numbers.of(shape.references, "<f2"),
        radii=Numbers.of(shape.radii, "<f4"),
        remoteness=None if shape.remoteness is None else Numbers.of(shape.remoteness, "<f4"),
        tiers=tiers,
    )
    return section if len(section.model_dump_json()) <= MAX_SECTION_BYTES else None


def _tier(calibration: Calibration, usual: UsualShares) -> TierNumbers:
    curves = tuple(
        CurveNumbers(at=Numbers.of(curve.at), nats=Numbers.of(curve.nats), slope=curve.slope)
        for curve in calibration.curves
    )
    return TierNumbers(
        curves=curves,
        scores=Numbers.of(calibration.scores),
        above=Numbers.of(calibration.above, "<i8"),
        rows=calibration.rows,
        of_endpoint=usual.of_endpoint,
        of_callers=usual.of_callers,
    )


def _calibration(of: TierNumbers) -> Calibration:
    curves = tuple(Curve(curve.at.array, curve.nats.array, curve.slope) for curve in of.curves)
    return Calibration(curves, of.scores.array, of.above.array.astype(np.int64), of.rows)


def _check_remoteness(remoteness: Floats, references: int) -> None:
    if remoteness.ndim != 1 or not GROUPS <= len(remoteness) <= references or len(remoteness) % GROUPS:
        raise ValueError("the remoteness of outliers is of other references, or of too few")
    if remoteness.min() < 0:
        raise ValueError("the remoteness of outliers is below 0")


def _check_calibration(of: TierNumbers, measures: int) -> None:
    calibration = _calibration(of)
    if len(calibration.curves) != measures:
        raise ValueError("the calibration of outliers is of other measures")
    rising = [calibration.scores, *(curve.at for curve in calibration.curves)]
    if any(each.ndim != 1 or len(each) == 0 or (np.diff(each) <= 0).any() for each in rising):
        raise ValueError("the calibration of outliers does not rise")
    if any(curve.nats.shape != curve.at.shape for curve in calibration.curves):
        raise ValueError("a curve of outliers is not whole")
    above = calibration.above
    if above.shape != (len(calibration.scores) + 1,) or (np.diff(above) > 0).any() or above[-1] != 0:
        raise ValueError("the calibration of outliers does not count down to 0")
    if above[0] != calibration.rows:
        raise ValueError("the calibration of outliers is of other rows")
