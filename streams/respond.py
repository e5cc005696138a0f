"""Role respond: signals and commands in; the journal, then directives and webhooks out. One active process, standbys
beside it.

Who owns the one partition of `palisade.signals` is active. Taking over fences the old process by the journal's
transactions, reads state and journal to their ends, and continues with the next epoch. Nothing is done that is not in the
journal first; a failed step is undone by not keeping its state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from responders import journal
from responders.decide import Clock, Input
from responders.mandate import Mandate
from responders.recovery import adopt
from responders.signing import Keyring, SigningKey
from responders.state import RespondState, input_key
from responders.webhook_responder import WebhookResponder
from schemas.actions import MAX_WAITING_INPUTS, InputRange, JournalEntry
from schemas.signals import Signal
from schemas.topics import SIGNALS
from streams.deadletters import told
from streams.deciding import Decided, Decider
from streams.failpoints import reach
from streams.health import Part
from streams.journal_log import (
    Journal,
    JournalAway,
    TakenOver,
    standing_directives,
    take_over,
)
from streams.lease import LEASE_S, Lease
from streams.metrics import Metrics
from streams.outgoing import dead_record
from streams.publishing import Publisher
from streams.records import Records
from streams.respond_inputs import inputs_of
from streams.transport.outbox import Confirmed, Outbox
from streams.transport.run import TP, Run
from streams.transport.settings import KafkaConnection
from streams.turns import Turns, attended

log = logging.getLogger(__name__)

TIMER_S = 0.1
SESSION_S = 6.0
"""A dead process's partition moves after so long: the smallest that brokers allow."""
HEARTBEAT_S = 0.5
"""How late a standby hears that the session of the active process has run out."""
LEAVE_S = 2.0
"""What saving the state may keep a rebalance waiting."""
_SIGNALS_KEY = input_key(SIGNALS, 0)


@dataclass(slots=True)
class _Active:
    """What the active process holds."""

    state: RespondState
    journal: Journal
    saved_entry: int
    saved_at: float
    offsets: dict[str, int] = field(default_factory=dict)
    """Of the signals that wait to be decided, by id."""
    expected: set[int] = field(default_factory=set)
    """Offsets of signals that waited when the process before this one ended: they are delivered again."""


class RespondRole:
    """`decide` with the effects around it. One lock: inputs and timer are decided one after the other."""

    def __init__(
        self,
        connection: KafkaConnection,
        mandate: Mandate,
        signing_key: SigningKey,
        operators: Keyring,
        outbox: Callable[[], Outbox],
        metrics: Metrics,
        *,
        webhooks: WebhookResponder | None = None,
        fenced: bool = True,
        read_again: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`read_again`: reads everything from what is committed on, which calls `start_at`. None: the process ends where
        it is needed."""
        self._connection = connection
        self._publisher = Publisher(signing_key, webhooks or WebhookResponder({}), outbox, metrics)
        self._mandate = mandate
        self._decider = Decider(mandate, metrics)
        self._key = signing_key
        self._operators = operators
        self._metrics = metrics
        self._fenced = fenced
        self._read_again = read_again
        self._active: _Active | None = None
        self._ours = False
        self._away = False  # the journal was, and everything is read again
        self._told: list[Input] = []  # what people are to be told, and no journal holds yet
        self._lock = asyncio.Lock()
        self._lease = Lease()
        self._kept: Mapping[TP, int] = {}
        self._at_work: dict[str, Run] = {}

    def health(self, _: float) -> Part:
        """Whether it is active; from any thread."""
        taking = self._ours and not self.active
        return Part({"active": self.active}, ["it takes over, or its journal is away"] if taking else ())

    @property
    def active(self) -> bool:
        """Whether this process decides; if not, it stands by, or takes over."""
        return self._active is not None

    async def join(self, assigned: frozenset[TP]) -> None:
        """Whether the signals partition is ours; `start_at` takes over then."""
        self._ours = any(tp.topic == SIGNALS for tp in assigned)

    async def start_at(self, _: Mapping[TP, int]) -> Mapping[TP, int]:
        """Takes over, if that is to be done; reading goes on at what is committed, and of what is delivered again the journal
        tells. Raises KafkaException or TimeoutError: what passes of them is asked again."""
        if self._ours and self._active is None:
            await self._take_over()
        return {}

    async def _take_over(self) -> None:
        async with self._lock:
            began = time.monotonic()
            taken = await asyncio.to_thread(take_over, self._connection, fenced=self._fenced)
            state = await self._recovered(taken) if taken.lost else taken.state
            expected = set(state.waiting.get(_SIGNALS_KEY, ()))
            self._active = _Active(state, taken.journal, state.entry, time.monotonic(), expected=expected)
            self._kept = {}
            self._away = False
            self._lease.begin(time.monotonic())
            self._publisher.start(self._lease.holds)
            self._metrics.active.set(1)
            self._active.state = self._publisher.publish(state, _now_ms())
        took_s = time.monotonic() - began
        log.warning("respond is active after %.1f s: epoch %d, entry %d", took_s, state.epoch, state.entry)

    async def _recovered(self, taken: TakenOver) -> RespondState:
        """Without its journal a responder would forget what holds, and guards would refuse its epochs."""
        ours = Keyring([self._key.public_base64])
        directives = await asyncio.to_thread(standing_directives, self._connection, ours)
        state, decisions = adopt(taken.state, directives, _now_ms(), self._mandate)
        state, entries = journal.record(state, [], decisions, _now_ms())
        if entries:
            await asyncio.to_thread(taken.journal.commit, entries)
        self._publisher.tell(decisions)
        return state

    async def leave(self, revoked: frozenset[TP]) -> None:
        """Another process takes over: nothing more is decided here."""
        if any(tp.topic == SIGNALS for tp in revoked):
            self._ours = False
            async with self._lock:
                if self._active is not None:
                    saved = self._save(self._active)
                    await asyncio.wait({saved}, timeout=LEAVE_S)
                await self._stand_by()

    async def lose(self, lost: frozenset[TP]) -> None:
        """The session ran out, and another process may have taken over already: nothing more is written either."""
        if any(tp.topic == SIGNALS for tp in lost):
            self._lease.end()
            self._ours = False
            async with self._lock:
                await self._stand_by()

    async def _stand_by(self) -> None:
        self._active = None  # what it kept is kept, until all is read again: a commit may still be under way
        await self._publisher.stop()
        self._metrics.active.set(0)

    def kept(self) -> Mapping[TP, int]:
        """The oldest signal that waits to be decided: nothing from there on is committed. From any thread."""
        return self._kept

    async def handle(self, run: Run) -> None:
        """One run: decided input by input, journaled once, then published."""
        records = Records(run.values, run.keys, run.headers, run.offsets, run.timestamps)
        run.open()
        self._at_work[run.tp.topic] = run
        try:
            if not await self._decide(run, records):
                run.abandon()
                return
        except JournalAway as away:
            run.abandon()
            await self._begin_again(away)
        except Exception as error:
            run.fail(error)
            raise
        else:
            run.done()
        finally:
            del self._at_work[run.tp.topic]

    async def _decide(self, run: Run, records: Records) -> bool:
        """Whether the run's dead letters are there, and its decisions journaled and published; else it will be read again."""
        async with self._lock:
            active = self._active
            if active is None:
                if run.stale or self._away:
                    return False
                raise RuntimeError(f"{run.tp.topic} was read before this process took over")
            inputs, dead = inputs_of(records, run.tp, active.state, self._operators)
            if run.tp.topic == SIGNALS:
                active.expected.difference_update(records.offsets)
                active.offsets |= {
                    given.signal_id: records.offsets[index]
                    for index, given in inputs.items()
                    if isinstance(given, Signal)
                }
            await self._prove(active)
            decided = self._decider.decide(active.state, list(inputs.values()), _now_ms())
            for index, error in zip(inputs, decided.failed, strict=True):
                if error is not None:
                    dead.append(dead_record(*run.tp, records, index, "handler_failed", told("deciding", error)))
            if dead:  # there before the journal says that their records are answered, for nobody asks again
                letters = asyncio.gather(*(self._publisher.send(record) for record in dead))
                await attended(letters, Turns(sign=self._sign))
            await self._act(active, decided, run)
        return True

    def tell(self, news: Sequence[Input]) -> None:
        """For people, and on record with the next turn of this process's."""
        self._told += news

    async def timer(self) -> None:
        """Batches, expiries and re-sent directives, ten times a second until cancelled."""
        while True:
            await asyncio.sleep(TIMER_S)
            self._lease.renew()
            try:
                async with self._lock:
                    if self._active is not None:
                        await self._turn(self._active)
            except JournalAway as away:
                await self._begin_again(away)

    async def _turn(self, active: _Active) -> None:
        self._told += self._publisher.deliveries()
        await self._prove(active)
        await self._act(active, self._decider.decide(active.state, [Clock(), *self._told], _now_ms()))
        self._told = []
        self._save_when_due(active)

    async def _commit(self, active: _Active, entries: list[JournalEntry]) -> None:
        """Nobody had taken over when this began: whoever is fenced cannot commit.

        Raises JournalAway once this process has stood down, so that nothing else is decided on what is not journaled.
        """
        began = time.monotonic()
        try:
            await attended(asyncio.to_thread(active.journal.commit, entries), Turns(sign=self._sign))
        except JournalAway:
            self._away = True
            await self._stand_by()
            raise
        self._lease.begin(began)

    async def _begin_again(self, away: JournalAway) -> None:
        """Takes over anew, as after a restart, unless the partition is another's by now: nothing of the step was kept."""
        if not self._ours:
            return
        if self._read_again is None:
            raise away
        log.warning("the journal is away (%s): nothing is decided until it is back", away)
        await self._read_again()

    async def _prove(self, active: _Active) -> None:
        """After a standstill (a stopped process, a machine that slept): an entry that only the journal's owner can commit.

        A process that was replaced meanwhile ends here. One that was not goes on with the next epoch.
        """
        while not self._lease.holds():
            log.warning("this process stood still for more than %g s: has another one taken over?", LEASE_S)
            state, entry = journal.takeover(active.state, _now_ms())
            await self._commit(active, [entry])
            active.state = state

    async def _act(self, active: _Active, decided: Decided, run: Run | None = None) -> None:
        """Commits the journal, keeps the state, publishes. On failure nothing is kept."""
        waiting = self._waiting(active, decided.state)
        answered = _answered(active.state, run, waiting)
        state, entries = journal.record(decided.state, answered, decided.decisions, _now_ms())
        if entries:
            try:
                await self._commit(active, entries)
                reach("journaled")
            except BaseException:
                # The journal may hold what this state does not: deciding on, or saving it, would write an entry twice or
                # lose one. This process ends, or reads the journal anew.
                self._active = None
                raise
        active.state = state
        self._kept = {TP(SIGNALS, 0): min(active.offsets.values())} if active.offsets else {}
        if self._lease.holds():  # else the next step proves it first
            active.state = self._publisher.publish(active.state, _now_ms())
        self._publisher.tell(decided.decisions)

    def _waiting(self, active: _Active, state: RespondState) -> list[int]:
        """Offsets of the signals whose answer is still to come, oldest first."""
        undecided = state.seen.undecided() if active.offsets else set()
        active.offsets = {name: offset for name, offset in active.offsets.items() if name in undecided}
        return sorted(active.expected.union(active.offsets.values()))

    def _sign(self) -> None:
        """Work goes on: whoever waits for the lock is not stuck."""
        for run in self._at_work.values():
            run.sign()

    def _save_when_due(self, active: _Active) -> None:
        aged = time.monotonic() - active.saved_at >= journal.SAVE_EVERY_MS / 1000
        grown = active.state.entry - active.saved_entry
        if grown >= journal.SAVE_EVERY_ENTRIES or (aged and grown > 0):
            self._save(active)

    def _save(self, active: _Active) -> asyncio.Future[Confirmed]:
        active.saved_entry, active.saved_at = active.state.entry, time.monotonic()
        return self._publisher.save(active.state, active.journal.next_offset)


def _answered(state: RespondState, run: Run | None, waiting: list[int]) -> list[InputRange]:
    """What an entry that is made now answers: a run, and all of the signals before it but for those that wait.

    An entry of the clock or of a command may decide signals that waited: it says again what was answered of them.
    """
    open_ = waiting[-MAX_WAITING_INPUTS:]
    ranges = []
    if run is not None:
        ours = open_ if run.tp.topic == SIGNALS else []
        topic, partition = run.tp
        ranges.append(InputRange(topic=topic, partition=partition, first=run.first, last=run.next - 1, waiting=ours))
    last = state.applied.get(_SIGNALS_KEY)
    if last is not None and (run is None or run.tp.topic != SIGNALS) and (open_ or state.waiting.get(_SIGNALS_KEY)):
        still = [offset for offset in open_ if offset <= last]
        ranges.append(InputRange(topic=SIGNALS, first=last, last=last, waiting=still))
    return ranges


def _now_ms() -> int:
    return int(time.time() * 1000)
