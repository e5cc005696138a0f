"""People's words: they win until their own expiry, the rails hold for them too, and the kill switch stops everything."""

from __future__ import annotations

from typing import Any

import pytest

from responders.decide import Clock
from responders.directives import directive_for, due, mark_sent
from schemas.actions import KillSwitch
from schemas.config import EndpointConfig
from tests.responders.given import T0, Responder, acts, brief, caller_signal, command, drifted, failing, mandate, view

MINUTE = 60_000


@pytest.fixture
def responder() -> Responder:
    return Responder(mandate(EndpointConfig(name="a", allowlist=("probe",)), EndpointConfig(name="b")))


def refused(responder: Responder, kind: str, **changes: Any) -> str:
    (decision,) = responder.take(command(kind, **changes))
    assert decision.outcome == "refused"
    return decision.reason


def test_a_person_may_put_an_endpoint_on_fallback_and_restore_it(responder: Responder) -> None:
    (fallback,) = responder.take(command("fallback", reason="the model smells"))
    assert brief([fallback]) == [("fallback", "person_commanded", "published")]
    assert (fallback.actor, fallback.detail, fallback.expires_ms) == ("ana", "the model smells", T0 + 30 * MINUTE)

    assert brief(responder.take(command("restore"))) == [("restore", "person_commanded", "published")]
    assert responder.state.record("a").route is None


def test_a_persons_action_ends_at_its_own_expiry(responder: Responder) -> None:
    responder.take(command("fallback"))

    assert responder.later(30 * MINUTE - 1) == []
    assert brief(responder.later(1)) == [("restore", "expired", "published")]


def test_the_machine_ends_no_persons_action(responder: Responder) -> None:
    responder.take(drifted())
    responder.take(command("fallback"))

    assert brief(responder.take(drifted(state="updated", seq=1))) == [("fallback", "held_for_person", "observed")]
    assert acts(responder.take(drifted(state="recovered", seq=2))) == []
    assert responder.state.record("a").route is not None


def test_the_machine_only_proposes_while_a_person_holds_the_target(responder: Responder) -> None:
    responder.take(command("restore"))
    responder.take(command("unlimit", caller="bob"))

    assert brief(responder.take(drifted())) == [("fallback", "held_for_person", "observed")]
    assert brief(responder.take(caller_signal())) == [("limit", "held_for_person", "observed")]
    assert responder.take(drifted(state="updated", seq=1)) == []
    assert not responder.state.record("a").enforced
    assert acts(responder.take(caller_signal("eve"))) == []
    responder.later(30 * MINUTE)
    assert acts(responder.take(drifted(state="updated", seq=2, at_ms=responder.now_ms))) == [
        ("fallback", "inputs_left_profile", "published")
    ]


def test_a_person_releases_what_the_machine_did(responder: Responder) -> None:
    responder.take(caller_signal())

    assert brief(responder.take(command("unlimit", caller="bob"))) == [("unlimit", "person_commanded", "published")]
    assert brief(responder.take(caller_signal(state="updated", seq=1))) == []
    assert brief(responder.later(250)) == [("limit", "held_for_person", "observed")]


def test_a_persons_action_is_no_trip(responder: Responder) -> None:
    for seq in range(5):
        responder.take(command("fallback", command_id=f"f{seq}"))
        responder.take(command("restore", command_id=f"r{seq}", expires_ms=responder.now_ms + MINUTE))
        responder.later(MINUTE)

    assert acts(responder.take(drifted(at_ms=responder.now_ms))) == [("fallback", "inputs_left_profile", "published")]


def test_a_persons_limit_keeps_the_floor_and_the_longest_life(responder: Responder) -> None:
    (limit,) = responder.take(command("limit", caller="eve", rate_per_s=0.0, expires_ms=T0 + 5 * 60 * MINUTE))

    assert (limit.rate_per_s, limit.expires_ms) == (1.0, T0 + 60 * MINUTE)
    assert "60 min" in limit.detail
    assert "floor" in limit.detail


def test_a_rate_that_a_fallback_has_no_use_for_is_ignored(responder: Responder) -> None:
    (fallback,) = responder.take(command("fallback", rate_per_s=5.0))

    assert (fallback.outcome, fallback.rate_per_s) == ("published", None)


def test_a_limit_without_a_rate_is_what_the_machine_would_set(responder: Responder) -> None:
    responder.take(view(median_caller_rate=70.0))

    assert responder.take(command("limit", caller="eve"))[0].rate_per_s == 7.0


def test_a_limit_never_raises_one_that_holds(responder: Responder) -> None:
    responder.take(caller_signal(usual_rate=50.0))

    assert refused(responder, "limit", caller="bob", rate_per_s=6.0) == "would_widen"
    assert acts(responder.take(command("limit", caller="bob", rate_per_s=4.0))) == [
        ("limit", "person_commanded", "published")
    ]


def test_a_command_for_everybody_that_names_one_caller_is_refused(responder: Responder) -> None:
    assert refused(responder, "fallback", caller="bob") == "would_widen"
    assert refused(responder, "restore", caller="bob") == "would_widen"


def test_a_command_that_names_nobody_is_refused(responder: Responder) -> None:
    assert refused(responder, "fallback", endpoint=None) == "empty_selector"
    assert refused(responder, "fallback", endpoint="*") == "empty_selector"
    assert refused(responder, "limit", caller=None) == "empty_selector"
    assert refused(responder, "limit", caller="") == "empty_selector"


def test_a_command_is_refused_by_the_name_of_what_is_wrong(responder: Responder) -> None:
    assert refused(responder, "fallback", endpoint="zz") == "unknown_endpoint"
    assert refused(responder, "fallback", expires_ms=T0) == "command_expired"
    assert refused(responder, "unkill", endpoint=None, expires_ms=T0) == "command_expired"
    assert refused(responder, "notify") == "command_refused"
    assert refused(responder, "fallback", actor="palisade") == "command_refused"
    assert refused(responder, "limit", caller="bob", rate_per_s=float("nan")) == "command_refused"
    assert refused(responder, "limit", caller="bob", rate_per_s=-1.0) == "command_refused"
    assert refused(responder, "limit", caller="probe", rate_per_s=5.0) == "caller_allowlisted"


def test_a_fallback_that_guards_say_is_broken_is_refused_to_people_too(responder: Responder) -> None:
    responder.take(view(fallback_ok=False))
    assert refused(responder, "fallback") == "fallback_not_healthy"


def test_a_person_needs_no_report_to_use_the_fallback() -> None:
    responder = Responder(mandate(), healthy=False)

    assert acts(responder.take(command("fallback"))) == [("fallback", "person_commanded", "published")]


def test_in_observe_mode_a_command_is_only_observed() -> None:
    responder = Responder(mandate(mode="observe"))

    assert acts(responder.take(command("fallback"))) == [("fallback", "person_commanded", "observed")]


@pytest.mark.parametrize("given", [command("kill", endpoint=None), KillSwitch(kill=True, issued_ms=T0, actor="ana")])
def test_the_kill_switch_empties_every_directive_and_stops_new_actions(responder: Responder, given: object) -> None:
    responder.take(caller_signal())
    responder.take(failing("b"))
    before = {name: responder.state.record(name).epoch for name in "ab"}
    responder.state = mark_sent(responder.state, due(responder.state, T0), T0)

    assert brief(responder.take(given)) == [("kill", "person_commanded", "published")]  # type: ignore[arg-type]

    assert due(responder.state, T0) == ["a", "b"]
    for name in "ab":
        directive = directive_for(responder.state, name, T0)
        assert (directive.route, directive.limits) == ("primary", [])
        assert directive.epoch > before[name]
    assert acts(responder.take(failing("a"))) == [("fallback", "kill_switch", "refused")]
    assert acts(responder.take(caller_signal("eve")) + responder.later(250)) == [("limit", "kill_switch", "refused")]
    assert refused(responder, "limit", caller="bob") == "kill_switch"


def test_a_kill_is_obeyed_however_late_it_is_read(responder: Responder) -> None:
    assert acts(responder.take(command("kill", endpoint=None, expires_ms=T0 - 1))) == [
        ("kill", "person_commanded", "published")
    ]


def test_after_unkill_nothing_comes_back_without_fresh_evidence(responder: Responder) -> None:
    responder.take(failing())
    responder.take(command("kill", endpoint=None))
    responder.take(KillSwitch(kill=False, issued_ms=T0 + 1, actor="ana"))

    assert responder.take(Clock()) == []
    assert not responder.state.record("a").enforced
    assert acts(responder.take(failing(state="updated", seq=1))) == [("fallback", "endpoint_failing", "published")]
