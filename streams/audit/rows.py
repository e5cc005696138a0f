"""Records to rows of ClickHouse tables, as Arrow. Pure: the sink inserts what this gives.

What cannot be decoded gives no row here: the detect role dead-letters it, and the dead letter is a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from schemas.actions import Command, Directive, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.events import Prediction, ProfileActivated, Report
from schemas.signals import EndpointState, Signal
from schemas.tables import BY_NAME, IDENTITY, TableSpec
from schemas.topics import PROFILES
from schemas.verdicts import VERDICT_BLOCKS_KIND, VERDICT_ROWS_KIND
from schemas.wire import KIND_HEADER
from streams.records import Records, header_of

Tables = dict[str, list[pa.Table]]
Identity = tuple[str, int, int, int, int]
"""topic, partition, offset, row, broker's ms."""

_MODELS: dict[bytes, tuple[str, type[BaseModel]]] = {
    b"report": ("reports", Report),
    b"signal": ("signals", Signal),
    b"endpoint_state": ("endpoint_states", EndpointState),
    b"directive": ("directives", Directive),
    b"kill": ("kills", KillSwitch),
    b"unkill": ("kills", KillSwitch),
    b"command": ("commands", Command),
    b"dead_letter": ("dead_letters", DeadLetter),
    b"profile_activated": ("activations", ProfileActivated),
}
_PLAIN: dict[str, pa.DataType] = {
    "String": pa.string(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "UInt8": pa.uint8(),
    "UInt32": pa.uint32(),
    "Float64": pa.float64(),
    "Bool": pa.bool_(),
    "DateTime64(3, 'UTC')": pa.timestamp("ms", "UTC"),
}


def arrow_type(clickhouse: str) -> pa.DataType:
    """The Arrow type that a column is inserted as."""
    for wrapper in ("LowCardinality(", "Nullable("):
        if clickhouse.startswith(wrapper):
            return arrow_type(clickhouse[len(wrapper) : -1])
    return _PLAIN[clickhouse]


ARROW_SCHEMAS: dict[str, pa.Schema] = {
    table.name: pa.schema([(name, arrow_type(kind)) for name, kind in table.all_columns]) for table in BY_NAME.values()
}


class _Rows:
    """Rows of one table, gathered as columns."""

    def __init__(self, table: TableSpec) -> None:
        self._schema = ARROW_SCHEMAS[table.name]
        self._nested = {name for name, kind in table.columns if kind == "String"}
        self._columns: dict[str, list[Any]] = {name: [] for name, _ in table.all_columns}

    def add(self, identity: Identity, values: Mapping[str, Any]) -> None:
        for (name, _), value in zip(IDENTITY, identity, strict=True):
            self._columns[name].append(value)
        for name, column in self._columns.items():
            if name in _IDENTITY_NAMES:
                continue
            value = values.get(name)
            if name in self._nested:
                value = value if isinstance(value, str) else _json(value)
            column.append(value)

    def table(self) -> pa.Table:
        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        return pa.Table.from_arrays(arrays, schema=self._schema)


_IDENTITY_NAMES = frozenset(name for name, _ in IDENTITY)


def rows_of(topic: str, partition: int, records: Records) -> Tables:
    """Table name -> rows, of consecutive records of one partition."""
    gathered: dict[str, _Rows] = {}
    whole: Tables = {}
    for index, offset in enumerate(records.offsets):
        value = records.values[index]
        if not value:
            continue
        identity = (topic, partition, offset, 0, records.timestamps[index])
        kind = header_of(records.headers[index], KIND_HEADER) or b"prediction"
        if kind in (VERDICT_ROWS_KIND.encode(), VERDICT_BLOCKS_KIND.encode()):
            _take(whole, _verdicts(kind.decode(), value, identity))
        elif kind == b"prediction":
            _take_predictions(whole, gathered, value, identity)
        elif topic == PROFILES:
            key = (records.keys[index] or b"").decode("utf-8", "replace")
            content = {"key": key, "kind": kind.decode(), "content": value.decode("utf-8", "replace")}
            _rows(gathered, "profiles").add(identity, content)
        else:
            _take_record(gathered, kind, value, identity)
    for name, rows in gathered.items():
        _take(whole, (name, rows.table()))
    return whole


def row_count(tables: Tables) -> int:
    return sum(table.num_rows for parts in tables.values() for table in parts)


def merged(many: Iterable[Tables]) -> dict[str, pa.Table]:
    """One table of each name."""
    parts: dict[str, list[pa.Table]] = {}
    for tables in many:
        for name, found in tables.items():
            parts.setdefault(name, []).extend(found)
    return {name: pa.concat_tables(found).combine_chunks() for name, found in parts.items()}


def _rows(gathered: dict[str, _Rows], name: str) -> _Rows:
    if name not in gathered:
        gathered[name] = _Rows(BY_NAME[name])
    return gathered[name]


def _take(whole: Tables, found: tuple[str, pa.Table]) -> None:
    name, table = found
    whole.setdefault(name, []).append(table)


def _take_record(gathered: dict[str, _Rows], kind: bytes, value: bytes, identity: Identity) -> None:
    if kind == b"action":
        _take_journal(gathered, value, identity)
        return
    if kind not in _MODELS:
        return
    name, model = _MODELS[kind]
    try:
        record = model.model_validate_json(value)
    except (ValidationError, RecursionError):
        return
    _rows(gathered, name).add(identity, record.model_dump(mode="json"))


def _take_journal(gathered: dict[str, _Rows], value: bytes, identity: Identity) -> None:
    try:
        entry: JournalEntry = JournalEntry.from_bytes(value)
    except ValidationError:
        return
    _rows(gathered, "journal").add(identity, entry.model_dump(mode="json"))
    topic, partition, offset, _, ms = identity
    for row, decision in enumerate(entry.decisions):
        _rows(gathered, "decisions").add((topic, partition, offset, row, ms), decision.model_dump(mode="json"))


def _take_predictions(whole: Tables, gathered: dict[str, _Rows], value: bytes, identity: Identity) -> None:
    if value[:4] == b"\xff\xff\xff\xff":
        table = _arrow_predictions(value, identity)
        if table is not None:
            _take(whole, ("predictions", table))
        return
    topic, partition, offset, _, ms = identity
    for row, prediction in _json_predictions(value):
        _rows(gathered, "predictions").add((topic, partition, offset, row, ms), prediction.model_dump(mode="json"))


def _json_predictions(value: bytes) -> list[tuple[int, Prediction]]:
    found: list[tuple[int, Prediction]] = []
    try:
        if value.lstrip()[:1] == b"[":
            items: Sequence[bytes] = [json.dumps(item).encode() for item in json.loads(value)]
        else:
            items = [value]
    except (ValueError, RecursionError):
        return found
    for row, item in enumerate(items):
        try:
            found.append((row, Prediction.model_validate_json(item)))
        except (ValidationError, RecursionError):
            continue
    return found


def _arrow_predictions(value: bytes, identity: Identity) -> pa.Table | None:
    schema = ARROW_SCHEMAS["predictions"]
    try:
        batch = pa.ipc.open_stream(pa.BufferReader(value)).read_all()
        arrays = [_prediction_column(batch, field) for field in schema if field.name not in _IDENTITY_NAMES]
    except (pa.ArrowException, ValueError, TypeError):
        return None
    n = batch.num_rows
    topic, partition, offset, _, ms = identity
    identities = [
        pa.array([topic] * n, pa.string()),
        pa.array([partition] * n, pa.int32()),
        pa.array([offset] * n, pa.int64()),
        pa.array(range(n), pa.int32()),
        pa.array([ms] * n, pa.timestamp("ms", "UTC")),
    ]
    return pa.Table.from_arrays(identities + arrays, schema=schema)


def _prediction_column(batch: pa.Table, field: pa.Field) -> pa.Array:
    default = Prediction.model_fields[field.name].get_default()
    if field.name not in batch.column_names:
        if field.name in ("features", "endpoint"):
            raise ValueError(f"no column {field.name}")
        return pa.array(
            [default if not pa.types.is_string(field.type) else _text(default)] * batch.num_rows, field.type
        )
    column = batch[field.name].combine_chunks()
    if field.name in ("features", "prediction"):
        return pa.array([_json(_bare(value)) for value in column.to_pylist()], pa.string())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    cast = column.cast(field.type if not pa.types.is_timestamp(field.type) else pa.int64())
    if pa.types.is_timestamp(field.type):
        cast = cast.cast(pa.timestamp("ms")).cast(field.type)
    return cast if default is None or cast.null_count == 0 else cast.fill_null(default)


def _verdicts(kind: str, value: bytes, identity: Identity) -> tuple[str, pa.Table]:
    batch = pa.ipc.open_stream(pa.BufferReader(value)).read_all()
    meta = {name.decode(): text.decode() for name, text in (batch.schema.metadata or {}).items()}
    n = batch.num_rows
    name = "verdicts" if kind == VERDICT_ROWS_KIND else "block_readings"
    schema = ARROW_SCHEMAS[name]
    constant: dict[str, Callable[[], Any]] = {
        "topic": lambda: [meta["topic"]] * n,
        "partition": lambda: [int(meta["partition"])] * n,
        "offset": lambda: [identity[2]] * n,
        "row": lambda: list(range(n)),
        "broker_time": lambda: [identity[4]] * n,
    }
    arrays = []
    for field in schema:
        if field.name in batch.column_names:
            column = batch[field.name].combine_chunks()
            arrays.append(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
        else:
            arrays.append(pa.array(constant[field.name](), field.type))
    return name, pa.Table.from_arrays(arrays, schema=schema)


def _bare(value: Any) -> Any:
    """Without the nulls that a struct column puts where a row lacks a feature: absent and null are the same there."""
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if inner is not None}
    return value


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
