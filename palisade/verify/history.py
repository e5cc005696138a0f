"""What a run left behind: typed tables of events, each optional, and a directory that holds them.

A table that is absent is evidence that was not gathered, and what rests on it is not judged; a table without rows says that
nothing of the kind happened. Times are ms since the epoch, UTC: the broker's where a record has one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from palisade.tables import read_table
from schemas.errors import PalisadeError

RUN_FILE = "run.json"
SUFFIXES = (".parquet", ".arrow", ".jsonl")

_LONG, _INT, _TEXT = pa.int64(), pa.int32(), pa.string()
_WORD = pa.dictionary(pa.int32(), pa.string())
"""Text that takes few values."""
_PLACE = [("topic", _WORD), ("partition", _INT), ("offset", _LONG)]


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(columns)


SCHEMAS: dict[str, pa.Schema] = {
    # what reached Kafka, and what became of it
    "windows": _schema(("topic", _WORD), ("partition", _INT), ("first", _LONG), ("end", _LONG), ("from_ms", _LONG)),
    "sent": _schema(*_PLACE, ("rows", _INT), ("producer", _WORD)),
    "producers": _schema(("producer", _TEXT), ("attempted", _LONG), ("acked", _LONG), ("rejected", _LONG)),
    "records": _schema(*_PLACE, ("at_ms", _LONG), ("kind", _WORD), ("rows", _INT), ("size", _INT)),
    "outcomes": _schema(
        *_PLACE, ("row", _INT), ("outcome", pa.uint8()), ("flags", pa.uint32()), ("at_ms", _LONG), ("told_at", _LONG)
    ),
    "paired": _schema(*_PLACE, ("row", _INT), ("written", _LONG)),
    "dead_letters": _schema(
        *_PLACE, ("row", _INT), ("size", _LONG), ("reason", _WORD), ("at_ms", _LONG), ("for_run", pa.bool_())
    ),
    "lost": _schema(
        ("topic", _WORD), ("partition", _INT), ("first", _LONG), ("last", _LONG), ("at_ms", _LONG), ("told", pa.bool_())
    ),
    "commits": _schema(
        ("at_ms", _LONG),
        ("group", _WORD),
        ("topic", _WORD),
        ("partition", _INT),
        ("committed", _LONG),
        ("unfinished", _LONG),
    ),
    "audit": _schema(("table", _WORD), *_PLACE, ("row", _INT), ("outcome", pa.uint8())),
    # what was concluded and decided
    "states": _schema(
        ("run", _WORD),
        ("log", _WORD),
        ("partition", _INT),
        ("part", _WORD),
        ("position", _LONG),
        ("row", _INT),
        ("learns", pa.bool_()),
        ("digest", _TEXT),
    ),
    "signals": _schema(
        ("offset", _LONG),
        ("at_ms", _LONG),
        ("signal_id", _TEXT),
        ("endpoint", _WORD),
        ("kind", _WORD),
        ("log_topic", _WORD),
        ("log_partition", _INT),
        ("log_offset", _LONG),
        ("digest", _TEXT),
    ),
    "views": _schema(("at_ms", _LONG), ("endpoint", _WORD), ("active_callers", _LONG)),
    "commands": _schema(("at_ms", _LONG), ("command_id", _TEXT), ("actor", _TEXT)),
    "journal": _schema(("offset", _LONG), ("at_ms", _LONG), ("entry", _LONG), ("epoch", _LONG), ("digest", _TEXT)),
    "decisions": _schema(
        ("offset", _LONG),
        ("row", _INT),
        ("at_ms", _LONG),
        ("entry", _LONG),
        ("action_id", _TEXT),
        ("kind", _WORD),
        ("endpoint", _WORD),
        ("caller", _TEXT),
        ("reason", _WORD),
        ("outcome", _WORD),
        ("actor", _WORD),
        ("epoch", _LONG),
        ("issued_ms", _LONG),
        ("expires_ms", _LONG),
        ("signal_ids", pa.list_(_TEXT)),
    ),
    "replayed": _schema(("replay", _TEXT), ("entry", _LONG), ("action_id", _TEXT)),
    # what an uninterrupted run on the same log says
    "recomputed": _schema(("topic", _WORD), ("partition", _INT), ("end", _LONG), ("reason", _TEXT)),
    "reference_outcomes": _schema(*_PLACE, ("row", _INT), ("outcome", pa.uint8()), ("flags", pa.uint32())),
    "reference_signals": _schema(
        ("signal_id", _TEXT),
        ("endpoint", _WORD),
        ("kind", _WORD),
        ("log_topic", _WORD),
        ("log_partition", _INT),
        ("log_offset", _LONG),
        ("digest", _TEXT),
    ),
    # what was carried out
    "orders": _schema(
        ("partition", _INT),
        ("offset", _LONG),
        ("at_ms", _LONG),
        ("endpoint", _WORD),
        ("epoch", _LONG),
        ("issued_ms", _LONG),
        ("caller", _TEXT),
        ("action_id", _TEXT),
        ("expires_ms", _LONG),
    ),
    "reports": _schema(
        ("at_ms", _LONG),
        ("endpoint", _WORD),
        ("guard_id", _WORD),
        ("boot_id", _WORD),
        ("seq", _LONG),
        ("from_ms", _LONG),
        ("to_ms", _LONG),
        ("epoch_applied", _LONG),
        ("fallbacks", _LONG),
        ("troubles", _LONG),
        ("signed", pa.bool_()),
    ),
    "refused_calls": _schema(
        ("at_ms", _LONG),
        ("endpoint", _WORD),
        ("guard_id", _WORD),
        ("from_ms", _LONG),
        ("to_ms", _LONG),
        ("caller", _TEXT),
        ("refused", _LONG),
    ),
    "webhooks": _schema(("at_ms", _LONG), ("id", _TEXT), ("endpoint", _WORD), ("event", _WORD), ("reason", _TEXT)),
    # how it ran
    "processes": _schema(
        ("at_ms", _LONG),
        ("name", _WORD),
        ("pid", _LONG),
        ("event", _WORD),
        ("status", _LONG),
        ("asked", pa.bool_()),
        ("rss_bytes", _LONG),
        ("silent_s", pa.float64()),
    ),
    "outages": _schema(("component", _WORD), ("from_ms", _LONG), ("to_ms", _LONG)),
    "latencies": _schema(("at_ms", _LONG), ("ms", pa.float64())),
    # the ledger, once there is one
    "ledger": _schema(("stream", _WORD), ("position", _LONG), ("row", pa.binary()), ("hash", pa.binary())),
    "ledger_heads": _schema(("stream", _WORD), ("position", _LONG), ("hash", pa.binary())),
}
"""Tables by name.

| table | one row is |
|---|---|
| windows | offsets [first, end) of a partition that this history holds whole; `from_ms` > 0: what came before that moment is not in it |
| sent | a record whose producer was told that it is stored |
| producers | what one producer tried to send, was told is stored, refused itself (events) |
| records | a record of a log: how many events it holds, its size in bytes |
| outcomes | the outcome of one event: 0 scored, 1 dead-lettered. `told_at`: offset of the verdict that says so |
| paired | a request or response, and the offset of a prediction that ingest made of it |
| dead_letters | a dead letter. `size`: of what it is about; `for_run`: it stands for others of its run, too |
| lost | offsets [first, last] that retention removed unread or that cannot be unpacked; `told`: people were (`at_ms` 0: they were not) |
| commits | a committed offset as seen at a moment; `unfinished`: the smallest unfinished offset then, if it was known |
| audit | a row of the views `predictions`, `verdicts` (with outcome) and `decisions` |
| states | digest of a part's saved state after the log up to `position` and `row`; `run`: observed or reference; `learns`: without an approved profile |
| signals, views, commands | statements of detectors, what respond knew of an endpoint, people's words |
| journal, decisions | entries of the journal, and each decision in them |
| replayed | what a replay of the inputs of a journal's entry decided |
| recomputed | a partition of a log that was computed again, below offset `end`; `reason`: why it was not, or not all of it |
| reference_outcomes, reference_signals | what it then said |
| orders | what a directive orders: a limit (caller) or the fallback (caller null); action_id null: nothing |
| reports | what a Guard did in an interval; `fallbacks` served, `troubles`: errors, timeouts, an open breaker, by which it falls back by itself |
| refused_calls | calls of one caller that a Guard refused in an interval, of signed reports |
| webhooks | `wanted`, then `delivered`, `superseded`, `given_up` or `disabled` with a reason |
| processes | `started`, `exited` (status; asked: somebody wanted it), `hung` (silent_s), `rss` (rss_bytes) |
| outages | a component was away: `audit` |
| latencies | from a record's time to that of its outcome |
| ledger, ledger_heads | a row and its link of the hash chain; a head that was published elsewhere |
"""


OPTIONAL: dict[str, frozenset[str]] = {
    "windows": frozenset({"from_ms"}),
    "commits": frozenset({"unfinished"}),
    "audit": frozenset({"outcome"}),
    "states": frozenset({"learns"}),
    "signals": frozenset({"kind"}),
    "recomputed": frozenset({"reason"}),
    "decisions": frozenset({"caller", "expires_ms", "signal_ids"}),
    "orders": frozenset({"caller", "action_id"}),
    "webhooks": frozenset({"reason"}),
    "processes": frozenset({"pid", "status", "asked", "rss_bytes", "silent_s"}),
}
"""Columns that may be null; all others of a table must have values."""


class HistoryUnusable(PalisadeError):
    """A directory that is no history, or a table of it that is another's."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of the run as a whole; None: unknown, and what rests on it is not judged.

    finished: nothing was in flight when the history was taken. clock_ms: how far clocks of two machines may differ.
    The caps are those of the policy (R3), `endpoints` the number in the configuration.
    """

    collected_ms: int = 0
    finished: bool = False
    clock_ms: int = 1_000
    endpoints: int | None = None
    endpoints_min: int = 1
    endpoints_share: float = 0.2
    callers_min: int = 3
    callers_share: float = 0.05
    memory_cap_bytes: int = 1_500_000_000
    hang_s: float = 30.0
    notes: list[str] = field(default_factory=list)


class History:
    """Tables by name and what is known of the run."""

    def __init__(self, tables: Mapping[str, pa.Table], run: Run | None = None) -> None:
        self.run = run or Run()
        self._tables = {name: _whole(name, _conform(name, table)) for name, table in tables.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._tables

    def __getitem__(self, name: str) -> pa.Table:
        """The table; one without rows if it is absent: ask `in` where the difference matters."""
        found = self._tables.get(name)
        return SCHEMAS[name].empty_table() if found is None else found

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tables)

    def with_tables(self, **tables: pa.Table) -> History:
        """A history with these tables in place of its own."""
        return History({**self._tables, **tables}, self.run)

    def without(self, *names: str) -> History:
        return History({name: table for name, table in self._tables.items() if name not in names}, self.run)

    def save(self, folder: Path) -> None:
        """Writes the directory that `load` reads."""
        with HistoryWriter(folder) as writer:
            for name, table in self._tables.items():
                writer.add(name, table)
            writer.finish(self.run)

    @classmethod
    def load(cls, folder: Path) -> History:
        """The history in `folder`: `run.json` and `TABLE.parquet`, `.arrow` or `.jsonl`. Raises HistoryUnusable."""
        try:
            said = json.loads((folder / RUN_FILE).read_text())
            known = {part.name for part in fields(Run)}
            run = Run(**{name: value for name, value in said.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise HistoryUnusable(
                f"{folder} is no history: {RUN_FILE} cannot be read ({error}); `palisade verify run --out` makes one"
            ) from error
        found = ((name, folder / f"{name}{suffix}") for name in SCHEMAS for suffix in SUFFIXES)
        return cls({name: _read(name, path) for name, path in found if path.exists()}, run)


def table_of(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of that name; a column that a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])


def _read(name: str, path: Path) -> pa.Table:
    """A table's file; an empty one says that nothing of the kind happened."""
    return read_table(path) if path.stat().st_size else SCHEMAS[name].empty_table()


def _whole(name: str, table: pa.Table) -> pa.Table:
    for column in table.schema.names:
        if table[column].null_count and column not in OPTIONAL.get(name, ()):
            raise HistoryUnusable(f"the table {name} has rows without {column}; give each row one")
    return table


def _conform(name: str, table: pa.Table) -> pa.Table:
    """The table with exactly the columns of its schema; those that it lacks are null."""
    if name not in SCHEMAS:
        raise HistoryUnusable(f"no history has a table {name}")
    schema = SCHEMAS[name]
    if table.schema == schema:
        return table
    try:
        columns = [
            table[column.name].cast(column.type)
            if column.name in table.column_names
            else pa.nulls(table.num_rows, column.type)
            for column in schema
        ]
    except pa.ArrowException as error:
        raise HistoryUnusable(f"the table {name} does not have the columns of one: {error}") from error
    return pa.Table.from_arrays(columns, schema=schema)


class HistoryWriter:
    """Writes a history part by part, so that what is in memory is one part of each table."""

    PART_ROWS = 100_000
    LOOSE_ROWS = 1_000
    """Rows that are no table yet: a table of each would cost more than all else, as most records hold few."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[pa.Table]] = {}
        self._waiting_rows: Counter[str] = Counter()
        self._loose: dict[str, list[Mapping[str, Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [folder / RUN_FILE, *(folder / f"{name}{suffix}" for name in SCHEMAS for suffix in SUFFIXES)]:
            stale.unlink(missing_ok=True)

    def add(self, name: str, table: pa.Table) -> None:
        """Rows of a table; also none, which says that there were none."""
        self._gather(name)
        self._waiting.setdefault(name, []).append(_conform(name, table))
        self._waiting_rows[name] += table.num_rows
        if self._waiting_rows[name] >= self.PART_ROWS:
            self._flush(name)

    def add_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        loose = self._loose.setdefault(name, [])
        loose += rows
        if len(loose) >= self.LOOSE_ROWS:
            self._gather(name)

    def _gather(self, name: str) -> None:
        """What is loose becomes a table, also of no row."""
        if (loose := self._loose.pop(name, None)) is not None:
            self.add(name, table_of(name, loose))

    def drop(self, name: str) -> None:
        """Forgets a table of which only a part could be gathered: half of the evidence would be taken for all of it."""
        self._loose.pop(name, None)
        self._waiting.pop(name, None)
        del self._waiting_rows[name]
        if name in self._writers:
            self._writers.pop(name).close()
        (self._folder / f"{name}.parquet").unlink(missing_ok=True)

    def finish(self, run: Run) -> None:
        """The directory is a history from here on."""
        for name in list(self._loose):
            self._gather(name)
        for name in self._waiting:
            self._flush(name)
        self.close()
        (self._folder / RUN_FILE).write_text(json.dumps(asdict(run), indent=1))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self, name: str) -> None:
        parts = self._waiting[name]
        if not parts:
            return
        if name not in self._writers:
            self._writers[name] = pq.ParquetWriter(self._folder / f"{name}.parquet", SCHEMAS[name], compression="zstd")
        self._writers[name].write_table(pa.concat_tables(parts).unify_dictionaries())
        self._waiting[name] = []
        self._waiting_rows[name] = 0
