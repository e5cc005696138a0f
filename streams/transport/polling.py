"""The polling thread: the only place that calls the confluent Consumer.

librdkafka's binding serialises calls on one Consumer, so a call from another thread can starve behind an idle poll, and
a commit from another thread deadlocks against a rebalance callback that waits for it. So the loop queues what it wants,
and this thread serves the queue between polls and while it waits inside a callback.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

from confluent_kafka import OFFSET_END, OFFSET_STORED, KafkaError, KafkaException, TopicPartition

from streams.failpoints import reach
from streams.transport.committing import commit
from streams.transport.error_log import QUIET, ErrorLog
from streams.transport.ledger import PartitionState
from streams.transport.log_ends import log_begin, log_end
from streams.transport.membership import Membership
from streams.transport.patience import Patience
from streams.transport.run import TP, Record
from streams.transport.seams import FATAL, Client, Figures, Halted, Host, LoopStuck, PollingBounds
from streams.transport.settings import Setting
from streams.transport.unreadable import Unreadable

log = logging.getLogger(__name__)
T = TypeVar("T")


class Poller:
    """Polls, groups by partition, feeds the ledger; serves commits, rewinds, pauses and rebalances."""

    def __init__(
        self,
        client: Callable[[dict[str, Any]], Client],
        settings: Mapping[str, Setting],
        host: Host,
        loop: asyncio.AbstractEventLoop,
        *,
        restarts: bool = False,
        bounds: PollingBounds | None = None,
    ) -> None:
        """restarts: ask `host.start_at` where to read from at each rewind, instead of the committed offset."""
        self._make = client
        self._settings = dict(settings)
        self._host = host
        self._loop = loop
        self._restarts = restarts
        self._bounds = bounds or PollingBounds()
        self._membership = Membership(self._bounds.renew_s, self._bounds.rejoin_s)
        self.ledger = host.new_ledger(0)
        self.ledger.close()  # nothing is assigned yet
        self.partitions: frozenset[TP] = frozenset()
        self.watermarks: dict[TP, tuple[int, int]] = {}
        self.paused: set[str] = set()
        self.read: dict[str, int] = {}
        self._expected: dict[TP, int] = {}  # the next offset to read, where it is known
        self._unreadable = Unreadable(self._seek, self._log_end)
        self._failed: list[tuple[TP, int]] = []  # batches that cannot be unpacked, met in this round
        self.beat = monotonic()
        self.committing_since: float | None = None
        self.committed_at = monotonic()
        self._generation = 0
        self._rewinds_asked = self._rewinds_done = 0
        self._patience = Patience(self._bounds.not_there_s)
        self._unread_since: float | None = None  # something is assigned, and nobody has asked to read it yet
        self.joined = False  # the group has said which partitions are ours, maybe none
        self._wanted: list[str] = []
        self._subscribed: list[str] = []
        self._queue: deque[tuple[dict[TP, int], concurrent.futures.Future[None]]] = deque()
        self._gate = threading.Lock()  # guards the queue against the end of the thread
        self._ended = False
        self._halt = threading.Event()
        self._errors = ErrorLog("consumer")
        self._watermarks_at = 0.0
        self._thread = threading.Thread(target=self._run, name="rdkafka", daemon=True)
        self._consumer: Client

    # -- loop side

    def start(self) -> None:
        self._thread.start()

    def subscribe(self, topics: Iterable[str]) -> None:
        self._wanted = sorted(topics)

    def rewind(self) -> None:
        """Ask for it and return: whoever would wait here can lose its partitions to a timeout."""
        self._rewinds_asked += 1

    def commit(self, offsets: Mapping[TP, int]) -> concurrent.futures.Future[None]:
        """Queue a commit. The future fails with what the broker said, or when the thread has ended."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._gate:
            if not self._ended:
                self._queue.append((dict(offsets), future))
                return future
        future.set_exception(Halted("the polling thread has ended"))
        return future

    def halt(self) -> None:
        self._halt.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread. False when it did not end in time."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def silent_s(self, now: float) -> float | None:
        """Seconds since the last sign of life; `None` while the broker holds a commit, or after the end."""
        return None if self._ended or self.committing_since is not None else now - self.beat

    @property
    def reading(self) -> bool:
        """What is assigned is being read; not while it waits to be restored."""
        return not self.ledger.closed

    def figures(self, now: float) -> Figures:
        """From any thread; a moment's view, not a consistent cut."""
        ledger, marks = self.ledger, dict(self.watermarks)
        states = ledger.state()
        undone = {tp: state.undone for tp, state in states.items()}
        for tp, (low, _) in marks.items():
            undone.setdefault(tp, self._expected.get(tp, max(low, 0)))
        return Figures(
            read=dict(self.read),
            held={topic: ledger.bytes(topic) for topic in {tp.topic for tp in self.partitions}},
            busy=ledger.busy,
            paused=frozenset(self.paused),
            uncommitted={tp: offset - _baseline(states[tp]) for tp, offset in ledger.due().items() if tp in states},
            lag={tp: max(0, end - undone[tp]) for tp, (_, end) in marks.items()},
            oldest_ms=ledger.oldest_ms(),
            commit_age_s=now - self.committed_at,
        )

    # -- the thread

    def _run(self) -> None:
        try:
            self._consumer = self._new_consumer()
            while not self._halt.is_set():
                self._round()
        except Halted:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, the worker must end, not live on without reading
            self._host.failed(error)
        finally:
            self._end()

    def _new_consumer(self) -> Client:
        return self._make({**QUIET, **self._settings, "error_cb": self._on_error, "on_commit": self._on_commit})

    def _round(self) -> None:
        self.beat = monotonic()
        reach("polled")
        self._serve_commits()
        if self._wanted != self._subscribed:
            self._subscribed = self._wanted
            self._consumer.subscribe(
                self._subscribed, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        if self._rewinds_done != self._rewinds_asked:
            self._rewind()
        elif self._unread_since is not None and self.beat - self._unread_since > self._bounds.loop_s:
            raise LoopStuck(f"nobody asked to read what was assigned {self._bounds.loop_s:.0f} s ago")
        self._hold_back()
        self._read()

    def _read(self) -> None:
        ledger, bounds = self.ledger, self._bounds
        lingering = ledger.next_ripe(monotonic())
        message = self._consumer.poll(bounds.poll_s if lingering is None else min(bounds.poll_s, lingering))
        now = monotonic()
        if message is not None:
            # consume(n, timeout) alone would wait for n records; this takes what is there.
            more = self._consumer.consume(bounds.read_max - 1, 0)
            for tp, records in self._by_partition([message, *more]).items():
                if tp in self.partitions and self._unreadable.take(tp, now) and self._add(tp, records, now):
                    self.read[tp.topic] = self.read.get(tp.topic, 0) + len(records)
            self._look_behind(now)
        self._unreadable.tick(self.paused, now)
        ledger.ripen(now)
        if ledger.waiting:
            self._host.fed()
        if now - self._watermarks_at >= bounds.watermarks_s:
            self._watermarks_at = now
            self._refresh_watermarks()
            self._look_for_group(now)

    def _add(self, tp: TP, records: list[Record], now: float) -> bool:
        """Hands records to the ledger, with what retention removed before them."""
        first, last = records[0].offset() or 0, records[-1].offset() or 0
        expected = self._expected.get(tp, first)
        self._expected[tp] = last + 1
        if stepped_over := self._unreadable.lost(tp):
            return self.ledger.add(tp, records, now, stepped_over)
        if last + 1 - expected <= len(records) or (low := self._low(tp)) <= expected:
            return self.ledger.add(tp, records, now)  # a gap without a loss: markers of transactions, compaction
        at = next((n for n, record in enumerate(records) if (record.offset() or 0) >= low), len(records))
        begin = (records[at - 1].offset() or 0) + 1 if at else expected
        lost = begin, min(low, records[at].offset() or 0) if at < len(records) else begin
        if lost[0] >= lost[1]:
            return self.ledger.add(tp, records, now)
        log.error("%s[%d] has lost offsets %d to %d: retention removed them unread", *tp, lost[0], lost[1] - 1)
        return (not at or self.ledger.add(tp, records[:at], now)) and self.ledger.add(tp, records[at:], now, lost)

    def _low(self, tp: TP) -> int:
        """The first offset that the partition holds; 0 where nobody answers in `committed_s`."""
        deadline = monotonic() + self._bounds.committed_s
        while (left := deadline - monotonic()) > 0:
            self.beat = monotonic()
            try:
                return log_begin(self._consumer, tp, left)
            except KafkaException as error:
                self._on_error(error.args[0])
                self._halt.wait(0.1)
        return 0

    def _log_end(self, tp: TP, timeout_s: float | None = None) -> int | None:
        """None where nobody answers (in `committed_s`)."""
        try:
            return log_end(self._consumer, tp, self._bounds.committed_s if timeout_s is None else timeout_s)
        except KafkaException as error:
            self._on_error(error.args[0])
            return None

    def _seek(self, tp: TP, offset: int) -> None:
        try:
            self._consumer.seek(TopicPartition(tp.topic, tp.partition, offset))
        except KafkaException as error:
            self._on_error(error.args[0])  # what is reported again is asked again

    def _by_partition(self, messages: Sequence[Any]) -> dict[TP, list[Record]]:
        failed = [(message, error) for message in messages if (error := message.error()) is not None]
        if failed:
            for message, error in failed:
                if error.code() == KafkaError._BAD_COMPRESSION:
                    self._failed.append((TP(message.topic(), message.partition()), message.offset()))
                elif error.code() != KafkaError._PARTITION_EOF:
                    self._on_error(error)
            messages = [message for message in messages if message.error() is None]
        # the one loop per record: plain tuples, for a TP each costs as much as the rest
        keys = [(message.topic(), message.partition()) for message in messages]
        if keys and keys.count(keys[0]) == len(keys):
            return {TP(*keys[0]): list(messages)}
        batches: dict[tuple[str, int], list[Record]] = {}
        for key, message in zip(keys, messages, strict=True):
            batches.setdefault(key, []).append(message)
        return {TP(*key): records for key, records in batches.items()}

    def _look_behind(self, now: float) -> None:
        """Looks for the ends of batches that cannot be unpacked, once what stands before them is in the ledger."""
        while self._failed:
            tp, base = self._failed.pop()
            if tp in self.partitions:
                self._unreadable.failed(tp, base, self._expected.get(tp, 0), now)

    def _refresh_watermarks(self) -> None:
        for tp in self.partitions:
            marks = self._consumer.get_watermark_offsets(TopicPartition(*tp), cached=True)
            if marks is not None and marks[1] >= 0:
                self.watermarks[tp] = marks

    def _look_for_group(self, now: float) -> None:
        """Makes the consumer anew where its group has given it nothing for too long."""
        if not self._subscribed:
            return
        outside_s = self._membership.given_up(now, known=bool(self._consumer.memberid()), joined=self.joined)
        if outside_s is not None:
            log.warning("no group has given this consumer anything for %.0f s: it is made anew", outside_s)
            # closing can wait for a look-up of the broker's name; nobody uses it any more, and nothing is assigned to it
            threading.Thread(target=_close, args=(self._consumer,), name="rdkafka-old", daemon=True).start()
            self._consumer = self._new_consumer()
            self._subscribed = []

    def _on_error(self, error: KafkaError) -> None:
        """Raise what cannot get better; log the rest."""
        if error.fatal() or error.code() in FATAL:
            raise KafkaException(error)
        self._errors.say(error)

    # -- backpressure, each topic for itself

    def _hold_back(self) -> None:
        topics = {tp.topic for tp in self.partitions}
        above = self.ledger.topics_above(topics)
        if above and above == topics and not self.paused:
            # Nobody else is kept waiting: not polling a moment keeps the prefetch that a pause throws away.
            deadline = monotonic() + self._bounds.full_s
            while above == topics and monotonic() < deadline and not self._halt.wait(0.01):
                self._serve_commits()
                above = self.ledger.topics_above(topics)
        self._set_paused(
            {topic for topic in topics if topic in above or (topic in self.paused and self._above_half(topic))}
        )

    def _above_half(self, topic: str) -> bool:
        return self.ledger.bytes(topic) > self.ledger.limits(topic).max_bytes // 2

    def _set_paused(self, wanted: set[str]) -> None:
        if pause := wanted - self.paused:
            self._consumer.pause(self._of_topics(pause))
        if resume := self.paused - wanted:
            parts = self._of_topics(resume)
            self._consumer.resume(parts)
            self._wake(parts)
        self.paused = wanted

    def _wake(self, parts: Collection[TopicPartition]) -> None:
        """Asks the leaders for the ends: librdkafka's thread of a broker sleeps up to a second after a resume unless something
        is asked of it, and a topic that is paused and resumed again and again came at 25,000 records a second, not 70,000."""
        ends = [TopicPartition(part.topic, part.partition, OFFSET_END) for part in parts]
        try:
            self._consumer.offsets_for_times(ends, timeout=self._bounds.wake_s)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _of_topics(self, topics: Collection[str]) -> list[TopicPartition]:
        return [TopicPartition(*tp) for tp in sorted(self.partitions) if tp.topic in topics]

    # -- commits

    def _serve_commits(self) -> None:
        while self._queue:
            offsets, future = self._queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more; from here on nobody can take it back
            self.committing_since = monotonic()
            try:
                commit(self._consumer, offsets, self._bounds.committed_s)
            except KafkaException as error:
                future.set_exception(error)
            except BaseException as error:
                future.set_exception(error)  # never leave somebody waiting
                raise
            else:
                self.committed_at = monotonic()
                future.set_result(None)
            finally:
                self.committing_since, self.beat = None, monotonic()

    def _on_commit(self, error: KafkaError | None, _: object) -> None:
        """Why a commit was refused; that it was is known already."""
        if error is not None:
            self._on_error(error)

    def _drop_commits(self, why: Exception) -> None:
        """Sent later, they would go out with the membership of then, for partitions that are somebody else's."""
        while self._queue:
            _, future = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(why)

    # -- rebalance callbacks: they run inside poll()

    def _on_assign(self, _: Client, assigned: list[TopicPartition]) -> None:
        self.ledger.close()
        self._forget(frozenset(TP(part.topic, part.partition) for part in assigned))
        parts = [TopicPartition(*tp) for tp in sorted(self.partitions)]
        self._consumer.assign(parts)
        self._consumer.pause(parts)
        self._on_loop(self._host.assigned(self.partitions))
        self.joined = True
        self._unread_since = monotonic()

    def _on_revoke(self, _: Client, revoked: list[TopicPartition]) -> None:
        self._give_up(self._host.revoked, revoked)

    def _on_lost(self, _: Client, lost: list[TopicPartition]) -> None:
        """Somebody else may own them already, so nothing of this ledger is committed any more."""
        self.joined = False
        self.ledger.close()
        self._give_up(self._host.lost, lost)

    def _give_up(self, tell: Callable[[frozenset[TP]], Coroutine[Any, Any, None]], parts: list[TopicPartition]) -> None:
        self.joined = False
        if not self._halt.is_set():
            self._on_loop(tell(frozenset(TP(part.topic, part.partition) for part in parts)))
        self.ledger.close()
        self._forget(frozenset())
        self._consumer.unassign()

    def _forget(self, partitions: frozenset[TP]) -> None:
        self._drop_commits(KafkaException(KafkaError(KafkaError._STATE, "what was assigned has been given up")))
        self.joined = False
        self.partitions = partitions
        self.watermarks.clear()
        self._unreadable.forget()
        self.paused = set()
        self._unread_since = None

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop and wait, serving commits meanwhile, for the coroutine may wait for one."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        deadline = monotonic() + self._bounds.loop_s
        # result(timeout) cannot tell its own TimeoutError from the coroutine's, hence wait() and done().
        while not future.done():
            if self._halt.is_set():
                future.cancel()
                raise Halted
            if monotonic() > deadline:
                future.cancel()
                raise LoopStuck(f"the event loop did not answer within {self._bounds.loop_s:.0f} s")
            self.beat = monotonic()
            self._serve_commits()
            concurrent.futures.wait([future], timeout=0.01)
        return future.result()

    # -- rewind

    def _rewind(self) -> None:
        asked = self._rewinds_asked
        self.ledger.close()
        if self.partitions:
            starts = self._starts()
            if starts is None:
                return  # the coordinator is away: asked again in the next round
            parts = [
                TopicPartition(tp.topic, tp.partition, starts.get(tp, OFFSET_STORED)) for tp in sorted(self.partitions)
            ]
            self._consumer.assign(parts)
            self._consumer.resume(parts)
        self.paused = set()
        self._unread_since = None
        self._generation += 1
        self.ledger = self._host.new_ledger(self._generation)
        self._rewinds_done = asked

    def _starts(self) -> Mapping[TP, int] | None:
        """Offsets to read from where they are not the committed ones; never above what is committed."""
        self._expected.clear()
        self._unreadable.forget()
        try:
            answers = self._consumer.committed(
                [TopicPartition(*tp) for tp in sorted(self.partitions)], timeout=self._bounds.committed_s
            )
        except KafkaException as error:
            self._on_error(error.args[0])
            return None
        for answer in answers:
            if answer.error is not None:
                self._on_error(answer.error)
                return None
        committed = {TP(part.topic, part.partition): part.offset for part in answers if part.offset >= 0}
        starts: dict[TP, int] = {}
        if self._restarts:
            for tp in self._beyond_the_log(committed):
                del committed[tp]
            try:
                wanted = self._on_loop(self._host.start_at(committed))
            except (KafkaException, TimeoutError) as error:
                if not self._patience.may_pass(error):
                    raise
                log.warning("where to read from is asked again: %s", error)
                self._halt.wait(self._bounds.again_s)
                return None
            self._patience.answered()
            starts = {tp: min(start, committed.get(tp, start)) for tp, start in wanted.items() if tp in self.partitions}
        self._expected = committed | starts
        return starts

    def _beyond_the_log(self, committed: Mapping[TP, int]) -> list[TP]:
        """Partitions whose committed offset lies above the log's end: the log is another one now, or was cut.

        Reading then goes on at its beginning (auto.offset.reset). A leader that is away holds nobody up: its end is
        taken to be in order. All questions together are bounded by `committed_s`.
        """
        deadline = monotonic() + self._bounds.committed_s
        beyond = []
        for tp, offset in committed.items():
            self.beat = now = monotonic()
            end = self._log_end(tp, max(0.01, deadline - now))
            if end is not None and 0 <= end < offset:
                log.warning("%s[%d] ends at %d, before the committed %d: it starts anew", *tp, end, offset)
                beyond.append(tp)
        return beyond

    # -- the end

    def _end(self) -> None:
        self._halt.set()
        self.ledger.close()
        with self._gate:
            self._ended = True
        self._drop_commits(Halted("the polling thread has ended"))
        if hasattr(self, "_consumer"):
            _close(self._consumer)


def _baseline(state: PartitionState) -> int:
    """Where what is not committed begins."""
    return state.first if state.committed is None else state.committed


def _close(consumer: Client) -> None:
    """Leaves the group at once."""
    try:
        consumer.close()
    except (KafkaException, RuntimeError) as error:
        log.warning("kafka: while leaving the group: %s", error)
