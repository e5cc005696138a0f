"""Crowds of invented callers: they get nobody real limited, move no endpoint, and hide no offender."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.config import EndpointConfig
from schemas.signals import CallerShare, Signal
from tests.responders.given import Responder, caller_signal, drifted, mandate, view

REAL = tuple(f"real-{number}" for number in range(6))
ACTIVE = 20
THOROUGH = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CONTENT = ("feature_drift", "prediction_drift", "outliers", "odd_input", "caller_rate")


def responder() -> Responder:
    """In enforce mode by the shipped policy, at an endpoint of which signed reports name 20 callers."""
    found = Responder(mandate(EndpointConfig(name="a")), healthy=False)
    found.take(view("a", active_callers=ACTIVE))
    return found


def limited(found: Responder) -> set[str]:
    return {name for name, _ in found.state.record("a").actions() if name is not None}


def claimed(number: int, caller: str, kind: str, score: float, **changes: Any) -> Signal:
    """Of somebody whom the serving tier did not authenticate: the name is what the sender says it is."""
    return caller_signal(caller, incident_id=f"claimed-{number}", kind=kind, caller_auth="claimed", score=score, **changes)  # fmt: skip


@st.composite
def of_the_crowd(draw: st.DrawFn) -> dict[str, Any]:
    """What invented callers can bring about: signals about claimed names, among them real ones, and drift that names
    whomever they like."""
    invented = st.integers(0, 400).map(lambda number: f"made-up-{number}")
    names = draw(st.lists(st.sampled_from(REAL) | invented, min_size=1, max_size=5))
    return {
        "names": names,
        "kind": draw(st.sampled_from(CONTENT)),
        "score": draw(st.sampled_from((2.5, 10.0, 1e9))),
        "about_all": draw(st.booleans()),
        "answer": draw(st.sampled_from(("one_caller", "few_callers", "everybody", "unclear", None))),
        "moved": draw(st.sampled_from((1.0, 18.0, 400.0))),
        "wait_ms": draw(st.sampled_from((0, 0, 50, 300, 5_000))),
    }


def bring(found: Responder, number: int, what: dict[str, Any]) -> None:
    shares = [CallerShare(caller=name, caller_auth="claimed", share=1 / len(what["names"])) for name in what["names"]]
    evidence: dict[str, Any] = {"callers_moved": what["moved"], "callers_present": what["moved"] * 1.1}
    evidence |= {} if what["answer"] is None else {"attributed_to": what["answer"], "attributed_callers": what["names"]}
    if what["about_all"]:
        found.take(drifted("a", seq=number, shares=shares, evidence=evidence, score=what["score"], at_ms=found.now_ms))
    else:
        found.take(claimed(number, what["names"][0], what["kind"], what["score"], seq=number, at_ms=found.now_ms))
    if what["wait_ms"]:
        found.later(what["wait_ms"], active_callers=ACTIVE)


@THOROUGH
@given(st.lists(of_the_crowd(), max_size=60))
def test_whatever_a_crowd_of_invented_callers_brings_nobody_is_limited(crowd: list[dict[str, Any]]) -> None:
    found = responder()
    for number, what in enumerate(crowd):
        bring(found, number, what)
    found.later(300, active_callers=ACTIVE)

    assert limited(found) == set()


@pytest.mark.parametrize("kind", CONTENT)
def test_an_offender_is_limited_however_loud_a_crowd_of_claimed_callers_is(kind: str) -> None:
    """The crowd's signals have every place in the batch, and the highest scores."""
    found = responder()
    for number in range(700):
        found.take(claimed(number, f"made-up-{number}", kind, 1e9, at_ms=found.now_ms))
    found.take(caller_signal("mallory", "a", kind=kind, at_ms=found.now_ms))
    for number in range(700, 1_400):
        found.take(claimed(number, f"made-up-{number}", kind, 1e9, at_ms=found.now_ms))
    for _ in range(12):
        found.later(300, active_callers=ACTIVE)

    assert limited(found) == {"mallory"}


def test_more_callers_in_the_predictions_than_guards_know_of_move_no_endpoint() -> None:
    """Who writes predictions may invent verified callers: signed reports say how many there are."""
    found = responder()
    found.take(drifted("a", evidence={"callers_moved": 200.0, "callers_present": 210.0, "attributed_to": "everybody"}))

    assert found.state.record("a").route is None


def test_invented_verified_callers_are_limited_up_to_the_cap_and_no_real_one_with_them() -> None:
    found = responder()
    for number in range(40):
        found.take(caller_signal(f"made-up-{number}", "a", kind="odd_input", at_ms=found.now_ms))
        found.later(300, active_callers=ACTIVE)

    assert 0 < len(limited(found)) <= max(3, 0.05 * ACTIVE)
    assert not limited(found) & set(REAL)
