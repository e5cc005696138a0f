"""A user's file of recorded predictions: which column means what, and whether the log will take it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc

from palisade.tables import UnusableFile, read_table
from schemas.arrow import is_text, values_of
from schemas.events import MAX_FEATURES, CallerAuth, Prediction, Status

FIELDS = tuple(name for name in Prediction.model_fields if name not in ("features", "schema_version"))
"""Fields of a prediction that a column may be."""
NUMBERS = frozenset({"latency_ms", "weight"})
WORDS = {"status": get_args(Status), "caller_auth": get_args(CallerAuth)}
"""Fields that take these values alone."""
ALLOWED = "a feature is a number, text or a boolean"
EPOCH_UNITS = ((1e11, 1e3), (1e14, 1.0), (1e17, 1e-3), (float("inf"), 1e-6))
"""Up to which number a time counts seconds, milliseconds, microseconds, nanoseconds; and how many milliseconds each is."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which columns mean what; a column that is not named here is a feature. `endpoint`: whose all rows are.

    `fields`: further fields of a prediction and the columns that hold them.
    """

    endpoint: str | None = None
    caller: str | None = None
    time: str | None = None
    drop: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()

    def columns(self) -> dict[str, str]:
        """Column by field."""
        named = {"caller": self.caller, "ts": self.time} | dict(self.fields)
        return {field: column for field, column in named.items() if column is not None}


@dataclass(frozen=True, slots=True)
class Recorded:
    """Predictions of a file: `table` has a prediction's columns, sorted by `ts` where it has one.

    `meaning`: column of the file by field. `features`, `left_out`: names of columns. `exported`: the file is in Palisade's
    own form, a column `features` and the fields of a prediction by their names.
    """

    table: pa.Table
    meaning: dict[str, str]
    features: tuple[str, ...]
    left_out: tuple[str, ...]
    exported: bool

    def doubts(self) -> tuple[str, ...]:
        """Features that are named like a field of a prediction: perhaps they were meant as one."""
        return tuple(name for name in self.features if name in FIELDS) if not self.exported else ()


def read_predictions(path: Path, mapping: Mapping) -> Recorded:
    """The predictions of a file; raises UnusableFile with what to do about it.

    A column is a feature unless `mapping` names it. In Palisade's own form, with the features in one column `features`
    (struct, or text that is a JSON object), the other columns are fields of a prediction by their names.
    """
    table = read_table(path)
    _check_columns(table, mapping, path)
    exported = "features" in table.column_names and _holds_objects(table["features"])
    meaning = mapping.columns()
    if exported:
        taken = set(meaning.values()) | set(mapping.drop)
        own = {name: name for name in table.column_names if name in FIELDS and name not in taken}
        meaning = own | meaning
        features = _parsed(table["features"], path)
    else:
        rest = [name for name in table.column_names if name not in {*meaning.values(), *mapping.drop}]
        features = _struct(table, rest, path)
    columns = {field: _field(field, table[name], name, path) for field, name in meaning.items()}
    if mapping.endpoint is not None and "endpoint" not in columns:
        columns["endpoint"] = pa.array([mapping.endpoint] * table.num_rows, pa.string())
    if "endpoint" not in columns:
        raise UnusableFile(f"say whose predictions {path} holds with --endpoint NAME, or --field endpoint=COLUMN")
    found = pa.table(columns | {"features": features})
    if "ts" in columns:
        found = found.sort_by("ts")
    names = tuple(field.name for field in features.type)
    used = {*meaning.values(), *(("features",) if exported else names)}
    left_out = tuple(name for name in table.column_names if name not in used)
    return Recorded(found, meaning, names, left_out, exported)


def _check_columns(table: pa.Table, mapping: Mapping, path: Path) -> None:
    names = table.column_names
    if table.num_rows == 0:
        raise UnusableFile(f"{path} has no rows: there is nothing to publish")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UnusableFile(f"{path} has two columns named {twice[0]!r}: rename one")
    if unknown := [field for field, _ in mapping.fields if field not in FIELDS]:
        raise UnusableFile(f"{unknown[0]!r} is no field of a prediction; --field takes {', '.join(FIELDS)}")
    wanted = [*mapping.columns().values(), *mapping.drop]
    if absent := [name for name in wanted if name not in names]:
        raise UnusableFile(f"{path} has no column {absent[0]!r}; it has {', '.join(names)}")
    if shared := [name for name in wanted if wanted.count(name) > 1]:
        raise UnusableFile(f"the column {shared[0]!r} is named twice: a column is one thing, or dropped")


def _holds_objects(column: pa.ChunkedArray) -> bool:
    """Whether a column holds objects: a struct, or text that begins as a JSON object does."""
    if pa.types.is_struct(column.type):
        return True
    if not is_text(column.type):
        return False
    first = next((text for text in column.to_pylist() if text is not None), "")
    return str(first).lstrip().startswith("{")


def _parsed(column: pa.ChunkedArray, path: Path) -> pa.StructArray:
    """Features of Palisade's own form as a struct."""
    whole = column.combine_chunks()
    if not pa.types.is_struct(whole.type):
        try:
            whole = pa.array([json.loads(text) for text in whole.to_pylist()])
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise UnusableFile(f"{path}: `features` holds text that is no JSON object: {error}") from error
    if not pa.types.is_struct(whole.type) or whole.type.num_fields == 0 or whole.null_count:
        raise UnusableFile(f"{path}: `features` must hold an object of features in every row")
    names = [field.name for field in whole.type]
    plain = [plain_values(column) for column in whole.flatten()]
    for name, feature in zip(names, plain, strict=True):
        if feature is None:
            raise UnusableFile(
                f"{path}: the feature {name!r} in `features` is {whole.type.field(name).type}: {ALLOWED}"
            )
    return pa.StructArray.from_arrays(plain, names=names)


def _struct(table: pa.Table, names: list[str], path: Path) -> pa.StructArray:
    """The columns of these names as features."""
    if not names:
        raise UnusableFile(f"{path} has no features left: each of {', '.join(table.column_names)} is something else")
    if len(names) > MAX_FEATURES:
        raise UnusableFile(f"{path} has {len(names):,} features, at most {MAX_FEATURES:,}: leave some out with --drop")
    features = []
    for name in names:
        feature = plain_values(table[name].combine_chunks())
        if feature is None:
            raise UnusableFile(
                f"{path}: column {name!r} is {table[name].type}, and {ALLOWED}: leave it out with --drop {name}, "
                "or name what it is (--time-column, --caller-column, --field)"
            )
        features.append(feature)
    return pa.StructArray.from_arrays(features, names=names)


def plain_values(whole: pa.Array) -> pa.Array | None:
    """A feature's values as float64 (NaN, which tables write for "missing", as null), text or boolean; None if neither.

    The same as building a profile makes of a training table.
    """
    whole = values_of(whole)
    kind = whole.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = whole.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if is_text(kind):
        return whole.cast(pa.string())
    return whole if pa.types.is_boolean(kind) or pa.types.is_null(kind) else None


def _field(field: str, column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """A column as the type of its field. Raises UnusableFile."""
    whole = values_of(column.combine_chunks())
    try:
        if field == "ts":
            return milliseconds_of(whole, name, path)
        if field == "seq":
            return whole.cast(pa.int64())
        if field in NUMBERS:
            return _numbers(whole)
        if field == "prediction":
            return _outcome(whole)
        return text_of(whole, field, name, path)
    except pa.ArrowException as error:
        expected = "whole numbers" if field == "seq" else "numbers" if field in NUMBERS else "text or numbers"
        raise UnusableFile(f"{path}: column {name!r} is {column.type}, but {field} must be {expected}") from error


def _numbers(whole: pa.Array) -> pa.Array:
    if pa.types.is_boolean(whole.type) or pa.types.is_temporal(whole.type):
        raise pa.ArrowTypeError("no number")
    return whole.cast(pa.float64(), safe=False)


def _outcome(whole: pa.Array) -> pa.Array:
    plain = plain_values(whole)
    if plain is None:
        raise pa.ArrowTypeError("no outcome")
    return plain


def text_of(whole: pa.Array, field: str, name: str, path: Path) -> pa.Array:
    """Names as text: whole numbers as digits (also where a gap made them floats), NaN as missing."""
    if pa.types.is_nested(whole.type) or pa.types.is_binary(whole.type) or pa.types.is_large_binary(whole.type):
        raise pa.ArrowTypeError("no text")
    if pa.types.is_floating(whole.type):
        whole = plain_values(whole)
        integral = pc.all(pc.equal(whole, pc.round(whole))).as_py()
        whole = whole.cast(pa.int64(), safe=False) if integral is not False else whole
    text = whole.cast(pa.string())
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)  # CSV writes nothing as ""
    if field in WORDS:
        others = [word for word in text.unique().to_pylist() if word is not None and word not in WORDS[field]]
        if others:
            raise UnusableFile(
                f"{path}: column {name!r} holds {others[0]!r}, but {field} is one of {', '.join(WORDS[field])}; "
                "if it is a feature, do not name it as a field"
            )
    if field == "endpoint" and text.null_count:
        raise UnusableFile(f"{path}: {text.null_count:,} rows of column {name!r} name no endpoint: fill or remove them")
    return text


def milliseconds_of(whole: pa.Array, name: str, path: Path) -> pa.Array:
    """Times as whole milliseconds since the epoch."""
    kind = whole.type
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            times = whole.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        elif is_text(kind):
            times = _iso(whole.cast(pa.string())).cast(pa.int64())
        elif pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
            raise pa.ArrowTypeError("no time")
        else:
            times = _counted(whole.cast(pa.float64(), safe=False))
    except pa.ArrowException as error:
        raise UnusableFile(
            f"{path}: the time column {name!r} is no time ({kind}): it takes a number since 1970 (seconds to "
            "nanoseconds), a timestamp or ISO text"
        ) from error
    if times.null_count:
        first = pc.index(times.is_null(), True).as_py() + 1
        raise UnusableFile(
            f"{path}: the time column {name!r} is empty in {times.null_count:,} rows, the first of them row {first:,}: "
            f"fill or remove them, or publish without times: --drop {name} --flat-out"
        )
    return times


def _iso(text: pa.Array) -> pa.Array:
    """ISO text with a zone or without one, which is UTC."""
    try:
        return text.cast(pa.timestamp("ms"))
    except pa.ArrowInvalid:
        return text.cast(pa.timestamp("ms", "UTC"))


def _counted(numbers: pa.Array) -> pa.Array:
    finite = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
    largest = pc.max(pc.abs(finite)).as_py() or 0.0
    factor = next(factor for bound, factor in EPOCH_UNITS if largest < bound)
    return pc.multiply(finite, factor).cast(pa.int64(), safe=False)
