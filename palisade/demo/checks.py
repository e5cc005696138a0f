"""The demo's balance, from outside the product: events counted by a plain consumer, set against audit and clients' log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from palisade.demo.load import Answer
from palisade.demo.tap import Record
from schemas.wire import CONTENT_TYPE_HEADER, KIND_HEADER
from streams.decode.headers import ARROW_MAGIC


class RowKey(NamedTuple):
    """A row's identity in the log."""

    topic: str
    partition: int
    offset: int
    row: int


@dataclass(slots=True)
class EventCount:
    """Counts the rows of each record of the predictions topic. A million records are some 100 MB: for runs of minutes."""

    rows: dict[tuple[str, int, int], int] = field(default_factory=dict)
    refused: int = 0

    def add(self, record: Record) -> None:
        count, refused = rows_in(record.value, record.headers)
        if count:
            self.rows[record.topic, record.partition, record.offset] = count
            self.refused += refused

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def identities(self) -> Iterator[RowKey]:
        """The identity of every event."""
        for (topic, partition, offset), count in self.rows.items():
            for row in range(count):
                yield RowKey(topic, partition, offset, row)


def rows_in(value: bytes | None, headers: Mapping[str, bytes]) -> tuple[int, int]:
    """Events in a record, and how many of them are refused calls.

    A record of another kind (ticks, profile activations) holds none; an undecodable one is one event, to be dead-lettered.
    """
    if headers.get(KIND_HEADER, b"prediction") != b"prediction":
        return 0, 0
    try:
        if b"arrow" in headers.get(CONTENT_TYPE_HEADER, b"") or (value or b"").startswith(ARROW_MAGIC):
            return _arrow_rows(value or b"")
        events = json.loads(value or b"")
    except (ValueError, RecursionError, pa.ArrowException):
        return 1, 0
    rows = events if isinstance(events, list) and events else [events]
    return len(rows), sum(isinstance(row, dict) and row.get("served_by") == "refused" for row in rows)


def _arrow_rows(value: bytes) -> tuple[int, int]:
    table = pa.ipc.open_stream(value).read_all()
    if "served_by" not in table.column_names:
        return table.num_rows, 0
    return table.num_rows, table["served_by"].to_pylist().count("refused")


@dataclass(frozen=True, slots=True)
class AuditDifference:
    """Events that the audit lacks, and audit rows that are no events; a row that is there twice is one too many."""

    missing: tuple[RowKey, ...]
    extra: tuple[RowKey, ...]


def audit_difference(events: Iterable[RowKey], audit: Iterable[RowKey]) -> AuditDifference:
    """Compares two collections of row identities, each sorted in the result."""
    there = Counter(audit)
    wanted = set(events)
    extra = [key for key, count in there.items() for _ in range(count - (key in wanted))]
    return AuditDifference(tuple(sorted(wanted - there.keys())), tuple(sorted(extra)))


def spans(keys: Iterable[RowKey]) -> str:
    """Where rows lie, for people: the first and last offset of each partition and how many there are between."""
    found: dict[tuple[str, int], list[int]] = {}
    for key in keys:
        found.setdefault((key.topic, key.partition), []).append(key.offset)
    return ", ".join(
        f"{topic}[{partition}] {min(offsets)}-{max(offsets)} ({len(offsets)} rows)"
        for (topic, partition), offsets in sorted(found.items())
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """The run's balance. `rejected`: calls answered by the service of which no event reached Kafka.

    `missing_at` says in words where the rows lie that the audit lacks.
    """

    events_in: int
    scored: int
    dead_lettered: int
    rejected: int
    audit_missing: int
    audit_extra: int
    missing_at: str = ""

    def problems(self) -> Iterator[str]:
        """In words, what does not add up."""
        if self.scored + self.dead_lettered != self.events_in:
            yield f"{self.events_in} events in, but {self.scored} scored and {self.dead_lettered} dead-lettered"
        if self.dead_lettered:
            yield f"{self.dead_lettered} events of a clean load were dead-lettered"
        if self.rejected:
            yield f"{self.rejected} answered calls left no event"
        if self.audit_missing or self.audit_extra:
            where = f" (lacking: {self.missing_at})" if self.missing_at else ""
            yield f"the audit lacks {self.audit_missing} rows and has {self.audit_extra} too many{where}"


def rejected(answers: Iterable[Answer], events: EventCount) -> int:
    """Calls that a service answered and that are no event: the Emitter dropped them."""
    answered = sum(answer.status == 200 or answer.status >= 500 for answer in answers)
    return answered - (events.total - events.refused)
