"""What the responder raises on, in any step, stops no response to anything else; what is done is on record first."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from responders import decide as deciding_rules
from responders.decide import Clock
from responders.state import RespondState
from schemas.actions import Decision
from schemas.deadletter import DeadLetter
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, DIRECTIVES, RESPOND_STATE, SIGNALS
from streams import deciding, publishing, respond
from streams.deciding import Decider
from streams.embedded_broker import EmbeddedBroker
from streams.metrics import Metrics
from streams.reading import read_to_end
from streams.transport.settings import KafkaConnection
from tests.responders.given import T0, caller_signal, command, failing, mandate, view
from tests.streams.responding import OURS, directives_on, journal_on, now, role_on, run_of, take_part, trouble

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
TOPICS = {ACTIONS: 1, RESPOND_STATE: 1, DIRECTIVES: 1, DEAD_LETTERS: 1, SIGNALS: 1}


@pytest.fixture
def embedded(embedded_broker: Start) -> KafkaConnection:
    return embedded_broker(TOPICS).connection


def raising(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Callable[..., bool], most: int = -1) -> None:
    """The function raises where `when` says so of what it is given, at most so many times."""
    function, times = getattr(module, name), 0

    def broken(*given: Any, **named: Any) -> Any:
        nonlocal times
        if times != most and when(*given):
            times += 1
            raise ZeroDivisionError("planted")
        return function(*given, **named)

    monkeypatch.setattr(module, name, broken)


def letters_on(connection: KafkaConnection) -> list[DeadLetter]:
    return [DeadLetter.from_bytes(m.value() or b"") for m in read_to_end(connection, DEAD_LETTERS, 0)]


def routes_on(connection: KafkaConnection) -> dict[str, str]:
    return {directive.endpoint: directive.route for directive in directives_on(connection)}


def test_an_error_of_deciding_that_does_not_come_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, deciding, "decide", lambda state, given, *_: not isinstance(given, Clock), most=1)
    given = [view("a", T0), failing("a", at_ms=T0, first_ms=T0)]
    decided = Decider(mandate(), Metrics("respond")).decide(RespondState(), given, T0)

    assert decided.failed == [None, None]
    assert [decision.kind for decision in decided.decisions] == ["fallback"]


def test_a_decision_that_cannot_be_written_is_passed_over_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = deciding.decide

    def odd(state: RespondState, given: Any, *rest: Any) -> tuple[RespondState, list[Decision]]:
        after, decisions = decide(state, given, *rest)
        if getattr(given, "endpoint", "") == "b":
            decisions = [each.model_copy(update={"detail": "\ud800"}) for each in decisions]
        return after, decisions

    monkeypatch.setattr(deciding, "decide", odd)
    given = [each for name in "abc" for each in (view(name, T0), failing(name, at_ms=T0, first_ms=T0))]
    metrics = Metrics("respond")
    wide = mandate(caps={"endpoints_share": 1.0, "endpoints_min": 5})
    decided = Decider(wide, metrics).decide(RespondState(), given, T0)

    assert [type(error).__name__ for error in decided.failed if error] == ["PydanticSerializationError"]
    assert [decision.endpoint for decision in decided.decisions] == ["a", "c"]
    assert decided.state.endpoints.keys() == {"a", "c"}
    assert metrics.handler_failures.labels("deciding")._value.get() == 1


def test_what_waits_for_an_endpoint_and_raises_when_its_time_comes_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decider, given = Decider(mandate(), Metrics("respond")), []
    for name in "ab":
        given += [view(name, T0, callers_active=100), caller_signal("x", name, at_ms=T0), caller_signal("y", name, at_ms=T0)]  # fmt: skip
    decided = decider.decide(RespondState(), given, T0)
    assert decided.state.seen.waiting.keys() == {"a", "b"}
    raising(monkeypatch, deciding_rules, "_limit", lambda desk, signal: signal.endpoint == "a")
    later = decider.decide(decided.state, [Clock(), caller_signal("z", "b", at_ms=T0 + 300)], T0 + 300)

    assert later.failed == [None, None]
    assert {decision.endpoint for decision in later.decisions} == {"b"}
    assert "a" not in later.state.seen.waiting
    assert later.state.seen.undecided() == decider.decide(later.state, [Clock()], T0 + 301).state.seen.undecided()


def test_an_endpoint_whose_state_raises_when_time_passes_is_left_out_and_the_others_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics("respond")
    decider = Decider(mandate(caps={"endpoints_share": 1.0, "endpoints_min": 5}), metrics)
    given = [each for name in "ab" for each in (view(name, T0), failing(name, at_ms=T0, first_ms=T0))]
    state = decider.decide(RespondState(), given, T0).state
    raising(monkeypatch, deciding_rules, "_settle", lambda desk, endpoint: endpoint == "a")
    at = T0 + 3_700_000
    later = decider.decide(state, [Clock(), failing("a", at_ms=at, first_ms=at), view("b", at)], at)

    assert [type(error).__name__ for error in later.failed] == ["NoneType", "ZeroDivisionError", "NoneType"]
    assert [(decision.endpoint, decision.kind, decision.reason) for decision in later.decisions] == [
        ("b", "restore", "expired")
    ]
    assert metrics.registry.get_sample_value("palisade_respond_stuck_endpoints") == 1


def test_time_that_cannot_pass_for_anybody_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, deciding_rules, "_open_batches", lambda *_: True)
    with pytest.raises(ZeroDivisionError):
        Decider(mandate(), Metrics("respond")).decide(RespondState(), [Clock()], T0)


def test_a_record_on_which_reading_raises_is_a_dead_letter_and_the_next_one_is_obeyed(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = now()
    poison, good = (command("fallback", name, issued_ms=at, expires_ms=at + 600_000) for name in "ba")

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            verify = role._operators.verify

            def broken(kind: str, value: bytes, headers: Any) -> None:
                if value == poison.to_bytes():
                    raise ZeroDivisionError("planted")
                verify(kind, value, headers)

            monkeypatch.setattr(role._operators, "verify", broken)
            await role.handle(run_of(SIGNALS, (view("a", at), False), (view("b", at), False)))
            run = run_of(COMMANDS, (poison, True), (good, True))
            await role.handle(run)
            assert (run.finished, run.failed) == (True, False)

    asyncio.run(story())
    (letter,) = letters_on(embedded)
    assert (letter.reason, letter.log_topic, letter.log_offset) == ("handler_failed", COMMANDS, 0)
    assert letter.detail.startswith("reading: ZeroDivisionError: planted; at test_respond_poison.py:")
    assert base64.b64decode(letter.head) == poison.to_bytes()
    assert routes_on(embedded) == {"a": "fallback"}


@pytest.mark.parametrize("step", ["directive_for", "message_for", "alert_for"])
def test_a_step_that_raises_for_one_endpoint_leaves_the_others_their_directives(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def of_a(given: Any, *rest: Any) -> bool:
        return (rest[0] if rest else given.endpoint) == "a"

    raising(monkeypatch, publishing, step, of_a)
    monkeypatch.setattr("responders.webhook_responder.WebhookResponder.lacks", lambda *_: True)

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            for first, name in enumerate("ab"):
                run = trouble(name, first=2 * first)
                await role.handle(run)
                assert (run.finished, run.failed) == (True, False)

    asyncio.run(story())
    acted = {one.endpoint for entry in journal_on(embedded) for one in entry.decisions if one.kind == "fallback"}
    assert acted == {"a", "b"}
    assert routes_on(embedded) == {"b": "fallback"} | ({} if step == "directive_for" else {"a": "fallback"})
    assert letters_on(embedded) == []


def test_after_a_failure_behind_the_journals_commit_nothing_is_decided_on_the_state_before_it(
    embedded: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(point: str) -> None:
        if point == "journaled":
            raise ZeroDivisionError("planted")

    async def story() -> None:
        async with role_on(embedded, fenced=False) as role:
            await take_part(role)
            monkeypatch.setattr(respond, "reach", raises)
            with pytest.raises(ZeroDivisionError):
                await role.handle(trouble("a", first=0))
            monkeypatch.setattr(respond, "reach", lambda point: None)
            turning = asyncio.ensure_future(role.timer())
            with pytest.raises(RuntimeError, match="before this process took over"):
                await role.handle(trouble("b", first=2))
            await role.leave(OURS)
            turning.cancel()
        async with role_on(embedded, fenced=False) as successor:
            await take_part(successor)

    asyncio.run(story())
    entries = [entry.entry for entry in journal_on(embedded)]
    assert entries == list(range(1, len(entries) + 1))
    assert list(read_to_end(embedded, RESPOND_STATE, 0)) == []
    assert routes_on(embedded) == {"a": "fallback"}
