"""A lost journal: what still holds by the directives is kept, no longer and no wider, and epochs go on."""

from __future__ import annotations

import pytest

from responders.decide import Clock
from responders.directives import directive_for
from responders.journal import record, replay
from responders.recovery import adopt
from responders.state import RespondState
from schemas.actions import Directive
from tests.responders.given import T0, Responder, acts, brief, caller_signal, drifted, mandate

ACTION_MS = 600_000


@pytest.fixture
def before() -> Responder:
    """A limit on `a`, a fallback on `b`."""
    responder = Responder(mandate())
    responder.take(caller_signal())
    responder.take(drifted("b"))
    return responder


def directives(responder: Responder, at_ms: int = T0) -> list[Directive]:
    return [directive_for(responder.state, name, at_ms) for name in ("a", "b")]


def heir(given: list[Directive], now_ms: int = T0 + 5_000, **policy: object) -> Responder:
    """A responder that knows nothing but these."""
    responder = Responder(mandate(**policy), healthy=False)
    responder.now_ms = now_ms
    state, decisions = adopt(RespondState(), given, now_ms, responder.mandate)
    responder.state, responder.journal = record(state, [], decisions, now_ms)
    return responder


def test_actions_go_on_with_their_ids_and_expiries_above_every_epoch_that_was_sent(before: Responder) -> None:
    after = heir(directives(before))

    for endpoint, caller in (("a", "bob"), ("b", None)):
        was, now = before.state.action(endpoint, caller), after.state.action(endpoint, caller)
        assert was is not None
        assert now is not None
        assert (now.action_id, now.expires_ms, now.rate_per_s) == (was.action_id, was.expires_ms, was.rate_per_s)
        assert after.state.record(endpoint).epoch > before.state.epoch
    assert replay(after.journal, RespondState()).durable() == after.state.durable()


def test_people_are_told(before: Responder) -> None:
    decisions = heir(directives(before)).journal[-1].decisions

    assert brief(list(decisions))[-1] == ("notify", "journal_lost", "published")
    assert decisions[-1].detail == "2 actions are kept until they expire"


def test_they_end_by_their_expiry_and_not_before(before: Responder) -> None:
    after = heir(directives(before))

    assert acts(after.later(ACTION_MS - 10_000)) == []
    assert acts(after.later(10_000)) == [("unlimit", "expired", "published"), ("restore", "expired", "published")]


def test_a_caller_who_still_knocks_stays_limited(before: Responder) -> None:
    after = heir(directives(before))

    after.later(ACTION_MS // 2, knocking={"bob": 100.0})
    assert after.state.record("a").limits["bob"].expires_ms == after.now_ms + ACTION_MS


def test_of_several_directives_the_newest_counts_and_one_that_has_expired_orders_nothing(before: Responder) -> None:
    older = directives(before)
    before.take(caller_signal(state="recovered", seq=1))
    released = directives(before)

    assert "bob" not in heir([*released, *older]).state.record("a").limits
    late = heir(older, T0 + ACTION_MS)
    assert not late.state.endpoints
    assert late.state.epoch >= older[1].epoch


def test_where_nothing_was_ever_sent_nothing_was_lost() -> None:
    assert heir([]).journal == []


def test_who_only_observes_takes_nothing_over(before: Responder) -> None:
    after = heir(directives(before), mode="observe")

    after.take(Clock())
    assert not any(record.enforced for record in after.state.endpoints.values())
