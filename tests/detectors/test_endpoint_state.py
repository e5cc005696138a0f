from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import ReportEvent
from detectors.endpoint_state import EndpointStates
from schemas.errors import StateRefused
from tests.detectors.report_makers import ENDPOINT, START_MS, Log, cuts, primary


def test_a_quiet_endpoint_is_told_of_on_change_and_each_eight_seconds() -> None:
    states, log = EndpointStates({}), Log()

    said = states.update([log.report({"a": 10, "b": 4}) for _ in range(70)])

    assert [state.at_ms - START_MS for state in said] == [1_000 + 8_000 * k for k in range(9)]
    assert said[-1].asked_per_s == 14
    assert (said[-1].guards_live, said[-1].active_callers) == (1, 2)
    assert said[-1].median_caller_rate == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [{"epoch_applied": 3}, {"killed": True}, {"fallback_ok": False}, {"live_version": "v2"}, {"guard": "g2"}],
)
def test_a_change_is_told_at_once(change: dict[str, object]) -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({"a": 1}) for _ in range(3)])

    assert len(states.update([log.report({"a": 1}, after_ms=200, **change)])) == 1


def test_the_least_epoch_of_live_guards_counts_and_a_silent_guard_counts_no_longer() -> None:
    states, log = EndpointStates({}), Log()
    events = [log.report(guard="g1", epoch_applied=7), log.report(guard="g2", epoch_applied=9, after_ms=100)]
    both = states.update(events)[-1]

    alone = states.update([log.report(guard="g2", epoch_applied=9) for _ in range(3)])[-1]

    assert (both.guards_live, both.epoch_applied) == (2, 7)
    assert (alone.guards_live, alone.epoch_applied) == (1, 9)


def test_ticks_tell_of_guards_that_are_gone() -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({"a": 1})])

    said = states.update([log.tick() for _ in range(5)])

    assert [state.guards_live for state in said] == [0]
    assert said[0].fallback_ok is False


def test_refused_callers_that_knock_are_named_each_second() -> None:
    states, log = EndpointStates({}), Log()

    said = states.update([log.report({"loud": 300, "calm": 5}, refused={"loud": 290}) for _ in range(5)])
    after = states.update([log.report({"calm": 5}) for _ in range(5)])

    assert len(said) == 5
    assert [(one.caller, one.caller_auth, one.asked_per_s) for one in said[-1].knocking] == [
        ("loud", "verified", 300.0)
    ]
    assert after[-1].knocking == []


def test_good_probes_count_since_the_last_bad_one_and_since_fallback_began() -> None:
    states, log = EndpointStates({}), Log()
    fallback = primary(47, route="fallback")
    states.update([log.report(routes=[primary(50)]) for _ in range(3)])

    begun = states.update([log.report(routes=[fallback])])[-1]
    good = states.update([log.report(routes=[primary(3, route="probe"), fallback]) for _ in range(4)])[-1]
    bad = states.update([log.report(routes=[primary(3, errors=1, route="probe"), fallback])])[-1]

    assert (begun.good_probes, good.good_probes, bad.good_probes) == (0, 12, 0)


def test_a_watched_endpoint_is_told_of_each_second() -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({"a": 1})])

    states.watch(ENDPOINT, True)
    watched = states.update([log.report({"a": 1}) for _ in range(5)])
    states.watch(ENDPOINT, False)

    assert len(watched) == 5
    assert states.update([log.report({"a": 1}) for _ in range(5)]) == []


def test_only_verified_callers_count_as_active_where_there_are_any() -> None:
    states, log = EndpointStates({}), Log()

    said = states.update([log.report({"a": 1, "b": 1}), log.report({f"x{n}": 1 for n in range(50)}, auth="claimed")])
    states.watch(ENDPOINT, True)

    assert said[0].active_callers == 2
    assert states.update([log.report({"a": 1})])[0].active_callers == 2


def test_an_unsigned_report_changes_nothing_where_signed_ones_come() -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({"a": 1}, epoch_applied=5)])

    rogue = log.report({"a": 900}, trusted=False, guard="g1", after_ms=100, epoch_applied=0, fallback_ok=False)

    assert states.update([rogue]) == []


def shares_after(*seconds: dict[str, tuple[dict[str, int], dict[str, int]]]) -> dict[str, float]:
    """The split after so many seconds, each of guard -> (asked, refused) by caller."""
    states, log = EndpointStates({}), Log()
    states.watch(ENDPOINT, True)
    said = []
    for second in seconds:
        said += states.update(
            [
                log.report(asked, refused=refused, guard=guard, after_ms=1_000 // len(second), interval_ms=1_000)
                for guard, (asked, refused) in second.items()
            ]
        )
    return said[-1].guard_shares


def test_a_limit_is_split_by_what_each_guard_was_asked() -> None:
    split = shares_after(*[{"g1": ({"a": 30}, {}), "g2": ({"a": 10}, {})}] * 4)

    assert split == {"g1": pytest.approx(0.7, abs=1e-3), "g2": pytest.approx(0.3, abs=1e-3)}


def test_what_limited_callers_ask_counts_before_what_others_ask() -> None:
    """One caller sticks to a quiet guard: what everybody else asks of the busy one must not take its limit away."""
    split = shares_after(*[{"busy": ({"a": 900}, {}), "quiet": ({"loud": 40, "b": 2}, {"loud": 35})}] * 4)

    assert split == {"quiet": pytest.approx(0.9, abs=1e-3), "busy": pytest.approx(0.1, abs=1e-3)}


def test_an_idle_endpoint_is_split_evenly() -> None:
    assert shares_after(*[{f"g{n}": ({}, {}) for n in range(4)}] * 3) == {f"g{n}": 0.25 for n in range(4)}


_COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 500), max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 99), _COUNTS, st.integers(0, 100)), min_size=1, max_size=120))
def test_shares_never_sum_to_more_than_one_and_leave_no_named_guard_without(
    reports: list[tuple[int, dict[str, int], int]],
) -> None:
    states, log = EndpointStates({}), Log()
    states.watch(ENDPOINT, True)
    said = states.update(
        [
            log.report(asked, guard=f"g{number}", after_ms=30, refused={name: min(1, asked[name]) for name in asked})
            if refused % 2
            else log.report(asked, guard=f"g{number}", after_ms=30)
            for number, asked, refused in reports
        ]
    )
    for state in said:
        shares = state.guard_shares
        assert len(shares) == min(state.guards_live, 64)
        assert sum(shares.values()) <= 1 + 1e-9
        assert min(shares.values()) >= 0.2 / state.guards_live - 1e-4


def test_unsigned_reports_of_ever_new_guards_push_out_no_signed_one() -> None:
    states, log = EndpointStates({}), Log()
    states.watch(ENDPOINT, True)
    states.update([log.report({"a": 1}, guard=f"g{n}", after_ms=10) for n in range(4)])

    states.update([log.report({"a": 900}, guard=f"x{n}", trusted=False, after_ms=1) for n in range(400)])
    (said,) = states.update([log.report({"a": 1}, guard="g0", after_ms=600)])

    assert sorted(said.guard_shares) == ["g0", "g1", "g2", "g3"]


def some_minutes() -> list[ReportEvent]:
    log = Log()
    events: list[ReportEvent] = [log.report({"a": 10, "b": n % 3}) for n in range(20)]
    events += [
        log.report({"loud": 300, "a": 3}, refused={"loud": 200}, guard=f"g{n % 3}", after_ms=400) for n in range(9)
    ]
    events += [log.report(routes=[primary(3, route="probe"), primary(40, route="fallback")]) for _ in range(9)]
    events += [log.tick(250) for _ in range(40)]
    events += [log.report({f"c{n}": 2}, epoch_applied=n // 4) for n in range(12)]
    return events


def test_any_cut_and_any_restart_give_the_same_states() -> None:
    events, whole = some_minutes(), EndpointStates({})
    expected = whole.update(events)

    for seed in range(3):
        states, said = EndpointStates({}), []
        for batch in cuts(events, seed):
            said += states.update(batch)
            saved, states = states.snapshot(ENDPOINT), EndpointStates({})
            states.restore(ENDPOINT, saved)
        assert said == expected
        assert states.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)


def test_callers_are_bounded() -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({f"c{wave}-{n}": 1 for n in range(100)}, after_ms=100) for wave in range(30)])
    states.watch(ENDPOINT, True)

    (state,) = states.update([log.report({"a": 1}, distinct_callers=3_000)])

    assert state.active_callers == 3_000
    assert len(states.snapshot(ENDPOINT)) < 40_000


def test_damaged_states_are_refused() -> None:
    states, log = EndpointStates({}), Log()
    states.update([log.report({"a": 1})])
    state = bytearray(states.snapshot(ENDPOINT))
    state[-1] ^= 1

    for bad in (b"", b"x" * 200, bytes(state)):
        with pytest.raises(StateRefused):
            EndpointStates({}).restore(ENDPOINT, bad)
