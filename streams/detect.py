"""Role detect: runs of predictions, reports and labels in; verdicts, signals, dead letters, ticks and snapshots out.

One `PartitionLog` a partition computes; this file moves its outputs and its state. State carries its offset: a restart
reads again from where the saved state ends, quietly up to the committed offset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from confluent_kafka import KafkaException

from detectors.base import LogPoint
from schemas.errors import MACHINE_ERRORS, PalisadeError, StateRefused
from schemas.events import MAX_BEHIND_MS, Tick
from schemas.ids import clean_id
from schemas.topics import LABELLED, PREDICTIONS, REPORTS
from schemas.wire import KIND_HEADER
from streams.failpoints import reach
from streams.health import Part
from streams.metrics import Metrics
from streams.outgoing import lost_record
from streams.poison import Poison
from streams.records import Outgoing, Records
from streams.snapshots import SnapshotStore
from streams.transport.outbox import Confirmed, Outbox
from streams.transport.run import TP, Run
from streams.turns import HOLD_S, Pause, Turns

log = logging.getLogger(__name__)

SNAPSHOT_EVERY_S = 5.0
SNAPSHOT_BYTES_A_ROUND = 40_000_000
"""8 MB/s a worker over a round of 5 s; parts beyond it wait for the next round, longest unsaved first."""
TICK_S = 0.25
SLOW_TICK_S = 1.0
CLOCKS_APART_MS = 86_400_000
"""A tick confirmed with a time further from this process's clock was not stamped by a clock (the embedded broker confirms
each record with 1234 ms since the epoch): its time is when it was sent."""
REPORTS_HOLD_S = 0.1
LOG_NAMES = {PREDICTIONS: "predictions", REPORTS: "reports", LABELLED: "labelled"}
TICKED = frozenset({PREDICTIONS, REPORTS})
"""Logs with a clock of their own. On labels, which may be days apart, nothing waits for one."""


class UnconfirmedOutcome(PalisadeError):
    """State that has said more than the broker confirmed is not saved: the next process says it again."""


class PartitionLog(Protocol):
    """What runs for one partition of one log. No I/O, no clock; see `prediction_log`, `report_log`, `labelled_log`."""

    @property
    def pending(self) -> bool:
        """Whether rows wait for the log's clock."""
        ...

    @property
    def restart(self) -> int:
        """The offset from which a process with all parts as they are now would have to read on."""
        ...

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        """What `records` lead to; outcomes of offsets below `quiet_below` are not given again.

        Calls `pause` between pieces of some milliseconds; the next call comes only after this one has returned.
        """
        ...

    def lost(self, first: int, last: int, at: LogPoint) -> list[Outgoing]:
        """What records that retention removed unread lead to: `at` is the first one that was read after them."""
        ...

    def pass_over(self, record: Records, reason: str, quiet_below: int) -> list[Outgoing]:
        """The outcome of the one record on which `take` raises, and its dead letter: of it nothing becomes state."""
        ...

    def dirty(self) -> list[str]:
        """Parts that changed since they were saved, longest unsaved first."""
        ...

    def snapshot(self, part: str) -> bytes:
        """The part's state; it counts as saved from now on."""
        ...

    def unsaved(self, part: str) -> None:
        """The snapshot that was taken last did not reach the store."""
        ...

    def restore(self, part: str, state: bytes) -> list[str]:
        """Takes back a part; raises StateRefused and leaves it cold if it cannot. Gives what of it starts cold."""
        ...

    def forget(self, part: str) -> None:
        """Leaves a part cold, whatever of it was taken back."""
        ...


@dataclass(slots=True)
class _Progress:
    """How far a partition is handled, against this worker's newest tick in it that is confirmed. Offsets, broker's ms."""

    handled: int = -1
    handled_ms: int = 0
    tick: int = -1
    tick_ms: int = 0

    @property
    def behind_ms(self) -> int | None:
        """0 once that tick is handled; None before the first tick, and while only what was handled before is replayed."""
        if self.handled < 0 or self.tick < 0:
            return None
        if self.handled >= self.tick:
            return 0
        return min(max(0, self.tick_ms - self.handled_ms), MAX_BEHIND_MS)


@dataclass(slots=True)
class _Owned:
    """A partition while it is assigned to this worker."""

    log: PartitionLog
    quiet_below: int
    began: int
    unconfirmed: set[asyncio.Future[Confirmed]] = field(default_factory=set)
    saved_from: dict[str, int] = field(default_factory=dict)
    next: int = 0
    ticked: float = 0.0
    progress: _Progress = field(default_factory=_Progress)
    lost: bool = False
    """An outcome was not confirmed, or not even sent: this process ends, and its state must not outlive what it failed to
    say."""
    failed: bool = False
    """Handling a run raised, and half of it may be in the state: it waits for being read again."""
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from taking a run until its outcomes are on their way: state is saved at no other moment."""
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the store writes, so that nobody loads half of it."""
    run: Run | None = None
    """The one that is handled, or waits until state is taken."""

    def sign(self) -> None:
        """Work on this partition goes on."""
        if self.run is not None:
            self.run.sign()

    def settle(self, sent: asyncio.Future[Confirmed]) -> None:
        self.unconfirmed.discard(sent)
        self.lost = self.lost or sent.cancelled() or sent.exception() is not None

    @property
    def replaying(self) -> bool:
        """What was committed before is read again, and the state is not yet what it was."""
        return self.next < self.quiet_below

    def handled(self, records: Records) -> None:
        """Notes how far the log is handled; a replay of what was handled before does not count as progress."""
        self.next = records.offsets[-1] + 1
        if records.offsets[-1] >= self.quiet_below:
            self.progress.handled, self.progress.handled_ms = records.offsets[-1], records.timestamps[-1]

    def ticked_at(self, offset: int, ms: int) -> None:
        if offset > self.progress.tick:
            self.progress.tick, self.progress.tick_ms = offset, ms


@contextmanager
def _or_lost(owned: _Owned) -> Iterator[None]:
    """What is cut short, be it cancelled between two pieces, leaves state that knows what nobody was told."""
    try:
        yield
    except BaseException:
        owned.lost = True
        raise


class DetectRole:
    """Owns the partitions assigned to this worker. `open_log` makes the log of a partition, cold."""

    def __init__(
        self,
        worker: str,
        open_log: Callable[[TP], Awaitable[PartitionLog]],
        store: SnapshotStore,
        outbox: Callable[[], Outbox],
        metrics: Metrics,
        read_again: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`read_again`: commits what is done and reads from `start_at` on. None: the process ends where it is needed."""
        self._worker = clean_id(worker)
        self._open_log = open_log
        self._store = store
        self._outbox = outbox
        self._metrics = metrics
        self._read_again = read_again
        self._poison = Poison()
        self._doubted: set[TP] = set()
        self._owned: dict[TP, _Owned] = {}
        self._handled = 0
        self._saved_at: float | None = None

    def health(self, now: float) -> Part:
        """How state is taken back and saved; from any thread."""
        replayed = [f"{tp.topic}[{tp.partition}]" for tp, owned in list(self._owned.items()) if owned.replaying]
        saved_s = None if self._saved_at is None else round(now - self._saved_at, 2)
        troubles = [f"state is replayed of {', '.join(sorted(replayed))}"] if replayed else []
        return Part({"replayed": sorted(replayed), "last_snapshot_s": saved_s}, troubles)

    async def handle(self, run: Run) -> None:
        """One run: its outcomes are sent, and it is done when they are confirmed.

        Where handling raises, everything is read again from saved state, until the record is found that it raises on.
        """
        owned = self._owned[run.tp]
        owned.run = run
        try:
            await self._handle(run, owned)
        finally:
            owned.run = None

    async def _handle(self, run: Run, owned: _Owned) -> None:
        started = time.perf_counter()
        # reports do not make way for predictions, only for what keeps this process in its group
        hold_s = HOLD_S if run.tp.topic == PREDICTIONS else REPORTS_HOLD_S
        pause = Turns(lambda: self._handled, hold_s, sign=owned.sign)
        records = Records(run.values, run.keys, run.headers, run.offsets, run.timestamps)
        run.open()
        async with owned.busy:
            if owned.failed:
                run.abandon()
                return
            outgoing = await self._take(run.tp, owned, records, run.lost, pause)
            if outgoing is not None:
                with _or_lost(owned):
                    sent = await self._send(owned, outgoing, pause)
                    reach("published")
        if outgoing is None:
            run.abandon()
            await self._start_over(owned)
            return
        owned.handled(records)
        self._poison.handled(run.tp, records.offsets[-1])
        self._metrics.run(run.tp.topic, len(run), time.perf_counter() - started)
        self._handled += 1
        self._metrics.delay.labels(run.tp.topic).observe(max(0.0, time.time() - records.timestamps[0] / 1000))
        run.done_when(sent)

    def _lost(self, tp: TP, owned: _Owned, records: Records, first: int, after: int) -> list[Outgoing]:
        """Said of what retention removed: as an outcome, of what had none yet; to detectors, of all that is not replayed."""
        at = LogPoint(*tp, records.offsets[0], 0, records.timestamps[0])
        out = owned.log.lost(first, after - 1, at)
        begin = max(first, owned.quiet_below)
        if begin < after:
            self._metrics.lost_offsets.labels(tp.topic).inc(after - begin)
            out.append(lost_record(*tp, begin, after - 1, at.ms))
        return out

    async def _take(
        self, tp: TP, owned: _Owned, records: Records, lost: tuple[int, int] | None, pause: Pause
    ) -> list[Outgoing] | None:
        """What a run leads to; None if handling it raised, which leaves state that is not used any more."""
        outgoing: list[Outgoing] = []
        for piece, reason in self._poison.pieces(tp, records):
            try:
                with _or_lost(owned):
                    if lost is not None:
                        outgoing, lost = self._lost(tp, owned, records, *lost), None
                    if reason is None:
                        reach("in_replay" if piece.offsets[0] < owned.quiet_below else "taken")
                        outgoing += await owned.log.take(piece, owned.quiet_below, pause)
                    else:
                        outgoing += owned.log.pass_over(piece, reason, owned.quiet_below)
            except (*MACHINE_ERRORS, KafkaException):
                raise
            except Exception as error:
                if self._read_again is None or reason is not None:
                    raise
                self._failed(tp, owned, piece, error)
                return None
        return outgoing

    def _failed(self, tp: TP, owned: _Owned, piece: Records, error: Exception) -> None:
        """Raises TooManyFailures where reading again has not helped often enough."""
        owned.failed = True
        self._metrics.handler_failures.labels(tp.topic).inc()
        verdict = self._poison.failed(tp, piece, error, f"handling {LOG_NAMES[tp.topic]}")
        if verdict == "end":
            raise self._poison.too_many(tp) from error
        if verdict == "start_cold":
            self._doubted.add(tp)

    async def _start_over(self, owned: _Owned) -> None:
        """Reads everything again, once what this partition has said before is confirmed and committed."""
        if owned.unconfirmed:
            await asyncio.wait(set(owned.unconfirmed))
        if self._read_again is not None:
            await self._read_again()

    async def start_at(self, committed: Mapping[TP, int], assigned: frozenset[TP]) -> dict[TP, int]:
        """Restores every assigned partition; says where to read from, which may lie before the committed offset.

        A partition is owned only once it is restored: a round that saved it sooner would move the manifest past state
        that is not there yet.
        """
        starts: dict[TP, int] = {}
        for tp in sorted(assigned):
            before = self._owned.pop(tp, None)
            if before is None:
                self._poison.inherited(tp, committed.get(tp, 0))
            if before is not None:
                async with before.saving:
                    pass
            done = committed.get(tp, 0)
            owned = _Owned(await self._open_log(tp), quiet_below=done, began=done)
            start = await self._restore(tp, owned, committed.get(tp))
            if start is not None:
                starts[tp] = start
            owned.next = owned.began
            self._owned[tp] = owned
        return starts

    async def _restore(self, tp: TP, owned: _Owned, committed: int | None) -> int | None:
        """Takes back what the store holds; returns where it wants to be read from."""
        name = LOG_NAMES[tp.topic]
        saved = await self._store.load(name, tp.partition)
        parts = {part: state for part, state in saved.parts.items() if state}
        unusable = ""
        if tp in self._doubted:
            unusable = "record after record raises from what an earlier process saved"
        elif committed is None and (parts or saved.start):
            # State of a log that was made anew would take its first rows for rows that it has applied.
            unusable = "nothing of this log is committed"
        if unusable:
            self._doubted.discard(tp)
            await self._start_cold(tp, owned, parts, unusable)
            return None
        for part, state in parts.items():
            self._restore_part(tp, owned, part, state)
        if saved.start is None:  # parts saved without a manifest would skip the rows of blocks that were open
            await self._store.save(name, tp.partition, {}, owned.began)
        if saved.start is None or committed is None:
            return None
        owned.began = min(saved.start, committed)
        return owned.began

    async def _start_cold(self, tp: TP, owned: _Owned, parts: Mapping[str, bytes], why: str) -> None:
        """Without what is saved, which is cleared: the next process is not to find it either."""
        log.warning("%s[%d] starts cold, all %d saved parts of it: %s", *tp, len(parts), why)
        self._metrics.cold_parts.inc(len(parts))
        await self._store.save(LOG_NAMES[tp.topic], tp.partition, dict.fromkeys(parts, b""), owned.began)

    def _restore_part(self, tp: TP, owned: _Owned, part: str, state: bytes) -> None:
        """Takes back one part. Whatever its bytes make it raise, it starts cold and that is told: never a crash loop."""
        try:
            reach("in_restore")
            cold = owned.log.restore(part, state)
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            owned.log.forget(part)
            self._metrics.cold_parts.inc()
            why = str(error) if isinstance(error, StateRefused) else repr(error)
            log.warning("%s[%d] %s starts cold: %s", *tp, part, why, exc_info=not isinstance(error, StateRefused))
        else:
            if cold:
                self._metrics.cold_parts.inc()
                log.warning("%s[%d] %s: cold start of %s", *tp, part, ", ".join(cold))

    async def lose(self, lost: frozenset[TP]) -> None:
        """Forgets what somebody else may own already: saving it would put old state in the place of theirs."""
        for tp in lost & self._owned.keys():
            log.warning("%s[%d] was lost: its state is forgotten, not saved", tp.topic, tp.partition)
            self._forget(tp)

    async def leave(self, revoked: frozenset[TP]) -> None:
        """Saves what is revoked, so that the next owner starts warm."""
        for tp in revoked & self._owned.keys():
            owned = self._owned[tp]
            try:
                await asyncio.wait_for(self._save(tp, owned, 2 * SNAPSHOT_BYTES_A_ROUND), SNAPSHOT_EVERY_S)
            except Exception as error:  # noqa: BLE001  the next owner replays from the last round instead
                log.warning("%s[%d] could not be saved on leaving: %r", tp.topic, tp.partition, error)
            if self._owned.get(tp) is owned:
                self._forget(tp)

    def _forget(self, tp: TP) -> None:
        del self._owned[tp]
        self._poison.forget(tp)
        self._doubted.discard(tp)

    async def save_rounds(self) -> None:
        """Saves changed parts every five seconds until cancelled."""
        while True:
            await asyncio.sleep(SNAPSHOT_EVERY_S)
            budget, failed = SNAPSHOT_BYTES_A_ROUND, False
            for tp, owned in list(self._owned.items()):
                try:
                    budget -= await self._save(tp, owned, max(budget, 0))
                except Exception as error:  # noqa: BLE001  a store that is away must not stop detection
                    failed = True
                    self._metrics.snapshot_failures.inc()
                    log.warning("%s[%d] was not saved and will be in the next round: %r", tp.topic, tp.partition, error)
            if self._owned and not failed:
                self._saved_at = time.monotonic()

    async def ticks(self) -> None:
        """Writes the clock into each owned partition until cancelled: 4 a second while rows wait, else 1."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for tp, owned in list(self._owned.items()):
                if tp.topic not in TICKED:
                    continue
                if owned.log.pending or now - owned.ticked >= SLOW_TICK_S - TICK_S / 2:
                    owned.ticked = now
                    self._tick(tp, owned)

    def _tick(self, tp: TP, owned: _Owned) -> None:
        at_ms = int(time.time() * 1000)
        content = self._owned.get(TP(PREDICTIONS, tp.partition)) if tp.topic == REPORTS else None
        behind_ms = None if content is None else content.progress.behind_ms
        tick = Tick(worker=self._worker, at_ms=at_ms, behind_ms=behind_ms)
        sent = self._outbox().send(tp.topic, None, tick.to_bytes(), {KIND_HEADER: b"tick"}, tp.partition)
        sent.add_done_callback(lambda sent: self._tick_sent(owned, at_ms, sent))

    def _tick_sent(self, owned: _Owned, at_ms: int, sent: asyncio.Future[Confirmed]) -> None:
        if sent.cancelled():
            return
        if sent.exception() is not None:
            self._metrics.ticks_lost.inc()
            return
        confirmed = sent.result()
        told = abs(confirmed.timestamp - at_ms) < CLOCKS_APART_MS
        owned.ticked_at(confirmed.offset, confirmed.timestamp if told else at_ms)

    async def _send(self, owned: _Owned, outgoing: list[Outgoing], pause: Pause) -> list[asyncio.Future[Confirmed]]:
        outbox = self._outbox()
        sent: list[asyncio.Future[Confirmed]] = []
        for record in outgoing:
            await outbox.room(len(record.value))  # the dead letters of eight runs are more than its queue
            future = outbox.send(record.topic, record.key, record.value, record.headers, record.partition)
            owned.unconfirmed.add(future)
            future.add_done_callback(owned.settle)
            sent.append(future)
            self._metrics.sent(record)
            await pause()
        return sent

    async def _save(self, tp: TP, owned: _Owned, budget: int) -> int:
        """One round of one partition; returns the bytes saved.

        The state is taken at one moment; it is saved only once every outcome up to that moment is confirmed, else a
        crash in between would lose a signal that the saved state believes to have said.
        """
        owned_log = owned.log
        parts: dict[str, bytes] = {}
        size = 0
        pause = Turns(lambda: self._handled, sign=owned.sign)
        try:
            async with owned.busy:  # nothing is taken meanwhile, so all parts are of one moment
                restart = taken_from = max(owned_log.restart, owned.began)
                for part in owned_log.dirty():
                    if size >= budget:
                        restart = min(restart, owned.saved_from.get(part, owned.began))
                        continue
                    parts[part] = owned_log.snapshot(part)
                    size += len(parts[part])
                    await pause()
                unconfirmed = set(owned.unconfirmed)
            if unconfirmed:
                await asyncio.wait(unconfirmed)
            if owned.lost:
                raise UnconfirmedOutcome(f"an outcome of {tp.topic}[{tp.partition}] was not confirmed")
            async with owned.saving:
                if self._owned.get(tp) is not owned:
                    return 0
                await self._store.save(LOG_NAMES[tp.topic], tp.partition, parts, restart)
        except BaseException:
            for part in reversed(parts):  # the longest unsaved is put in front last
                owned_log.unsaved(part)
            raise
        owned.saved_from.update(dict.fromkeys(parts, taken_from))
        self._metrics.saved(size)
        return size
