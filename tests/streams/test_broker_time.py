"""A broker's clock that is set, forwards or back: nothing stops, nothing is concluded twice, and nothing raises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.log_clock import HELD_MS
from schemas.signals import EndpointState
from schemas.topics import SIGNALS
from schemas.wire import KIND_HEADER
from streams.records import Outgoing, Records, header_of
from tests.streams.test_report_log import ENDPOINT, FLOOD_AT, SECONDS, feed, log_of_reports, open_log, signals

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def set_by(log: Records, ms: int, first: int, last: int) -> Records:
    """The log with the broker's clock wrong by `ms` from record `first` up to `last`."""
    wrong = [at + ms if first <= n < last else at for n, at in enumerate(log.timestamps)]
    return replace(log, timestamps=wrong)


def states(out: list[Outgoing]) -> list[EndpointState]:
    kinds = [(record, header_of(record.headers, KIND_HEADER)) for record in out if record.topic == SIGNALS]
    return [EndpointState.from_bytes(record.value) for record, kind in kinds if kind == b"endpoint_state"]


@pytest.mark.parametrize("by_ms", [HOUR_MS, DAY_MS, HELD_MS // 2, -HELD_MS // 2])
def test_a_clock_that_ran_ahead_and_is_set_back_stops_nothing(by_ms: int) -> None:
    plain = feed(open_log(), log_of_reports(), [])
    out = feed(open_log(), set_by(log_of_reports(), by_ms, 30, 50), [])

    expected = [(one.state, one.subject, one.log_offset) for one in signals(plain) if one.kind == "caller_rate"]
    found = [(one.state, one.subject, one.log_offset) for one in signals(out) if one.kind == "caller_rate"]
    assert {state for state, *_ in found} == {"opened", "updated", "recovered"}
    assert (found[0], found[-1][0]) == (expected[0], "recovered")
    last = states(out)[-1]
    assert last.at_ms > max(log_of_reports().timestamps) - 9_000, "told by the broker's time, and not a day ahead"


def test_what_is_told_while_the_clock_is_wrong_bears_the_brokers_time() -> None:
    log = set_by(log_of_reports(), DAY_MS, 20, 40)
    for one in signals(feed(open_log(), log, [])):
        assert one.at_ms == log.timestamps[one.log_offset]
        assert one.first_ms <= one.at_ms


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2 * SECONDS), st.sampled_from([-DAY_MS, -5_000, 5_000, DAY_MS])), max_size=6
    ),
    cuts=st.lists(st.integers(1, 2 * SECONDS), max_size=10),
    killed_at=st.integers(1, 2 * SECONDS - 1),
)
def test_however_the_clock_is_set_cuts_and_restarts_change_nothing(
    steps: list[tuple[int, int]], cuts: list[int], killed_at: int
) -> None:
    log = log_of_reports()
    for first, ms in steps:
        log = set_by(log, ms, first, 2 * SECONDS)
    whole = open_log()
    expected = feed(whole, log, [])
    assert signals(feed(open_log(), log, cuts)) == signals(expected)

    first = open_log()
    before = feed(first, log.part(0, killed_at), cuts)
    second = open_log()
    second.restore(ENDPOINT, first.snapshot(ENDPOINT))
    after = feed(second, log.part(max(0, killed_at - 4), len(log)), [], quiet_below=killed_at)
    assert signals(before) + signals(after) == signals(expected)
    assert second.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)


@settings(max_examples=20, deadline=None)
@given(said=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=30, max_size=30))
def test_no_time_that_a_log_can_hold_raises(said: list[int]) -> None:
    log = log_of_reports().part(2 * FLOOD_AT - 15, 2 * FLOOD_AT + 15)
    feed(open_log(), replace(log, timestamps=said), [10, 20])
