"""Records to rows of ClickHouse tables, as Arrow. Pure: the sink inserts what this gives.

What cannot be decoded gives no row here: the detect role dead-letters it, and the dead letter is a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from schemas.actions import Command, Directive, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.errors import MACHINE_ERRORS
from schemas.events import Prediction, ProfileActivated, Report
from schemas.feedback import Labelled
from schemas.signals import EndpointState, Signal
from schemas.tables import BY_NAME, IDENTITY, TableSpec
from schemas.topics import (
    ACTIONS,
    COMMANDS,
    DEAD_LETTERS,
    DIRECTIVES,
    FEEDBACK,
    LABELLED,
    PREDICTIONS,
    PROFILES,
    REPORTS,
    SIGNALS,
    VERDICTS,
)
from schemas.verdicts import VERDICT_BLOCKS_KIND, VERDICT_P_VALUES_KIND, VERDICT_ROWS_KIND, Lost
from schemas.wire import KIND_HEADER
from streams.audit.arrow_rows import LAST_MS, ArrowRecord, prediction_tables, verdict_tables
from streams.audit.prediction_rows import json_predictions, json_text, scored_rows
from streams.decode.headers import ARROW_MAGIC
from streams.feedback import FeedbackAt
from streams.records import Records, header_of

Tables = dict[str, list[pa.Table]]
Identity = tuple[str, int, int, int, int]
"""topic, partition, offset, row, broker's ms."""

VERDICT_TABLES = {
    VERDICT_ROWS_KIND: "verdicts",
    VERDICT_BLOCKS_KIND: "block_readings",
    VERDICT_P_VALUES_KIND: "p_values",
}
Kept = tuple[str, type[BaseModel]]
"""The table that a kind of record is kept in, and its contract."""

AUDITED: Mapping[str, Mapping[bytes, Kept | None]] = {
    PREDICTIONS: {b"prediction": None, b"profile_activated": ("activations", ProfileActivated)},
    REPORTS: {b"report": ("reports", Report)},
    LABELLED: {b"labelled": ("labelled", Labelled)},
    VERDICTS: {kind.encode(): None for kind in VERDICT_TABLES} | {Lost.KIND.encode(): ("lost", Lost)},
    SIGNALS: {b"signal": ("signals", Signal), b"endpoint_state": ("endpoint_states", EndpointState)},
    ACTIONS: {b"action": ("journal", JournalEntry)},
    DIRECTIVES: {
        b"directive": ("directives", Directive),
        b"kill": ("kills", KillSwitch),
        b"unkill": ("kills", KillSwitch),
    },
    COMMANDS: {b"command": ("commands", Command)},
    DEAD_LETTERS: {b"dead_letter": ("dead_letters", DeadLetter)},
    PROFILES: {},
}
"""Topics (feedback apart: `feedback_rows`), and the kinds that each holds: who may write to one topic must not write the audit of another. None: rows that are
read as columns. Profiles are kept as they are, whatever their kind."""
_PLAIN: dict[str, pa.DataType] = {
    "String": pa.string(),
    "Int64": pa.int64(),
    "Int32": pa.int32(),
    "UInt8": pa.uint8(),
    "UInt32": pa.uint32(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "Bool": pa.bool_(),
    "DateTime64(3, 'UTC')": pa.timestamp("ms", "UTC"),
}


BOUNDS: dict[pa.DataType, tuple[int, int]] = {
    pa.int64(): (-(2**63), 2**63 - 1),
    pa.timestamp("ms", "UTC"): (0, LAST_MS),
}
"""What a sender may choose freely is moved to the ends of what its column holds."""
_KIND_WITHOUT_HEADER = {PREDICTIONS: b"prediction", REPORTS: b"report"}


def arrow_type(clickhouse: str) -> pa.DataType:
    """The Arrow type that a column is inserted as."""
    if clickhouse == "LowCardinality(Nullable(String))":  # a null in plain text would be read as an empty text
        return pa.dictionary(pa.int32(), pa.string())
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
        self._bounds = {field.name: BOUNDS[field.type] for field in self._schema if field.type in BOUNDS}
        self._columns: dict[str, list[Any]] = {name: [] for name, _ in table.all_columns}

    def add(self, identity: Identity, values: Mapping[str, Any]) -> None:
        for (name, _), value in zip(IDENTITY, identity, strict=True):
            self._columns[name].append(value)
        for name, column in self._columns.items():
            if name in _IDENTITY_NAMES:
                continue
            value = values.get(name)
            if name in self._nested:
                value = value if isinstance(value, str) and name not in _JSON_TEXTS else json_text(value)
            elif isinstance(value, int) and name in self._bounds:
                low, high = self._bounds[name]
                value = min(max(value, low), high)
            column.append(value)

    def table(self) -> pa.Table:
        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        return pa.Table.from_arrays(arrays, schema=self._schema)


_IDENTITY_NAMES = frozenset(name for name, _ in IDENTITY)
_JSON_TEXTS = frozenset({"label"})
"""Columns of JSON even where the value is text, so that the label "1" and the label 1 can be told apart."""


def rows_of(topic: str, partition: int, records: Records, partitions: int | None = None) -> Tables:
    """Table name -> rows, of consecutive records of one partition.

    Predictions are those that are scored. Without the topic's count of `partitions`, rows on a wrong partition are
    taken for scored, too.
    """
    gathered: dict[str, _Rows] = {}
    scored = scored_rows(partition, partitions, records) if topic == PREDICTIONS else {}
    streams: dict[str, list[ArrowRecord]] = {}
    for index, offset in enumerate(records.offsets):
        value = records.values[index]
        if not value:
            continue
        identity = (topic, partition, offset, 0, min(max(records.timestamps[index], 0), LAST_MS))
        kind = header_of(records.headers[index], KIND_HEADER) or _KIND_WITHOUT_HEADER.get(topic, b"")
        if offset in scored and value.startswith(ARROW_MAGIC):
            streams.setdefault("predictions", []).append(
                ArrowRecord(offset, identity[4], value, frozenset(scored[offset]))
            )
        elif offset in scored:
            _take_json(gathered, value, identity, scored[offset])
        elif topic == PROFILES:
            key = (records.keys[index] or b"").decode("utf-8", "replace")
            content = {"key": key, "kind": kind.decode("utf-8", "replace"), "content": value.decode("utf-8", "replace")}
            _rows(gathered, "profiles").add(identity, content)
        elif kind not in AUDITED.get(topic, ()):
            continue
        elif topic == VERDICTS and kind != Lost.KIND.encode():
            streams.setdefault(VERDICT_TABLES[kind.decode()], []).append(ArrowRecord(offset, identity[4], value))
        elif kept := AUDITED[topic][kind]:
            _take_record(gathered, kept, value, identity)
    whole = {name: [rows.table()] for name, rows in gathered.items()}
    for name, found in streams.items():
        schema = ARROW_SCHEMAS[name]
        made = (
            prediction_tables(topic, partition, found, schema)
            if topic == PREDICTIONS
            else verdict_tables(found, schema)
        )
        whole.setdefault(name, []).extend(made)
    if "predictions" in whole:
        answered = [_answers(table) for table in whole["predictions"]]
        whole["answers"] = [table for table in answered if table.num_rows]
    return {name: tables for name, tables in whole.items() if tables}


def feedback_rows(partition: int, records: Records, found: Iterable[FeedbackAt]) -> Tables:
    """Rows of feedback that was read from `records`, with who vouches for each source."""
    rows = _Rows(BY_NAME["feedback"])
    for one in found:
        ms = min(max(records.timestamps[one.record], 0), LAST_MS)
        values = one.feedback.model_dump(mode="json") | {"source_auth": one.auth}
        rows.add((FEEDBACK, partition, records.offsets[one.record], one.row, ms), values)
    table = rows.table()
    return {"feedback": [table]} if table.num_rows else {}


def kept_feedback(
    partition: int, records: Records, found: Sequence[FeedbackAt]
) -> tuple[Tables, list[tuple[int, Exception]]]:
    """`feedback_rows` without those on which it raises, which bisection finds: offsets, and what each raised."""
    try:
        return feedback_rows(partition, records, found), []
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  no feedback may stop the audit of all others
        if len(found) == 1:
            return {}, [(records.offsets[found[0].record], error)]
    half = len(found) // 2
    first, second = (kept_feedback(partition, records, part) for part in (found[:half], found[half:]))
    return _together((first[0], second[0])), first[1] + second[1]


def _answers(predictions: pa.Table) -> pa.Table:
    """What a label needs of predictions that have a request id."""
    named = pc.not_equal(predictions["request_id"], Prediction.model_fields["request_id"].default)
    return predictions.select(ARROW_SCHEMAS["answers"].names).filter(named)


def kept_rows(
    topic: str, partition: int, records: Records, partitions: int | None = None
) -> tuple[Tables, list[tuple[int, Exception]]]:
    """`rows_of` without the records on which it raises, which bisection finds: their offsets, and what each raised."""
    try:
        return rows_of(topic, partition, records, partitions), []
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  no record may stop the audit of all others
        if len(records) == 1:
            return {}, [(records.offsets[0], error)]
    first, second = (kept_rows(topic, partition, half, partitions) for half in records.halves())
    return _together((first[0], second[0])), first[1] + second[1]


def merged(many: Iterable[Tables]) -> dict[str, pa.Table]:
    """One table of each name."""
    return {
        name: pa.concat_tables(found).unify_dictionaries().combine_chunks() for name, found in _together(many).items()
    }


def _together(many: Iterable[Tables]) -> Tables:
    whole: Tables = {}
    for tables in many:
        for name, found in tables.items():
            whole.setdefault(name, []).extend(found)
    return whole


def _rows(gathered: dict[str, _Rows], name: str) -> _Rows:
    if name not in gathered:
        gathered[name] = _Rows(BY_NAME[name])
    return gathered[name]


def _take_record(gathered: dict[str, _Rows], kept: Kept, value: bytes, identity: Identity) -> None:
    name, model = kept
    try:
        record = model.model_validate_json(value)
    except (ValidationError, RecursionError):
        return
    fields = record.model_dump(mode="json")
    if isinstance(record, Labelled):
        fields["prediction"] = json_text(fields["prediction"])
    _rows(gathered, name).add(identity, fields)
    if isinstance(record, JournalEntry):
        topic, partition, offset, _, ms = identity
        for row, decision in enumerate(record.decisions):
            _rows(gathered, "decisions").add((topic, partition, offset, row, ms), decision.model_dump(mode="json"))


def _take_json(gathered: dict[str, _Rows], value: bytes, identity: Identity, scored: set[int]) -> None:
    topic, partition, offset, _, ms = identity
    for row, fields in json_predictions(value):
        if row in scored:
            _rows(gathered, "predictions").add((topic, partition, offset, row, ms), fields)
