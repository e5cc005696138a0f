"""The rails over random streams of inputs; and that the checker sees it when a rail is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from responders import commands, decide, rails
from responders.decide import Clock, Input
from responders.directives import due, mark_sent
from responders.journal import replay, takeover
from responders.mandate import Mandate
from responders.state import RespondState, from_bytes, to_bytes
from schemas.actions import JournalEntry, KillSwitch
from schemas.config import EndpointConfig
from tests.responders.given import T0, Responder, caller_signal, command, drifted, failing, mandate, view
from tests.responders.invariants import Watch

NAMES = ("a", "b", "c", "d")
CALLERS = ("c0", "c1", "c2", "c3", "c4", "probe", "")
Make = Callable[[int, int], Input]
"""An input, of a number that no other input of its stream has and of the moment."""

THOROUGH = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def fleet() -> Mandate:
    endpoints = [EndpointConfig(name=name, allowlist=("probe",)) for name in NAMES[:3]]
    return mandate(*endpoints, EndpointConfig(name="d", mode="observe"), durations={"action_s": 30, "cool_down_s": 5})


@st.composite
def signals(draw: st.DrawFn) -> Make:
    name = draw(st.sampled_from((*NAMES, "zz")))
    state = draw(st.sampled_from(("opened", "updated", "updated", "recovered")))
    score = draw(st.sampled_from((10.0, 10.0, 1.5, 0.5)))
    if draw(st.booleans()):
        caller, auth = draw(st.sampled_from(CALLERS)), draw(st.sampled_from(("verified", "verified", "claimed")))
        usual = draw(st.sampled_from((None, 0.1, 20.0, 500.0)))
        return lambda number, now: caller_signal(
            caller, name, state=state, seq=number, score=score, caller_auth=auth, usual_rate=usual, at_ms=now
        )
    about = draw(st.sampled_from((failing, drifted)))
    severity = draw(st.sampled_from(("critical", "critical", "warning")))
    return lambda number, now: about(name, state=state, seq=number, score=score, severity=severity, at_ms=now)


@st.composite
def views(draw: st.DrawFn) -> Make:
    name, healthy = draw(st.sampled_from(NAMES)), draw(st.sampled_from((True, True, True, False)))
    active, probes = draw(st.sampled_from((0, 10, 100))), draw(st.sampled_from((0, 10)))
    knocking = draw(st.dictionaries(st.sampled_from(CALLERS[:5]), st.sampled_from((0.5, 100.0)), max_size=2))
    return lambda _, now: view(name, now, knocking, fallback_ok=healthy, active_callers=active, good_probes=probes)


@st.composite
def words(draw: st.DrawFn) -> Make:
    kind = draw(st.sampled_from(("fallback", "restore", "limit", "unlimit", "limit", "kill", "unkill", "notify")))
    name = draw(st.sampled_from((*NAMES, "zz", None)))
    caller = draw(st.sampled_from((*CALLERS, None))) if kind in ("limit", "unlimit", "fallback") else None
    rate, life = draw(st.sampled_from((None, 0.0, 3.0, 50.0))), draw(st.sampled_from((-1, 5_000, 8_000_000)))
    if draw(st.integers(0, 9)) == 0:
        return lambda number, _: KillSwitch(kill=kind == "kill", issued_ms=number, actor="ana")
    return lambda number, now: command(
        kind, name, caller, command_id=f"w{number}", rate_per_s=rate, issued_ms=now, expires_ms=now + life
    )


TICK = st.just(lambda _number, _now: Clock())
STEPS = st.tuples(
    st.sampled_from((0, 0, 50, 250, 1_000, 6_000, 31_000)),
    st.one_of(signals(), signals(), signals(), views(), words(), TICK),
)
STREAMS = st.lists(STEPS, min_size=10, max_size=60)
Stream = list[tuple[int, Make]]


def run(stream: Stream) -> Responder:
    """Takes the whole stream, checked after each input."""
    responder, watch = Responder(fleet(), healthy=False), Watch()

    def take(given: Input) -> None:
        told = responder.as_told(given)
        watch.check(responder, told, responder.take(told))

    for name in NAMES:
        take(view(name, responder.now_ms))
    for number, (wait_ms, make) in enumerate(stream):
        responder.now_ms += wait_ms
        take(Clock())
        take(make(number, responder.now_ms))
        responder.state = mark_sent(responder.state, due(responder.state, responder.now_ms), responder.now_ms)
    return responder


@THOROUGH
@given(STREAMS)
def test_the_rails_hold_over_any_stream_of_inputs(stream: Stream) -> None:
    run(stream)


@THOROUGH
@given(STREAMS, st.integers(0, 60))
def test_the_journal_rebuilds_the_state_from_any_point(stream: Stream, cut: int) -> None:
    responder = run(stream)
    entries = [JournalEntry.from_bytes(entry.to_bytes()) for entry in responder.journal]

    early = replay(entries[:cut], RespondState())
    rebuilt = replay(entries, from_bytes(to_bytes(early)))

    assert rebuilt.durable() == responder.state.durable()
    assert list(rebuilt.incidents) == list(responder.state.incidents)
    assert takeover(rebuilt, 0)[0].durable() == takeover(responder.state, 0)[0].durable()


@settings(THOROUGH, max_examples=30)
@given(STREAMS)
def test_any_stream_decides_the_same_again(stream: Stream) -> None:
    assert run(stream).journal == run(stream).journal


def allow(*_: Any) -> None:
    """A rail that refuses nothing."""


def at(wait_ms: int, about: Callable[..., Input], *args: Any, **changes: Any) -> tuple[int, Make]:
    """One input of a hand-written stream: signals and states take the number and moment where they come in it."""

    def make(number: int, now: int) -> Input:
        stamped = {"at_ms": now} if about is view else {"seq": number, "at_ms": now} if about is not command else {}
        return about(*args, **(stamped | changes))

    return wait_ms, make


DRIFT_AND_BACK = [at(0, view), at(0, drifted), at(50, drifted, state="recovered")]


@pytest.mark.parametrize(
    ("module", "rail", "removed", "stream"),
    [
        (decide, "caller_unfit", allow, [at(0, caller_signal, caller_auth="claimed")]),
        (decide, "caller_unfit", allow, [at(0, caller_signal, "probe")]),
        (decide, "limit_refusal", allow, [at(0, caller_signal, score=0.5)]),
        (decide, "fallback_refusal", allow, [at(0, failing, score=0.5)]),
        (decide, "person_holds", allow, [at(0, command, "restore", expires_ms=T0 + 60_000), at(0, drifted)]),
        (rails, "exceeds_entry", lambda _signal: True, [at(0, caller_signal, score=1.5)]),
        (rails, "fallback_health", allow, [at(0, view, fallback_ok=False), at(0, failing)]),
        (rails, "fallback_health", allow, [at(11_000, failing), at(1_500, drifted)]),
        (rails, "caller_caps", allow, [at(300, caller_signal, f"c{number}") for number in range(4)]),
        (rails, "_endpoint_caps", allow, [at(0, failing, "a"), at(0, failing, "b")]),
        (rails, "_cooling_down", allow, [*DRIFT_AND_BACK, at(4_000, drifted)]),
        (rails, "_tripped_too_often", allow, [*DRIFT_AND_BACK, at(5_000, view), *DRIFT_AND_BACK, at(10_000, view), at(0, drifted)]),
        (rails, "_mass_trip", allow, [step for name in "abc" for step in (at(0, drifted, name), at(0, drifted, name, state="recovered"))]),
        (commands, "_misaddressed", allow, [at(0, command, "fallback", "zz")]),
        (commands, "_refused_by_rail", allow, [at(0, command, "limit", "a", "probe")]),
        (commands, "_refused_by_rail", allow, [at(0, caller_signal), at(0, command, "limit", "a", "bob", rate_per_s=50.0)]),
    ],
)  # fmt: skip
def test_with_a_rail_removed_an_attack_wins_and_the_checker_sees_it(
    monkeypatch: pytest.MonkeyPatch, module: Any, rail: str, removed: Callable[..., Any], stream: Stream
) -> None:
    run(stream)
    monkeypatch.setattr(module, rail, removed)

    with pytest.raises(AssertionError, match=r"^(R\d+:|a person's)"):
        run(stream)
