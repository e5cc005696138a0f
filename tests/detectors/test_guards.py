"""Many serving processes of one endpoint: each counts, none makes another give way, and state stays within its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from detectors.base import ReportEvent
from detectors.caller_windows import MAX_WINDOWS
from detectors.endpoint_state import EndpointStates
from detectors.guards import MAX_ASKED, MAX_GUARDS, LiveGuards
from detectors.health import Health
from detectors.report_state import MAX_STATE_BYTES
from detectors.traffic import Traffic
from schemas.config import EndpointConfig
from schemas.signals import EndpointState
from tests.detectors.report_makers import ENDPOINT, START_MS, Log, firing

ENDPOINTS = {ENDPOINT: EndpointConfig(name=ENDPOINT)}


def a_second(log: Log, guards: int, asked: dict[str, int], late: dict[int, dict[str, int]] | None = None,
             **fields: Any) -> list[ReportEvent]:  # fmt: skip
    """A report of each guard within a second or so; `late` adds callers of some guards."""
    events: list[ReportEvent] = []
    for number in range(guards):
        log.at_ms += (number + 1) * 1_000 // guards - number * 1_000 // guards
        callers = asked | (late or {}).get(number, {})
        events.append(log.report(callers, guard=f"g{number}", after_ms=0, interval_ms=1_000, **fields))
    return events


@pytest.mark.parametrize("guards", [300, 1_500])
def test_a_flood_spread_over_hundreds_of_guards_is_judged_as_a_sum(guards: int) -> None:
    traffic, log = Traffic({ENDPOINT: EndpointConfig(name=ENDPOINT, caller_rate_max=guards / 3)}), Log()
    calm: list[ReportEvent] = []
    for _ in range(3):
        calm += a_second(log, guards, {"a": 0}, {number: {f"c{number % 40}": 4} for number in range(guards)})
    assert not firing(traffic.update(calm), "caller_rate")

    readings = traffic.update(a_second(log, guards, {"mallory": 1}))
    readings += traffic.update(a_second(log, guards, {"mallory": 1}))

    assert {reading.subject for reading in firing(readings, "caller_rate")} == {"mallory"}
    counted = [reading.score for reading in readings if reading.subject == "mallory"]
    assert max(counted) == pytest.approx(guards, rel=0.45)


def told_of(guards: int, **fields: Any) -> list[EndpointState]:
    states, log = EndpointStates({}), Log()
    states.watch(ENDPOINT, True)
    return [state for _ in range(6) for state in states.update(a_second(log, guards, {"a": 1}, **fields))]


def test_the_responder_is_told_of_every_one_of_a_thousand_guards() -> None:
    state = told_of(MAX_GUARDS, epoch_applied=7)[-1]

    assert (state.guards_live, state.asked_per_s, state.epoch_applied) == (MAX_GUARDS, MAX_GUARDS, 7)


def test_guards_beyond_the_bound_are_counted_together_and_have_a_say() -> None:
    states, log = EndpointStates({}), Log()
    states.watch(ENDPOINT, True)
    more = MAX_GUARDS + 100
    said = [one for _ in range(6) for one in states.update(a_second(log, more, {"a": 1}, epoch_applied=7))]

    assert said[-1].guards_live == MAX_GUARDS + 128
    assert said[-1].asked_per_s == pytest.approx(more, rel=0.1)
    assert (said[-1].epoch_applied, said[-1].fallback_ok) == (7, True)
    assert sum(said[-1].guard_shares.values()) <= 1 - 0.05
    # each new guard is told at once; after that, once a second
    assert len([one for one in said if one.at_ms > START_MS + 2_000]) < 10

    behind = states.update([log.report(guard=f"g{more - 1}", after_ms=1, epoch_applied=5, fallback_ok=False)])
    assert [(one.epoch_applied, one.fallback_ok) for one in behind] == [(5, False)]
    later = [one for _ in range(8) for one in states.update(a_second(log, more, {"a": 1}, epoch_applied=7))]
    assert (later[-1].epoch_applied, later[-1].fallback_ok) == (7, True)


def test_a_guard_beyond_the_bound_takes_the_place_of_one_that_has_ended() -> None:
    guards, log = LiveGuards(2), Log()

    assert [guards.take(log.report(guard=name, after_ms=10)).key > 0 for name in ("a", "b", "c")] == [True, True, False]  # type: ignore[union-attr]
    log.at_ms += 2_995
    guards.take(log.report(guard="b", after_ms=0))
    assert len(guards.expire(log.point().ms)) == 1
    counted = guards.take(log.report(guard="c", after_ms=0))
    assert counted is not None
    assert counted.key > 0


def test_the_backlog_of_many_guards_is_no_flood() -> None:
    traffic, log = Traffic({ENDPOINT: EndpointConfig(name=ENDPOINT, caller_rate_max=400)}), Log()
    callers = {f"c{number}": 3 for number in range(100)}
    for _ in range(3):
        traffic.update(a_second(log, 60, callers))

    readings = []
    for _ in range(20):
        for number in range(60):
            late = log.report(callers, guard=f"g{number}", after_ms=1, interval_ms=1_000)
            readings += traffic.update([late])

    assert not firing(readings, "caller_rate")


def test_the_largest_states_fit_their_bounds_and_are_taken_back() -> None:
    log, pad = Log(), "x" * 100
    traffic, health, states = Traffic(ENDPOINTS), Health(ENDPOINTS), EndpointStates(ENDPOINTS)
    events: list[ReportEvent] = []
    for number in range(MAX_GUARDS + 50):
        callers = {f"{pad}-caller-{number * 5 % 2_040 + one}": 300 if number < 70 else 2 for one in range(5)}
        refused = dict.fromkeys(callers, 1) if number > 950 else {}
        name = f"{pad}-guard-{number}"
        events.append(log.report(callers, refused=refused, guard=name, after_ms=2, live_version=f"{pad}-{number % 9}"))
        claimed = {f"{pad}-claimed-{number}-{one}": 300 for one in range(3)}
        events.append(log.report(claimed, guard=name, after_ms=0, interval_ms=1_000, auth="claimed"))
        events.append(log.report(claimed, guard=name, after_ms=0, interval_ms=1_000, trusted=False))
    for detector in (traffic, health, states):
        for event in events:
            detector.update([event])
        saved = detector.snapshot(ENDPOINT)
        assert 40_000 < len(saved) <= MAX_STATE_BYTES, (detector.name, len(saved))
        cold = type(detector)(ENDPOINTS)
        cold.restore(ENDPOINT, saved)
        assert cold.snapshot(ENDPOINT) == saved


def test_counts_by_guard_stay_bounded_and_nothing_is_lost_when_guards_become_many() -> None:
    traffic, log = Traffic(ENDPOINTS), Log()
    callers = {f"c{number}": 1 + number % 7 for number in range(100)}
    events = a_second(log, 400, callers)

    traffic.update(events)

    windows = traffic._parts[ENDPOINT].main.callers.windows
    assert 0 < len(windows) <= MAX_WINDOWS
    total = sum(windows.total(row, log.point().ms) for row in range(100))
    assert total == pytest.approx(400 * sum(callers.values()), rel=0.5)


def test_a_count_beyond_any_rate_is_taken_as_the_largest() -> None:
    guards, log = LiveGuards(), Log()

    event = log.report({"a": 1}, interval_ms=1_000)
    guards.take(replace(event, report=event.report.model_copy(update={"asked": 2**62})))

    assert guards.asked == MAX_ASKED


def test_what_a_guard_that_has_ended_counted_counts_no_longer_and_is_not_kept() -> None:
    traffic, log = Traffic(ENDPOINTS), Log()

    traffic.update([log.report({"a": 5}, guard=f"g{number}", after_ms=100, interval_ms=1_000) for number in range(400)])
    traffic.update([log.tick(5_000)])

    windows = traffic._parts[ENDPOINT].main.callers.windows
    assert len(windows) == 0
    assert windows.total(0, log.point().ms) == 0.0


def test_a_late_report_of_a_guard_beyond_the_bound_is_judged_by_itself() -> None:
    traffic, log = Traffic({ENDPOINT: EndpointConfig(name=ENDPOINT, caller_rate_max=50)}), Log()
    traffic.update(a_second(log, MAX_GUARDS, {}))

    event = log.report({"mallory": 300}, guard="one more", after_ms=10, interval_ms=1_000)
    times = {"from_ms": event.report.from_ms - 60_000, "to_ms": event.report.to_ms - 60_000}
    readings = traffic.update([replace(event, report=event.report.model_copy(update=times))])

    assert [reading.subject for reading in firing(readings, "caller_rate")] == ["mallory"]
