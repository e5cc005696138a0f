from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from detectors.base import ReportEvent
from detectors.caller_rates import MAX_OFFENDERS
from detectors.caller_table import CallerTable, caller_key
from detectors.rate_pattern import PatternFactors, predictive_peak
from detectors.report_state import MAGIC, unpack
from detectors.traffic import Traffic
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from tests.detectors.report_makers import ENDPOINT, START_MS, Log, crowd, cuts, firing, quiet_log

ENDPOINTS = {ENDPOINT: EndpointConfig(name=ENDPOINT)}


def watching(seconds: int = 40, seed: int = 1, **options: object) -> tuple[Traffic, Log]:
    """A detector that has seen a crowd for some seconds."""
    traffic, log = Traffic({ENDPOINT: EndpointConfig(name=ENDPOINT, **options)}), Log()
    assert not firing(traffic.update(quiet_log(seed, seconds, log)), "caller_rate")
    return traffic, log


def test_a_fresh_caller_at_300_a_second_is_found_from_one_early_report() -> None:
    traffic, log = watching()

    readings = traffic.update([log.report({"stranger": 75, "caller-0": 5}, after_ms=250)])

    (found,) = firing(readings, "caller_rate")
    assert (found.subject, found.caller_auth, found.subject_kind) == ("stranger", "verified", "caller")
    assert found.score > found.threshold
    assert found.rate == pytest.approx(300)
    assert found.usual_rate is None
    assert found.shares == (("stranger", "verified", 1.0),)
    assert found.atlas == ("AML.T0029",)
    assert found.first_ms == found.at.ms - 250


def test_a_known_caller_that_floods_is_found_and_its_usual_rate_is_told() -> None:
    traffic, log = watching(seconds=120)

    readings = traffic.update([log.report({"caller-0": 300, "caller-1": 12})])

    (found,) = firing(readings, "caller_rate")
    assert found.subject == "caller-0"
    assert found.usual_rate == pytest.approx(20, rel=0.2)


def test_a_marginal_excess_needs_more_than_a_quarter_of_a_second() -> None:
    traffic, log = watching()
    limit = traffic.update([log.report({"probe": 500})])[0].threshold
    traffic, log = watching()

    early = traffic.update([log.report({"stranger": int(limit * 0.3)}, after_ms=250)])
    later = traffic.update([log.report({"stranger": int(limit * 0.3)}, after_ms=250) for _ in range(8)])

    assert not firing(early, "caller_rate")
    assert firing(later, "caller_rate")[0].subject == "stranger"


def test_no_caller_of_a_heavy_tailed_crowd_alarms() -> None:
    for seed in range(6):
        traffic = Traffic(ENDPOINTS)
        assert not firing(traffic.update(quiet_log(seed, 300)), "caller_rate")


def test_nothing_is_said_of_callers_before_the_warm_up_unless_the_owner_set_a_bound() -> None:
    log, second = Log(), crowd(1)
    events: list[ReportEvent] = [log.report(second() | {"stranger": 300}) for _ in range(5)]

    assert not firing(Traffic(ENDPOINTS).update(events), "caller_rate")
    bounded = Traffic({ENDPOINT: EndpointConfig(name=ENDPOINT, caller_rate_max=100)})
    found = firing(bounded.update(events), "caller_rate")[0]
    assert (found.subject, found.evidence["reason"]) == ("stranger", "hard_bound")


@pytest.mark.parametrize("idle_s", range(30, 35))
def test_the_first_seconds_after_an_idle_time_say_nothing_of_who_asks_most(idle_s: int) -> None:
    traffic, log = Traffic(ENDPOINTS), Log()
    others = {f"caller-{n}": 3 for n in range(9)}
    idle: list[ReportEvent] = [log.report() for _ in range(idle_s)]

    readings = traffic.update(
        [*idle, *(log.report(others | {"heaviest": asks}) for asks in (4, 27, 13, 26, 21, 25, 29))]
    )

    assert not firing(readings, "caller_rate")


def test_fewer_than_twenty_asks_in_a_second_never_alarm() -> None:
    traffic, log = Traffic(ENDPOINTS), Log()
    traffic.update([log.report({f"caller-{n}": 1 for n in range(10)}) for _ in range(60)])

    assert not firing(traffic.update([log.report({"stranger": 19}) for _ in range(30)]), "caller_rate")
    assert firing(traffic.update([log.report({"another": 60})]), "caller_rate")


def test_a_caller_with_an_hour_of_its_own_is_judged_by_its_own_pattern() -> None:
    traffic, log, second = Traffic(ENDPOINTS), Log(), crowd(2, rate=200)
    for _ in range(900):
        traffic.update([log.report(second() | {"steady": 2}, after_ms=4_500, interval_ms=1_000)])

    readings = traffic.update([log.report(second() | {"steady": 25})])

    found = next(reading for reading in firing(readings, "caller_rate") if reading.subject == "steady")
    assert found.evidence["reason"] == "own_pattern"
    assert found.threshold < 25
    fresh = traffic.update([log.report({"stranger": 25})])
    assert not [reading for reading in firing(fresh, "caller_rate") if reading.subject == "stranger"]


def test_a_refused_caller_that_keeps_knocking_stays_firing_and_is_calm_after_it_stops() -> None:
    traffic, log = watching()
    second = crowd(3)
    flood = [log.report(second() | {"stranger": 300}, refused={"stranger": 290}) for _ in range(10)]

    readings = [one for event in flood for one in traffic.update([event]) if one.subject == "stranger"]
    after = [one for _ in range(40) for one in traffic.update([log.report(second())]) if one.subject == "stranger"]

    assert len(readings) == 10
    assert all(reading.firing and not reading.calm for reading in readings)
    assert all(reading.calm and not reading.firing for reading in after)
    assert len(after) >= 35
    assert after[0].rate == 0


def test_an_offender_does_not_raise_the_limit_that_others_are_judged_by() -> None:
    traffic, log = watching()
    second = crowd(4)
    traffic.update([log.report(second() | {"stranger": 300}) for _ in range(120)])

    readings = traffic.update([log.report(second() | {"another": 300, "stranger": 300})])

    assert "another" in {reading.subject for reading in firing(readings, "caller_rate")}


def test_a_threefold_excess_is_critical() -> None:
    traffic, log = watching()

    (found,) = firing(traffic.update([log.report({"stranger": 2_000})]), "caller_rate")

    assert found.severity == "critical"


def test_what_an_unsigned_report_says_of_a_caller_is_claimed() -> None:
    traffic, log = watching()

    readings = traffic.update([log.report({"caller-0": 400}, trusted=False, guard="rogue")])

    (found,) = firing(readings, "caller_rate")
    assert found.caller_auth == "claimed"
    signed = traffic.update([log.report({"caller-0": 20})])
    assert not [one for one in firing(signed, "caller_rate") if one.caller_auth == "verified"]


def test_a_flood_spread_over_guards_is_judged_as_a_sum() -> None:
    traffic, log = Traffic(ENDPOINTS), Log()
    second = crowd(5)
    for _ in range(40):
        events = [log.report(second(), after_ms=250, interval_ms=1_000, guard=f"g{n}") for n in range(4)]
        traffic.update(events)
    floods = [log.report({"stranger": 120}, after_ms=250, interval_ms=1_000, guard=f"g{n}") for n in range(4)]

    fired = [bool(firing(traffic.update([event]), "caller_rate")) for event in floods]

    assert fired[-1]
    assert not fired[0]


def test_a_guard_that_hands_in_its_backlog_at_once_is_no_flood() -> None:
    traffic, log = watching()
    second = crowd(6)
    backlog = [log.report(second(), after_ms=10, interval_ms=1_000) for _ in range(60)]

    assert not firing(traffic.update(backlog), "caller_rate")


@pytest.mark.parametrize("stood_s", [1, 3, 6])
@pytest.mark.parametrize("seconds", [20, 90])
def test_what_waited_while_a_service_stood_still_is_nobodys_flood(stood_s: int, seconds: int) -> None:
    for seed in range(5):
        traffic, log = watching(seconds, seed)
        traffic.update([log.report({}, after_ms=1_000 * stood_s)])

        readings = traffic.update([log.report(crowd(seed + 50, rate=50.0 * (1 + stood_s))())])

        assert not firing(readings, "caller_rate")


def test_a_flood_is_found_though_all_others_come_at_once() -> None:
    traffic, log = watching()
    traffic.update([log.report({}, after_ms=3_000)])

    readings = traffic.update([log.report(crowd(9, rate=200.0)() | {"stranger": 600})])

    assert {reading.subject for reading in firing(readings, "caller_rate")} == {"stranger"}


@pytest.mark.parametrize("auth", ["verified", "claimed"])
def test_callers_who_flood_together_do_not_hide_each_other(auth: str) -> None:
    """However many they are: their peaks are small beside those of the crowd."""
    traffic, log = watching()
    for _ in range(30):
        traffic.update(
            [log.report({f"stranger-{n}": 1 for n in range(30)}, auth=auth, guard="g2"), log.report(crowd(1)())]
        )

    flood = {f"stranger-{n}": 300 for n in range(30)}
    readings = traffic.update([log.report(flood, auth=auth, guard="g2"), log.report(crowd(1)())])

    assert {reading.subject for reading in firing(readings, "caller_rate")} == set(flood)


def test_a_report_that_was_written_twice_counts_once() -> None:
    traffic, log = watching()
    event = log.report({"stranger": 40})
    traffic.update([event])

    assert traffic.update([event]) == []


def test_silence_is_said_when_nobody_asks_an_endpoint_in_use() -> None:
    traffic, log = watching(seconds=90)

    readings = traffic.update([log.report({}) for _ in range(30)])

    found = firing(readings, "silence")[0]
    assert found.severity == "warning"
    assert 10_000 <= found.at.ms - found.first_ms <= 20_000
    again = traffic.update(quiet_log(7, 20, log))
    assert [one for one in again if one.kind == "silence"][-1].calm


def test_silence_is_said_when_no_guard_reports_any_more() -> None:
    traffic, log = watching(seconds=90)

    readings = traffic.update([log.tick() for _ in range(30)])

    assert firing(readings, "silence")[0].evidence["reports_missing"] is True


def test_gaps_that_an_endpoint_always_had_are_no_silence() -> None:
    traffic, log, second = Traffic(ENDPOINTS), Log(), crowd(8)
    readings = []
    for _ in range(30):
        readings += traffic.update([log.report(second()) for _ in range(20)])
        readings += traffic.update([log.report({}) for _ in range(8)])
    readings += traffic.update([log.report({}) for _ in range(5)])

    assert not firing(readings, "silence")


def test_the_sum_of_an_endpoint_over_its_pattern_is_a_warning_with_shares() -> None:
    traffic, log = watching(seconds=120)

    readings = traffic.update([log.report({f"bot-{n}": 19 for n in range(40)})])

    (found,) = firing(readings, "endpoint_rate")
    assert found.severity == "warning"
    assert len(found.shares) == 20
    assert sum(share for _, _, share in found.shares) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("more", "answer", "callers"),
    [
        ({f"bot-{n}": 19 for n in range(40)}, "everybody", []),
        ({"bot": 800}, "one_caller", ["bot"]),
        ({"bot-1": 400, "bot-2": 400}, "few_callers", ["bot-1", "bot-2"]),
    ],
)
def test_the_sum_over_its_pattern_says_who_asked_more_than_usual(
    more: dict[str, int], answer: str, callers: list[str]
) -> None:
    traffic, log = watching(seconds=120)

    readings = traffic.update([log.report(crowd(8)() | more)])

    (found,) = firing(readings, "endpoint_rate")
    assert found.evidence["attributed_to"] == answer
    assert found.evidence["attributed_callers"] == callers
    assert found.severity == "warning"


def test_a_season_that_all_callers_bring_is_everybodys() -> None:
    traffic, log = watching(seconds=120)
    usual = crowd(8)()

    readings = traffic.update([log.report({name: 40 * (count + 1) for name, count in usual.items()})])

    (found,) = firing(readings, "endpoint_rate")
    assert found.evidence["attributed_to"] == "everybody"


def test_an_endpoint_is_unknown_in_its_first_minute() -> None:
    readings = Traffic(ENDPOINTS).update(quiet_log(9, 30))

    assert {(one.kind, one.known) for one in readings} == {("endpoint_rate", False), ("silence", False)}


def a_day_in_short() -> list[ReportEvent]:
    """A crowd, a flood, several guards, a guard that stops, silence."""
    log, second = Log(), crowd(10)
    events: list[ReportEvent] = quiet_log(10, 70, log)
    events += [log.report(second() | {"stranger": 300}, after_ms=500) for _ in range(8)]
    events += [log.report(second(), after_ms=333, interval_ms=1_000, guard=f"g{n % 3}") for n in range(30)]
    events += [log.tick(250) for _ in range(90)]
    events += quiet_log(11, 20, log)
    return events


def test_any_cut_of_the_log_gives_the_same_readings_and_state() -> None:
    events, whole = a_day_in_short(), Traffic(ENDPOINTS)
    expected = whole.update(events)
    assert {reading.kind for reading in expected if reading.firing} == {"caller_rate", "endpoint_rate", "silence"}

    for seed in range(3):
        cut = Traffic(ENDPOINTS)
        assert [one for batch in cuts(events, seed) for one in cut.update(batch)] == expected
        assert cut.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)


@pytest.mark.parametrize("at", [5, 141, 146, 170, 220, 280])
def test_a_restored_detector_goes_on_as_if_nothing_had_happened(at: int) -> None:
    events, whole, first, second = a_day_in_short(), Traffic(ENDPOINTS), Traffic(ENDPOINTS), Traffic(ENDPOINTS)
    whole.update(events[:at])
    expected = whole.update(events[at:])

    first.update(events[:at])
    second.restore(ENDPOINT, first.snapshot(ENDPOINT))

    assert second.snapshot(ENDPOINT) == first.snapshot(ENDPOINT)
    assert second.update(events[at:]) == expected
    assert second.snapshot(ENDPOINT) == whole.snapshot(ENDPOINT)


def test_damaged_foreign_and_other_states_are_refused() -> None:
    traffic, _ = watching()
    state = traffic.snapshot(ENDPOINT)
    body = b"\x02\x00\x00\x00{}"
    forged = MAGIC + traffic.hash.encode() + hashlib.sha256(body).digest() + body
    flipped = bytearray(state)
    flipped[-1] ^= 1

    for bad in (b"", b"\x80\x04pickle", state[:-1], bytes(flipped), forged, state + b"x"):
        cold = Traffic(ENDPOINTS)
        with pytest.raises(StateRefused):
            cold.restore(ENDPOINT, bad)
        assert cold.snapshot(ENDPOINT) == b""
    with pytest.raises(StateRefused, match="other parameters"):
        Traffic(ENDPOINTS, caller_share=0.5).restore(ENDPOINT, state)


def test_memory_is_bounded_and_an_offender_is_never_forgotten() -> None:
    traffic, log = Traffic(ENDPOINTS, max_callers=256), Log()
    traffic.update(quiet_log(12, 30, log))
    traffic.update([log.report({"stranger": 300})])
    said = []
    for wave in range(60):
        new = {f"wave-{wave}-{number}": 1 for number in range(98)}
        said += [one for one in traffic.update([log.report({"stranger": 300} | new)]) if one.subject == "stranger"]

    assert len(said) >= 58
    assert all(reading.firing for reading in said)
    assert len(traffic.snapshot(ENDPOINT)) < 40_000


@pytest.mark.parametrize("loud", [70, 100])
def test_claimed_callers_however_many_and_loud_hide_no_verified_one(loud: int) -> None:
    traffic, log, second = Traffic(ENDPOINTS), Log(), crowd(13, rate=10)
    assert not firing(traffic.update([log.report(second()) for _ in range(40)]), "caller_rate")
    strangers = {f"stranger-{number}": 60 for number in range(loud)}
    for _ in range(5):
        rogue = log.report(strangers, trusted=False, guard="rogue", after_ms=500, interval_ms=1_000)
        assert len(firing(traffic.update([rogue]), "caller_rate")) == MAX_OFFENDERS
        traffic.update([log.report(second(), after_ms=500, interval_ms=1_000)])

    readings = traffic.update([log.report(second() | {"flooder": 300})])

    assert [one.subject for one in firing(readings, "caller_rate") if one.caller_auth == "verified"] == ["flooder"]


def test_verified_callers_however_many_and_loud_leave_claimed_ones_their_places() -> None:
    traffic, log = watching()
    traffic.update([log.report({f"flooder-{number}": 300 for number in range(100)})])

    readings = traffic.update([log.report({"stranger": 300}, trusted=False, guard="rogue")])

    assert "stranger" in [one.subject for one in firing(readings, "caller_rate") if one.caller_auth == "claimed"]


def test_the_largest_state_fits_its_bound() -> None:
    traffic, log = Traffic(ENDPOINTS), Log()
    for wave in range(130):
        name = f"{'long-name-' * 11}{wave % 40}"
        asked = {f"{name}-{number}": 300 if number < 4 else 3 for number in range(100)}
        claimed = {f"{name}-{number}": 300 for number in range(4)}
        traffic.update([log.report(asked, guard=f"guard-{wave}", after_ms=10, interval_ms=1_000)])
        traffic.update([log.report(claimed, guard="rogue", after_ms=10, interval_ms=1_000, trusted=False)])
        traffic.update([log.report({f"fill-{wave}-{number}": 1 for number in range(100)}, guard="g", after_ms=100)])

    assert 100_000 < len(traffic.snapshot(ENDPOINT)) <= 200_000


def test_input_is_left_as_it_was() -> None:
    events = a_day_in_short()
    before = [dataclasses.replace(event) for event in events]
    Traffic(ENDPOINTS).update(events)

    assert events == before


def test_a_claimed_caller_is_another_one_than_the_verified_one_of_its_name() -> None:
    assert caller_key("someone", "verified") != caller_key("someone", "claimed")


def test_the_table_forgets_the_least_interesting_first() -> None:
    table = CallerTable(32)
    for number in range(32):
        table.add(number + 1, "verified" if number % 2 else "claimed", START_MS)
    rows = table.occupied
    table.note(rows, np.full(32, 1.0), np.arange(32.0), START_MS)
    table.columns["firing"][rows[0]] = 1

    gone = table.make_room(START_MS, keep=rows[2:3])

    assert len(gone) == 2
    assert {rows[0], rows[2]}.isdisjoint(gone)
    assert table.slot_of(5) is None


def test_a_few_offenders_among_the_peaks_do_not_hide_others() -> None:
    peaks = np.array([4.0, 5, 6, 4, 5, 7, 5, 6, 4, 5, 6, 5, 4, 6, 5, 7, 5, 4, 6, 5])
    with_offenders = np.concatenate([peaks, [5_000.0, 8_000.0]])

    assert predictive_peak(peaks, 0.01, PatternFactors()) < 30
    assert predictive_peak(with_offenders, 0.01, PatternFactors()) < 1_500


@pytest.mark.parametrize("header", [b'{"values":{"x":1e999},"columns":{}}', b'{"values":{"x":NaN},"columns":{}}',
                                    b'{"values":{},"columns":{"":""}}', b'{"values":7,"columns":{}}', b"[" * 20_000])  # fmt: skip
def test_saved_state_whose_hash_holds_and_whose_content_is_none_is_refused(header: bytes) -> None:
    body = len(header).to_bytes(4, "little") + header
    state = MAGIC + b"0" * 32 + hashlib.sha256(body).digest() + body
    with pytest.raises(StateRefused):
        unpack("0" * 32, state, {})
