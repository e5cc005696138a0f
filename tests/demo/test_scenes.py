"""Planted faults: what a scene must not pass with."""

import json
from dataclasses import replace

import pytest

from palisade.demo.load import Answer
from palisade.demo.scenes import (
    Expected,
    Scene,
    SeenAction,
    SeenSignal,
    Target,
    actions_in,
    judge_scene,
    signal_in,
    stray_actions,
)
from palisade.demo.tap import Record

FLOOD = Scene("flood", Expected("limit", "flights-lga", "US@LGA", 6.0), 100.0, 110.0, 120.0)
DRIFT = Scene("broken pipeline", Expected("fallback", "flights-jfk", None, 6.0), 200.0, 210.0, 220.0)


def calls(endpoint: str, caller: str, start: float, end: float, served_by: str = "primary", **more) -> list[Answer]:
    status = 429 if served_by == "refused" else 200
    times = [start + step / 10 for step in range(round((end - start) * 10))]
    return [Answer(at, at + 0.005, endpoint, caller, status, served_by, "", **more) for at in times]


def flood_answers() -> list[Answer]:
    return [
        *calls("flights-lga", "US@LGA", 100.2, 101, hostile=True),
        *calls("flights-lga", "US@LGA", 101, 110, "refused", hostile=True),
        *calls("flights-lga", "US@LGA", 110, 120),
        *calls("flights-lga", "DL@LGA", 100, 120),
    ]


FLOOD_SIGNAL = SeenSignal(100.6, "opened", "caller_rate", "flights-lga", "US@LGA", "critical")
LIMIT = SeenAction(100.7, "limit", "flights-lga", "US@LGA", "caller_out_of_pattern", "published", "palisade")
UNLIMIT = LIMIT._replace(at_s=112.0, kind="unlimit", reason="signal_recovered")


def drift_answers(own_cause: str = "") -> list[Answer]:
    return [
        *calls("flights-jfk", "B6@JFK", 200, 201.5, hostile=True),
        *calls("flights-jfk", "B6@JFK", 201.5, 210, "fallback", hostile=True, cause=own_cause),
        *calls("flights-jfk", "B6@JFK", 210, 212, "fallback", cause=own_cause),
        *calls("flights-jfk", "B6@JFK", 212, 220),
        *calls("flights-ewr", "UA@EWR", 200, 220),
    ]


DRIFT_SIGNAL = SeenSignal(201.0, "opened", "feature_drift", "flights-jfk", "flights-jfk", "critical")
FALLBACK = SeenAction(201.2, "fallback", "flights-jfk", None, "inputs_left_profile", "published", "palisade")
RESTORE = FALLBACK._replace(at_s=211.5, kind="restore", reason="signal_recovered")


def test_a_flood_that_was_limited_and_released_passes():
    result = judge_scene(FLOOD, flood_answers(), [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert result.problems == ()
    assert result.first_event_s == pytest.approx(100.2)
    moments = (result.signal_s, result.action_s, result.enforced_s)
    assert [result.since_first_event(moment) for moment in moments] == [0.4, 0.5, 0.805]
    assert result.released


def test_a_broken_pipeline_that_fell_back_and_was_restored_passes():
    result = judge_scene(DRIFT, drift_answers(), [DRIFT_SIGNAL], [FALLBACK, RESTORE])

    assert result.problems == ()
    assert result.released_s == pytest.approx(212)


def test_an_innocent_caller_that_was_refused_is_found():
    answers = [*flood_answers(), *calls("flights-lga", "DL@LGA", 105, 105.1, "refused")]
    result = judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert result.innocents == (Target("limit", "flights-lga", "DL@LGA"),)
    assert not result.passed


def test_the_right_caller_refused_at_another_endpoint_is_found():
    answers = [*flood_answers(), *calls("flights-ewr", "US@LGA", 105, 105.1, "refused")]
    result = judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert result.wrong == (Target("limit", "flights-ewr", "US@LGA"),)


def test_another_endpoint_on_fallback_is_found():
    answers = [*drift_answers(), *calls("flights-ewr", "UA@EWR", 205, 205.1, "fallback")]
    result = judge_scene(DRIFT, answers, [DRIFT_SIGNAL], [FALLBACK, RESTORE])

    assert result.wrong == (Target("fallback", "flights-ewr", None),)


def test_a_wrong_action_that_no_client_met_is_found_in_the_journal():
    wrong = FALLBACK._replace(at_s=105.0)
    result = judge_scene(FLOOD, flood_answers(), [FLOOD_SIGNAL], [LIMIT, wrong, UNLIMIT])

    assert result.wrong == (Target("fallback", "flights-jfk", None),)
    assert result.innocents == ()


def test_alerts_refusals_and_observations_are_no_actions():
    quiet = [LIMIT._replace(kind="notify"), FALLBACK._replace(outcome="refused"), FALLBACK._replace(outcome="observed")]
    result = judge_scene(FLOOD, flood_answers(), [FLOOD_SIGNAL], [LIMIT, UNLIMIT, *quiet])

    assert result.passed


def test_a_late_release_is_found():
    answers = [
        *flood_answers(),
        *calls("flights-lga", "US@LGA", 119, 119.1, "refused"),
        *calls("flights-lga", "US@LGA", 119.5, 119.9),
    ]
    result = judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert not result.released
    assert "released 9.1 s after its cause ended" in result.problems


def test_an_early_release_is_found():
    answers = [*calls("flights-lga", "US@LGA", 100, 101, "refused"), *calls("flights-lga", "US@LGA", 101, 120)]
    result = judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert "released 9.0 s before its cause ended" in result.problems


def test_a_caller_that_is_never_answered_again_is_not_released():
    answers = calls("flights-lga", "US@LGA", 100, 120, "refused", hostile=True)

    assert "not released" in judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT]).problems


def test_a_release_that_only_the_clients_saw_is_not_enough():
    result = judge_scene(FLOOD, flood_answers(), [FLOOD_SIGNAL], [LIMIT])

    assert result.problems == ("the journal never took the action back",)
    assert not result.released


def test_an_action_that_only_the_journal_saw_is_not_enough():
    answers = calls("flights-lga", "US@LGA", 100, 120, hostile=True)
    result = judge_scene(FLOOD, answers, [FLOOD_SIGNAL], [LIMIT, UNLIMIT])

    assert result.problems == ("no call met the action",)


def test_fallback_answers_that_a_process_gave_by_itself_are_no_enforcement():
    result = judge_scene(DRIFT, drift_answers("timeout"), [DRIFT_SIGNAL], [FALLBACK, RESTORE])

    assert result.enforced_s is None


def test_an_answer_that_came_late_after_the_release_is_not_the_action_again():
    late = calls("flights-jfk", "B6@JFK", 218, 218.1, "fallback", cause="timeout")
    result = judge_scene(DRIFT, [*drift_answers(), *late], [DRIFT_SIGNAL], [FALLBACK, RESTORE])

    assert result.released_s == pytest.approx(212)


def test_a_directive_met_again_after_the_release_is():
    again = [Answer(219.99, 219.995, "flights-jfk", "B6@JFK", 200, "fallback", "")]
    result = judge_scene(DRIFT, [*drift_answers(), *again], [DRIFT_SIGNAL], [FALLBACK, RESTORE])

    assert result.released_s is None


def test_the_first_call_that_met_a_hanging_model_is_its_first_event():
    answers = [replace_hostile(answer) for answer in drift_answers()]
    late = replace(DRIFT, cause_set_s=200.65)

    assert judge_scene(late, answers, [], []).first_event_s == pytest.approx(200.7)


def replace_hostile(answer: Answer) -> Answer:
    return answer._replace(hostile=False)


def test_a_signal_about_somebody_else_or_of_another_time_is_not_the_scenes_signal():
    others = [
        FLOOD_SIGNAL._replace(subject="DL@LGA"),
        FLOOD_SIGNAL._replace(endpoint="flights-jfk"),
        FLOOD_SIGNAL._replace(at_s=99.0),
        FLOOD_SIGNAL._replace(state="recovered"),
    ]

    assert "no signal" in judge_scene(FLOOD, flood_answers(), others, [LIMIT, UNLIMIT]).problems


def test_an_action_outside_all_scenes_is_stray():
    between = calls("flights-ewr", "UA@EWR", 150, 150.1, "refused")
    answers = [*flood_answers(), *between, *drift_answers()]

    assert stray_actions([FLOOD, DRIFT], [*flood_answers(), *drift_answers()], [LIMIT, UNLIMIT, FALLBACK]) == ()
    assert stray_actions([FLOOD, DRIFT], answers, [FALLBACK._replace(at_s=160)]) == (
        Target("fallback", "flights-jfk", None),
        Target("limit", "flights-ewr", "UA@EWR"),
    )


def test_signals_and_decisions_are_read_off_their_records():
    signal = {
        "signal_id": "s", "incident_id": "s", "state": "opened", "seq": 0, "detector": "traffic", "detector_hash": "h",
        "kind": "caller_rate", "endpoint": "flights-lga", "subject_kind": "caller", "subject": "US@LGA",
        "severity": "critical", "score": 1.0, "threshold": 1.0, "first_ms": 1, "at_ms": 1,
        "log_topic": "palisade.reports", "log_partition": 0, "log_offset": 1,
    }  # fmt: skip
    decision = {
        "action_id": "a", "kind": "limit", "endpoint": "flights-lga", "caller": "US@LGA", "reason": LIMIT.reason,
        "policy": "default", "policy_hash": "h", "mode": "enforce", "epoch": 1, "issued_ms": 1, "outcome": "published",
    }  # fmt: skip
    entry = {"entry": 0, "epoch": 1, "now_ms": 1, "inputs": [], "decisions": [decision]}

    def record(kind: bytes, content: object) -> Record:
        return Record("t", 0, 0, LIMIT.at_s, 0.0, {"palisade-kind": kind}, json.dumps(content).encode())

    assert signal_in(record(b"signal", signal)) == FLOOD_SIGNAL._replace(at_s=LIMIT.at_s)
    assert actions_in(record(b"action", entry)) == [LIMIT]
    assert signal_in(record(b"endpoint_state", {})) is None
    assert actions_in(record(b"tick", {})) == []
