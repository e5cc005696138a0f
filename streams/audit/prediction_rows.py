"""Records of predictions to values and columns of their table: what the detect role scores is a row, what it cannot decode is none.

The decoder of the detect role says which rows are scored; the values are read here, as they were sent.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import msgspec
import pyarrow as pa
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from schemas.arrow import values_of
from schemas.errors import MACHINE_ERRORS
from schemas.events import MAX_EVENT_BYTES, MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD, Prediction
from schemas.ids import clean_id
from schemas.topics import PREDICTIONS
from streams.decode import Decoder
from streams.decode.arrow import Batch, is_number
from streams.decode.envelope import NO_TIME
from streams.decode.scan import too_deep
from streams.records import Records

log = logging.getLogger(__name__)

_FLAT = "features."
_IDS = frozenset({"endpoint", "producer", "request_id", "model_version", "caller", "served_by"})
_items = msgspec.json.Decoder(list[msgspec.Raw])


def scored_rows(partition: int, partitions: int | None, records: Records) -> dict[int, set[int]]:
    """Offset to the rows of it that are scored. `partitions` None: whatever the partition an endpoint belongs on."""
    here = (partition, partitions) if partitions is not None else (0, 1)
    decoder = Decoder(PREDICTIONS, *here, lambda _endpoint, _version: None)
    found: dict[int, set[int]] = {}
    try:
        for segment in decoder.segments(
            records.values, records.keys, records.headers, records.offsets, records.timestamps
        ):
            columns = segment.columns
            for offset, row in zip(columns.offset.tolist(), columns.row.tolist(), strict=True):
                found.setdefault(offset, set()).add(row)
    except MACHINE_ERRORS:
        raise
    except Exception:  # as in the detect role: the record on which decoding fails is found by bisection
        if len(records) == 1:
            log.exception("decoding failed at offset %d, which gives no rows", records.offsets[0])
            return {}
        first, second = (scored_rows(partition, partitions, half) for half in records.halves())
        return first | second
    return found


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


def prediction_columns(batch: pa.RecordBatch, schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of predictions by name, as `schema` wants them. Raises what a foreign column makes Arrow raise."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))  # of equal names, the last
    if "ts" in columns:
        columns["ts"] = _times(batch)
    columns["features"] = _features(columns, batch.num_rows)
    fields = [schema.field(name) for name in Prediction.model_fields if name in schema.names]
    return {field.name: _column(columns, field, batch.num_rows) for field in fields}


def json_text(value: Any) -> str:
    """Compact JSON. What is not finite becomes null: one NaN would make the whole text unreadable to ClickHouse."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, default=str)


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


def _column(columns: dict[str, pa.Array], field: pa.Field, rows: int) -> pa.Array:
    name, kind = field.name, field.type
    default = Prediction.model_fields[name].get_default() if name not in ("endpoint", "features") else None
    column = columns.get(name)
    if column is None:
        return pa.array([json_text(default) if name == "prediction" else default] * rows, kind)
    if name == "prediction":
        return pa.array([json_text(_bare(value)) for value in column.to_pylist()], pa.string())
    column = values_of(column)
    if name == "seq":
        column = _whole(column)
    if pa.types.is_string(column.type) and not pa.types.is_string(kind):
        raise TypeError(f"{name}: text where a number belongs")
    if name in _IDS:
        words = column.dictionary_encode()
        cleaned = pa.array([clean_id(word) for word in words.dictionary.to_pylist()], pa.string())
        column = pa.DictionaryArray.from_arrays(words.indices, cleaned).dictionary_decode()
    column = column.cast(kind)
    return column if default is None or column.null_count == 0 else column.fill_null(default)


def _times(batch: pa.RecordBatch) -> pa.Array:
    """`ts` as the decoder reads it, moved to what a time column holds; null where none was sent."""
    ms = Batch(batch).times()
    return pa.array(ms, pa.int64(), mask=ms == NO_TIME).cast(pa.timestamp("ms"))


def _whole(column: pa.Array) -> pa.Array:
    """Counts of any numeric type as int64, moved to its ends; what is no number is null."""
    if pa.types.is_int64(column.type) or not is_number(column.type):
        return column if pa.types.is_int64(column.type) else pa.nulls(len(column), pa.int64())
    limit = 2**63 - 1
    numbers = [
        None if value is None or value != value else int(min(max(value, -limit - 1), limit))
        for value in column.to_pylist()
    ]
    return pa.array(numbers, pa.int64())


def _bare(value: Any) -> Any:
    """Without the nulls that a struct column puts where a row lacks a field."""
    return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value
