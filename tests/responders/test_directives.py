"""What guards are told, under which epoch, for how long, and when it is said again."""

from __future__ import annotations

import pytest

from responders.decide import Clock
from responders.directives import (
    RELEASE_TTL_MS,
    RESEND_MS,
    WHOLE_STATE_MS,
    directive_for,
    due,
    mark_failed,
    mark_sent,
)
from responders.journal import takeover
from responders.state import from_bytes, to_bytes
from schemas.actions import MAX_TTL_MS, Directive
from tests.responders.given import T0, Responder, caller_signal, command, drifted, mandate, view

ACTION_MS = 600_000


@pytest.fixture
def responder() -> Responder:
    return Responder(mandate())


def send(responder: Responder) -> list[Directive]:
    """Sends what is due, as the role does."""
    names = due(responder.state, responder.now_ms)
    directives = [directive_for(responder.state, name, responder.now_ms) for name in names]
    responder.state = mark_sent(responder.state, names, responder.now_ms)
    return directives


def test_a_limit_is_told_at_once_with_what_is_left_of_its_life(responder: Responder) -> None:
    (decision,) = responder.take(caller_signal(usual_rate=50.0))
    responder.now_ms += 40

    (directive,) = send(responder)

    (limit,) = directive.limits
    assert (limit.caller, limit.rate_per_s, limit.ttl_ms) == ("bob", 5.0, ACTION_MS - 40)
    assert (directive.endpoint, directive.route, directive.mode) == ("a", "primary", "enforce")
    assert (directive.epoch, limit.action_id, directive.ttl_ms) == (decision.epoch, decision.action_id, ACTION_MS - 40)


def test_a_fallback_is_told_with_its_action(responder: Responder) -> None:
    (decision,) = responder.take(drifted())
    (directive,) = send(responder)

    assert (directive.route, directive.route_action_id, directive.probe_share) == ("fallback", decision.action_id, 0.05)


def test_a_directive_is_said_again_each_second_while_it_holds(responder: Responder) -> None:
    responder.take(caller_signal())
    send(responder)
    sent = []
    for _ in range(30):
        responder.now_ms += 100
        sent += send(responder)

    assert [directive.issued_ms - T0 for directive in sent] == [1_000, 2_000, 3_000]
    assert {directive.epoch for directive in sent} == {1}


def test_a_release_is_told_once_by_an_empty_directive_of_a_new_epoch(responder: Responder) -> None:
    responder.take(caller_signal())
    (first,) = send(responder)
    responder.take(caller_signal(state="recovered", seq=1))

    (last,) = send(responder)

    assert (last.route, last.limits, last.ttl_ms) == ("primary", [], RELEASE_TTL_MS)
    assert last.epoch > first.epoch
    responder.now_ms += WHOLE_STATE_MS - 1
    assert send(responder) == []


def test_where_nothing_holds_any_more_that_is_said_again_every_twenty_seconds(responder: Responder) -> None:
    responder.take(caller_signal())
    responder.take(caller_signal(state="recovered", seq=1))
    (first,) = send(responder)
    sent = []
    for _ in range(120):
        responder.now_ms += 1_000
        sent += send(responder)

    assert [directive.issued_ms - T0 for directive in sent] == [WHOLE_STATE_MS * n for n in range(1, 7)]
    assert {(directive.epoch, len(directive.limits)) for directive in sent} == {(first.epoch, 0)}


def test_a_release_that_kafka_did_not_take_is_said_again_after_a_second(responder: Responder) -> None:
    responder.take(caller_signal())
    (limit,) = send(responder)
    responder.take(caller_signal(state="recovered", seq=1))
    (release,) = send(responder)

    responder.state = mark_failed(responder.state, {"a": limit.epoch, "b": 9})
    responder.now_ms += RESEND_MS
    assert send(responder) == [], "what failed is the limit, which nobody wants any more"
    responder.state = mark_failed(responder.state, {"a": release.epoch})
    assert [directive.epoch for directive in send(responder)] == [release.epoch]
    responder.now_ms += RESEND_MS
    assert send(responder) == []


def test_an_action_that_expired_is_released_by_a_directive_too(responder: Responder) -> None:
    responder.take(caller_signal())
    send(responder)
    responder.later(ACTION_MS)

    (last,) = send(responder)

    assert last.limits == []


def test_no_route_outlives_its_own_action_for_the_sake_of_a_longer_limit(responder: Responder) -> None:
    responder.take(command("fallback", expires_ms=T0 + 20_000))
    responder.take(caller_signal())

    (directive,) = send(responder)

    assert directive.ttl_ms == 20_000
    assert directive.limits[0].ttl_ms == ACTION_MS


def test_each_renewal_has_a_new_epoch_because_a_deadline_never_moves_later_within_one(responder: Responder) -> None:
    responder.take(caller_signal())
    (first,) = send(responder)
    responder.later(ACTION_MS // 2)
    responder.take(view(at_ms=responder.now_ms, knocking={"bob": 500.0}))

    (second,) = send(responder)

    assert second.epoch > first.epoch
    assert second.ttl_ms == ACTION_MS


def test_the_newest_split_of_a_limit_is_told_in_the_same_epoch_with_the_same_deadline(responder: Responder) -> None:
    responder.take(caller_signal())
    (first,) = send(responder)
    responder.now_ms += 1_000
    responder.take(view(at_ms=responder.now_ms, guards_live=2, guard_shares={"g1": 0.7, "g2": 0.3}))

    (second,) = send(responder)

    assert (first.guard_shares, first.other_share) == ({}, 1.0)
    assert (second.guard_shares, second.other_share) == ({"g1": 0.7, "g2": 0.3}, pytest.approx(1 / 3))
    assert second.epoch == first.epoch
    assert second.limits[0].ttl_ms == first.limits[0].ttl_ms - 1_000


def test_live_guards_beyond_those_named_share_what_is_left(responder: Responder) -> None:
    responder.take(view(guards_live=80, guard_shares={f"g{n}": 0.01 for n in range(64)}))
    responder.take(caller_signal())

    (directive,) = send(responder)

    assert directive.other_share == pytest.approx(0.36 / 16)


def test_after_a_takeover_a_limit_is_split_evenly_until_guards_report(responder: Responder) -> None:
    responder.take(view(guards_live=4, guard_shares={"g1": 0.7, "g2": 0.1, "g3": 0.1, "g4": 0.1}))
    responder.take(caller_signal())
    responder.state, _ = takeover(from_bytes(to_bytes(responder.state)), T0 + 10)

    (directive,) = send(responder)

    assert (directive.guard_shares, directive.other_share) == ({}, 0.25)


def test_without_a_limit_nothing_is_split(responder: Responder) -> None:
    responder.take(view(guards_live=2, guard_shares={"g1": 0.7, "g2": 0.3}))
    responder.take(drifted())

    (directive,) = send(responder)

    assert (directive.guard_shares, directive.other_share) == ({}, 1.0)


def test_nothing_is_told_about_an_endpoint_that_only_observes() -> None:
    responder = Responder(mandate(mode="observe"))
    responder.take(caller_signal())
    responder.take(drifted())

    assert send(responder) == []
    assert directive_for(responder.state, "a", T0).limits == []
    assert directive_for(responder.state, "a", T0).route == "primary"


def test_an_endpoint_that_turns_to_observe_is_told_to_let_go(responder: Responder) -> None:
    responder.take(drifted())
    send(responder)
    responder.mandate = mandate(mode="observe")
    responder.take(Clock())

    assert [directive.route for directive in send(responder)] == ["primary"]


def test_after_a_takeover_what_holds_is_told_under_a_higher_epoch(responder: Responder) -> None:
    responder.take(caller_signal())
    responder.take(drifted("b"))
    before = {directive.endpoint: directive for directive in send(responder)}

    responder.state, _ = takeover(responder.state, T0 + 10)
    after = {directive.endpoint: directive for directive in send(responder)}

    assert set(after) == {"a", "b"}
    assert min(directive.epoch for directive in after.values()) > max(directive.epoch for directive in before.values())


def test_after_a_takeover_a_release_that_may_not_have_been_sent_is_sent(responder: Responder) -> None:
    responder.take(caller_signal())
    responder.take(caller_signal(state="recovered", seq=1))

    responder.state, _ = takeover(responder.state, T0 + 10)

    assert [directive.limits for directive in send(responder)] == [[]]


def test_no_directive_lives_longer_than_an_hour() -> None:
    responder = Responder(mandate(durations={"action_s": 3600}))
    responder.take(drifted())
    responder.now_ms -= 60_000  # the clock was set back

    (directive,) = send(responder)

    assert directive.ttl_ms == MAX_TTL_MS
