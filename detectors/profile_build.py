"""From a training table to its profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from detectors.adwin import MAX_STANDARD
from detectors.cells import (
    CELLS,
    CellNumbers,
    alien_cells,
    categorical_cells,
    missing_cells,
    numeric_cells,
    numeric_edges,
    padded_edges,
)
from detectors.drift_alarm_tails import alarm_tails
from detectors.drift_resolution import with_resolutions
from detectors.drift_thresholds import UNIT_ROWS, OrderedTable, adaptive_tails, feature_spreads
from detectors.outlier_section import OutlierSection, section_of
from detectors.profile import (
    CONFIDENCE,
    LABEL,
    MAX_CATEGORIES,
    MAX_FEATURES,
    MAX_NAME,
    MIN_ROWS,
    QUANTILE_LEVELS,
    SCORE,
    Calibration,
    CategoricalFeature,
    NumericFeature,
    Profile,
    cell_probabilities,
)
from detectors.profile_outputs import Answers, answers_of
from schemas.arrow import is_text
from schemas.blocks import MISSING, UNSEEN, Codes, Floats, Longs
from schemas.errors import ConfigError

CALIBRATION_ROWS = 1 << 20
CALIBRATION_SEGMENTS = 64
"""Of a larger table, 64 long stretches spread evenly over it stand for its order."""
MAX_NUMBER = 1e30
"""Larger numbers count as missing, as they do at decoding."""


def build_profile(
    table: pa.Table,
    *,
    order_by: str | None = None,
    exclude: Sequence[str] = (),
    prediction: Sequence[str] = (),
    caller_column: str | None = None,
    outliers: bool = True,
    seed: int = 0,
) -> Profile:
    """The profile of a training `table`: every column but `order_by`, `caller_column` and those of `exclude` and
    `prediction` is a feature.

    Numbers are numeric; strings, dictionaries and booleans (as "true", "false") are categorical. Rows are sorted by
    `order_by` (missing last), else taken in their own order: thresholds come from how contiguous rows differ.
    `prediction` holds what the model itself answers on these rows (`answers_of`): the profile then has `outputs`.
    `caller_column` says whose each row is: how many strange rows a caller may send comes from how callers differ.
    `outliers`: with what judges single rows, among it some thousand rows of the table itself.
    A table of 170,000 rows and 15 features takes a few seconds. Raises ConfigError with what to do about it.
    """
    aside = [*exclude, *([] if caller_column is None else [caller_column])]
    names = _feature_names(table, order_by, aside, prediction)
    if table.num_rows < MIN_ROWS:
        raise ConfigError(f"the table has {table.num_rows} rows: a profile needs at least {MIN_ROWS}")
    if order_by is not None:
        table = table.take(pc.sort_indices(table, sort_keys=[(order_by, "ascending")]))
    numeric, values, categorical, codes = [], [], [], []
    for name in names:
        column = table.column(name)
        if _is_numeric(column.type):
            numbers = _numbers(column)
            numeric.append(numeric_feature(name, numbers))
            values.append(numbers)
        elif _is_categorical(column.type):
            feature, coded = _categorical_feature(name, column)
            categorical.append(feature)
            codes.append(coded)
        else:
            raise ConfigError(f"column {name!r} is {column.type}: exclude it, or make it a number or a string")
    callers = None if caller_column is None else _coded(table.column(caller_column))[1]
    whole = Coded(numeric, values, categorical, codes, callers)
    profile = profile_of(whole, names, order_by=order_by, seed=seed, outliers=outliers)
    if not prediction:
        return profile
    profile = with_outputs(profile, answers_of(table, prediction))
    if profile.outputs is None:
        raise ConfigError("no row of the table has an answer of the model: fill its column, or leave --prediction out")
    return profile


def with_outputs(profile: Profile, answers: Answers) -> Profile:
    """The profile with that of what the model answered on the same rows in the same order; as it is if it never did."""
    coded = outputs_of(answers)
    if not coded.names:
        return profile
    outputs = profile_of(
        coded, coded.names, order_by=profile.order_by, seed=profile.seed, adaptive=False, outliers=False
    )
    return profile.model_copy(update={"outputs": outputs})


def outputs_of(answers: Answers) -> Coded:
    """What the model answered, as features: the outputs that any row has.

    A boolean is its label and no score beside it. Equal outputs would share the budget and see nothing more.
    """
    outcome, words = answers
    numeric, values, categorical, codes = [], [], [], []
    value = np.where((np.abs(outcome.value) <= MAX_NUMBER) & (outcome.label == MISSING), outcome.value, np.nan)
    for name, column in ((SCORE, value), (CONFIDENCE, outcome.confidence)):
        if not np.isnan(column).all():
            numeric.append(numeric_feature(name, column))
            values.append(column)
    if (outcome.label != MISSING).any():
        feature, coded = categorical_feature(LABEL, words, outcome.label.astype(np.int64))
        categorical.append(feature)
        codes.append(coded)
    return Coded(numeric, values, categorical, codes)


@dataclass(frozen=True, slots=True)
class Coded:
    """A table's features, and its columns in order: numbers [rows] with NaN = missing, category codes [rows].

    `callers` [rows] are numbers for who sent them, negative where nobody knows; None: the table does not say."""

    numeric: list[NumericFeature]
    values: list[Floats]
    categorical: list[CategoricalFeature]
    codes: list[Codes]
    callers: Longs | None = None

    @property
    def names(self) -> list[str]:
        return [*(each.name for each in self.numeric), *(each.name for each in self.categorical)]

    @property
    def rows(self) -> int:
        return len(self.values[0]) if self.values else len(self.codes[0])


def profile_of(
    table: Coded,
    order: Sequence[str],
    *,
    order_by: str | None,
    seed: int,
    adaptive: bool = True,
    outliers: bool = True,
) -> Profile:
    """The profile of a table whose features are known; `order` names them as they lay in it. `adaptive`: ADWIN is to watch
    their means, too; `outliers`: rows are to be judged one by one."""
    ordered = _ordered_table(table)
    spreads = feature_spreads(ordered)
    tails, gross = alarm_tails(ordered, spreads, seed)
    picked = calibration_rows(table.rows)
    numeric, resolution = with_resolutions(table.numeric, [column[picked] for column in table.values])
    return Profile(
        rows=table.rows,
        order_by=order_by,
        seed=seed,
        order=tuple(order),
        numeric=tuple(numeric),
        categorical=tuple(table.categorical),
        calibration=Calibration(
            spreads=spreads,
            tails=tails,
            adaptive=adaptive_tails(ordered, seed) if adaptive else (),
            gross=gross,
            resolution=resolution,
        ),
        outliers=_outliers(table, seed) if outliers else None,
    )


def _outliers(table: Coded, seed: int) -> OutlierSection | None:
    return section_of(
        np.stack(table.values, axis=1) if table.values else np.zeros((table.rows, 0)),
        np.stack(table.codes, axis=1) if table.codes else np.zeros((table.rows, 0), np.int32),
        [len(feature.categories) for feature in table.categorical],
        table.callers,
        seed,
    )


def _feature_names(
    table: pa.Table, order_by: str | None, exclude: Sequence[str], prediction: Sequence[str]
) -> list[str]:
    columns: list[str] = table.column_names
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ConfigError(f"two columns are named {twice!r}: rename one")
    for name in (*exclude, *prediction, *([order_by] if order_by is not None else [])):
        if name not in columns:
            raise ConfigError(f"the table has no column {name!r}; it has {', '.join(columns[:20])}")
    names = [name for name in columns if name not in {order_by, *exclude, *prediction}]
    if not names:
        raise ConfigError("no feature is left: every column is excluded, a prediction or the order")
    if len(names) > MAX_FEATURES:
        raise ConfigError(f"{len(names)} features: at most {MAX_FEATURES}; exclude the others")
    for name in names:
        if not 1 <= len(name) <= MAX_NAME:
            raise ConfigError(f"a feature's name is 1 to {MAX_NAME} characters, not {len(name)}: rename {name[:40]!r}")
    return names


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    )


def _is_categorical(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind) or bool(pa.types.is_boolean(kind))


def _numbers(column: pa.ChunkedArray) -> Floats:
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.abs(numbers) <= MAX_NUMBER, numbers, np.nan)


def numeric_feature(name: str, numbers: Floats) -> NumericFeature:
    """The feature of a column of numbers [rows], NaN = missing."""
    present = numbers[~np.isnan(numbers)]
    edges = numeric_edges(present)
    cells = numeric_cells(numbers[None, None], padded_edges(edges)[None, None]).ravel()
    some = len(present) > 0
    return NumericFeature(
        name=name,
        edges=tuple(edges.tolist()),
        probabilities=tuple((np.bincount(cells, minlength=CELLS) / len(cells)).tolist()),
        mean=float(present.mean()) if some else 0.0,
        sd=float(present.std()) if some else 0.0,
        quantiles=tuple(np.quantile(present, QUANTILE_LEVELS).tolist()) if some else (0.0,) * len(QUANTILE_LEVELS),
        missing_rate=1.0 - len(present) / len(numbers),
    )


def _categorical_feature(name: str, column: pa.ChunkedArray) -> tuple[CategoricalFeature, Codes]:
    """The feature and the code of each row: most frequent category first, ties by name."""
    return categorical_feature(name, *_coded(column))


def _coded(column: pa.ChunkedArray) -> tuple[list[str], Longs]:
    """The distinct words of a column, and for each row the index of its word or `MISSING`."""
    text = column.cast(pa.string()).combine_chunks()
    if isinstance(text, pa.ChunkedArray):
        text = text.chunk(0) if text.num_chunks else pa.array([], pa.string())
    encoded = text.dictionary_encode()
    raw: Longs = encoded.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
    return encoded.dictionary.to_pylist(), raw


def categorical_feature(name: str, words: Sequence[str], raw: Longs) -> tuple[CategoricalFeature, Codes]:
    """The feature of a column of codes `raw` [rows], which index `words` or are `MISSING` or `UNSEEN`, and the column
    coded anew: most frequent category first, ties by name."""
    counts = np.bincount(raw[raw >= 0], minlength=len(words))
    ranked = sorted(range(len(words)), key=lambda word: (-int(counts[word]), words[word]))[:MAX_CATEGORIES]
    code_of = np.full(len(words) + 2, UNSEEN, np.int32)  # the last two places: UNSEEN and MISSING as indices
    code_of[ranked] = np.arange(len(ranked), dtype=np.int32)
    code_of[MISSING] = MISSING
    codes = code_of[raw]
    cells = np.bincount(categorical_cells(codes), minlength=CELLS)
    feature = CategoricalFeature(
        name=name,
        categories=tuple(words[word] for word in ranked),
        category_rates=tuple(float(counts[word]) / len(codes) for word in ranked),
        probabilities=tuple((cells / len(codes)).tolist()),
        missing_rate=float(np.mean(codes == MISSING)),
        unseen_rate=float(np.mean(codes == UNSEEN)),
    )
    return feature, codes


def calibration_rows(rows: int) -> slice | npt.NDArray[np.int64]:
    """Which rows stand for the order of a table of `rows` rows, a whole number of units."""
    if rows <= CALIBRATION_ROWS:
        return slice(0, rows - rows % UNIT_ROWS)
    length = CALIBRATION_ROWS // CALIBRATION_SEGMENTS
    begins = np.linspace(0, rows - length, CALIBRATION_SEGMENTS).astype(np.int64)
    return (begins[:, None] + np.arange(length)).ravel()


def _ordered_table(table: Coded) -> OrderedTable:
    rows = table.rows
    picked = calibration_rows(rows)
    cells: list[CellNumbers] = []
    sums, present = [], []
    for feature, column in zip(table.numeric, table.values, strict=True):
        some = column[picked]
        edges = padded_edges(np.array(feature.edges))
        cells.append(numeric_cells(some[None, None], edges[None, None]).ravel())
        standard = np.clip((some - feature.mean) / (feature.sd or 1.0), -MAX_STANDARD, MAX_STANDARD)
        here = ~np.isnan(standard)
        sums.append(_running(np.where(here, standard, 0.0).reshape(-1, UNIT_ROWS).sum(axis=1)))
        present.append(_running(here.reshape(-1, UNIT_ROWS).sum(axis=1).astype(np.float64)))
    cells += [categorical_cells(column[picked]) for column in table.codes]
    units = len(cells[0]) // UNIT_ROWS
    unit = np.repeat(np.arange(units) * CELLS, UNIT_ROWS)
    counts = np.zeros((units + 1, len(cells), CELLS), np.int64)
    for feature_at, column_cells in enumerate(cells):
        counts[1:, feature_at] = np.bincount(unit + column_cells, minlength=units * CELLS).reshape(units, CELLS)
    return OrderedTable(
        counts=np.cumsum(counts, axis=0),
        sums=np.stack(sums, axis=1) if sums else np.zeros((units + 1, 0)),
        present=np.stack(present, axis=1) if present else np.zeros((units + 1, 0)),
        expected=cell_probabilities(table.numeric, table.categorical),
        rows=rows,
        alien=alien_cells([len(feature.edges) for feature in table.numeric], len(table.categorical)),
        missing=missing_cells(len(table.numeric), len(table.categorical)),
    )


def _running(parts: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(parts)])
