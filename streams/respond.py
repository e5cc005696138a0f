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
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import ValidationError

from responders import journal
from responders.alerts import alert_for
from responders.decide import Clock, Delivered, Input, decide
from responders.directives import directive_for, due, mark_sent
from responders.mandate import Mandate
from responders.signing import Keyring, SigningKey
from responders.state import RespondState, from_bytes, to_bytes
from responders.webhook_responder import WebhookResponder, sentence
from responders.webhooks import message_for
from schemas.actions import Command, Decision, Directive, InputRange, JournalEntry
from schemas.deadletter import DeadReason
from schemas.errors import MACHINE_ERRORS, SignatureRefused, StateRefused
from schemas.roles import transactional_id_of
from schemas.signals import EndpointState, Signal
from schemas.topics import ACTIONS, COMMANDS, DIRECTIVES, RESPOND_STATE, SIGNALS
from schemas.wire import KIND_HEADER
from streams.failpoints import reach
from streams.metrics import Metrics
from streams.outgoing import dead_record
from streams.reading import read_newest, read_to_end
from streams.records import Outgoing, Records, header_of, headers_of
from streams.transport.outbox import Confirmed, Outbox, OutboxClosed, OutboxFull
from streams.transport.run import TP, Run
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

TRANSACTIONAL_ID = transactional_id_of("respond")
TIMER_S = 0.1
COMMIT_TIMEOUT_S = 10.0
SESSION_S = 6.0
"""A dead process's partition moves after so long: the smallest that brokers allow."""
_STATE_KEY = b"state"
_OFFSET_HEADER = "journal-offset"
_PARSERS: Mapping[bytes, type[Signal] | type[EndpointState] | type[Command]] = {
    Signal.KIND.encode(): Signal,
    EndpointState.KIND.encode(): EndpointState,
    Command.KIND.encode(): Command,
}


class Journal:
    """The journal as a transactional producer: a second process with the same id fences the first.

    `fenced` False: plain confirmed writes, for the embedded broker, whose transactions neither fence nor pass a check of
    checksums; there is one responder there. Blocking; call from a thread. KafkaException on failure; after `_FENCED` this
    process must end.
    """

    def __init__(self, connection: KafkaConnection, *, fenced: bool) -> None:
        settings = kafka_settings(connection, "producer")
        settings |= {"message.timeout.ms": int(COMMIT_TIMEOUT_S * 1000), "linger.ms": 0}
        self._fenced = fenced
        self._failures: list[KafkaError] = []
        self.next_offset = 0
        if fenced:
            settings |= {"transactional.id": TRANSACTIONAL_ID, "transaction.timeout.ms": int(COMMIT_TIMEOUT_S * 1000)}
        self._producer = Producer(settings)
        if fenced:
            self._producer.init_transactions(30.0)

    def commit(self, entries: list[JournalEntry]) -> None:
        """Returns when all entries are committed, in order."""
        if self._fenced:
            self._producer.begin_transaction()
        for entry in entries:
            headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, JournalEntry.KIND.encode())]
            self._producer.produce(ACTIONS, entry.to_bytes(), b"journal", headers=headers, on_delivery=self._delivered)
        if self._fenced:
            self._commit_transaction()
        elif self._producer.flush(COMMIT_TIMEOUT_S) or self._failures:
            raise KafkaException(self._failures[0] if self._failures else KafkaError(KafkaError._TIMED_OUT))

    def _commit_transaction(self) -> None:
        try:
            self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                self._producer.abort_transaction(COMMIT_TIMEOUT_S)
            # What waits for its report holds this journal: a fenced one would knock at the broker until the process ends.
            self._producer.purge()
            self._producer.poll(0)
            raise

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.next_offset = max(self.next_offset, int(message.offset() or 0) + 1)
        else:
            self._failures.append(error)


@dataclass(slots=True)
class _Active:
    """What the active process holds."""

    state: RespondState
    journal: Journal
    saved_entry: int
    saved_at: float


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
    ) -> None:
        self._connection = connection
        self._webhooks = webhooks or WebhookResponder({})
        self._mandate = mandate
        self._key = signing_key
        self._operators = operators
        self._outbox = outbox
        self._metrics = metrics
        self._fenced = fenced
        self._active: _Active | None = None
        self._lock = asyncio.Lock()

    async def join(self, assigned: frozenset[TP]) -> None:
        """Takes over when the signals partition is ours. What is delivered again the journal tells."""
        if self._active is not None or not any(tp.topic == SIGNALS for tp in assigned):
            return
        async with self._lock:
            self._active = await asyncio.to_thread(self._take_over)
            self._webhooks.start()
            self._metrics.active.set(1)
            await self._publish(self._active, _now_ms())
        log.warning("respond is active: epoch %d, entry %d", self._active.state.epoch, self._active.state.entry)

    async def leave(self, revoked: frozenset[TP]) -> None:
        """Another process takes over: nothing more is decided here."""
        if any(tp.topic == SIGNALS for tp in revoked):
            async with self._lock:
                if self._active is not None:
                    await self._save_state(self._active)
                self._active = None
                await self._webhooks.stop()
                self._metrics.active.set(0)

    async def handle(self, run: Run) -> None:
        """One run: decided input by input, journaled once, then published."""
        records = Records(run.values, run.keys, run.headers, run.offsets, run.timestamps)
        with run:
            async with self._lock:
                active = self._active
                if active is None:
                    raise RuntimeError(f"{run.tp.topic} was read before this process took over")
                ranges = [
                    InputRange(topic=run.tp.topic, partition=run.tp.partition, first=run.first, last=run.next - 1)
                ]
                inputs, dead = self._inputs(active.state, run.tp, records)
                failed = await self._step(active, list(inputs.values()), ranges)
            for index, error in zip(inputs, failed, strict=True):
                if error is not None:
                    detail = f"{type(error).__name__}: {error}"
                    dead.append(dead_record(run.tp.topic, run.tp.partition, records, index, "handler_failed", detail))
            if dead:
                await asyncio.gather(*(self._send(record) for record in dead))

    async def timer(self) -> None:
        """Batches, expiries and re-sent directives, ten times a second until cancelled."""
        while True:
            await asyncio.sleep(TIMER_S)
            async with self._lock:
                if self._active is not None:
                    failed, *_ = await self._step(self._active, [Clock(), *self._deliveries()], [])
                    if failed is not None:  # no input to bury: time itself cannot be decided any more
                        raise failed
                    await self._save_when_due(self._active)

    async def _step(self, active: _Active, inputs: list[Input], ranges: list[InputRange]) -> list[Exception | None]:
        """Decides all of `inputs`, commits the journal, keeps the state, publishes. On failure nothing is kept.

        An input on which deciding raises is passed over: one signal must not keep the responder from all others. Says
        for each input what it raised.
        """
        state, now_ms = active.state, _now_ms()
        decisions: list[Decision] = []
        failed: list[Exception | None] = []
        for given in inputs:
            try:
                if not isinstance(given, Clock):
                    reach("deciding")
                state, decided = decide(state, given, now_ms, self._mandate)
            except MACHINE_ERRORS:
                raise
            except Exception as error:
                log.exception("deciding failed on %s", type(given).__name__)
                failed.append(error)
            else:
                decisions += decided
                failed.append(None)
        state, entries = journal.record(state, ranges, decisions, now_ms)
        if entries:
            await asyncio.to_thread(active.journal.commit, entries)
            reach("journaled")
        active.state = state
        await self._publish(active, _now_ms())
        self._tell(decisions)
        return failed

    async def _publish(self, active: _Active, now_ms: int) -> None:
        names = due(active.state, now_ms)
        for name in names:
            directive = directive_for(active.state, name, now_ms)
            value = directive.to_bytes()
            headers = ((KIND_HEADER, Directive.KIND.encode()), *self._key.headers(Directive.KIND, value))
            sent = self._send(Outgoing(DIRECTIVES, name.encode(), value, headers))
            sent.add_done_callback(_say_failure)
            if self._webhooks.lacks(name, directive.epoch):
                self._webhooks.want(message_for(active.state, name, now_ms))
        active.state = mark_sent(active.state, names, now_ms)

    def _deliveries(self) -> list[Input]:
        """What became of webhooks since the last call."""
        self._metrics.webhooks_failing.set(self._webhooks.failing())
        now_s = time.monotonic()
        return [
            Delivered(news.message.endpoint, news.kind, news.message.id, sentence(news, now_s))
            for news in self._webhooks.news()
        ]

    def _tell(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._metrics.decisions.labels(decision.kind, decision.outcome).inc()
            alert = alert_for(decision)
            if alert is not None:
                log.warning("%s", alert.line())

    def _inputs(self, state: RespondState, tp: TP, records: Records) -> tuple[dict[int, Input], list[Outgoing]]:
        """The inputs of a run that the journal does not answer yet, by number, and dead letters of those that are none."""
        inputs: dict[int, Input] = {}
        dead: list[Outgoing] = []
        for index, offset in enumerate(records.offsets):
            if state.has_applied(tp.topic, tp.partition, offset):
                continue
            reason, parsed = self._parse(tp, records, index)
            if parsed is not None:
                inputs[index] = parsed
            elif reason is not None:
                dead.append(dead_record(tp.topic, tp.partition, records, index, reason, ""))
        return inputs, dead

    def _parse(self, tp: TP, records: Records, index: int) -> tuple[DeadReason | None, Input | None]:
        value, headers = records.values[index], records.headers[index]
        kind = header_of(headers, KIND_HEADER) or b""
        model = _PARSERS.get(kind)
        if model is None or (model is Command) != (tp.topic == COMMANDS):
            return "unknown_kind", None
        if value is None:
            return "tombstone", None
        if model is Command:
            try:
                self._operators.verify(Command.KIND, value, headers)
            except SignatureRefused as refused:
                log.warning("a command was refused: %s", refused.reason)
                return ("unsigned_control" if refused.reason == "unsigned" else "bad_signature"), None
        try:
            return None, model.model_validate_json(value)
        except ValidationError:
            return "wrong_shape", None

    def _take_over(self) -> _Active:
        """Fences the old process, then reads state and journal to their ends. Blocking."""
        opened = Journal(self._connection, fenced=self._fenced)
        state, offset = self._saved_state()
        entries: list[JournalEntry] = []
        for message in read_to_end(self._connection, ACTIONS, 0, offset):
            opened.next_offset = int(message.offset() or 0) + 1
            try:
                entries.append(JournalEntry.from_bytes(message.value() or b""))
            except ValidationError:  # somebody else's: it must not keep the responder from starting
                log.error("%s[0] %d is no entry of the journal and is passed over", ACTIONS, message.offset())
        state = journal.replay(entries, state)
        state, entry = journal.takeover(state, _now_ms())
        opened.commit([entry])
        return _Active(state, opened, state.entry, time.monotonic())

    def _saved_state(self) -> tuple[RespondState, int]:
        """The state saved last and the journal offset to read on from; a fresh one if there is none that can be read."""
        message = read_newest(self._connection, RESPOND_STATE, 0).get(_STATE_KEY.decode())
        if message is None:
            return RespondState(), 0
        headers = dict(headers_of(message))
        try:
            state, offset = from_bytes(message.value() or b""), int(headers[_OFFSET_HEADER] or b"0")
            if not 0 <= offset < 2**63:
                raise StateRefused("no journal has the offset that it names")
            return state, offset
        except (StateRefused, KeyError, ValueError) as error:
            log.warning("the saved state cannot be used (%s): the journal is read from its start", error)
            return RespondState(), 0

    async def _save_when_due(self, active: _Active) -> None:
        aged = time.monotonic() - active.saved_at >= journal.SAVE_EVERY_MS / 1000
        grown = active.state.entry - active.saved_entry
        if grown >= journal.SAVE_EVERY_ENTRIES or (aged and grown > 0):
            await self._save_state(active)

    async def _save_state(self, active: _Active) -> None:
        try:
            value = to_bytes(active.state)
            headers = ((KIND_HEADER, b"respond_state"), (_OFFSET_HEADER, str(active.journal.next_offset).encode()))
            await self._send(Outgoing(RESPOND_STATE, _STATE_KEY, value, headers, 0))
        except (StateRefused, KafkaException, OutboxFull, OutboxClosed) as error:
            log.warning("the state was not saved (%s): a takeover reads more of the journal", error)
            return
        active.saved_entry, active.saved_at = active.state.entry, time.monotonic()

    def _send(self, record: Outgoing) -> asyncio.Future[Confirmed]:
        self._metrics.sent(record)
        return self._outbox().send(record.topic, record.key, record.value, record.headers, record.partition)


def _say_failure(sent: asyncio.Future[Confirmed]) -> None:
    """A directive that did not arrive is sent again within a second while it holds."""
    if not sent.cancelled() and sent.exception() is not None:
        log.warning("a directive was not confirmed: %s", sent.exception())


def _now_ms() -> int:
    return int(time.time() * 1000)
