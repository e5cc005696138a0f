"""Numbers that no float or column holds, in records that anybody may write: refused by name, nothing raises, nothing stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from responders.decide import Clock, Input, decide
from responders.directives import directive_for, due, mark_sent
from responders.journal import record
from responders.state import RespondState, from_bytes, to_bytes
from schemas.actions import Directive, JournalEntry
from schemas.deadletter import DeadLetter
from schemas.signals import EndpointState, Signal
from schemas.topics import DEAD_LETTERS
from schemas.wire import KIND_HEADER
from streams.records import Records
from tests.responders.given import T0, caller_signal, drifted, failing, mandate, view
from tests.streams.test_report_log import feed, headers, open_log, report

HUGE = [2**62 + 1, 2**64, 10**30, 10**4_000, -1]
ODD = [*HUGE, 0, 2**63 - 1, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]
COUNTS = [
    ("asked",), ("refused",), ("dropped",), ("in_flight",), ("distinct_callers",), ("rest_callers",), ("rest_asked",),
    ("rest_served",), ("rest_refused",), ("callers", 0, "asked"), ("callers", 0, "served"), ("callers", 0, "refused"),
    ("routes", 0, "served"), ("routes", 0, "errors"), ("routes", 0, "timeouts"), ("routes", 0, "latency", 10),
]  # fmt: skip


def replaced(value: bytes, path: tuple[Any, ...], number: float) -> bytes:
    fields = at = json.loads(value)
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = number
    return json.dumps(fields).encode()


@pytest.mark.parametrize("path", COUNTS, ids=lambda path: ".".join(map(str, path)))
def test_a_report_with_a_count_that_is_none_is_a_dead_letter_and_the_next_one_is_taken(path: tuple[Any, ...]) -> None:
    values: list[bytes | None] = [report(0), *(replaced(report(1), path, number) for number in HUGE), report(2)]
    n = len(values)
    log = open_log()

    out = feed(log, Records(values, [None] * n, [headers(value or b"") for value in values], list(range(n)),
                            [1_000_000 + 1_000 * k for k in range(n)]), [])  # fmt: skip

    letters = [DeadLetter.from_bytes(sent.value) for sent in out if sent.topic == DEAD_LETTERS]
    assert [(letter.log_offset, letter.reason) for letter in letters] == [(k, "wrong_shape") for k in range(1, n - 1)]


@pytest.mark.parametrize("timestamp", [-1, 0, 2**63 - 1])
def test_a_report_of_any_time_is_taken(timestamp: int) -> None:
    values = [report(0), report(1), b'{"worker":"w","at_ms":1}', report(2)]
    heads = [headers(values[0]), headers(values[1]), [(KIND_HEADER, b"tick")], headers(values[3])]
    log = open_log()

    feed(log, Records(values, [None] * 4, heads, [0, 1, 2, 3], [1_000_000, timestamp, timestamp, 1_001_000]), [])

    assert log.restart == 4


NUMBERS = st.sampled_from(ODD)
GIVEN: list[Signal | EndpointState] = [
    caller_signal("bob"), caller_signal("bob", state="updated", seq=1, rate=50.0, signal_id="u"), failing(), drifted(),
    view(knocking={"bob": 30.0}), view(knocking={"bob": 30.0}).model_copy(update={"guard_shares": {"g": 0.5}}),
]  # fmt: skip


@st.composite
def odd_inputs(draw: st.DrawFn) -> Input | None:
    """What the responder reads, with some of its numbers replaced by odd ones; None if the contract refuses it."""
    whole = draw(st.sampled_from(GIVEN))
    fields = json.loads(whole.to_bytes())
    numbers = sorted(name for name, value in fields.items() if type(value) in (int, float))
    for name in draw(st.lists(st.sampled_from(numbers), max_size=3)):
        fields[name] = draw(NUMBERS)
    try:
        return type(whole).model_validate_json(json.dumps(fields))
    except ValidationError:
        return None


@settings(max_examples=60, deadline=None)
@given(inputs=st.lists(st.tuples(odd_inputs(), st.sampled_from([1, 260, 2_000, 60_000])), max_size=20))
def test_whatever_signals_say_time_is_decided_directives_are_written_and_the_state_can_be_saved(
    inputs: list[tuple[Input | None, int]],
) -> None:
    state, now = RespondState(), T0
    for given_, passed in inputs:
        now += passed
        decisions = []
        try:
            state, decisions = decide(state, given_ or Clock(), now, mandate())
        except ArithmeticError:  # the role buries the input; time alone must be decided
            assert given_ is not None
        state, entries = record(state, [], decisions, now)
        for entry in entries:
            assert JournalEntry.from_bytes(entry.to_bytes())
        names = due(state, now)
        for name in names:
            assert Directive.from_bytes(directive_for(state, name, now).to_bytes()).endpoint == name
        state = mark_sent(state, names, now)
        assert from_bytes(to_bytes(state)).epoch == state.epoch


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name in ("asked_per_s", "median_caller_rate") for number in (float("nan"), float("inf"))]
    + [(name, number) for name in ("guards_live", "active_callers") for number in (-1, 2**63, 10**30)],
)
def test_a_state_of_an_endpoint_with_a_number_that_none_can_have_is_refused(name: str, number: float) -> None:
    with pytest.raises(ValidationError):
        EndpointState.model_validate_json(json.dumps(json.loads(view().to_bytes()) | {name: number}))
