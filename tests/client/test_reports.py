"""Reports: what they count, when they come early, and that nothing makes them grow."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palisade_client._counts import MAX_CALLERS, CallerKey, Counts
from palisade_client.testing import FakeTransport

from schemas.events import LATENCY_BOUNDS_MS, LATENCY_BUCKETS, Report
from tests.client.conftest import ENDPOINT, Bench


def model(features: Any) -> float:
    return 0.9


def test_a_report_says_what_happened_in_its_interval(bench: Bench) -> None:
    guard = bench.guard(version="v7", artifact_digest="sha256:ab", fallback=0.5).start()
    for caller in ("a", "a", "b"):
        guard.call(model, {"x": 1.0}, caller=caller, caller_auth="verified")
    bench.clock.advance(1.0)
    guard.flush()
    report = bench.report

    assert (report.endpoint, report.live_version, report.versions[0].digest) == (ENDPOINT, "v7", "sha256:ab")
    assert (report.asked, report.refused, report.in_flight, report.distinct_callers) == (3, 0, 0, 2)
    assert [(c.caller, c.caller_auth, c.asked, c.served) for c in report.callers] == [
        ("a", "verified", 2, 2),
        ("b", "verified", 1, 1),
    ]
    assert [(r.route, r.version, r.served, sum(r.latency)) for r in report.routes] == [("primary", "v7", 3, 3)]
    assert len(report.routes[0].latency) == LATENCY_BUCKETS
    assert (report.breaker, report.fallback_ok, report.killed, report.dropped) == ("none", True, False, 0)


def test_reports_follow_one_another_without_a_gap(bench: Bench) -> None:
    guard = bench.guard().start()
    for _ in range(3):
        bench.clock.advance(1.0)
        guard.flush()
    reports = bench.reports

    assert [r.seq for r in reports] == [0, 1, 2, 3]
    assert [r.from_ms for r in reports[1:]] == [r.to_ms for r in reports[:-1]]
    assert len({(r.guard_id, r.boot_id) for r in reports}) == 1


def test_two_processes_have_ids_of_their_own(bench: Bench) -> None:
    bench.guard().start()
    bench.guard().start()

    assert len({r.guard_id for r in bench.reports}) == len({r.boot_id for r in bench.reports}) == 2


def test_a_report_is_due_each_second_also_when_nothing_is_asked(bench: Bench) -> None:
    guard = bench.guard().start()
    live = guard._live
    assert live is not None
    written = []
    for _ in range(64):
        bench.clock.advance(0.0625)
        live.step()
        written.append(len(bench.reports))

    assert written[-1] == 5  # the first at the start, then one a second


def steps(bench: Bench, guard: Any, seconds: float) -> int:
    before = len(bench.reports)
    for _ in range(round(seconds * 16)):
        bench.clock.advance(0.0625)  # a binary fraction: sums of it are exact
        guard._live.step()
    return len(bench.reports) - before


def ask(guard: Any, caller: str, times: int) -> None:
    for _ in range(times):
        guard.call(model, {}, caller=caller)


def test_a_caller_far_above_its_pattern_makes_the_report_early(bench: Bench) -> None:
    guard = bench.guard().start()
    steps(bench, guard, 0.25)
    ask(guard, "mallory", 20)
    quiet = steps(bench, guard, 0.125)
    ask(guard, "mallory", 1)

    assert (quiet, steps(bench, guard, 0.0625)) == (0, 1)


def test_a_caller_within_twice_its_peak_does_not(bench: Bench) -> None:
    guard = bench.guard().start()
    ask(guard, "batch", 60)  # new: early once
    steps(bench, guard, 1.3125)  # reports at 0.25, 1.25
    ask(guard, "batch", 100)
    quiet = steps(bench, guard, 0.25)
    ask(guard, "batch", 30)

    assert (quiet, steps(bench, guard, 0.0625)) == (0, 1)


def test_a_peak_is_forgotten_after_a_minute(bench: Bench) -> None:
    guard = bench.guard().start()
    ask(guard, "batch", 60)
    steps(bench, guard, 71.5)  # the last report was at 71.25
    ask(guard, "batch", 30)

    assert steps(bench, guard, 0.0625) == 1


def test_early_reports_come_at_most_four_times_a_second(bench: Bench) -> None:
    guard = bench.guard().start()
    before = len(bench.reports)
    for turn in range(64):
        bench.clock.advance(0.0625)
        ask(guard, f"new-{turn}", 25)
        guard._live.step()  # type: ignore[union-attr]

    assert len(bench.reports) - before == 16


def test_the_first_error_makes_the_report_early_and_the_next_does_not(bench: Bench) -> None:
    def broken(features: Any) -> float:
        raise ZeroDivisionError

    guard = bench.guard(fallback=0.5).start()
    steps(bench, guard, 0.5)
    guard.call(broken, {}, caller="a")
    first = steps(bench, guard, 0.0625)
    guard.call(broken, {}, caller="a")

    assert (first, steps(bench, guard, 0.5)) == (1, 0)


def test_the_heaviest_callers_are_named_and_the_rest_summed(bench: Bench) -> None:
    guard = bench.guard()
    for number in range(300):
        ask(guard, f"light-{number}", 1)
    ask(guard, "heavy", 15)
    guard.flush()
    report = bench.report

    assert (len(report.callers), report.callers[0].caller) == (100, "heavy")
    assert (report.rest_callers, report.rest_asked, report.rest_served) == (201, 201, 201)
    assert report.asked == sum(c.asked for c in report.callers) + report.rest_asked


@pytest.mark.slow
def test_a_report_is_of_constant_size_and_memory_is_bounded_under_a_million_callers() -> None:
    counts = Counts("default")
    tracemalloc.start()
    for number in range(20_000):
        counts.ask((f"caller-{number:07}", "claimed"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for number in range(20_000, 1_000_000):
        counts.ask((f"caller-{number:07}", "claimed"))
        if number % 100 == 0:
            counts.ask(("heavy", "verified"))
    held = len(counts._callers)
    fields = counts.close(0.0)

    assert peak < 4 * 2**20
    assert held <= MAX_CALLERS
    assert len(fields["callers"]) == 100
    assert (fields["callers"][0]["caller"], fields["callers"][0]["asked"]) == ("heavy", 9_800)
    assert fields["asked"] == sum(c["asked"] for c in fields["callers"]) + fields["rest_asked"]


def test_distinct_callers_are_estimated_beyond_those_counted_one_by_one() -> None:
    counts = Counts("default")
    for number in range(100_000):
        counts.ask((f"caller-{number}", "claimed"))

    assert counts.close(0.0)["distinct_callers"] == pytest.approx(100_000, rel=0.05)


_CALLERS: st.SearchStrategy[CallerKey] = st.tuples(st.sampled_from("abc"), st.sampled_from(("verified", "claimed")))


@settings(deadline=None)
@given(st.lists(st.tuples(_CALLERS, st.sampled_from(("refuse", "answer", "stay", "close")))))
def test_what_was_asked_is_served_refused_or_in_flight(calls: list[tuple[CallerKey, str]]) -> None:
    counts = Counts("default")
    asked = served = refused = 0
    closed = []
    for key, end in calls:
        counts.ask(key)
        if end == "refuse":
            counts.refuse(key)
        elif end == "answer":
            counts.answer(key, "primary", 1.0)
        elif end == "close":
            closed.append(counts.close(0.0))
    closed.append(counts.close(0.0))
    for fields in closed:
        asked += fields["asked"]
        refused += sum(c["refused"] for c in fields["callers"])
        served += sum(c["served"] for c in fields["callers"])

    assert asked == len(calls) == served + refused + closed[-1]["in_flight"]


@given(st.floats(0, 60_000))
def test_a_latency_falls_into_the_bucket_of_its_bound(latency_ms: float) -> None:
    counts = Counts("default")
    counts.ask(("a", "claimed"))
    counts.answer(("a", "claimed"), "primary", latency_ms)
    bucket = counts.close(0.0)["routes"][0]["latency"].index(1)

    assert bucket == len(LATENCY_BOUNDS_MS) or latency_ms <= LATENCY_BOUNDS_MS[bucket]
    assert bucket == 0 or latency_ms > LATENCY_BOUNDS_MS[bucket - 1]


@pytest.mark.parametrize("trouble", ["failing", "full"])
def test_what_a_lost_report_said_was_dropped_is_said_by_the_next_one(bench: Bench, trouble: str) -> None:
    guard = bench.guard(fallback=0.5)
    setattr(bench.transport, trouble, True)
    for _ in range(4):  # each time the report is lost as well
        guard.call(lambda _: 0.9, {"x": 1.0}, caller="a")
        guard.flush()
    setattr(bench.transport, trouble, False)
    guard.flush()
    guard.flush()

    assert sum(report.dropped for report in bench.reports) == 4


def test_dropped_predictions_are_reported(bench: Bench) -> None:
    from palisade_client import Emitter

    guard = bench.guard(emitter=Emitter(max_queued=2, transport=bench.transport))
    ask(guard, "a", 5)
    guard.flush()

    assert bench.report.dropped == 3
    assert len(bench.predictions) == 2


def test_a_report_is_not_held_up_by_predictions_that_find_no_place(bench: Bench) -> None:
    from palisade_client import Emitter

    full = FakeTransport(full=True)
    guard = bench.guard(emitter=Emitter(transport=full))
    ask(guard, "a", 5)
    guard.flush()
    guard.flush()

    assert [report.dropped for report in bench.reports[-2:]] == [0, 5]


def test_a_guard_survives_a_transport_that_takes_nothing() -> None:
    guard = Bench().guard(transport=FakeTransport(full=True))

    assert guard.call(model, {}, caller="a") == 0.9
    guard.flush()


def test_a_report_of_odd_callers_is_still_one_of_the_contract(bench: Bench) -> None:
    guard = bench.guard()
    for caller in ("", "a" * 200, "naïve", "\ud800", 'x"\n', "1 OR 1=1"):
        guard.call(model, {}, caller=caller)
    guard.flush()

    assert isinstance(bench.report, Report)
    assert bench.report.distinct_callers == 6
