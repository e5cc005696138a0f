"""How the features of a FeatureSchema lie in a row of float64, and what odd values become there.

Column j of a row is the schema's `order[j]`. While rows are gathered, odd values are marks; `settle` turns marks into
values and flags, once for all rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from schemas.blocks import MISSING, UNSEEN, Codes, FeatureSchema, Flags, Floats
from schemas.events import MAX_NUMBER
from schemas.flags import RowFlag

NOTED = math.inf
"""Mark: missing, and its flag is set already."""
_UNSEEN = -math.inf
_UNSEEN_CONTROL = -1e300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
WRONG_TYPE = object()
"""Stands for a categorical value of another type until it is coded; its flag is set already."""

_AS_THEY_ARE = {(False, float), (False, bool), (False, type(None)), (True, str), (True, type(None))}
"""(is a category, type) of values that need no look when they are finite."""

Raw = float | int | str | bool | list[float | int | None] | None


class Categories(dict[object, float]):
    """Category to code; None to NaN; what the profile does not hold to a mark. Never grows."""

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__({value: float(code) for code, value in enumerate(values)})
        self[None] = math.nan
        self[WRONG_TYPE] = NOTED

    def __missing__(self, value: object) -> float:
        return _UNSEEN_CONTROL if _CONTROL.search(str(value)) else _UNSEEN


class Labels(dict[str | None, int]):
    """Label to code; None to `MISSING`, what the profile does not hold to `UNSEEN`. Never grows."""

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__({value: code for code, value in enumerate(values)})
        self[None] = MISSING

    def __missing__(self, value: str | None) -> int:
        return UNSEEN


class Layout:
    """Positions of a schema's features; shared by all endpoints whose schema is equal."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.names: tuple[str, ...] = tuple(dict.fromkeys((*schema.order, *schema.numeric, *schema.categorical)))
        self.width = len(self.names)
        position = {name: at for at, name in enumerate(self.names)}
        self.numeric = np.array([position[name] for name in schema.numeric], dtype=np.intp)
        self.categorical = np.array([position[name] for name in schema.categorical], dtype=np.intp)
        self.tables = {
            position[name]: Categories(values)
            for name, values in zip(schema.categorical, schema.categories, strict=True)
        }
        self.labels = Labels(schema.labels) if schema.labels else None
        self._known = frozenset(self.names)
        self._is_text = [at in self.tables for at in range(self.width)]
        judged = set(schema.numeric) | set(schema.categorical)
        self.ignored = [at for at, name in enumerate(self.names) if name not in judged]
        self.is_category = np.zeros(self.width, dtype=np.bool_)
        self.is_category[self.categorical] = True

    def code(self, flat: list[object]) -> None:
        """In rows laid end to end, puts codes (and marks) where category values are, and 0 for ignored features."""
        width = self.width
        for at, table in self.tables.items():
            flat[at::width] = list(map(table.__getitem__, flat[at::width]))
        for at in self.ignored:
            flat[at::width] = [0.0] * (len(flat) // width)

    def spread(self, features: dict[str, Raw] | Sequence[Raw], finite: bool = False) -> tuple[list[object], int]:
        """A row of raw values and marks from features as they came (object, or list in order), and its flags.

        `finite`: numbers are floats and none is NaN or infinite, as the generic decoder has them.
        """
        flags = 0
        if not isinstance(features, dict):
            if len(features) > len(self.schema.order):
                flags |= RowFlag.UNKNOWN_FEATURE
            features = dict(zip(self.schema.order, features, strict=False))
        elif len(features) > self.width or not features.keys() <= self._known:
            flags |= RowFlag.UNKNOWN_FEATURE
        row: list[object] = list(map(features.get, self.names))
        if finite and set(zip(self._is_text, map(type, row), strict=True)) <= _AS_THEY_ARE:
            return row, flags
        row = []
        for at, name in enumerate(self.names):
            value = features.get(name)
            if at in self.tables:
                odd = value is not None and not isinstance(value, str | bool)
                row.append(WRONG_TYPE if odd else _as_category(value))
                flags |= RowFlag.WRONG_FEATURE_TYPE if odd else 0
            elif isinstance(value, str | list):
                row.append(NOTED)
                flags |= RowFlag.WRONG_FEATURE_TYPE if at not in self.ignored else 0
            else:
                number = as_number(value)
                row.append(number)
                flags |= RowFlag.NOT_FINITE if number == NOTED else 0
        return row, flags


def _as_category(value: Raw) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def as_number(value: object) -> float:
    """float64 of a number or boolean, NaN of None, `NOTED` where it is not finite or beyond `MAX_NUMBER`."""
    if value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]  # callers pass numbers
    except OverflowError:
        return NOTED
    return number if abs(number) <= MAX_NUMBER else NOTED


def settle(features: Floats, layout: Layout) -> Flags:
    """Replaces marks in `features` [n, layout.width] in place; returns the flags [n] of what they stood for."""
    flags = np.zeros(len(features), dtype=np.uint32)
    odd = ~(np.abs(features) <= MAX_NUMBER)
    if not odd.any():
        return flags
    row, column = np.nonzero(odd)
    category = layout.is_category[column]
    value = features[row, column]
    unseen = category & (value < 0)
    for bits, where in (
        (RowFlag.MISSING_FEATURE, np.isnan(value)),
        (RowFlag.UNSEEN_CATEGORY, unseen),
        (RowFlag.CONTROL_CHARACTERS, unseen & np.isfinite(value)),
        (RowFlag.NOT_FINITE, ~category & np.isfinite(value)),
    ):
        flags[row[where]] |= np.uint32(bits)
    features[row, column] = np.where(category, np.where(unseen, UNSEEN, MISSING), np.nan)
    return flags


def codes_of(features: Floats, layout: Layout) -> Codes:
    """Settled codes [n, categorical features] as int32."""
    return features[:, layout.categorical].astype(np.int32)
