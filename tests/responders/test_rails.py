"""Each rail: what it refuses, with its reason; and that none of them is an off-switch in an attacker's hand."""

from __future__ import annotations

import pytest

from responders import rails
from responders.decide import AWAIT_MS, BATCH_MS, Clock, wake_ms
from schemas.config import EndpointConfig
from schemas.ids import clean_id
from tests.responders.given import (
    ENDPOINTS,
    T0,
    Responder,
    acts,
    brief,
    caller_signal,
    command,
    drifted,
    failing,
    mandate,
    view,
)

MINUTE = 60_000


def refusal(kind: str, reason: str) -> list[tuple[str, str, str]]:
    """A rail's refusal, and people who are told of it."""
    return [(kind, reason, "refused"), ("notify", reason, "published")]


@pytest.fixture
def responder() -> Responder:
    return Responder(mandate())


def fleet(size: int, **changes: object) -> Responder:
    return Responder(mandate(*(EndpointConfig(name=f"e{number}") for number in range(size)), **changes))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("one_caller", "refused"), ("few_callers", "refused"), ("everybody", "published"), ("unclear", "published")],
)
def test_what_is_the_doing_of_named_callers_moves_no_whole_endpoint(
    responder: Responder, answer: str, kind: str
) -> None:
    shifted = drifted(evidence={"callers_moved": 9.0, "callers_present": 10.0, "attributed_to": answer})

    ((_, _, outcome),) = acts(responder.take(shifted))
    assert outcome == kind


def test_a_refusal_is_said_once_an_incident_until_it_changes(responder: Responder) -> None:
    responder.take(view(fallback_ok=False))

    assert brief(responder.take(failing())) == refusal("fallback", "fallback_not_healthy")
    assert responder.take(failing(state="updated", seq=1)) == []
    responder.take(view())
    assert acts(responder.take(failing(state="updated", seq=2))) == [("fallback", "endpoint_failing", "published")]


def test_a_fallback_that_live_guards_do_not_vouch_for_is_not_used(responder: Responder) -> None:
    for seq, seen in enumerate((view(fallback_ok=False), view(guards_live=0))):
        responder.take(seen)
        assert acts(responder.take(failing(incident_id=f"{seen.guards_live}", seq=seq))) == [
            ("fallback", "fallback_not_healthy", "refused")
        ]


@pytest.mark.parametrize("heard_ms", [None, T0 - 10_001])
def test_a_fallback_whose_guards_were_not_heard_lately_waits_for_their_report(heard_ms: int | None) -> None:
    responder = Responder(mandate(), healthy=False)
    if heard_ms is not None:
        responder.take(view(at_ms=heard_ms))

    assert responder.take(failing()) == []
    assert brief(responder.take(view(at_ms=T0 + 400))) == [("fallback", "endpoint_failing", "published")]


def test_guards_that_do_not_report_in_time_are_not_waited_for_any_longer() -> None:
    responder = Responder(mandate(), healthy=False)
    responder.take(failing())
    assert wake_ms(responder.state) == T0 + AWAIT_MS
    responder.now_ms += AWAIT_MS

    assert brief(responder.take(Clock())) == refusal("fallback", "fallback_not_healthy")
    assert wake_ms(responder.state) is None


def test_a_cause_that_ends_while_its_fallback_waits_leaves_nothing_behind() -> None:
    responder = Responder(mandate(), healthy=False)
    responder.take(failing())
    responder.take(failing(state="recovered", seq=1))

    assert responder.take(view()) == []


def test_a_claimed_caller_is_never_limited(responder: Responder) -> None:
    for auth in ("claimed", None):
        told = responder.take(caller_signal(f"victim-{auth}", caller_auth=auth))
        told += responder.later(BATCH_MS)
        assert brief(told) == refusal("limit", "caller_not_verified")


def test_an_allowlisted_caller_is_never_limited() -> None:
    responder = Responder(mandate(EndpointConfig(name="a", allowlist=("probe",))))

    assert brief(responder.take(caller_signal("probe"))) == refusal("limit", "caller_allowlisted")


@pytest.mark.parametrize("nobody", ["", "*", clean_id(""), clean_id("*"), "@all", "@other"])
def test_a_selector_that_names_nobody_or_everybody_is_refused(responder: Responder, nobody: str) -> None:
    assert brief(responder.take(caller_signal(nobody))) == refusal("limit", "empty_selector")


def test_a_limit_for_a_whole_endpoint_is_refused(responder: Responder) -> None:
    assert brief(responder.take(caller_signal("a", subject_kind="endpoint"))) == refusal("limit", "empty_selector")


def test_an_unknown_endpoint_is_refused(responder: Responder) -> None:
    assert brief(responder.take(failing("zz"))) == refusal("fallback", "unknown_endpoint")
    assert brief(responder.take(caller_signal(endpoint="zz"))) == refusal("limit", "unknown_endpoint")


def test_evidence_below_the_threshold_begins_nothing(responder: Responder) -> None:
    assert brief(responder.take(failing(score=1.9))) == refusal("fallback", "too_little_evidence")
    assert brief(responder.take(caller_signal(score=float("nan")))) == refusal("limit", "too_little_evidence")


def test_one_callers_evidence_moves_no_whole_endpoint(responder: Responder) -> None:
    assert brief(responder.take(failing(subject_kind="caller", subject="bob"))) == refusal(
        "fallback", "too_little_evidence"
    )


@pytest.mark.parametrize(("moved", "present"), [(1.03, 6.1), (3.6, 6.0), (9.0, 40.0), (1.0, 1.0)])
def test_a_shift_that_few_callers_bring_moves_no_whole_endpoint(
    responder: Responder, moved: float, present: float
) -> None:
    shifted = drifted(evidence={"callers_moved": moved, "callers_present": present})

    assert brief(responder.take(shifted)) == refusal("fallback", "few_callers")


@pytest.mark.parametrize(("moved", "present", "active"), [(5.0, 6.0, 10), (20.0, 80.0, 60), (95.0, 95.3, 150)])
def test_a_shift_of_most_callers_or_of_twenty_moves_the_endpoint(
    responder: Responder, moved: float, present: float, active: int
) -> None:
    responder.take(view("a", active_callers=active))
    shifted = drifted(evidence={"callers_moved": moved, "callers_present": present})

    assert acts(responder.take(shifted)) == [("fallback", "inputs_left_profile", "published")]


def test_an_adaptive_alarm_alone_moves_no_whole_endpoint() -> None:
    rules = [{"name": "eager", "when": {"kinds": ["adaptive_drift"]}, "then": "fallback"}]
    responder = Responder(mandate(rules=rules))

    assert brief(responder.take(drifted(kind="adaptive_drift"))) == refusal("fallback", "too_little_evidence")


def test_stale_evidence_begins_no_fallback_but_a_caller_is_limited_all_the_same(responder: Responder) -> None:
    stale = T0 - 61_000

    assert brief(responder.take(failing(at_ms=stale))) == refusal("fallback", "too_little_evidence")
    assert acts(responder.take(caller_signal(at_ms=stale))) == [("limit", "caller_out_of_pattern", "published")]


def test_at_most_a_fifth_of_the_endpoints_is_on_fallback() -> None:
    responder = fleet(10)
    responder.take(failing("e0"))
    responder.take(failing("e1"))
    responder.later(301_000)  # out of the window of a mass trip, still on fallback

    assert brief(responder.take(failing("e2", at_ms=responder.now_ms))) == refusal("fallback", "endpoint_cap")


def test_a_small_fleet_may_have_one_endpoint_on_fallback(responder: Responder) -> None:
    assert acts(responder.take(failing("a"))) == [("fallback", "endpoint_failing", "published")]
    assert brief(responder.take(failing("b"))) == refusal("fallback", "endpoint_cap")


def test_at_most_six_endpoints_a_minute_are_put_on_fallback() -> None:
    responder = fleet(100)
    taken = [brief(responder.take(failing(f"e{number}"))) for number in range(7)]

    assert taken[:6] == [[("fallback", "endpoint_failing", "published")]] * 6
    assert taken[6] == refusal("fallback", "endpoint_pace")
    responder.later(MINUTE)
    assert acts(responder.take(failing("e6", state="updated", seq=1, at_ms=responder.now_ms))) == [
        ("fallback", "endpoint_failing", "published")
    ]


def test_when_many_endpoints_trip_at_once_the_monitor_is_doubted() -> None:
    responder = fleet(9)
    taken = [brief(responder.take(failing(f"e{number}"))) for number in range(3)]

    assert taken[:2] == [[("fallback", "endpoint_failing", "published")], refusal("fallback", "endpoint_cap")]
    assert taken[2] == refusal("fallback", "mass_trip")


def test_weak_evidence_about_many_endpoints_is_no_mass_trip(responder: Responder) -> None:
    for endpoint in ENDPOINTS[1:]:
        responder.take(failing(endpoint, score=0.5))

    assert acts(responder.take(failing("a"))) == [("fallback", "endpoint_failing", "published")]


def test_a_mass_trip_ends_no_fallback_and_stops_no_limit_of_a_caller(responder: Responder) -> None:
    for endpoint in ENDPOINTS:
        responder.take(failing(endpoint))

    assert responder.state.record("a").route is not None
    assert acts(responder.take(caller_signal())) == [("limit", "caller_out_of_pattern", "published")]


def test_limits_stop_at_the_cap_of_callers_and_people_hear_of_it_once_a_minute(responder: Responder) -> None:
    for number in range(6):
        responder.take(caller_signal(f"c{number}", score=100.0 - number))
    together = responder.later(BATCH_MS)

    limited = [
        decision.caller for entry in responder.journal for decision in entry.decisions if decision.kind == "limit"
    ]
    assert limited == [f"c{number}" for number in range(6)]
    assert brief(together)[:2] == [("limit", "caller_out_of_pattern", "published")] * 2
    assert brief(together)[2:] == [*refusal("limit", "caller_cap"), *[("limit", "caller_cap", "refused")] * 2]
    assert len(responder.state.record("a").limits) == 3


def test_the_cap_of_callers_grows_with_the_active_ones(responder: Responder) -> None:
    responder.take(view(active_callers=100))
    for number in range(6):
        responder.take(caller_signal(f"c{number}"))
    responder.later(BATCH_MS, active_callers=100)

    assert len(responder.state.record("a").limits) == 5


def test_limits_stop_at_what_the_saved_state_can_hold(responder: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rails, "MAX_ALL_LIMITS", 1)
    responder.take(caller_signal(endpoint="a"))

    assert brief(responder.take(caller_signal(endpoint="b"))) == refusal("limit", "caller_cap")
    (decision,) = responder.take(command("limit", "b", "eve", rate_per_s=3.0))
    assert (decision.reason, decision.outcome) == ("caller_cap", "refused")


def test_a_restored_endpoint_is_left_alone_twice_as_long_each_time() -> None:
    responder = Responder(mandate(trips_before_hold=9))

    def trip(seq: int) -> list[tuple[str, str, str]]:
        return acts(responder.take(drifted(at_ms=responder.now_ms, state="opened", seq=seq)))

    assert trip(0) == [("fallback", "inputs_left_profile", "published")]
    responder.take(drifted(state="recovered", seq=1))
    responder.later(59_000)
    assert trip(2) == [("fallback", "cooling_down", "refused")]
    responder.later(1_000)
    assert trip(3) == [("fallback", "inputs_left_profile", "published")]
    responder.take(drifted(state="recovered", seq=4))
    responder.later(119_000)
    assert trip(5) == [("fallback", "cooling_down", "refused")]
    responder.later(1_000)
    assert trip(6) == [("fallback", "inputs_left_profile", "published")]


def test_a_caller_that_floods_again_right_after_its_release_is_limited_at_once(responder: Responder) -> None:
    assert acts(responder.take(caller_signal())) == [("limit", "caller_out_of_pattern", "published")]
    responder.take(caller_signal(state="recovered", seq=1))
    responder.later(1_000)
    assert acts(responder.take(caller_signal(seq=2))) == [("limit", "caller_out_of_pattern", "published")]


def test_callers_that_no_guard_speaks_of_do_not_move_an_endpoint(responder: Responder) -> None:
    crowd = drifted(evidence={"callers_moved": 200.0, "callers_present": 210.0})

    assert brief(responder.take(crowd)) == refusal("fallback", "few_callers")


def test_the_third_fallback_of_a_day_is_a_persons_to_decide(responder: Responder) -> None:
    for _ in range(2):
        assert acts(responder.take(drifted(at_ms=responder.now_ms)))[0][2] == "published"
        responder.take(drifted(state="recovered", seq=1))
        responder.later(10 * MINUTE)

    assert brief(responder.take(drifted(at_ms=responder.now_ms))) == refusal("fallback", "held_for_person")
    responder.later(24 * 60 * MINUTE)
    assert acts(responder.take(drifted(state="updated", seq=2, at_ms=responder.now_ms)))[0][2] == "published"


def test_the_third_trip_of_a_caller_protects_until_a_person_or_its_expiry(responder: Responder) -> None:
    for _ in range(3):
        responder.later(10 * MINUTE)
        assert acts(responder.take(caller_signal())) == [("limit", "caller_out_of_pattern", "published")]
        recovered = responder.take(caller_signal(state="recovered", seq=1))

    assert brief(recovered) == [("notify", "signal_recovered", "published"), *refusal("unlimit", "held_for_person")]
    assert responder.later(MINUTE) == []
    assert brief(responder.later(9 * MINUTE)) == [("unlimit", "expired", "published")]


@pytest.mark.parametrize("wait_ms", [MINUTE, 0], ids=["a minute later", "in the same millisecond"])
def test_a_release_that_is_held_again_after_a_renewal_is_a_decision_of_its_own(
    responder: Responder, wait_ms: int
) -> None:
    for _ in range(3):
        responder.later(10 * MINUTE)
        responder.take(caller_signal())
        responder.later(MINUTE)
        first = responder.take(caller_signal(state="recovered", seq=1))
    responder.later(wait_ms)
    responder.take(caller_signal(incident_id="another", signal_id="another"))
    again = responder.take(caller_signal(incident_id="another", signal_id="another-end", state="recovered", seq=1))

    held = [decision for decision in (*first, *again) if decision.kind == "unlimit"]
    assert [decision.reason for decision in held] == ["held_for_person", "held_for_person"]
    assert len({decision.action_id for decision in held}) == 2


def test_what_is_told_again_of_an_incident_that_is_over_has_no_effect(responder: Responder) -> None:
    told = [caller_signal(), caller_signal(state="updated", seq=1), caller_signal(state="recovered", seq=2)]
    other = [drifted(kind="concept_drift", severity="warning"), drifted(state="recovered", seq=1)]
    first = [decision for each in (*told, *other) for decision in responder.again(each)]
    assert {decision.kind for decision in first} == {"limit", "unlimit", "notify"}
    responder.later(1_000)

    assert [decision for each in (*told, *other) for decision in responder.again(each)] == []
    assert responder.state.record("a").limits == {}


def test_a_hold_for_a_person_ends_no_protection_that_is_active(responder: Responder) -> None:
    for _ in range(2):
        responder.take(drifted(at_ms=responder.now_ms))
        recovered = responder.take(drifted(state="recovered", seq=1))
        responder.later(10 * MINUTE)
    assert acts(recovered) == [("restore", "signal_recovered", "published")]
    responder.take(caller_signal())

    responder.take(drifted(at_ms=responder.now_ms))

    assert responder.state.record("a").limits["bob"].expires_ms == responder.now_ms + 10 * MINUTE
