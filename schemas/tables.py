"""ClickHouse tables, made from the contracts, so that a contract and its table cannot drift apart.

Raw rows lie in `palisade_raw.<table>`: ReplacingMergeTree, at-least-once. Readers use the views `palisade.<table>`, which
deduplicate. `topic, partition, offset, row` name the record and row that a table's row came from; for verdicts, the row of
the log that the verdict is about.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel

from schemas.actions import Command, Decision, Directive, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.events import Prediction, ProfileActivated, Report
from schemas.feedback import Feedback, Labelled
from schemas.signals import EndpointState, Signal
from schemas.verdicts import VERDICT_BLOCKS, VERDICT_P_VALUES, VERDICT_ROWS, Lost
from schemas.wire import Column

RAW = "palisade_raw"
VIEWS = "palisade"

IDENTITY: tuple[tuple[str, str], ...] = (
    ("topic", "LowCardinality(String)"),
    ("partition", "Int32"),
    ("offset", "Int64"),
    ("row", "Int32"),
    ("broker_time", "DateTime64(3, 'UTC')"),
)
_ROW = ("topic", "partition", "offset", "row")
DEDUP_WINDOW = 1_000
"""Insert tokens that a table remembers, in memory: a retried insert of the same range is ignored, for eight minutes at
two inserts a second. What is inserted once more later, the views read once."""

_ARROW_TYPES: dict[pa.DataType, str] = {
    pa.int64(): "Int64",
    pa.int32(): "Int32",
    pa.uint8(): "UInt8",
    pa.uint32(): "UInt32",
    pa.float32(): "Float32",
    pa.float64(): "Float64",
    pa.string(): "String",
    pa.dictionary(pa.int32(), pa.string()): "LowCardinality(String)",
}
_PLAIN_TYPES: dict[type, str] = {str: "String", int: "Int64", float: "Float64", bool: "Bool"}


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table: its columns beside the identity, its order, what its view deduplicates by, how long rows stay."""

    name: str
    purpose: str
    columns: tuple[tuple[str, str], ...]
    order_by: tuple[str, ...]
    one_row_by: tuple[str, ...]
    keep_days: int
    granule: int = 8_192
    """Rows that a look-up of one key reads at least."""

    @property
    def all_columns(self) -> tuple[tuple[str, str], ...]:
        return IDENTITY + self.columns

    def ddl(self) -> list[str]:
        """Statements that make the raw table and its view; each may be run again."""
        body = ",\n    ".join(f"`{name}` {kind}" for name, kind in self.all_columns)
        order = ", ".join(f"`{name}`" for name in self.order_by)
        names = ", ".join(f"`{name}`" for name, _ in self.all_columns)
        return [
            f"CREATE TABLE IF NOT EXISTS {RAW}.{self.name}\n(\n    {body}\n)\nENGINE = ReplacingMergeTree\n"
            f"ORDER BY ({order})\nTTL toDateTime(broker_time) + INTERVAL {self.keep_days} DAY\n"
            f"SETTINGS index_granularity = {self.granule}, non_replicated_deduplication_window = {DEDUP_WINDOW}",
            f"CREATE OR REPLACE VIEW {VIEWS}.{self.name} AS\nSELECT {names}\nFROM {RAW}.{self.name}{self._once()}",
        ]

    def _once(self) -> str:
        """The order key ends in the row's identity, so FINAL suffices unless one thing may lie on several records."""
        if self.one_row_by == _ROW:
            return " FINAL"
        once = ", ".join(f"`{name}`" for name in self.one_row_by)
        return f"\nORDER BY `topic`, `partition`, `offset`, `row`\nLIMIT 1 BY {once}"


def columns_of(model: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """(name, ClickHouse type) of each field of a contract; nested values are JSON text."""
    hints = typing.get_type_hints(model, include_extras=True)
    return tuple(
        (name, clickhouse_type(hints[name]))
        for name in model.model_fields
        if name not in {name for name, _ in IDENTITY}
    )


def clickhouse_type(annotation: Any) -> str:
    """The ClickHouse type of a field's annotation."""
    inner, optional = _without_none(annotation)
    named = _named_column(annotation) or _named_column(inner)
    if named is not None:
        if not optional or named == "String":
            return named
        return _nullable(named)
    if get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    if get_origin(inner) is Literal:
        return _nullable("LowCardinality(String)") if optional else "LowCardinality(String)"
    plain = _PLAIN_TYPES.get(inner, "String")
    return f"Nullable({plain})" if optional and inner in _PLAIN_TYPES else plain


def _nullable(kind: str) -> str:
    if kind.startswith("LowCardinality("):
        return f"LowCardinality(Nullable({kind.removeprefix('LowCardinality(')[:-1]}))"
    return f"Nullable({kind})"


def _named_column(annotation: Any) -> str | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((part.clickhouse for part in get_args(annotation)[1:] if isinstance(part, Column)), None)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(bare) in (Union, types.UnionType):
        others = [part for part in get_args(bare) if part is not type(None)]
        if len(others) < len(get_args(bare)):
            return (others[0] if len(others) == 1 else str), True
    return annotation, False


def _arrow_columns(schema: pa.Schema, skip: frozenset[str] = frozenset()) -> tuple[tuple[str, str], ...]:
    return tuple((field.name, _ARROW_TYPES[field.type]) for field in schema if field.name not in skip)


def _table(
    name: str, model: type[BaseModel], purpose: str, lead: tuple[str, ...], once: tuple[str, ...] = _ROW, days: int = 90
) -> TableSpec:
    return TableSpec(name, purpose, columns_of(model), lead + _ROW, once, days)


ANSWER_FIELDS = (
    "endpoint",
    "request_id",
    "model_version",
    "caller",
    "caller_auth",
    "served_by",
    "prediction",
    "ts",
    "weight",
)
"""Of a prediction, what a label needs."""
LABEL_DAYS = 400
"""Days after a prediction at which a label still finds it. Predictions with their features go after 90; of the labels of a
hotel's bookings (will it be cancelled?) 31 % come later than that, and 0.8 % later than 400 days."""

TABLES: tuple[TableSpec, ...] = (
    _table("predictions", Prediction, "one row a prediction", ("endpoint", "caller")),
    _table("reports", Report, "what each serving process did in an interval", ("endpoint",)),
    TableSpec(
        "answers",
        "what each request id was answered, without features: what late labels are joined with",
        tuple(column for column in columns_of(Prediction) if column[0] in ANSWER_FIELDS),
        ("endpoint", "request_id", *_ROW),
        _ROW,
        LABEL_DAYS,
        granule=256,
    ),
    _table("feedback", Feedback, "one row a label that came in", (), days=LABEL_DAYS),
    _table(
        "labelled",
        Labelled,
        "feedback joined with its prediction",
        ("endpoint", "model_version"),
        ("feedback_partition", "feedback_offset", "feedback_row"),
        LABEL_DAYS,
    ),
    TableSpec(
        "label_joins",
        "how far feedback is joined, one row a round: up to which row, and how many had one prediction, several, or none",
        (("joined", "Int64"), ("ambiguous", "Int64"), ("no_prediction", "Int64")),
        _ROW,
        _ROW,
        LABEL_DAYS,
    ),
    TableSpec(
        "verdicts",
        "the outcome of each row of a log: outcome 0 scored, 1 dead-lettered; flags as in schemas.flags",
        _arrow_columns(VERDICT_ROWS, frozenset({"offset", "row"})),
        _ROW,
        _ROW,
        90,
    ),
    TableSpec(
        "block_readings",
        "what detectors read on each block",
        _arrow_columns(VERDICT_BLOCKS),
        ("endpoint", "version", "detector", "last_offset", "last_row", *_ROW),
        ("endpoint", "version", "detector", "first_offset", "first_row", "last_offset", "last_row"),
        90,
    ),
    TableSpec(
        "p_values",
        "how strange each row of a log is: the share of usual rows that are at least as strange",
        _arrow_columns(VERDICT_P_VALUES, frozenset({"offset", "row"})),
        ("endpoint", "detector", *_ROW),
        _ROW,
        90,
    ),
    _table("signals", Signal, "what detectors concluded", ("endpoint",), ("signal_id",), 400),
    _table("endpoint_states", EndpointState, "what the responder knew of an endpoint", ("endpoint",), days=30),
    _table("journal", JournalEntry, "the responder's journal", (), days=3_650),
    _table("decisions", Decision, "each decision of the journal", ("endpoint",), days=3_650),
    _table(
        "directives",
        Directive,
        "what serving processes were told",
        ("endpoint",),
        ("endpoint", "epoch", "issued_ms"),
        400,
    ),
    _table("kills", KillSwitch, "the kill switch, thrown and reset", (), ("kill", "issued_ms", "actor"), 3_650),
    _table("commands", Command, "what people ordered", (), ("command_id",), 3_650),
    _table(
        "dead_letters",
        DeadLetter,
        "what could not be decoded, and why",
        (),
        ("log_topic", "log_partition", "log_offset", "log_row"),
    ),
    TableSpec(
        "profiles",
        "profiles of training data by hash, and which is active",
        (("key", "String"), ("kind", "LowCardinality(String)"), ("content", "String")),
        ("key", *_ROW),
        ("key", "content"),
        3_650,
    ),
    _table("lost", Lost, "what could not be read: removed by retention, or not to be unpacked", ("log_topic",)),
    _table("activations", ProfileActivated, "which profile held from where", ("endpoint",), days=3_650),
)
BY_NAME: dict[str, TableSpec] = {table.name: table for table in TABLES}
READ_BY_AUDIT = frozenset({"feedback", "answers", "label_joins"})
"""Tables that role audit reads, to join late labels; the others it only writes."""


def all_ddl() -> list[str]:
    """Every statement, in order, to make an audit database. Each may be run again."""
    databases = [f"CREATE DATABASE IF NOT EXISTS {name}" for name in (RAW, VIEWS)]
    return databases + [statement for table in TABLES for statement in table.ddl()]


def ddl_script() -> str:
    """The same as one text."""
    return ";\n\n".join(all_ddl()) + ";\n"
