"""Records of predictions to values and columns of their table: what the detect role scores is a row, what it cannot decode is none.

Rows on a wrong partition and records whose header lies are dead-lettered there and still kept here, as they were sent.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from schemas.blocks import STATUS_CODES
from schemas.events import MAX_EVENT_BYTES, MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD, Prediction
from schemas.ids import clean_id
from streams.decode.arrow import read_streams
from streams.decode.ipc import ArrowRefused, inspect
from streams.decode.scan import too_deep

ARROW_START = b"\xff\xff\xff\xff"
_FLAT = "features."
_IDS = frozenset({"endpoint", "producer", "request_id", "model_version", "caller", "served_by"})
_WORDS = {"status": frozenset(STATUS_CODES), "caller_auth": frozenset({"verified", "claimed"})}
_items = msgspec.json.Decoder(list[msgspec.Raw])


def json_predictions(value: bytes) -> list[tuple[int, dict[str, Any]]]:
    """(row, fields) of each prediction in a JSON object or array; `prediction` as JSON text."""
    if len(value) > MAX_RECORD_BYTES or too_deep(value):
        return []
    items: list[Any] = [value]
    if value.lstrip()[:1] == b"[":
        try:
            items = _rows(value)
        except (ValueError, RecursionError):
            return []
    if len(items) > MAX_ROWS_PER_RECORD:
        return []
    found = []
    for row, item in enumerate(items):
        try:
            fields = Prediction.model_validate_json(bytes(item)).model_dump() if len(item) <= MAX_EVENT_BYTES else None
        except (ValidationError, RecursionError):
            continue
        if fields is not None:
            found.append((row, fields | {"prediction": json_text(fields["prediction"])}))
    return found


def _rows(value: bytes) -> list[Any]:
    """The elements of a JSON array as bytes. Raises ValueError."""
    try:
        return _items.decode(value)
    except msgspec.DecodeError:  # NaN and Infinity, which the contract reads
        return [to_json(row, inf_nan_mode="constants") for row in from_json(value)]


def arrow_predictions(value: bytes, schema: pa.Schema) -> tuple[pa.Array, dict[str, pa.Array]] | None:
    """Row numbers, and columns of `schema` by name, of an Arrow stream; None if it cannot be decoded."""
    try:
        if len(value) > MAX_RECORD_BYTES:
            return None
        batch = read_streams([inspect(value)])
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns["features"] = _features(columns, batch.num_rows)
        kept = _decodable(columns)
        fields = [schema.field(name) for name in Prediction.model_fields if name in schema.names]
        found = {field.name: _column(columns, field, batch.num_rows).filter(kept) for field in fields}
    except (ArrowRefused, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError):
        return None
    return pa.array(np.flatnonzero(kept), pa.int32()), found


def json_text(value: Any) -> str:
    """Compact JSON. What is not finite becomes null: one NaN would make the whole text unreadable to ClickHouse."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _features(columns: dict[str, pa.Array], rows: int) -> pa.Array:
    """The features of each row as JSON text. A struct's null and an absent feature are the same thing."""
    flat = {name.removeprefix(_FLAT): column.to_pylist() for name, column in columns.items() if name.startswith(_FLAT)}
    structs = columns["features"].to_pylist() if "features" in columns else [{}] * rows
    if not flat and "features" not in columns:
        raise ValueError("no features")
    texts = []
    for row, struct in enumerate(structs):
        features = (struct or {}) | {name: values[row] for name, values in flat.items()}
        texts.append(json_text({name: value for name, value in features.items() if value is not None}))
    return pa.array(texts, pa.string())


def _decodable(columns: dict[str, pa.Array]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows that name their endpoint and hold no word that the contract does not know."""
    kept = _decoded(columns["endpoint"]).is_valid()
    for name, words in _WORDS.items():
        if name in columns:
            column = _decoded(columns[name])
            kept = pc.and_(kept, pc.or_(column.is_null(), pc.is_in(column, pa.array(sorted(words)))))
    return np.asarray(kept.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _column(columns: dict[str, pa.Array], field: pa.Field, rows: int) -> pa.Array:
    name, kind = field.name, field.type
    default = Prediction.model_fields[name].get_default() if name not in ("endpoint", "features") else None
    column = columns.get(name)
    if column is None:
        return pa.array([json_text(default) if name == "prediction" else default] * rows, kind)
    if name == "prediction":
        return pa.array([json_text(_bare(value)) for value in column.to_pylist()], pa.string())
    column = _decoded(column)
    if pa.types.is_string(column.type) and not pa.types.is_string(kind):
        raise TypeError(f"{name}: text where a number belongs")
    if name in _IDS:
        words = column.dictionary_encode()
        cleaned = pa.array([clean_id(word) for word in words.dictionary.to_pylist()], pa.string())
        column = pa.DictionaryArray.from_arrays(words.indices, cleaned).dictionary_decode()
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64()).cast(pa.timestamp("ms"))
    column = column.cast(kind)
    return column if default is None or column.null_count == 0 else column.fill_null(default)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _bare(value: Any) -> Any:
    """Without the nulls that a struct column puts where a row lacks a field."""
    return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value
