"""Role respond between two processes: what waits is not forgotten, what was replaced does nothing more, what is gone is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import pytest
from confluent_kafka import KafkaException

from responders.delivery import Answer
from responders.webhook_responder import WebhookResponder
from schemas.signals import Signal
from schemas.topics import COMMANDS, RESPOND_STATE, SIGNALS
from streams import journal_log, publishing, respond
from streams.embedded_broker import EmbeddedBroker
from streams.respond import RespondRole
from streams.transport.run import TP, Run
from streams.transport.settings import KafkaConnection
from tests.responders.given import caller_signal, command, view
from tests.streams.broker import produce
from tests.streams.responding import OURS, directives_on, journal_on, now, role_on, run_of, take_part, trouble
from tests.streams.test_respond_webhooks import HOOK
from tests.support.kafka import RealKafka

AT = TP(SIGNALS, 0)


def floods(caller: str) -> tuple[Signal, bool]:
    at = now()
    return caller_signal(caller, incident_id=caller, signal_id=caller, first_ms=at, at_ms=at), False


def two_floods() -> Run:
    """Offset 0: the guards report. The caller of offset 1 is limited at once, that of 2 with those of the next moment."""
    return run_of(SIGNALS, (view("a", now()), False), floods("bob"), floods("eve"))


def limited(connection: KafkaConnection) -> list[str | None]:
    return [d.caller for entry in journal_on(connection) for d in entry.decisions if d.kind == "limit"]


async def tick(role: RespondRole, until: Callable[[], bool]) -> None:
    """Time passes until something holds."""
    ticking = asyncio.create_task(role.timer())
    try:
        async with asyncio.timeout(20):
            while not until():
                assert not ticking.done(), ticking.exception()
                await asyncio.sleep(0.02)
    finally:
        ticking.cancel()


def test_a_signal_that_waits_holds_back_the_commit_and_is_decided_once_by_whoever_takes_over(
    embedded: KafkaConnection,
) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as killed, role_on(embedded, fenced=False) as heir:
            await take_part(killed)
            await killed.handle(two_floods())
            assert await asyncio.to_thread(limited, embedded) == ["bob"]
            assert killed.kept() == {AT: 2}, "what waits is delivered again if this process dies now"

            await take_part(heir)
            assert heir._active is not None
            order = command("fallback", "b", issued_ms=now(), expires_ms=now() + 600_000)
            await heir.handle(run_of(COMMANDS, (order, True)))  # an entry that is made before the signals are back
            await heir.handle(two_floods())
            await tick(heir, lambda: heir.kept() == {})
            assert await asyncio.to_thread(limited, embedded) == ["bob", "eve"]

        async with role_on(embedded, fenced=False) as third:
            await take_part(third)
            await third.handle(two_floods())
            assert third.kept() == {}
            assert await asyncio.to_thread(limited, embedded) == ["bob", "eve"]

    asyncio.run(story())


def test_a_commit_passes_what_waited_only_once_its_decision_is_in_the_journal(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            await role.handle(two_floods())
            assert role._active is not None
            commit = role._active.journal.commit
            kept: list[Mapping[TP, int]] = []

            def watched(entries: object) -> None:
                kept.append(role.kept())
                commit(entries)  # type: ignore[arg-type]

            monkeypatch.setattr(role._active.journal, "commit", watched)
            await tick(role, lambda: role.kept() == {})
            assert kept == [{AT: 2}]

    asyncio.run(story())


def test_a_commit_does_not_pass_what_waits_while_the_journal_is_away(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Mapping[TP, int]] = []

    def away(_: object) -> None:
        raise journal_log.JournalAway("the test's")

    async def story() -> None:
        async def read_again() -> None:  # begins with a commit of all that is done
            kept.append(role.kept())

        async with role_on(embedded, fenced=False, read_again=read_again) as role:
            await take_part(role)
            await role.handle(two_floods())
            assert role._active is not None
            monkeypatch.setattr(role._active.journal, "commit", away)
            await tick(role, lambda: kept)
            assert kept[0] == {AT: 2}
            await role.start_at({})
            assert role.kept() == {}
            await role.handle(two_floods())
            await tick(role, lambda: role.kept() == {})
            assert await asyncio.to_thread(limited, embedded) == ["bob", "eve"]

    asyncio.run(story())


@pytest.mark.kafka
def test_a_process_that_stood_still_while_another_took_over_does_nothing_more(real: KafkaConnection) -> None:
    async def story() -> None:
        sent: list[bytes] = []

        async def post(to: object, headers: object, body: bytes, deadline_s: float, now_s: float) -> Answer:
            sent.append(body)
            return Answer(status=500)

        webhooks = WebhookResponder({"a": HOOK}, post, draw=lambda: 0.0)
        async with role_on(real, fenced=True, webhooks=webhooks) as old, role_on(real, fenced=True) as new:
            await take_part(old)
            await old.handle(trouble("a", first=0))
            old._lease.end()  # as after a SIGSTOP of seconds
            await take_part(new)
            before = (
                sent.copy(),
                await asyncio.to_thread(journal_on, real),
                await asyncio.to_thread(directives_on, real),
            )
            webhooks._changed["a"].set()
            with pytest.raises(KafkaException):
                await asyncio.wait_for(old.timer(), 20)
            await old.lose(OURS)
            assert before == (
                sent,
                await asyncio.to_thread(journal_on, real),
                await asyncio.to_thread(directives_on, real),
            )

    asyncio.run(story())


@pytest.mark.kafka
def test_a_process_that_stood_still_and_was_not_replaced_goes_on_under_the_next_epoch(real: KafkaConnection) -> None:
    async def story() -> None:
        async with role_on(real, fenced=True) as role:
            await take_part(role)
            await role.handle(two_floods())
            assert role._active is not None
            epoch = role._active.state.epoch
            role._lease.end()
            await tick(role, lambda: role._active is not None and role._active.state.epoch > epoch + 1)
            assert await asyncio.to_thread(limited, real) == ["bob", "eve"], "what waited is decided all the same"

    asyncio.run(story())
    epochs = [directive.epoch for directive in directives_on(real)]
    assert epochs == sorted(epochs)


def test_who_lost_its_session_writes_no_state(embedded: KafkaConnection) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            await role.handle(trouble("a", first=0))
            await role.lose(OURS)
            with pytest.raises(RuntimeError, match="before this process took over"):
                await role.handle(trouble("b", first=2))

    asyncio.run(story())
    assert list(journal_log.read_to_end(embedded, RESPOND_STATE, 0)) == []


def test_a_state_of_a_process_that_was_replaced_is_no_step_back(embedded: KafkaConnection) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as first:
            await take_part(first)
            await first.leave(OURS)
        (stale,) = journal_log.read_to_end(embedded, RESPOND_STATE, 0)
        async with role_on(embedded, fenced=False) as second:
            await take_part(second)
            await second.handle(trouble("a", first=0))
            await second.leave(OURS)
        produce(embedded, RESPOND_STATE, (stale.key() or b"", stale.value(), stale.headers() or []))
        async with role_on(embedded, fenced=False) as third:
            await take_part(third)
            assert third._active is not None
            assert (third._active.state.epoch, third._active.state.entry) == (4, 4)
            assert third._active.state.record("a").route is not None

    asyncio.run(story())


@pytest.mark.kafka
def test_without_the_topic_of_states_the_journal_is_enough_and_nobody_waits_for_it(
    real: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = "palisade.respond_state.gone"
    longer_than_deciding_may_take = 1_000 * (int(journal_log.COMMIT_TIMEOUT_S) + 2)
    extra = {**real.extra, "topic.metadata.propagation.max.ms": longer_than_deciding_may_take}
    impatient = real.model_copy(update={"extra": extra})
    monkeypatch.setattr(publishing, "RESPOND_STATE", gone)
    monkeypatch.setattr(journal_log, "RESPOND_STATE", gone)
    monkeypatch.setattr(respond.journal, "SAVE_EVERY_ENTRIES", 1)

    async def story() -> None:
        async with role_on(impatient, fenced=True) as first:
            await take_part(first)
            await first.handle(trouble("a", first=0))
            await tick(first, lambda: first._active is not None and first._active.saved_entry > 1)
            began = time.monotonic()
            await first.handle(trouble("b", first=2))
            assert time.monotonic() - began < journal_log.COMMIT_TIMEOUT_S, "deciding waited for the save"
            await first.lose(OURS)
        async with role_on(impatient, fenced=True) as second:
            await take_part(second)
            assert second._active is not None
            assert {n for n, e in second._active.state.endpoints.items() if e.route is not None} == {"a", "b"}

    asyncio.run(story())


def test_signals_that_begin_anew_are_decided_although_their_offsets_were_answered_before(
    embedded: KafkaConnection, embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker]
) -> None:
    async def story() -> None:
        async with role_on(embedded, fenced=False) as first:
            await take_part(first)
            await first.handle(trouble("a", first=500))
            await first.lose(OURS)
        async with role_on(embedded, fenced=False) as second:  # the log ends at 20
            await take_part(second)
            await second.handle(trouble("b", first=5))
            assert second._active is not None
            assert second._active.state.record("b").route is not None

    asyncio.run(story())


def check_a_lost_journal(connection: KafkaConnection, journal_gone: Callable[[], None]) -> None:
    """What the directives order is kept to its end, under a higher epoch, and a caller who is limited stays so."""

    async def story() -> None:
        async with role_on(connection, fenced=True) as first:
            await take_part(first)
            await first.handle(two_floods())
            await first.handle(trouble("b", first=3))
            await tick(first, lambda: first.kept() == {})
            await first.lose(OURS)
        before = {each.endpoint: each for each in await asyncio.to_thread(directives_on, connection)}
        journal_gone()
        async with role_on(connection, fenced=True) as second:
            await take_part(second)
            assert second._active is not None
            state = second._active.state
            assert {caller: action.action_id for caller, action in state.record("a").limits.items()} == {
                limit.caller: limit.action_id for limit in before["a"].limits
            }
            assert state.action("b", None) is not None
            await tick(second, lambda: second._active is not None and len(second._active.state.seen.sent) == 2)
            assert len(state.record("a").limits) == 2, "nothing is released as recovered"
            await second.lose(OURS)
        entries = await asyncio.to_thread(journal_on, connection)
        told = [(d.kind, d.reason) for entry in entries for d in entry.decisions if d.kind == "notify"]
        assert told == [("notify", "journal_lost")]
        after = {each.endpoint: each for each in await asyncio.to_thread(directives_on, connection)}
        for name, directive in after.items():
            assert directive.epoch > before[name].epoch
            assert directive.issued_ms + directive.ttl_ms <= before[name].issued_ms + before[name].ttl_ms

    asyncio.run(story())


@pytest.mark.kafka
def test_where_journal_and_state_are_gone_what_the_directives_order_is_kept(
    real: KafkaConnection, kafka: RealKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        for name in ("ACTIONS", "RESPOND_STATE"):
            topic = kafka.unique(name.lower())
            kafka.create_topics({topic: 1})
            for module in (publishing, journal_log):
                monkeypatch.setattr(module, name, topic, raising=False)

    check_a_lost_journal(real, gone)
