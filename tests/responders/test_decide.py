"""What is done about signals, and for which named reason; how long it holds; when it is let go."""

from __future__ import annotations

import pytest

from responders import decide as decide_module
from responders import desk as desk_module
from responders.alerts import alert_for
from responders.decide import BATCH_MS, Clock, Delivered, decide, wake_ms
from responders.mandate import Mandate
from responders.state import RespondState
from schemas.config import EndpointConfig, Rule, When
from tests.responders.given import (
    ENDPOINTS,
    SHIPPED,
    T0,
    Responder,
    acts,
    brief,
    caller_signal,
    command,
    drifted,
    failing,
    mandate,
    policy,
    signal,
    view,
)

ACTION_MS = 600_000


@pytest.fixture
def responder() -> Responder:
    return Responder(mandate())


def test_the_shipped_policy_observes() -> None:
    assert SHIPPED.read_text().count("mode: observe\n") == 1
    assert policy(mode="observe").mode == "observe"


def test_a_flooding_caller_is_limited_to_a_share_of_its_usual_rate(responder: Responder) -> None:
    (decision,) = responder.take(caller_signal(usual_rate=50.0))

    assert brief([decision]) == [("limit", "caller_out_of_pattern", "published")]
    assert (decision.caller, decision.rate_per_s, decision.expires_ms) == ("bob", 5.0, T0 + ACTION_MS)
    assert (decision.rule, decision.incident_id, decision.epoch) == ("flooding-caller", "rate-a-bob", 1)


def test_a_new_caller_is_measured_by_the_median_caller_of_its_endpoint(responder: Responder) -> None:
    responder.take(view(median_caller_rate=40.0))

    (decision,) = responder.take(caller_signal(usual_rate=None))

    assert decision.rate_per_s == 4.0


def test_no_limit_is_below_the_floor(responder: Responder) -> None:
    (decision,) = responder.take(caller_signal(usual_rate=0.01))

    assert decision.rate_per_s == 1.0


def test_critical_drift_is_answered_by_the_fallback(responder: Responder) -> None:
    assert brief(responder.take(drifted())) == [("fallback", "inputs_left_profile", "published")]


def test_outputs_that_left_the_profile_are_told_to_people_and_nothing_is_switched(responder: Responder) -> None:
    assert brief(responder.take(drifted(kind="prediction_drift"))) == [("notify", "told_people", "published")]


def test_a_person_may_have_outputs_that_left_the_profile_answered_by_the_fallback() -> None:
    when = When(kinds=("feature_drift", "prediction_drift"), subjects=("endpoint",), severity="critical")
    responder = Responder(mandate(rules=(Rule(name="drifted", when=when, then="fallback"), *policy().rules)))

    (decision,) = responder.take(drifted(kind="prediction_drift"))

    assert brief([decision]) == [("fallback", "outputs_left_profile", "published")]
    assert decision.rule == "drifted"


@pytest.mark.parametrize("kind", ["errors", "timeouts", "latency"])
def test_a_failing_endpoint_is_answered_by_the_fallback(responder: Responder, kind: str) -> None:
    assert brief(responder.take(failing(kind=kind))) == [("fallback", "endpoint_failing", "published")]


def test_drift_below_critical_is_told_to_people_once(responder: Responder) -> None:
    assert brief(responder.take(drifted(severity="warning"))) == [("notify", "told_people", "published")]
    assert responder.take(drifted(severity="warning", state="updated", seq=1)) == []


def test_drift_that_becomes_critical_is_acted_on(responder: Responder) -> None:
    responder.take(drifted(severity="warning"))

    assert brief(responder.take(drifted(state="updated", seq=1))) == [("fallback", "inputs_left_profile", "published")]


def test_a_signal_that_no_rule_matches_is_left_alone() -> None:
    rules = [{"name": "only-drift", "when": {"kinds": ["feature_drift"]}, "then": "notify"}]

    assert Responder(mandate(rules=rules)).take(caller_signal()) == []


def test_a_detector_that_does_not_know_moves_nothing(responder: Responder) -> None:
    assert responder.take(failing(state="unknown")) == []


def test_observe_mode_takes_the_same_path_but_for_the_last_step() -> None:
    observing, enforcing = Responder(mandate(mode="observe")), Responder(mandate())

    for given in (caller_signal(), failing(), caller_signal(state="recovered", seq=1)):
        seen, done = observing.take(given), enforcing.take(given)
        assert [(entry[0], entry[1]) for entry in brief(seen)] == [(entry[0], entry[1]) for entry in brief(done)]
        assert {decision.outcome for decision in seen if decision.kind != "notify"} == {"observed"}
        assert {decision.outcome for decision in done} == {"published"}


def test_an_endpoint_overrides_the_mode_of_the_policy() -> None:
    endpoints = [EndpointConfig(name="a", mode="enforce"), EndpointConfig(name="b")]
    responder = Responder(mandate(*endpoints, mode="observe"))

    assert brief(responder.take(caller_signal(endpoint="a"))) == [("limit", "caller_out_of_pattern", "published")]
    assert brief(responder.take(caller_signal(endpoint="b"))) == [("limit", "caller_out_of_pattern", "observed")]


def test_an_action_expires_without_fresh_evidence(responder: Responder) -> None:
    responder.take(caller_signal())

    assert responder.later(ACTION_MS - 1) == []
    assert brief(responder.later(1)) == [("unlimit", "expired", "published")]


def test_what_a_restarted_worker_tells_once_more_leads_to_nothing_more_after_the_action_has_expired(
    responder: Responder,
) -> None:
    told = (drifted(severity="warning"), drifted(state="updated", seq=1), caller_signal())
    first = [decision for given in told for decision in responder.take(given)]
    assert sorted(brief(responder.later(ACTION_MS))) == [
        ("restore", "expired", "published"),
        ("unlimit", "expired", "published"),
    ]

    assert [decision for given in told for decision in responder.again(responder.as_told(given))] == []
    new = responder.take(drifted(state="updated", seq=2, at_ms=responder.now_ms))
    assert ("fallback", "cooling_down", "refused") in brief(new)
    assert not {decision.action_id for decision in new} & {decision.action_id for decision in first}


def test_fresh_evidence_renews_an_action_under_its_own_id_and_a_new_epoch(responder: Responder) -> None:
    (first,) = responder.take(caller_signal())
    responder.later(ACTION_MS - 1_000)

    (renewed,) = responder.take(caller_signal(state="updated", seq=1, score=1.5))

    assert brief([renewed]) == [("limit", "evidence_renewed", "published")]
    assert renewed.action_id == first.action_id
    assert renewed.epoch > first.epoch
    assert renewed.expires_ms == responder.now_ms + ACTION_MS


def test_evidence_below_the_exit_threshold_renews_nothing(responder: Responder) -> None:
    responder.take(caller_signal())
    responder.later(ACTION_MS - 1_000)

    assert responder.take(caller_signal(state="updated", seq=1, score=0.9)) == []
    assert responder.take(caller_signal(state="updated", seq=2, score=1.5, evidence={"exit_threshold": 1.8})) == []


def test_renewals_are_journaled_only_when_they_add_a_tenth_of_a_life(responder: Responder) -> None:
    responder.take(caller_signal())
    renewals = []
    for second in range(120):
        responder.later(1_000)
        renewals += responder.take(caller_signal(state="updated", seq=second + 1))

    assert len(renewals) == 2


def test_a_limited_caller_who_still_knocks_stays_limited(responder: Responder) -> None:
    responder.take(caller_signal(usual_rate=20.0))
    responder.later(ACTION_MS - 1_000)

    assert responder.take(view(at_ms=responder.now_ms, knocking={"bob": 2.0, "eve": 900.0})) == []
    renewed = responder.take(view(at_ms=responder.now_ms, knocking={"bob": 2.5}))
    assert brief(renewed) == [("limit", "evidence_renewed", "published")]


def test_recovery_releases_and_tells_people(responder: Responder) -> None:
    responder.take(caller_signal())

    released = responder.take(caller_signal(state="recovered", seq=1))

    assert brief(released) == [
        ("notify", "signal_recovered", "published"),
        ("unlimit", "signal_recovered", "published"),
    ]


def test_an_action_that_two_incidents_hold_outlives_the_first(responder: Responder) -> None:
    responder.take(drifted())
    assert brief(responder.take(failing())) == [("fallback", "evidence_renewed", "published")]

    assert acts(responder.take(failing(state="recovered", seq=1))) == []
    assert acts(responder.take(drifted(state="recovered", seq=1))) == [("restore", "signal_recovered", "published")]


def test_a_failing_endpoint_is_restored_after_ten_good_probes(responder: Responder) -> None:
    responder.take(failing())

    assert acts(responder.take(failing(state="recovered", seq=1))) == [("restore", "too_little_evidence", "refused")]
    assert responder.later(1_000, good_probes=9) == []
    assert brief(responder.later(1_000, good_probes=10)) == [("restore", "signal_recovered", "published")]


def test_a_drifted_endpoint_is_restored_without_probes(responder: Responder) -> None:
    responder.take(drifted())

    assert acts(responder.take(drifted(state="recovered", seq=1))) == [("restore", "signal_recovered", "published")]


def test_the_first_caller_signal_is_decided_at_once_and_the_next_ones_together(responder: Responder) -> None:
    assert len(responder.take(caller_signal("c0"))) == 1
    assert responder.take(caller_signal("c1", score=3.0)) == []
    assert responder.take(caller_signal("c2", score=90.0)) == []
    assert len(responder.take(caller_signal("c3", endpoint="b"))) == 1
    assert wake_ms(responder.state) == T0 + BATCH_MS

    together = responder.later(BATCH_MS)

    assert [decision.caller for decision in together] == ["c2", "c1"]


def test_where_too_many_wait_the_weakest_is_left_to_its_next_update(
    responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide_module, "MAX_WAITING", 2)
    for number, score in enumerate((9.0, 3.0, 8.0, 7.0)):
        responder.take(caller_signal(f"c{number}", score=score))

    assert [decision.caller for decision in responder.later(BATCH_MS)] == ["c2", "c3"]


def test_what_one_call_cannot_hold_is_decided_by_the_next(
    responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "MAX_DECISIONS", 2)
    for number in range(4):
        responder.take(caller_signal(f"c{number}", score=9.0 - number))
    responder.now_ms += BATCH_MS
    responder.take(view(at_ms=responder.now_ms, active_callers=100))
    assert set(responder.state.record("a").limits) == {"c0", "c1", "c2"}
    responder.now_ms += BATCH_MS
    responder.take(Clock())
    assert set(responder.state.record("a").limits) == {"c0", "c1", "c2", "c3"}

    responder.now_ms += ACTION_MS

    assert [len(responder.take(Clock())) for _ in range(3)] == [2, 2, 0]


def test_a_second_incident_of_a_limited_caller_holds_the_same_limit(responder: Responder) -> None:
    (first,) = responder.take(caller_signal())
    assert responder.take(caller_signal(incident_id="other", seq=7)) == []

    (joined,) = responder.later(BATCH_MS)

    assert (joined.reason, joined.action_id) == ("evidence_renewed", first.action_id)
    assert acts(responder.take(caller_signal(state="recovered", seq=1))) == []
    assert acts(responder.take(caller_signal(incident_id="other", state="recovered", seq=8))) == [
        ("unlimit", "signal_recovered", "published")
    ]


def test_an_incident_that_holds_a_limit_is_not_queued_twice(responder: Responder) -> None:
    responder.take(caller_signal("c0"))
    responder.take(caller_signal("c1"))
    responder.take(caller_signal("c1", state="updated", seq=1))

    assert [decision.caller for decision in responder.later(BATCH_MS)] == ["c1"]


def test_a_caller_that_recovers_while_it_waits_is_not_limited(responder: Responder) -> None:
    responder.take(caller_signal("c0"))
    responder.take(caller_signal("c1"))

    assert responder.take(caller_signal("c1", state="recovered", seq=1)) == []
    assert responder.later(BATCH_MS) == []


def test_nothing_waits_where_nothing_holds() -> None:
    assert wake_ms(RespondState()) is None


def test_an_endpoint_that_turns_to_observe_lets_go_of_what_it_enforced() -> None:
    responder = Responder(mandate())
    responder.take(caller_signal())
    responder.mandate = mandate(mode="observe")

    assert brief(responder.take(Clock())) == [("unlimit", "configuration_changed", "observed")]


def test_an_endpoint_that_left_the_configuration_is_let_go() -> None:
    responder = Responder(mandate())
    responder.take(failing())
    responder.mandate = mandate(EndpointConfig(name="b"))

    assert brief(responder.take(Clock())) == [("restore", "configuration_changed", "published")]


def test_equal_inputs_at_equal_moments_give_equal_decisions_and_ids() -> None:
    def run() -> list[str]:
        responder = Responder(mandate())
        for given in (
            caller_signal(),
            failing(),
            drifted(endpoint="b"),
            command("limit", caller="eve", rate_per_s=3.0),
        ):
            responder.take(given)
        responder.later(700_000)
        return [entry.to_bytes().decode() for entry in responder.journal]

    assert run() == run()


def test_decide_never_changes_the_state_it_is_given(responder: Responder) -> None:
    responder.take(caller_signal())
    before = responder.state.copy()

    decide(responder.state, caller_signal(state="recovered", seq=1), T0 + 5, responder.mandate)
    decide(responder.state, failing(), T0 + 5, responder.mandate)
    decide(responder.state, command("kill", endpoint=None), T0 + 5, responder.mandate)

    assert responder.state == before


def test_the_policy_is_named_with_its_hash_on_every_decision(responder: Responder) -> None:
    decisions = responder.take(caller_signal()) + responder.take(signal("silence", kind="silence"))

    assert {(decision.policy, decision.policy_hash) for decision in decisions} == {
        ("default", responder.mandate.policy_hash)
    }
    assert Mandate.of(policy(trips_before_hold=9), []).policy_hash != responder.mandate.policy_hash


def test_an_unconfigured_endpoint_is_told_but_not_kept(responder: Responder) -> None:
    unknown = signal("unknown", kind="unknown_endpoint", endpoint="zz", subject="zz")

    assert brief(responder.take(unknown)) == [("notify", "told_people", "published")]
    responder.take(view("zz"))
    assert set(responder.state.seen.views) == set(ENDPOINTS)


def test_what_became_of_a_webhook_is_told_and_changes_nothing_that_is_wanted() -> None:
    responder = Responder(mandate())
    responder.take(failing("a"))
    before = responder.state.durable()

    (told,) = responder.take(Delivered("a", "webhook_failing", "message", "epoch 2: timeout"))

    assert brief([told]) == [("notify", "webhook_failing", "published")]
    assert told.epoch == before.epoch
    assert responder.state.endpoints == before.endpoints
    assert alert_for(told) is not None
