"""Role ingest: runs of requests and responses in; predictions, reports and dead letters out.

State is what waits for its counterpart, and it lies in the log: nothing is committed over the oldest row that waits, so a
restart reads it again, and what was written already is read back from the predictions and not written again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from confluent_kafka import KafkaException

from schemas.errors import MACHINE_ERRORS, PalisadeError
from schemas.ingest import MAX_HELD_BYTES
from schemas.topics import REPORTS, REQUESTS, RESPONSES
from streams.failpoints import reach
from streams.ingest.partition import Handled, PairingLog
from streams.ingest.written import Already
from streams.metrics import Metrics
from streams.poison import Poison, Verdict
from streams.records import Outgoing, Records
from streams.transport.outbox import Confirmed, Outbox
from streams.transport.patience import Patience
from streams.transport.run import TP, Run
from streams.turns import Turns, attended

log = logging.getLogger(__name__)

TOPICS = (REQUESTS, RESPONSES)
TURN_S = 0.25
"""What waits is aged, and reports are looked for, so often."""
AHEAD_SHARE = 0.25
"""Where so much of what may be held waits for a topic that is read behind, the topic ahead is held up: else what is only
not read yet would be pushed out as unanswered."""
LOOK_S = 0.05
AGAIN_S, NOT_THERE_S = 1.0, 60.0
"""Between two attempts to read back what was written; for so long predictions may be unknown to a broker meanwhile."""
LAND_S = 20.0
"""What is on its way is waited for so long before all is read again; what lands later may be written twice, which `origin` tells."""
OTHER = {REQUESTS: RESPONSES, RESPONSES: REQUESTS}

Ends = Callable[[TP], tuple[int, int] | None]
"""First offset of a partition, and the next that will be written; None while that is unknown."""


class UnconfirmedOutcome(PalisadeError):
    """An outcome was not confirmed, so its request must be read again: this process ends."""


@dataclass(slots=True)
class _Side:
    """How far one topic of a partition is handled. `next`: the next offset; `ms`: the broker's time of the last record."""

    next: int | None
    ms: int = 0


@dataclass(slots=True)
class _Owned:
    """A partition number while it is assigned to this worker. `flying`: the oldest offsets of what is not confirmed."""

    log: PairingLog
    sides: dict[str, _Side]
    since_ms: int | None = None
    newest_ms: int = 0
    newest_at: float = 0.0
    flying: dict[int, Mapping[str, int]] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    unconfirmed: set[asyncio.Future[Confirmed]] = field(default_factory=set)
    over: bool = False
    """Handling raised, or all is read again: what waits here is not used any more."""

    def seen(self, topic: str, records: Records) -> None:
        side, now_ms = self.sides[topic], int(time.time() * 1000)
        side.next, side.ms = records.offsets[-1] + 1, min(records.timestamps[-1], now_ms)
        newest = min(max(records.timestamps), now_ms)  # a producer's clock may be ahead
        if newest >= self.newest_ms:
            self.newest_ms, self.newest_at = newest, time.monotonic()


class IngestRole:
    """Owns the partition numbers assigned to this worker: of both topics, or they cannot pair."""

    def __init__(
        self,
        open_log: Callable[[int, int], PairingLog],
        read_back: Callable[[int, int], Already],
        ends: Ends,
        outbox: Callable[[], Outbox],
        metrics: Metrics,
        read_again: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """open_log(partition, most_bytes): of what may wait there. read_back(partition, since_ms): what was written of a partition since then; called in a thread, may raise.
        read_again: commits what is done and reads from there on. None: the process ends where it is needed."""
        self._open_log = open_log
        self._read_back = read_back
        self._ends = ends
        self._outbox = outbox
        self._metrics = metrics
        self._read_again = read_again
        self._poison = Poison(words=False)
        self._owned: dict[int, _Owned] = {}
        self._kept: Mapping[TP, int] = {}
        self._tickets = 0
        self._handled = 0
        self._waiting = False
        self._at_work: dict[str, Run] = {}
        self._failed: BaseException | None = None

    def kept(self) -> Mapping[TP, int]:
        """The oldest offset of each partition that is still needed; from any thread."""
        return self._kept

    async def handle(self, run: Run) -> None:
        """One run: what it leads to is sent, and it is done when that is confirmed."""
        self._at_work[run.tp.topic] = run
        try:
            await self._handle(run, self._owned[run.tp.partition])
        finally:
            del self._at_work[run.tp.topic]

    async def _handle(self, run: Run, owned: _Owned) -> None:
        started = time.perf_counter()
        run.open()
        await self._in_step(run, owned)
        records = Records(run.values, run.keys, run.headers, run.offsets, run.timestamps)
        async with owned.busy:
            if owned.over or not await self._recall(run, owned, records):
                run.abandon()
                return
            owned.seen(run.tp.topic, records)
            # until it is sent, nothing of what waited before is committed over, whatever of it this run settles
            ticket = self._board(owned, {**owned.log.kept, run.tp.topic: owned.log.kept.get(run.tp.topic, run.first)})
            handled = await self._take(run.tp, owned, records)
            if handled is not None:
                sent = await self._send(owned, handled, ticket)
                reach("published")
        if handled is None:
            run.abandon()
            await self._start_over()
            return
        self._handled += 1
        self._metrics.run(run.tp.topic, len(run), time.perf_counter() - started)
        self._metrics.delay.labels(run.tp.topic).observe(max(0.0, time.time() - records.timestamps[0] / 1000))
        run.done_when(sent)

    async def _take(self, tp: TP, owned: _Owned, records: Records) -> Handled | None:
        """What records lead to; None if handling them raised, which leaves rows half-paired that are not used any more."""
        whole = Handled([], {})
        pause = Turns(lambda: self._handled, sign=self._sign)
        for piece, reason in self._poison.pieces(tp, records):
            try:
                if reason is None:
                    reach("taken")
                    handled = await owned.log.take(tp.topic, piece, owned.newest_ms, pause)
                else:
                    handled = owned.log.pass_over(tp.topic, piece, reason)
            except (*MACHINE_ERRORS, KafkaException):
                raise
            except Exception as error:
                if self._read_again is None or reason is not None:
                    raise
                self._judge(tp, owned, self._poison.failed(tp, piece, error, "pairing"), error)
                return None
            whole.outgoing.extend(handled.outgoing)
            for topic, offset in handled.oldest.items():
                whole.oldest[topic] = min(offset, whole.oldest.get(topic, offset))
        return whole

    def _judge(self, tp: TP, owned: _Owned, verdict: Verdict, error: Exception) -> None:
        """Nothing more is made of what waits here. Raises TooManyFailures where reading again has not helped often enough."""
        owned.over = True
        self._metrics.handler_failures.labels(tp.topic).inc()
        if verdict == "end":
            raise self._poison.too_many(tp) from error

    async def _start_over(self) -> None:
        """Reads everything again from the oldest row that is still needed, once all that was said before is confirmed: so
        it is read back, and not said twice."""
        await self._landed(list(self._owned.values()))
        if self._read_again is not None:
            await self._read_again()

    @staticmethod
    async def _landed(several: list[_Owned]) -> None:
        for owned in several:
            async with owned.busy:
                unconfirmed = set(owned.unconfirmed)
            if unconfirmed:
                await asyncio.wait(unconfirmed, timeout=LAND_S)

    async def start_at(self, committed: Mapping[TP, int], assigned: frozenset[TP]) -> dict[TP, int]:
        """Begins every assigned partition number anew, at what is committed: that is the oldest row still needed."""
        numbers = {tp.partition for tp in assigned}
        for number in sorted(numbers):
            if lacking := [topic for topic in TOPICS if TP(topic, number) not in assigned]:
                log.error(
                    "partition %d of %s is assigned elsewhere, and nothing of it can be paired: give %s as many "
                    "partitions each", number, lacking[0], " and ".join(TOPICS)
                )  # fmt: skip
        before = list(self._owned.values())
        for owned in before:
            owned.over = True
        await self._landed(before)
        self._owned = {
            number: _Owned(
                self._open_log(number, MAX_HELD_BYTES // len(numbers)),
                {topic: _Side(committed.get(TP(topic, number))) for topic in TOPICS},
            )
            for number in numbers
        }
        self._keep()
        return {}

    async def leave(self, gone: frozenset[TP]) -> None:
        """Forgets what somebody else owns from now on: it reads it again."""
        for number in {tp.partition for tp in gone}:
            self._owned.pop(number, None)
        self._keep()

    def _sign(self) -> None:
        """Work goes on: on the other topic, too, whose handler waits for this one."""
        for run in self._at_work.values():
            run.sign()

    async def turns(self) -> None:
        """Ages what waits and writes reports until cancelled. Raises UnconfirmedOutcome."""
        while True:
            await asyncio.sleep(TURN_S)
            if self._failed is not None:
                raise UnconfirmedOutcome(str(self._failed)) from self._failed
            for number, owned in list(self._owned.items()):
                async with owned.busy:
                    mine = self._owned.get(number) is owned and not owned.over
                    failed = mine and not await self._turn(number, owned)
                if failed:
                    await self._start_over()

    async def _turn(self, number: int, owned: _Owned) -> bool:
        """False if it raised: what waits is not used any more."""
        now_ms = self._now_ms(number, owned)
        if now_ms is None:
            return True
        reached = {
            topic: now_ms if self._caught_up(number, topic, owned) else owned.sides[topic].ms for topic in TOPICS
        }
        ticket = self._board(owned, owned.log.kept)
        try:
            handled = owned.log.expire(reached[RESPONSES], reached[REQUESTS], now_ms)
            handled.outgoing.extend(owned.log.reports(now_ms))
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            if self._read_again is None:
                raise
            tp = TP(REQUESTS, number)
            verdict = self._poison.failed_between(tp, owned.sides[REQUESTS].next or 0, error)
            self._judge(tp, owned, verdict, error)
            return False
        for future in await self._send(owned, handled, ticket):
            future.add_done_callback(partial(self._settle, number, owned))
        self._count(owned)
        return True

    def _settle(self, number: int, owned: _Owned, sent: asyncio.Future[Confirmed]) -> None:
        """What another process reads again by now, or this one, is no reason to end."""
        if not sent.cancelled() and sent.exception() is not None and self._owned.get(number) is owned:
            self._failed = sent.exception()

    def _now_ms(self, number: int, owned: _Owned) -> int | None:
        """The log's time: the newest record's, and what has passed since where both topics are read to their end."""
        if not owned.newest_ms:
            return None
        if all(self._caught_up(number, topic, owned) for topic in TOPICS):
            return owned.newest_ms + int((time.monotonic() - owned.newest_at) * 1000)
        return owned.newest_ms

    def _caught_up(self, number: int, topic: str, owned: _Owned) -> bool:
        """Read to the end, where a transaction marker may lie. Unknown is no."""
        ends = self._ends(TP(topic, number))
        if ends is None:
            return False
        after = owned.sides[topic].next
        return ends[1] - (ends[0] if after is None else max(after, ends[0])) <= 1

    # -- the two topics side by side

    async def _in_step(self, run: Run, owned: _Owned) -> None:
        """Waits while this topic is far ahead of the other one. Only one of them ever waits, so that both come on."""
        topic, number = run.tp
        other = OTHER[topic]
        while (
            owned.log.held_bytes[topic] > AHEAD_SHARE * owned.log.most_bytes
            and not self._waiting
            and not run.stale
            and owned.sides[topic].ms >= owned.sides[other].ms
            and self._owned.get(number) is owned
            and not self._caught_up(number, other, owned)
        ):
            self._waiting = True
            self._sign()
            try:
                await asyncio.sleep(LOOK_S)
            finally:
                self._waiting = False

    async def _recall(self, run: Run, owned: _Owned, records: Records) -> bool:
        """Reads back what was written since the oldest record that is read after a start: at the first run of a topic. Asks again
        while no broker answers; False once all is read again, or by somebody else."""
        first_ms, number = records.timestamps[0], run.tp.partition
        if owned.sides[run.tp.topic].ms or (owned.since_ms is not None and owned.since_ms <= first_ms):
            return True
        owned.since_ms = first_ms
        patience = Patience(NOT_THERE_S)
        while not owned.over and self._owned.get(number) is owned:
            read = asyncio.to_thread(self._read_back, number, first_ms)
            try:
                owned.log.recall(await attended(read, Turns(sign=self._sign)))
                return True
            except (KafkaException, TimeoutError) as error:
                if not patience.may_pass(error):
                    raise
                log.warning("what was written of partition %d is read back again: %s", number, error)
                await attended(asyncio.sleep(AGAIN_S), Turns(sign=self._sign))
        return False

    # -- out

    def _board(self, owned: _Owned, oldest: Mapping[str, int]) -> int:
        """Nothing from these offsets on is committed until the ticket has landed."""
        self._tickets += 1
        owned.flying[self._tickets] = oldest
        self._keep()
        return self._tickets

    async def _send(self, owned: _Owned, handled: Handled, ticket: int) -> list[asyncio.Future[Confirmed]]:
        """Sends what goes out; until all of it is confirmed, nothing that it settles is committed over."""
        outbox = self._outbox()
        sent: list[asyncio.Future[Confirmed]] = []
        for record in handled.outgoing:
            await outbox.room(len(record.value))
            sent.append(self._one(owned, outbox, record))
        owned.flying[ticket] = handled.oldest
        outcomes = {future for future, record in zip(sent, handled.outgoing, strict=True) if record.topic != REPORTS}
        self._land(owned, ticket, outcomes)
        return sent

    def _one(self, owned: _Owned, outbox: Outbox, record: Outgoing) -> asyncio.Future[Confirmed]:
        self._metrics.sent(record)
        sent = outbox.send(record.topic, record.key, record.value, record.headers, record.partition)
        owned.unconfirmed.add(sent)
        sent.add_done_callback(owned.unconfirmed.discard)
        return sent

    def _land(self, owned: _Owned, ticket: int, outcomes: set[asyncio.Future[Confirmed]]) -> None:
        def landed(future: asyncio.Future[Confirmed]) -> None:
            if future.cancelled() or future.exception() is not None:
                return  # it stays in the air: nothing of it is ever committed, and the process ends
            outcomes.discard(future)
            if not outcomes:
                owned.flying.pop(ticket, None)
                self._keep()

        if not outcomes:
            owned.flying.pop(ticket, None)
        self._keep()
        for future in list(outcomes):
            future.add_done_callback(landed)

    def _keep(self) -> None:
        kept: dict[TP, int] = {}
        for number, owned in self._owned.items():
            for oldest in (owned.log.kept, *owned.flying.values()):
                for topic, offset in oldest.items():
                    tp = TP(topic, number)
                    kept[tp] = min(offset, kept.get(tp, offset))
        self._kept = kept

    def _count(self, owned: _Owned) -> None:
        for outcome, count in asdict(owned.log.outcomes).items():
            self._metrics.ingested.labels(outcome).inc(count - owned.said.get(outcome, 0))
            owned.said[outcome] = count
        for topic in TOPICS:
            held: Sequence[PairingLog] = [each.log for each in self._owned.values()]
            self._metrics.held_rows.labels(topic).set(sum(one.held_rows[topic] for one in held))
            self._metrics.held_bytes.labels(topic).set(sum(one.held_bytes[topic] for one in held))
