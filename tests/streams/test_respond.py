"""Role respond: journal before acting, signed directives, refused commands, takeover; on both brokers."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import KafkaException

from responders import journal
from responders.state import RespondState, as_dict, to_bytes
from schemas.actions import JournalEntry
from schemas.deadletter import DeadLetter
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, RESPOND_STATE, SIGNALS
from streams import deciding, journal_log
from streams.journal_log import Journal
from streams.publishing import Publisher
from streams.reading import read_to_end
from streams.records import Outgoing
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection
from tests.responders.given import command, failing, view
from tests.streams.broker import produce
from tests.streams.responding import OURS, directives_on, journal_on, now, role_on, run_of, take_part, trouble


def persons(kind: str, endpoint: str = "a") -> object:
    at = now()
    return command(kind, endpoint, issued_ms=at, expires_ms=at + 600_000)


def test_a_failing_endpoint_is_journaled_and_then_told_its_fallback_in_a_signed_directive(
    embedded: KafkaConnection,
) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            run = trouble("a", first=0)
            await role.handle(run)
            assert run.finished

    asyncio.run(story())
    entries = journal_on(embedded)
    acted = [decision for entry in entries for decision in entry.decisions if decision.kind == "fallback"]
    assert [(decision.endpoint, decision.outcome) for decision in acted] == [("a", "published")]
    last = directives_on(embedded)[-1]
    assert (last.endpoint, last.route, last.mode) == ("a", "fallback", "enforce")
    assert last.route_action_id == acted[0].action_id


def test_what_a_journal_does_not_take_is_neither_kept_nor_told(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KafkaException("the journal is away")

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            assert role._active is not None
            active = role._active
            before = as_dict(active.state)
            monkeypatch.setattr(active.journal, "commit", refuse)
            run = trouble("a", first=0)
            with pytest.raises(KafkaException, match="away"):
                await role.handle(run)
            assert (run.finished, run.failed) == (False, True)
            assert as_dict(active.state) == before
            assert role._active is None  # the journal may have taken it: nothing is decided on this state any more

    asyncio.run(story())
    assert [directive for directive in directives_on(embedded) if directive.route == "fallback"] == []


def test_a_command_without_a_good_signature_is_a_dead_letter_and_is_not_obeyed(embedded: KafkaConnection) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            await role.handle(run_of(SIGNALS, (view("a", now()), False)))
            bad = [(persons("fallback"), False), (b'{"kind":"kill"}', True), (view("a", now()), False)]
            await role.handle(run_of(COMMANDS, *bad))  # type: ignore[arg-type]
            assert role._active is not None
            assert role._active.state.endpoints.get("a") is None or not role._active.state.endpoints["a"].route
            await role.handle(run_of(COMMANDS, (persons("fallback"), True), first=3))  # type: ignore[arg-type]

    asyncio.run(story())
    letters = [DeadLetter.from_bytes(m.value() or b"") for m in read_to_end(embedded, DEAD_LETTERS, 0)]
    assert [letter.reason for letter in letters] == ["unsigned_control", "wrong_shape", "unknown_kind"]
    assert directives_on(embedded)[-1].route == "fallback"


def test_an_input_that_cannot_be_decided_is_a_dead_letter_and_the_others_of_its_run_are_decided(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = deciding.decide

    def raising(state: RespondState, given: object, *more: object) -> object:
        if getattr(given, "endpoint", "") == "poison":
            raise ZeroDivisionError("planted")
        return decide(state, given, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(deciding, "decide", raising)

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            at = now()
            run = run_of(
                SIGNALS,
                (view("a", at), False),
                (failing("poison", at_ms=at, first_ms=at), False),
                (failing("a", at_ms=at, first_ms=at), False),
                first=5,
            )
            await role.handle(run)
            assert (run.finished, run.failed) == (True, False)

    asyncio.run(story())
    letters = [DeadLetter.from_bytes(m.value() or b"") for m in read_to_end(embedded, DEAD_LETTERS, 0)]
    assert [(letter.reason, letter.log_offset, letter.endpoint) for letter in letters] == [
        ("handler_failed", 6, "poison")
    ]
    assert directives_on(embedded)[-1].route == "fallback"


def test_what_the_journal_calls_answered_has_its_dead_letter_already(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    commit = Journal.commit

    def committing(self: Journal, entries: list[JournalEntry]) -> None:
        if any(answered.topic == SIGNALS for entry in entries for answered in entry.inputs):
            happened.append("journaled")
        commit(self, entries)

    def confirmed_late(_: Publisher, record: Outgoing) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        sent = loop.create_future()
        if record.topic == DEAD_LETTERS:
            sent.add_done_callback(lambda _: happened.append("letter"))
        loop.call_later(0.2, sent.set_result, None)
        return sent

    monkeypatch.setattr(Journal, "commit", committing)
    monkeypatch.setattr(Publisher, "send", confirmed_late)

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            at = now()
            failure = failing("a", at_ms=at, first_ms=at)
            await role.handle(run_of(SIGNALS, (view("a", at), False), (b"[", False), (failure, False)))

    asyncio.run(story())
    assert happened == ["letter", "journaled"], "a process that is killed between them loses none"


def test_runs_before_the_takeover_are_never_decided(embedded: KafkaConnection) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            with pytest.raises(RuntimeError, match="before this process took over"):
                await role.handle(trouble("a", first=0))

    asyncio.run(story())


def test_a_journal_with_foreign_records_can_still_be_taken_over(embedded: KafkaConnection) -> None:
    produce(embedded, ACTIONS, (b"x", b"rubbish", ()), (b"x", None, ()))

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            assert role._active is not None
            assert role._active.state.epoch == 1

    asyncio.run(story())


@pytest.mark.parametrize("offset", [b"-1", b"9" * 30, b"9" * 5_000, b"x", b"", b"\xff"])
def test_a_saved_state_that_names_no_offset_of_the_journal_is_not_used(
    embedded: KafkaConnection, offset: bytes
) -> None:
    saved = to_bytes(RespondState(epoch=7, entry=7))
    produce(embedded, RESPOND_STATE, (b"state", saved, [("journal-offset", offset)]))

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            assert role._active is not None
            assert role._active.state.epoch == (8 if offset == b"" else 1)  # an empty one is the start of the journal

    asyncio.run(story())


def check_takeover(connection: KafkaConnection, *, fenced: bool) -> None:
    """The second process continues the first one's journal: one epoch more, nothing lost, nothing doubled."""

    async def story() -> None:
        async with role_on(connection, fenced=fenced) as old, role_on(connection, fenced=fenced) as new:
            await take_part(old)
            await old.handle(trouble("a", first=0))
            assert old._active is not None
            await take_part(new)
            assert new._active is not None
            assert new._active.state.epoch > old._active.state.epoch
            assert new._active.state.endpoints["a"].route is not None
            if fenced:
                run = trouble("b", first=2)
                with pytest.raises(KafkaException):
                    await old.handle(run)
                assert run.failed

            await new.handle(trouble("a", first=0))  # delivered again: the journal says that it is answered
            await new.handle(trouble("b", first=2))
            held = as_dict(new._active.state)
            replayed = journal.replay(journal_on(connection), RespondState())
            assert {name: held[name] for name in ("epoch", "entry")} == {
                "epoch": replayed.epoch,
                "entry": replayed.entry,
            }
            assert {name for name, endpoint in replayed.endpoints.items() if endpoint.route is not None} == {"a", "b"}
            await new.leave(OURS)

    asyncio.run(story())
    entries = journal_on(connection)
    assert [entry.entry for entry in entries] == list(range(1, len(entries) + 1))
    fallbacks = [d.endpoint for entry in entries for d in entry.decisions if d.kind == "fallback"]
    assert fallbacks == ["a", "b"]
    epochs = [directive.epoch for directive in directives_on(connection) if directive.endpoint == "a"]
    assert epochs == sorted(epochs)


def test_a_second_responder_takes_over_and_nothing_is_lost_or_doubled(embedded: KafkaConnection) -> None:
    check_takeover(embedded, fenced=False)


@pytest.mark.kafka
def test_a_takeover_on_apache_kafka_fences_the_old_responder(real: KafkaConnection) -> None:
    check_takeover(real, fenced=True)


def test_state_saved_on_leaving_spares_the_next_one_the_old_journal(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reading = journal_log.read_to_end

    def counted(connection: KafkaConnection, topic: str, *more: int, **named: int) -> object:
        messages = list(reading(connection, topic, *more, **named))
        read.extend([len(messages)] * (topic == ACTIONS))
        return iter(messages)

    async def story() -> None:
        async with role_on(embedded, fenced=False) as first:
            await take_part(first)
            await first.handle(trouble("a", first=0))
            await first.leave(OURS | {TP(COMMANDS, 0)})
        monkeypatch.setattr(journal_log, "read_to_end", counted)
        async with role_on(embedded, fenced=False) as second:
            await take_part(second)
            assert second._active is not None
            assert second._active.state.endpoints["a"].route is not None

    asyncio.run(story())
    assert read == [0]
