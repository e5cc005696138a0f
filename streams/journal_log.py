"""The responder's journal on Kafka, and how a process takes it over: fence the old one, read state and journal to their ends.

The saved state only spares a takeover the older entries: it is written outside of the journal's transactions, and one that
is older than it should be, cut, damaged or gone costs reading, never what is known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import ValidationError

from responders import journal
from responders.signing import Keyring
from responders.state import RespondState, from_bytes
from schemas.actions import Directive, JournalEntry
from schemas.errors import SignatureRefused, StateRefused
from schemas.roles import transactional_id_of
from schemas.topics import ACTIONS, DIRECTIVES, RESPOND_STATE
from schemas.wire import KIND_HEADER
from streams.reading import ends_of, read_to_end, tail
from streams.records import header_of, headers_of, listed
from streams.transport.seams import NOT_THERE
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

TRANSACTIONAL_ID = transactional_id_of("respond")
COMMIT_TIMEOUT_S = 10.0
STATE_KEY = b"state"
OFFSET_HEADER = "journal-offset"
STATES_READ = 4
"""Saved states that a takeover looks at, newest first in what they know: a process that was replaced may have written last."""

DIRECTIVES_READ = 10_000
"""Directives of each partition that are looked at where the journal is gone: what holds is sent again each second."""
_AWAY = frozenset(
    {KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}
)


class JournalAway(TimeoutError):
    """The broker did not confirm entries, which may or may not be there: only a new takeover knows where the journal ends."""


class Journal:
    """The journal as a transactional producer: a second process with the same id fences the first.

    `fenced` False: plain confirmed writes, for the embedded broker, whose transactions neither fence nor pass a check of
    checksums; there is one responder there. Blocking; call from a thread. JournalAway where time may mend it, after which
    this journal is of no use; any other failure is a KafkaException, and after `_FENCED` this process must end.
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
        try:
            self._commit(entries)
        except KafkaException as error:
            # What waits for its report holds this journal: a fenced one would knock at the broker until the process ends.
            self._producer.purge()
            with suppress(KafkaException):
                self._producer.flush(1.0)  # purge only asks the threads of the brokers to
            if self._may_pass(error.args[0]):
                raise JournalAway(error.args[0].str()) from error
            raise

    def _may_pass(self, error: KafkaError) -> bool:
        """A transaction that must be aborted says nothing of why: what became of its entries does."""
        causes = [error] if not error.txn_requires_abort() else self._failures[:1]
        return all(cause.retriable() or cause.code() in _AWAY for cause in causes)

    def _commit(self, entries: list[JournalEntry]) -> None:
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
                with suppress(KafkaException):  # else the next takeover aborts it
                    self._producer.abort_transaction(COMMIT_TIMEOUT_S)
            raise

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.next_offset = max(self.next_offset, int(message.offset() or 0) + 1)
        else:
            self._failures.append(error)


class TakenOver(NamedTuple):
    """What a takeover found. `lost`: the journal is empty, or ends before what the saved state knows of it."""

    state: RespondState
    journal: Journal
    lost: bool


def take_over(connection: KafkaConnection, *, fenced: bool) -> TakenOver:
    """Fences the old process, reads state and journal to their ends, and commits the entry that begins the next epoch.

    Blocking. Raises KafkaException, or TimeoutError (JournalAway) where nobody answers: nothing is lost, and it can be tried again.
    """
    opened = Journal(connection, fenced=fenced)
    state, offset = _saved_state(connection)
    end = ends_of(connection, [TopicPartition(ACTIONS, 0)]).get((ACTIONS, 0), offset)
    cut = end < offset
    if cut:
        log.error("%s ends at %d, before the %d of the saved state: all of it is read", ACTIONS, end, offset)
        offset = 0
    opened.next_offset = offset
    replayed = journal.replay(_entries(connection, opened, offset), state)
    for key in _begun_anew(connection, replayed):
        log.error("%s ends before what was answered of it: it begins anew, and all of it is read", key)
        replayed.applied.pop(key)
        replayed.waiting.pop(key, None)
    taken, entry = journal.takeover(replayed, int(time.time() * 1000))
    opened.commit([entry])
    return TakenOver(taken, opened, cut or not replayed.entry)


def standing_directives(connection: KafkaConnection, signed_by: Keyring) -> list[Directive]:
    """The last directives on Kafka that bear a signature of ours, oldest first in each partition. Blocking."""
    found = []
    for message in tail(connection, DIRECTIVES, DIRECTIVES_READ):
        value, headers = message.value() or b"", listed(message.headers())
        if header_of(headers, KIND_HEADER) == Directive.KIND.encode():
            try:
                signed_by.verify(Directive.KIND, value, headers)
                found.append(Directive.from_bytes(value))
            except (SignatureRefused, ValidationError):
                log.warning("%s holds a directive that is not ours: it is passed over", DIRECTIVES)
    return found


def _entries(connection: KafkaConnection, opened: Journal, offset: int) -> Iterator[JournalEntry]:
    for message in read_to_end(connection, ACTIONS, 0, offset):
        opened.next_offset = int(message.offset() or 0) + 1
        try:
            yield JournalEntry.from_bytes(message.value() or b"")
        except ValidationError:  # somebody else's: it must not keep the responder from starting
            log.error("%s[0] %d is no entry of the journal and is passed over", ACTIONS, message.offset())


def _saved_state(connection: KafkaConnection) -> tuple[RespondState, int]:
    """Of the states saved last the one that knows most, and the journal offset to read on from; a fresh one if there is none
    that can be read."""
    best = RespondState(), 0
    try:
        for message in read_to_end(connection, RESPOND_STATE, 0, last=STATES_READ):
            if message.key() == STATE_KEY:
                best = max(best, _read_state(message), key=lambda found: found[0].entry)
    except KafkaException as error:
        if error.args[0].code() not in NOT_THERE:
            raise
        log.error(
            "%s is gone: make it with `palisade topics create`; the journal is read from its start", RESPOND_STATE
        )
    return best


def _read_state(message: Message) -> tuple[RespondState, int]:
    headers = dict(headers_of(message))
    try:
        state, offset = from_bytes(message.value() or b""), int(headers[OFFSET_HEADER] or b"0")
        if not 0 <= offset < 2**63:
            raise StateRefused("no journal has the offset that it names")
        return state, offset
    except (StateRefused, KeyError, ValueError) as error:
        log.warning("a saved state cannot be used (%s): more of the journal is read", error)
        return RespondState(), 0


def _begun_anew(connection: KafkaConnection, state: RespondState) -> list[str]:
    """Logs of inputs that end before what was answered of them: deleted and made again, or cut."""
    places = {key: key.rpartition("/") for key in state.applied}
    ends = ends_of(connection, [TopicPartition(topic, int(number)) for topic, _, number in places.values()])
    return [
        key for key, (topic, _, number) in places.items() if ends.get((topic, int(number)), 2**63) <= state.applied[key]
    ]
