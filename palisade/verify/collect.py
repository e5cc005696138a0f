"""Makes the history of a live or finished run from its topics and its audit.

What is committed is asked first, and everything else read after it: so whatever lies below a committed offset must be
there. Topics are written to the history part by part; what stays in memory is 20 bytes a record of the logs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, KafkaException, TopicPartition

from palisade.queries import Query, ask, reader
from palisade.settings import Settings
from palisade.verify.columns import Longs, Place, Span, without
from palisade.verify.history import SCHEMAS, History, HistoryWriter, Run
from palisade.verify.ingested import INGEST, paired_rows
from palisade.verify.logs import AUDIT, DETECT, INGESTED, JUDGED
from palisade.verify.outages import audit_outages
from palisade.verify.processes import process_rows
from palisade.verify.recompute import recompute
from palisade.verify.records import TAKEN, Read, Reader, log_record, lost_row, outcomes
from palisade.verify.states import state_rows
from palisade.verify.webhook_events import webhook_rows
from responders.signing import Keyring, SigningKey
from schemas.errors import PalisadeError
from schemas.roles import READER_GROUP
from schemas.topics import ACTIONS, BY_NAME, DEAD_LETTERS, LABELLED, PREDICTIONS, REPORTS, VERDICTS
from streams.admin import NO_TOPIC, cluster_of
from streams.audit.engine import ClickHouse, ClickHouseError
from streams.detect import LOG_NAMES
from streams.reading import TIMEOUT_S, first_offset, read_to_end
from streams.records import headers_of
from streams.snapshots import DirectoryStore, SnapshotStore, TopicStore
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

GROUPS = {
    DETECT: (PREDICTIONS, REPORTS, LABELLED),
    AUDIT: (PREDICTIONS, VERDICTS, ACTIONS),
    INGEST: INGESTED,
}
"""Whose commits are sampled, of which topics."""
SAMPLE_S = 0.1
PART_RECORDS = 20_000
ROWS_A_QUERY = 200_000
"""Rows of one answer of the audit."""
_ROWS = "SELECT offset, row{more} FROM palisade.{view} WHERE topic = {{topic:String}} AND partition = {{partition:Int32}} AND offset >= {{first:Int64}} AND offset < {{end:Int64}}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to collect. `since_ms`: nothing older; `watch_s`: sample commits for so long first; `finished`: nothing may be
    in flight any more."""

    since_ms: int = 0
    watch_s: float = 0.0
    finished: bool = False
    recompute: bool = False


@dataclass(slots=True)
class _Window:
    """What was read of a partition of a log: offsets [first, end), events up to each record.

    `unreadable`: offsets [first, next) of batches that cannot be unpacked.
    """

    first: int
    end: int
    offsets: Longs
    events: Longs
    unreadable: list[Span] = field(default_factory=list)


Say = Callable[[str], None]


def collect(settings: Settings, out: Path, wanted: Wanted, say: Say) -> None:
    """Writes the history of the run to the directory `out`. Raises PalisadeError, KafkaException, TimeoutError."""
    connection = settings.connection
    partitions = cluster_of(connection).partitions
    missing = [topic for topic in (*JUDGED, VERDICTS, *TAKEN) if topic not in partitions]
    if missing:
        raise PalisadeError(NO_TOPIC.format(missing[0]))
    with HistoryWriter(out) as writer:
        say("committed offsets")
        writer.add_rows("commits", _commits(connection, partitions, wanted.watch_s))
        collected_ms = _now_ms()
        gathering = _Gathering(connection, partitions, wanted.since_ms, writer, say)
        windows = gathering.logs()
        gathering.asked()
        taken = gathering.others(_reader(settings))
        endpoints = [endpoint.name for endpoint in settings.config.endpoints if endpoint.webhook is not None]
        writer.add_rows("webhooks", webhook_rows(taken["orders"], taken["decisions"], endpoints))
        say("the audit")
        notes = _audit(settings, windows, _span(taken["decisions"]), writer)
        saved = asyncio.run(_saved(settings, partitions))
        for (topic, partition), parts in saved.items():
            writer.add_rows("states", state_rows(topic, partition, parts))
        if wanted.recompute:
            recompute(settings, partitions, saved, writer, say)
        if (found := process_rows(settings.home)) is not None:
            writer.add_rows("processes", found)
        writer.finish(_run(settings, wanted, collected_ms, notes))
    if wanted.watch_s > 0:
        seen = History.load(out)
        rows = audit_outages(seen["commits"], seen["records"])
        (out / "outages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(settings: Settings, wanted: Wanted, collected_ms: int, notes: list[str]) -> Run:
    caps = settings.policy.caps
    return Run(
        collected_ms=collected_ms,
        finished=wanted.finished,
        endpoints=len(settings.config.endpoints),
        endpoints_min=caps.endpoints_min,
        endpoints_share=caps.endpoints_share,
        callers_min=caps.callers_min,
        callers_share=caps.callers_share,
        notes=notes,
    )


def _reader(settings: Settings) -> Reader:
    """Believes whom the configuration names; directives by the key that is here, if it is."""
    keys = {endpoint.name: Keyring(endpoint.producer_keys) for endpoint in settings.config.endpoints}
    file = settings.config.signing_key_file
    signers = None if file is None else Keyring([SigningKey.load(settings.home / file).public_base64])
    return Reader(keys, signers)


def _commits(connection: KafkaConnection, partitions: dict[str, int], watch_s: float) -> list[dict[str, Any]]:
    """The committed offset of each group and partition, each `SAMPLE_S` while watching, and once at the end."""
    consumers = {group: Consumer(kafka_settings(connection, "consumer", group=group)) for group in GROUPS}
    until = time.monotonic() + watch_s
    rows: list[dict[str, Any]] = []
    try:
        while True:
            began = time.monotonic()
            for group, consumer in consumers.items():
                places = [TopicPartition(name, k) for name in GROUPS[group] for k in range(partitions.get(name, 0))]
                rows += committed_rows(group, consumer, places, TIMEOUT_S)
            if time.monotonic() >= until:
                return rows
            time.sleep(max(0.0, SAMPLE_S - (time.monotonic() - began)))
    finally:
        for consumer in consumers.values():
            consumer.close()


def committed_rows(
    group: str, consumer: Consumer, places: list[TopicPartition], timeout_s: float
) -> list[dict[str, Any]]:
    """Rows of `commits`: what a consumer's group has committed of these partitions now. Raises KafkaException."""
    found = consumer.committed(places, timeout=timeout_s)
    return [
        {"at_ms": _now_ms(), "group": group}
        | {"topic": place.topic, "partition": place.partition, "committed": place.offset}
        for place in found
        if place.error is None and place.offset >= 0
    ]


@dataclass(slots=True)
class _Gathering:
    """Reads topics, each from the first record of the time window."""

    connection: KafkaConnection
    partitions: dict[str, int]
    since_ms: int
    writer: HistoryWriter
    say: Say

    def logs(self) -> dict[tuple[str, int], _Window]:
        """Records of the logs, and their outcomes. What no verdict that is kept can speak of is left out of the window."""
        for name in ("windows", "records", "outcomes", "lost", "paired"):
            self.writer.add_rows(name, [])
        windows = {}
        for topic in JUDGED:
            for partition in range(self.partitions[topic]):
                self.say(f"{topic}[{partition}]")
                window = self._records(topic, partition)
                told_from, told = self._outcomes(topic, partition)
                window.first = window.end if told_from is None else max(window.first, told_from)
                self._untold(topic, partition, window, told)
                windows[topic, partition] = window
                bounds = {"first": window.first, "end": max(window.first, window.end), "from_ms": self.since_ms}
                self.writer.add_rows("windows", [{"topic": topic, "partition": partition} | bounds])
        return windows

    def asked(self) -> None:
        """Requests and responses; without a log of predictions that is whole nobody knows what became of them."""
        if any(self._low(PREDICTIONS, partition) > 0 for partition in range(self.partitions[PREDICTIONS])):
            self.writer.drop("paired")
            return
        for topic in INGESTED:
            for partition in range(self.partitions.get(topic, 0)):
                self.say(f"{topic}[{partition}]")
                self._records(topic, partition)

    def others(self, reader: Reader) -> dict[str, pa.Table]:
        """All other topics. Gives orders and decisions, which more is told from."""
        kept: dict[str, list[pa.Table]] = {"orders": [], "decisions": []}
        for topic, names in TAKEN.items():
            self.say(topic)
            numbers = range(self.partitions[topic])
            if topic == DEAD_LETTERS and any(self._low(topic, partition) > 0 for partition in numbers):
                continue  # retention took some: that one is missing says nothing
            for name in names:
                self.writer.add_rows(name, [])
            begin = max(self._take(topic, partition, reader, kept) for partition in numbers)
            self.writer.add_rows("windows", [{"topic": topic, "partition": 0, "first": 0, "end": 0, "from_ms": begin}])
        return {name: pa.concat_tables([SCHEMAS[name].empty_table(), *parts]) for name, parts in kept.items()}

    def _records(self, topic: str, partition: int) -> _Window:
        offsets: list[int] = []
        counts: list[int] = []
        unreadable: list[Span] = []
        reads = map(self._log_record, self._read(topic, partition, unreadable))
        while rows := list(islice(reads, PART_RECORDS)):
            offsets += [row["offset"] for row in rows]
            counts += [row["rows"] for row in rows]
            self.writer.add_rows("records", rows)
        first = offsets[0] if offsets else 0
        end = offsets[-1] + 1 if offsets else 0
        return _Window(first, end, np.array(offsets, np.int64), np.cumsum(np.array(counts, np.int64)), unreadable)

    def _log_record(self, read: Read) -> dict[str, Any]:
        if read.topic == PREDICTIONS:
            self.writer.add_rows("paired", paired_rows(read))
        return log_record(read)

    def _untold(self, topic: str, partition: int, window: _Window, told: list[Span]) -> None:
        """What cannot be unpacked must have been told as lost."""
        seen = [(max(first, window.first), after) for first, after in window.unreadable]
        rows = [{"first": first, "last": after - 1, "at_ms": 0, "told": False} for first, after in without(seen, told)]
        self.writer.add_rows("lost", [{"topic": topic, "partition": partition} | row for row in rows])

    def _outcomes(self, topic: str, partition: int) -> tuple[int | None, list[Span]]:
        """The offset from which on all outcomes are here (None: nowhere), and what was told as lost: verdicts lie on the
        partition of their log, each of a whole run, and in its order; what is told again is told from a run's beginning on."""
        trimmed = self.since_ms > 0 or self._low(VERDICTS, partition) > 0
        told_from = None if trimmed else 0
        told: list[Span] = []
        for read in self._read(VERDICTS, partition):
            if (lost := lost_row(read)) is not None and lost["topic"] == topic:
                self.writer.add_rows("lost", [lost])
                told.append((lost["first"], lost["last"] + 1))
            found = outcomes(read)
            found = found if found is None else found.filter(pc.equal(found["topic"], topic))
            if found is None or not found.num_rows:
                continue
            if told_from is None:
                told_from = pc.min(found["offset"]).as_py()
            self.writer.add("outcomes", found)
        return told_from, told

    def _take(self, topic: str, partition: int, reader: Reader, kept: dict[str, list[pa.Table]]) -> int:
        """Takes a partition; gives the moment from which on it is whole: retention and compaction take records."""
        begin, before = self.since_ms, None if self._low(topic, partition) == 0 else -1
        for number, read in enumerate(self._read(topic, partition), 1):
            gap = before is not None and read.offset != before + 1 and (before < 0 or BY_NAME[topic].compacted)
            begin = max(begin, read.at_ms) if gap else begin
            before = read.offset
            reader.take(read)
            if number % PART_RECORDS == 0:
                self._write(reader, kept)
        self._write(reader, kept)
        return begin

    def _write(self, reader: Reader, kept: dict[str, list[pa.Table]]) -> None:
        for name, table in reader.tables().items():
            self.writer.add(name, table)
            if name in kept:
                kept[name].append(table)

    def _low(self, topic: str, partition: int) -> int:
        return first_offset(self.connection, topic, partition)

    def _read(self, topic: str, partition: int, unreadable: list[Span] | None = None) -> Iterator[Read]:
        """Records from the first of the time window on: timestamps need not rise, offsets do. What cannot be unpacked is
        stepped over as workers do, and added to `unreadable`."""
        started = False
        start = self._offset_since(topic, partition)
        over = [] if unreadable is None else unreadable
        for message in read_to_end(
            self.connection, topic, partition, start, stepped_over=lambda *span: over.append(span)
        ):
            at_ms = int(message.timestamp()[1])
            started = started or at_ms >= self.since_ms
            if started:
                headers = {name: value or b"" for name, value in headers_of(message)}
                offset = int(message.offset() or 0)
                yield Read(topic, partition, offset, at_ms, message.key(), headers, message.value())

    def _offset_since(self, topic: str, partition: int) -> int:
        """Where the broker says that the window begins; its start where it cannot say."""
        if not self.since_ms:
            return 0
        consumer = Consumer(kafka_settings(self.connection, "consumer", group=READER_GROUP))
        try:
            (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, self.since_ms)], timeout=TIMEOUT_S)
            return int(found.offset) if found.error is None and found.offset >= 0 else 0
        except KafkaException:
            return 0
        finally:
            consumer.close()


def _span(decisions: pa.Table) -> tuple[int, int]:
    """Offsets [first, end) of the journal's entries with decisions that were read."""
    found = pc.min_max(decisions["offset"]).as_py()
    return (0, 0) if found["min"] is None else (found["min"], found["max"] + 1)


def _audit(
    settings: Settings, windows: dict[tuple[str, int], _Window], journal: tuple[int, int], writer: HistoryWriter
) -> list[str]:
    """Rows of the views; what is wrong with the audit, if it does not answer."""
    try:
        engine = reader(settings)
        try:
            for (topic, partition), window in windows.items():
                for first, end in _pieces(window):
                    for view in ("predictions", "verdicts"):
                        writer.add("audit", _view(engine, view, topic, partition, (first, end)))
            writer.add("audit", _view(engine, "decisions", ACTIONS, 0, journal))
        finally:
            engine.close()
    except (ClickHouseError, PalisadeError) as error:
        log.warning("the audit is not in the history: %s", error)
        writer.drop("audit")
        return [f"the audit did not answer: {error}"]
    return []


def _pieces(window: _Window) -> Iterator[tuple[int, int]]:
    """Ranges of offsets with at most `ROWS_A_QUERY` events, or one record, each."""
    rank = int(np.searchsorted(window.offsets, window.first))
    while rank < len(window.offsets):
        done = int(window.events[rank - 1]) if rank else 0
        after = max(rank + 1, int(np.searchsorted(window.events, done + ROWS_A_QUERY, side="right")))
        end = int(window.offsets[after]) if after < len(window.offsets) else window.end
        yield int(window.offsets[rank]), end
        rank = after


def _view(engine: ClickHouse, view: str, topic: str, partition: int, offsets: tuple[int, int]) -> pa.Table:
    more = ", outcome" if view == "verdicts" else ""
    sql = _ROWS.format(view=view, more=more)
    first, end = offsets
    found = ask(
        engine,
        Query(f"verify_{view}", f"rows of {view}", sql),
        {"topic": topic, "partition": partition, "first": first, "end": end},
    )
    count = found.num_rows
    same = {"table": pa.array([view] * count, pa.string()), "topic": pa.array([topic] * count, pa.string())}
    columns = [
        found[name]
        if name in found.column_names
        else same.get(
            name, pa.array([partition if name == "partition" else None] * count, SCHEMAS["audit"].field(name).type)
        )
        for name in SCHEMAS["audit"].names
    ]
    return pa.Table.from_arrays(columns, names=SCHEMAS["audit"].names)


async def _saved(settings: Settings, partitions: dict[str, int]) -> dict[Place, Mapping[str, bytes]]:
    """The saved parts of detector state of each partition of a log."""
    store = _store(settings)
    places = [(topic, partition) for topic in GROUPS[DETECT] for partition in range(partitions.get(topic, 0))]
    return {(topic, partition): (await store.load(LOG_NAMES[topic], partition)).parts for topic, partition in places}


def _store(settings: Settings) -> SnapshotStore:
    if settings.config.kafka.embedded:
        return DirectoryStore(settings.data_dir / "snapshots")
    return TopicStore(settings.connection, _no_outbox)


def _no_outbox() -> Any:
    raise AssertionError("who verifies saves nothing")


def _now_ms() -> int:
    return int(time.time() * 1000)
