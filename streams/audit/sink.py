"""Role audit: every topic into ClickHouse. A consumer group of its own: Kafka is the spool while ClickHouse is away.

Records gather for a second or 16 MB; then all of a partition are made rows of at once (a record alone costs ten times as
much), inserted as Arrow with a token that names exactly their offset ranges, and only then are their offsets committed. A
backlog is inserted in pieces of 16 MB, a run of each partition in turn: memory stays what a piece takes, and each partition
moves on, however slow the machine is. A crash repeats rows; the views read them once. What can never become a row is
skipped, counted and dead-lettered. What time or people mend (a server that is away, a full disk, a missing grant) is waited
for, and told; any other refusal (a missing table) ends the process, and nothing is committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain, count

import pyarrow as pa

from schemas.ids import stable_id
from schemas.tables import RAW
from schemas.topics import DEAD_LETTERS, FEEDBACK, PREDICTIONS
from streams.audit.engine import (
    ClickHouse,
    ClickHouseError,
    LimitExceeded,
    NotAuthenticated,
    NotPermitted,
    RowRefused,
    StorageFull,
    Unavailable,
)
from streams.audit.rows import Tables, kept_feedback, kept_rows, merged
from streams.audit.schema import prepare_tables
from streams.deadletters import told
from streams.failpoints import reach
from streams.feedback import FeedbackReader
from streams.health import HELD_S, Part
from streams.metrics import Metrics
from streams.outgoing import dead_record
from streams.records import Outgoing, Records
from streams.transport.outbox import Confirmed, Outbox
from streams.transport.run import TP, Run

log = logging.getLogger(__name__)

GATHER_S = 1.0
GATHER_BYTES = 16 << 20
"""Of records that are made rows of and inserted together: a larger piece takes several times as much memory, and longer than
the watchdog lets a run stand."""
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between tries of an insert; the last one repeats. Meanwhile the transport pauses at its byte bound."""
WAITED_FOR = (Unavailable, StorageFull, LimitExceeded, NotPermitted, NotAuthenticated)
"""Refusals after which the same insert is tried again: a restart would mend none of them."""
LEAVE_S = 10.0
"""What a rebalance or a stop waits for the last insert; what is not in by then is read again by the next owner."""
IN_FLIGHT = 100_000
"""Runs of a topic that may wait for their insert; the transport's bytes are the bound that bites first."""


OF_A_ROW = (RowRefused, pa.ArrowInvalid, UnicodeError, OverflowError)
"""What a value of some row makes an insert raise, here or in ClickHouse. All else says something of the machine, the server
or the configuration: no record is blamed for it."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    run: Run
    letters: list[asyncio.Future[Confirmed]] = field(default_factory=list)


@dataclass(slots=True)
class Store:
    """Whether ClickHouse takes what it is given. Times are monotonic seconds; read in any thread.

    `failing_since`: when the first of the tries failed that have failed since; None while it answers.
    """

    failing_since: float | None = None
    why: str = ""
    inserted_at: float | None = None

    def failed(self, error: Exception, now: float) -> None:
        self.failing_since = now if self.failing_since is None else self.failing_since
        self.why = f"{type(error).__name__}: {error}"[:300]

    def answered(self) -> None:
        self.failing_since, self.why = None, ""


class StaleBatch(Exception):
    """Somebody else reads these records by now: they are not tried again here."""


class AuditSink:
    """Gathers rows of runs and inserts them. Use from one event loop; the engine is called in a thread."""

    def __init__(
        self,
        engine: ClickHouse,
        metrics: Metrics,
        partitions: int | None = None,
        feedback: FeedbackReader | None = None,
        outbox: Callable[[], Outbox] | None = None,
    ) -> None:
        """`partitions` of the predictions topic: rows on a wrong one are dead letters, and no predictions of the audit.

        `feedback` reads `palisade.feedback`; dead letters of it go out by `outbox`.
        """
        self._partitions = partitions
        self._feedback = feedback
        self._outbox = outbox
        self._stored: dict[int, int] = {}
        self._flushing = asyncio.Lock()
        self._engine = engine
        self._metrics = metrics
        self._waiting: dict[TP, deque[_Waiting]] = {}  # the partition whose turn it is comes first
        self._bytes = 0
        self._oldest = 0.0
        self._full = asyncio.Event()
        self._tried: float | None = None
        self.store = Store()
        self.prepared = asyncio.Event()

    def silent_s(self, now: float) -> float | None:
        """Seconds since an insert was last begun, ended or found to be not due; None before the first, from any thread."""
        return None if self._tried is None else now - self._tried

    def health(self, now: float) -> Part:
        """Whether ClickHouse takes what it is given, and since when not; from any thread."""
        store, since = self.store, self.store.failing_since
        numbers = {
            "answers": since is None,
            "failing_s": None if since is None else round(now - since, 2),
            "last_insert_s": None if store.inserted_at is None else round(now - store.inserted_at, 2),
            "why": store.why,
        }
        troubles = []
        if since is not None and now - since > HELD_S:
            troubles.append(f"ClickHouse has taken nothing for {now - since:.0f} s ({store.why})")
        elif not self.prepared.is_set():
            troubles.append("ClickHouse has no tables of ours yet")
        return Part({"clickhouse": numbers}, troubles)

    async def prepare(self) -> None:
        """Makes the tables and views, or sees that they are there. Raises ClickHouseError that says what to do."""
        await self._until_done(partial(prepare_tables, self._engine))
        self.prepared.set()

    async def handle(self, run: Run) -> None:
        """Takes a run; it is done when its rows are inserted."""
        run.open()
        if not self._waiting:
            self._oldest = time.monotonic()
        self._waiting.setdefault(run.tp, deque()).append(_Waiting(run))
        self._bytes += run.size
        if self._bytes >= GATHER_BYTES:
            self._full.set()

    async def inserts(self) -> None:
        """Makes the tables, then inserts what has gathered until cancelled."""
        await self.prepare()
        while True:
            self._tried = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._wait_s())
            self._full.clear()
            if self._waiting and (self._bytes >= GATHER_BYTES or time.monotonic() - self._oldest >= GATHER_S):
                async with self._flushing:
                    await self._insert_piece()

    async def flush(self) -> None:
        """Inserts all that waits, piece by piece."""
        async with self._flushing:
            while self._waiting:
                await self._insert_piece()

    def stored_ms(self, partition: int) -> int | None:
        """The broker's time of the newest record of this partition of predictions up to which all is inserted here."""
        return self._stored.get(partition)

    async def leave(self, revoked: Iterable[TP]) -> None:
        """Inserts what waits, if ClickHouse takes it in time. What lies in partitions of others is not known any more."""
        if self.prepared.is_set():
            try:
                async with asyncio.timeout(LEAVE_S):
                    await self.flush()
            except TimeoutError:
                log.warning("ClickHouse did not take the last rows in %.0f s: they are read again", LEAVE_S)
        for tp in revoked:
            if tp.topic == PREDICTIONS:
                self._stored.pop(tp.partition, None)

    async def _send(self, letter: Outgoing, outbox: Outbox) -> asyncio.Future[Confirmed]:
        await outbox.room(len(letter.value))
        self._metrics.sent(letter)
        return outbox.send(letter.topic, letter.key, letter.value, letter.headers, letter.partition)

    def _piece(self) -> list[_Waiting]:
        """Takes what is inserted next: a run of each partition in turn, until the bound is reached."""
        piece: list[_Waiting] = []
        size = 0
        while self._waiting and size < GATHER_BYTES:
            tp, runs = next(iter(self._waiting.items()))
            del self._waiting[tp]
            piece.append(runs.popleft())
            size += piece[-1].run.size
            if runs:
                self._waiting[tp] = runs
        self._bytes -= size
        self._oldest = time.monotonic()
        if self._bytes >= GATHER_BYTES:
            self._full.set()
        return piece

    async def _insert_piece(self) -> None:
        """Inserts a piece, table by table, then marks its runs done; rows of a partition come in its order."""
        live = [waiting for waiting in self._piece() if not waiting.run.stale]
        parts = [(tp, _records(one.run for one in same), same) for tp, same in _by_partition(live).items()]
        found = [await self._rows_of(*part) for part in parts]
        ranges = _ranges(waiting.run for waiting in live)
        try:
            for name, table in merged(found).items():
                await self._insert(name, table, stable_id(name, *ranges), live)
        except StaleBatch:
            return
        reach("inserted")
        for tp, records, same in parts:
            if tp.topic == PREDICTIONS:
                self._stored[tp.partition] = records.timestamps[-1]
            for waiting in same:
                waiting.run.done_when(waiting.letters)

    async def _rows_of(self, tp: TP, records: Records, same: Sequence[_Waiting]) -> Tables:
        """Rows of the records of a partition's runs, made in a thread: ten thousand records take half a second."""
        started = time.perf_counter()
        if tp.topic == FEEDBACK:
            tables = await self._feedback_of(tp, records, same)
        else:
            make = partial(kept_rows, tp.topic, tp.partition, records, self._partitions)
            tables, lost = await asyncio.to_thread(make)
            for offset, error in lost:
                await self._skip(*tp, offset, error, same)
        self._metrics.run(tp.topic, len(records), time.perf_counter() - started)
        return tables

    async def _feedback_of(self, tp: TP, records: Records, same: Sequence[_Waiting]) -> Tables:
        """Rows of feedback; its dead letters are on their way, and the last of its runs is not done before them."""
        if self._feedback is None or self._outbox is None:
            raise RuntimeError("this sink was made without a reader of feedback")
        found, dead = self._feedback.read(tp.partition, records)
        same[-1].letters.extend([await self._send(letter, self._outbox()) for letter in dead])
        tables, lost = kept_feedback(tp.partition, records, found)
        for offset, error in lost:
            await self._skip(*tp, offset, error, same)
        return tables

    async def _insert(self, name: str, table: pa.Table, token: str, live: Sequence[_Waiting]) -> None:
        """All rows but those that ClickHouse can never take, which bisection finds."""
        try:
            await self._until_done(partial(self._engine.insert_arrow, f"{RAW}.{name}", table, token), live)
        except OF_A_ROW as error:
            if table.num_rows == 1:
                (place,) = table.select(["topic", "partition", "offset"]).to_pylist()
                await self._skip(place["topic"], place["partition"], place["offset"], error, live)
                return
            half = table.num_rows // 2
            for number, part in enumerate((table.slice(0, half), table.slice(half))):
                await self._insert(name, part, stable_id(token, str(number)), live)
        else:
            self._metrics.inserted_rows.labels(name).inc(table.num_rows)

    async def _skip(self, topic: str, partition: int, offset: int, error: Exception, among: Iterable[_Waiting]) -> None:
        """Goes on without a row. Its record, if it is one of `among`, is a dead letter: but a letter that cannot be kept
        leads to no further letter."""
        self._metrics.records_skipped.inc()
        detail = told("making its row", error)
        log.error("%s[%d] %d is not in the audit: %.300s", topic, partition, offset, detail)
        if self._outbox is None or topic == DEAD_LETTERS:
            return
        for waiting in among:
            run = waiting.run
            if run.tp == (topic, partition) and offset in run.offsets:
                letter = dead_record(
                    topic, partition, _records([run]), run.offsets.index(offset), "not_audited", detail
                )
                waiting.letters.append(await self._send(letter, self._outbox()))

    def _wait_s(self) -> float:
        if not self._waiting:
            return GATHER_S / 4
        return max(0.01, self._oldest + GATHER_S - time.monotonic())

    async def _until_done(self, effect: Callable[[], object], live: Sequence[_Waiting] = ()) -> None:
        """Tries again while time or people may mend it; any other error is the caller's. Raises StaleBatch once nobody
        waits for `live` here any more."""
        for attempt in count():
            self._tried = time.monotonic()
            try:
                await asyncio.to_thread(effect)
            except WAITED_FOR as error:
                self._told(error)
                wait = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                log.warning("ClickHouse: %s; next try in %.1f s", error, wait)
                await asyncio.sleep(wait)
                if live and all(waiting.run.stale for waiting in live):
                    raise StaleBatch from error
            else:
                self._told(None)
                return

    def _told(self, error: ClickHouseError | None) -> None:
        """Notes how a try ended."""
        self._tried = now = time.monotonic()
        if error is None:
            self.store.answered()
            self.store.inserted_at = now
        else:
            self.store.failed(error, now)
            self._metrics.insert_failures.inc()
        self._metrics.store_failing.set(0 if error is None else 1)


def _by_partition(waiting: Iterable[_Waiting]) -> dict[TP, list[_Waiting]]:
    found: dict[TP, list[_Waiting]] = {}
    for one in waiting:
        found.setdefault(one.run.tp, []).append(one)
    return found


def _records(runs: Iterable[Run]) -> Records:
    """The records of runs of one partition, in their order."""
    several = [Records(run.values, run.keys, run.headers, run.offsets, run.timestamps) for run in runs]
    return Records(
        *(list(chain.from_iterable(getattr(records, name.name) for records in several)) for name in fields(Records))
    )


def _ranges(runs: Iterable[Run]) -> list[str]:
    return sorted(f"{run.tp.topic}[{run.tp.partition}]{run.first}-{run.next}" for run in runs)
