from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Reading, ReportEvent
from detectors.health import Health
from detectors.sequential import ShareWatch, threshold
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from tests.detectors.report_makers import ENDPOINT, Log, cuts, firing, primary

ENDPOINTS = {ENDPOINT: EndpointConfig(name=ENDPOINT)}
SLOW = 26
"""A bucket of the histogram at about two seconds."""


def serving(seconds: int = 70, **options: object) -> tuple[Health, Log]:
    """An endpoint that has served 50 calls a second well."""
    health, log = Health({ENDPOINT: EndpointConfig(name=ENDPOINT, **options)}), Log()
    readings = health.update([log.report(routes=[primary(50)]) for _ in range(seconds)])
    assert not [reading for reading in readings if reading.firing]
    return health, log


def probes(log: Log, good: int, bad: int = 0, **fields: object) -> ReportEvent:
    """A second on fallback in which the primary is only probed."""
    return log.report(routes=[primary(good, timeouts=bad, route="probe"), primary(47, route="fallback")], **fields)


def last(readings: list[Reading], kind: str) -> Reading:
    return [reading for reading in readings if reading.kind == kind][-1]


def test_a_model_that_hangs_is_critical_within_a_second_of_the_first_early_report() -> None:
    health, log = serving()
    early = log.report(routes=[primary(14, timeouts=1)], after_ms=300)
    next_one = log.report(routes=[primary(0, timeouts=50)])

    health.update([early])
    (found,) = firing(health.update([next_one]), "timeouts")

    assert (found.severity, found.version, found.subject) == ("critical", "default", ENDPOINT)
    assert found.first_ms == early.at.ms - 300


def test_one_failure_among_many_good_calls_is_no_alarm() -> None:
    health, log = serving()

    readings = health.update([log.report(routes=[primary(200, errors=second % 2)]) for second in range(120)])

    assert not firing(readings, "errors")


def test_a_share_of_errors_over_its_baseline_is_a_warning() -> None:
    health, log = serving()

    readings = health.update([log.report(routes=[primary(45, errors=5)]) for _ in range(6)])

    assert {reading.severity for reading in firing(readings, "errors")} == {"warning"}


def test_a_usual_share_of_errors_is_learned() -> None:
    health, log, random = Health(ENDPOINTS), Log(), np.random.default_rng(1)
    readings = []
    for _ in range(900):
        errors = int(random.binomial(50, 0.004))
        readings += health.update([log.report(routes=[primary(50 - errors, errors=errors)])])

    assert not firing(readings, "errors")
    assert last(readings, "errors").known


def test_the_owners_bound_on_errors_needs_no_learning() -> None:
    health, log = Health({ENDPOINT: EndpointConfig(name=ENDPOINT, error_share_max=0.1)}), Log()

    (found,) = firing(health.update([log.report(routes=[primary(40, errors=10)])]), "errors")

    assert (found.severity, found.evidence["reason"]) == ("critical", "hard_bound")


def test_calls_in_flight_while_nothing_comes_back_are_a_hang_without_a_timeout() -> None:
    health, log = serving()

    readings = health.update([log.report({"a": 50}, routes=[], in_flight=50 * (n + 1)) for n in range(2)])

    found = firing(readings, "timeouts")[0]
    assert (found.severity, found.evidence["reason"]) == ("critical", "hung")


def test_slow_calls_far_over_the_learned_quantile_are_critical() -> None:
    health, log = serving()

    readings = health.update([log.report(routes=[primary(50, bucket=SLOW)]) for _ in range(2)])

    assert {reading.severity for reading in firing(readings, "latency")} == {"critical"}


def test_a_busy_machine_that_doubles_a_millisecond_is_no_alarm() -> None:
    health, log = serving()

    assert not firing(health.update([log.report(routes=[primary(50, bucket=9)]) for _ in range(60)]), "latency")


def test_the_owners_bound_on_latency_is_critical() -> None:
    health, log = Health({ENDPOINT: EndpointConfig(name=ENDPOINT, latency_max_ms=3.0)}), Log()

    readings = health.update([log.report(routes=[primary(50, bucket=10)]) for _ in range(3)])

    found = firing(readings, "latency")[0]
    assert (found.severity, found.evidence["reason"]) == ("critical", "hard_bound")


def test_on_fallback_it_is_calm_only_after_ten_good_probes_in_a_row() -> None:
    health, log = serving()
    health.update([log.report(routes=[primary(0, timeouts=50)]) for _ in range(2)])
    health.update([probes(log, 0, bad=3) for _ in range(3)])

    eight = last(health.update([probes(log, 3), probes(log, 3), probes(log, 2)]), "timeouts")
    broken = last(health.update([probes(log, 2, bad=1)]), "timeouts")
    nine = last(health.update([probes(log, 3) for _ in range(3)]), "timeouts")
    twelve = last(health.update([probes(log, 3)]), "timeouts")
    again = last(health.update([probes(log, 2, bad=1)]), "timeouts")

    assert [eight.calm, broken.calm, nine.calm, twelve.calm, again.calm] == [False, False, False, True, False]
    assert not any(reading.firing and reading.calm for reading in (eight, broken, nine, twelve, again))


def test_slow_probes_are_not_good_ones() -> None:
    health, log = serving()
    health.update([log.report(routes=[primary(50, bucket=SLOW)]) for _ in range(3)])

    slow = [
        log.report(routes=[primary(3, bucket=SLOW, route="probe"), primary(47, route="fallback")]) for _ in range(10)
    ]

    assert not last(health.update(slow), "latency").calm


def test_with_full_traffic_it_is_calm_once_failures_are_as_usual() -> None:
    health, log, random = Health(ENDPOINTS), Log(), np.random.default_rng(2)

    def second(share: float) -> ReportEvent:
        errors = int(random.binomial(50, share))
        return log.report(routes=[primary(50 - errors, errors=errors)])

    health.update([second(0.02) for _ in range(300)])
    assert firing(health.update([second(0.5) for _ in range(5)]), "errors")
    after = health.update([second(0.02) for _ in range(120)])

    calm = [reading.calm for reading in after if reading.kind == "errors"][-60:]
    assert np.mean(calm) > 0.9


def test_reports_that_nobody_vouches_for_are_never_critical_and_give_way_to_signed_ones() -> None:
    health, log = Health(ENDPOINTS), Log()
    unsigned = [log.report(routes=[primary(0, errors=50)], trusted=False, guard="rogue") for _ in range(3)]
    assert {reading.severity for reading in firing(health.update(unsigned), "errors")} == {"warning"}

    health, log = serving()
    rogue = [log.report(routes=[primary(0, errors=50)], trusted=False, guard="rogue", after_ms=100) for _ in range(3)]
    assert health.update(rogue) == []


def test_it_is_unknown_before_it_has_served_and_when_its_guards_are_gone() -> None:
    health, log = Health(ENDPOINTS), Log()
    early = health.update([log.report(routes=[primary(50)])])
    health.update([log.report(routes=[primary(50)]) for _ in range(70)])

    gone = health.update([log.tick() for _ in range(6)])

    assert not any(reading.known or reading.calm for reading in early)
    assert gone
    assert not any(reading.known or reading.calm for reading in gone)


@pytest.mark.parametrize("share", [0.0005, 0.005])
def test_the_stated_rate_of_false_alarms_is_kept(share: float) -> None:
    random, steps, entry = np.random.default_rng(3), 60_000, threshold(1_000.0, 1.0)
    watch, alarms = ShareWatch(0.005, 0.005), 0
    for calls, failed in ((int(n), int(random.binomial(n, share))) for n in random.integers(1, 60, steps)):
        watch.add(failed, calls, entry + 3.0)
        if watch.evidence >= entry:
            alarms += 1
            watch.reset()

    # at most one in 1,000 steps is stated
    assert alarms <= steps / 1_000
    assert alarms > 0 or share < 0.001


def test_a_third_of_failing_calls_is_found_soon() -> None:
    watch, entry = ShareWatch(0.005, 0.005), threshold(5.2e7, 1.0)
    for _ in range(4):
        watch.add(4, 12, entry + 3.0)

    assert watch.evidence >= entry


def a_bad_hour() -> list[ReportEvent]:
    log = Log()
    events: list[ReportEvent] = [log.report(routes=[primary(50, errors=int(n % 17 == 0))]) for n in range(80)]
    events += [log.report(routes=[primary(5, timeouts=30)], guard=f"g{n % 2}", after_ms=500) for n in range(8)]
    events += [probes(log, 2, bad=int(n < 4)) for n in range(12)]
    events += [log.report(routes=[primary(50, bucket=SLOW)], live_version="default") for _ in range(5)]
    events += [log.tick(500) for _ in range(12)]
    events += [log.report(routes=[primary(50)]) for _ in range(10)]
    return events


def test_any_cut_of_the_log_gives_the_same_readings_and_state() -> None:
    events, whole = a_bad_hour(), Health(ENDPOINTS)
    expected = whole.update(events)
    assert {reading.kind for reading in expected if reading.firing} == {"timeouts", "latency"}

    for seed in range(3):
        cut = Health(ENDPOINTS)
        assert [one for batch in cuts(events, seed) for one in cut.update(batch)] == expected
        assert cut.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)


@pytest.mark.parametrize("at", [3, 82, 90, 103, 112])
def test_a_restored_detector_goes_on_as_if_nothing_had_happened(at: int) -> None:
    events, whole, first, second = a_bad_hour(), Health(ENDPOINTS), Health(ENDPOINTS), Health(ENDPOINTS)
    whole.update(events[:at])
    expected = whole.update(events[at:])

    first.update(events[:at])
    second.restore(ENDPOINT, first.snapshot(ENDPOINT))

    assert second.update(events[at:]) == expected
    assert second.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)
    assert len(second.snapshot(ENDPOINT)) < 40_000


def test_damaged_and_foreign_states_are_refused() -> None:
    health, _ = serving()
    state = bytearray(health.snapshot(ENDPOINT))
    state[-1] ^= 1

    for bad in (b"", b"\x80\x04pickle", bytes(state), bytes(state[:-1])):
        with pytest.raises(StateRefused):
            Health(ENDPOINTS).restore(ENDPOINT, bad)
    with pytest.raises(StateRefused, match="other parameters"):
        Health(ENDPOINTS, kind_share=0.2).restore(ENDPOINT, health.snapshot(ENDPOINT))
