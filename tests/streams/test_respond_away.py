"""Role respond while the journal's broker is away: nothing is decided, nothing is forgotten, and no process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.topics import ACTIONS, DEAD_LETTERS, DIRECTIVES, RESPOND_STATE
from streams import journal_log
from streams.embedded_broker import EmbeddedBroker
from tests.streams.responding import OURS, directives_on, journal_on, role_on, take_part, trouble

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
TOPICS = {ACTIONS: 1, RESPOND_STATE: 1, DIRECTIVES: 1, DEAD_LETTERS: 1}


@pytest.fixture
def broker(embedded_broker: Start, monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    monkeypatch.setattr(journal_log, "COMMIT_TIMEOUT_S", 0.5)
    return embedded_broker(TOPICS)


class Again:
    """Reads nothing again, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1


def decided(broker: EmbeddedBroker) -> list[tuple[str, str]]:
    return [
        (decision.kind, decision.endpoint) for entry in journal_on(broker.connection) for decision in entry.decisions
    ]


def test_what_was_not_journaled_is_decided_once_after_a_new_takeover(broker: EmbeddedBroker) -> None:
    again = Again()

    async def story() -> None:
        async with role_on(broker.connection, fenced=False, read_again=again) as role:
            await take_part(role)
            broker.down()
            run = trouble("a", first=0)
            await role.handle(run)
            assert (run.finished, run.failed, role.active, again.asked) == (False, False, False, 1)

            late = trouble("a", first=0)
            await role.handle(late)  # handed over before everything is read again
            assert (late.finished, late.failed, again.asked) == (False, False, 1)

            broker.up()
            await role.start_at({})
            assert role.active
            once_more = trouble("a", first=0)
            await role.handle(once_more)
            assert once_more.finished

    asyncio.run(story())
    assert [kind for kind, _ in decided(broker)].count("fallback") == 1
    entries = [entry.entry for entry in journal_on(broker.connection)]
    assert entries == list(range(1, len(entries) + 1))
    assert directives_on(broker.connection)[-1].route == "fallback"


def test_a_takeover_that_nobody_confirms_is_tried_again(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unconfirmed(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))

    async def story() -> None:
        async with role_on(broker.connection, fenced=False) as role:
            await role.join(OURS)
            with monkeypatch.context() as patch:
                patch.setattr(journal_log.Journal, "_commit", unconfirmed)
                with pytest.raises(TimeoutError):  # after which the transport asks again
                    await role.start_at({})
            assert not role.active
            await role.start_at({})
            assert role.active

    asyncio.run(story())


def test_a_responder_that_lost_its_partition_meanwhile_leaves_everything_to_the_next_one(
    broker: EmbeddedBroker,
) -> None:
    again = Again()

    async def story() -> None:
        async with role_on(broker.connection, fenced=False, read_again=again) as role:
            await take_part(role)
            broker.down()
            run = trouble("a", first=0)
            working = asyncio.ensure_future(role.handle(run))
            await asyncio.sleep(0)
            await role.lose(OURS)
            await working
            assert (run.finished, run.failed, role.active, again.asked) == (False, False, False, 0)
            broker.up()

    asyncio.run(story())
    assert decided(broker) == []


@pytest.mark.parametrize(
    ("became", "passes"),
    [
        ([], True),
        ([KafkaError(KafkaError._MSG_TIMED_OUT), KafkaError(KafkaError._PURGE_QUEUE)], True),
        ([KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)], False),
        ([KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)], False),
    ],
)
def test_a_transaction_that_must_be_aborted_is_judged_by_what_became_of_its_entries(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, became: list[KafkaError], passes: bool
) -> None:
    journal = journal_log.Journal(broker.connection, fenced=False)

    def aborted(*_: object) -> None:
        journal._failures += became
        raise KafkaException(KafkaError(KafkaError._INCONSISTENT, "1 message(s) failed", False, False, True))

    monkeypatch.setattr(journal, "_commit", aborted)
    with pytest.raises(journal_log.JournalAway if passes else KafkaException):
        journal.commit([])


def test_a_journal_that_refuses_for_good_ends_the_process(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    async def never() -> None:
        raise AssertionError("a refusal is not mended by reading again")

    async def story() -> None:
        async with role_on(broker.connection, fenced=False, read_again=never) as role:
            await take_part(role)
            assert role._active is not None
            monkeypatch.setattr(role._active.journal, "_commit", refuse)
            run = trouble("a", first=0)
            with pytest.raises(KafkaException):
                await role.handle(run)
            assert run.failed

    asyncio.run(story())
