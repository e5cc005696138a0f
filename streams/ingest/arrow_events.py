"""Arrow IPC streams of events to lists of Python values by field. Columns are those of the contracts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from msgspec import UNSET

from schemas.arrow import is_text, values_of
from schemas.ids import clean_id
from streams.decode.arrow import is_number
from streams.decode.ipc import ArrowRefused
from streams.ingest.events import AT, NAMES

_TEXTS = ("endpoint", "request_id", "producer", "model_version", "artifact_digest", "caller", "caller_auth", "status", "served_by")  # fmt: skip
_DEFAULTS = {"caller": "anonymous", "caller_auth": "claimed", "served_by": "primary", "weight": 1.0}
_AUTHS, _STATUSES = ("claimed", "verified"), ("ok", "error", "timeout", "unanswered")


def columns_of(batch: pa.RecordBatch) -> list[list[Any]]:
    """The fields of each row of a batch, column by column in the order of `NAMES`. Raises ArrowRefused."""
    found = dict(zip(batch.schema.names, batch.columns, strict=True))
    return [_column(name, found, batch.num_rows) for name in NAMES]


def _column(name: str, found: Mapping[str, pa.Array], rows: int) -> list[Any]:
    if name == "features":
        return _features(found, rows)
    column = found.get(name)
    if column is None:
        return [UNSET if name in ("status", "prediction") else _DEFAULTS.get(name)] * rows
    column = values_of(column)
    if name in _TEXTS:
        wrong = not (is_text(column.type) or pa.types.is_null(column.type))
    elif name == "ts":
        column = _times(column)
        wrong = not (pa.types.is_integer(column.type) or pa.types.is_null(column.type))
    elif name == "prediction":
        wrong = not _sayable(column.type, structs=True)
    else:
        wrong = not is_number(column.type) or pa.types.is_boolean(column.type)
    if wrong:
        raise ArrowRefused("arrow_schema", f"{name}: {column.type} is no type of it")
    values: list[Any] = column.to_pylist() if name == "ts" else _plain(column)
    default = {"status": "ok", **_DEFAULTS}.get(name)
    return values if default is None or not column.null_count else [default if v is None else v for v in values]


def _features(found: Mapping[str, pa.Array], rows: int) -> list[Any]:
    flat = {name.removeprefix("features."): column for name, column in found.items() if name.startswith("features.")}
    whole = found.get("features")
    if whole is None and not flat:
        return [UNSET] * rows
    if whole is not None:
        if not pa.types.is_struct(whole.type):
            raise ArrowRefused("arrow_schema", f"features: expected a struct, got {whole.type}")
        flat = dict(zip((each.name for each in whole.type), whole.flatten(), strict=True)) | flat
    for name, column in flat.items():
        if not _sayable(column.type, structs=False):
            raise ArrowRefused("arrow_schema", f"features.{clean_id(name)}: {column.type} is no type of a feature")
    names = list(flat)
    columns = [_plain(column) for column in flat.values()]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)] if columns else [{}] * rows


def _sayable(kind: pa.DataType, *, structs: bool) -> bool:
    """Whether values of the type are numbers, text, booleans, nothing, or lists (or structs) of numbers."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return is_number(kind.value_type)
    if pa.types.is_struct(kind):
        return structs and all(is_number(each.type) for each in kind)
    return is_number(kind) or is_text(kind)


def _plain(column: pa.Array) -> list[Any]:
    """Python values, numbers that are no booleans as floats."""
    column = values_of(column)
    kind = column.type
    if pa.types.is_integer(kind) or (pa.types.is_floating(kind) and kind != pa.float64()):
        column = column.cast(pa.float64(), safe=False)
    values: list[Any] = column.to_pylist()
    if pa.types.is_nested(kind):
        return [_all_floats(value) for value in values]
    return values


def _all_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _all_floats(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [None if inner is None else float(inner) for inner in value]
    return value


def _times(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", column.type.tz), safe=False).view(pa.int64())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) else column


def wrong_words(fields: tuple[Any, ...]) -> str:
    """ "" if caller_auth and status are words of the contract."""
    auth, status = fields[AT["caller_auth"]], fields[AT["status"]]
    if auth not in _AUTHS:
        return f"caller_auth: {clean_id(str(auth))} is neither verified nor claimed"
    if status is not UNSET and status not in _STATUSES:
        return f"status: {clean_id(str(status))} is none of {', '.join(_STATUSES)}"
    return ""
