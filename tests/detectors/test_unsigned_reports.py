"""What somebody can do who writes reports that nobody signed: nothing to an endpoint whose guards sign theirs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank import Bank, place_of_report
from detectors.base import LogPoint, ReportAt, ReportEvent, TickAt
from detectors.endpoint_state import EndpointStates
from detectors.registry import report_detectors
from schemas.config import EndpointConfig
from schemas.events import CallerCounts, Report, RouteCounts
from schemas.signals import EndpointState, Signal
from tests.detectors.report_makers import ENDPOINT, START_MS, Log, crowd, primary

BOUND = 20.0


class Endpoint:
    """The default bank of the reports log, and what the responder is told, of one endpoint."""

    def __init__(self, **options: Any) -> None:
        self._config = {ENDPOINT: EndpointConfig(name=ENDPOINT, **options)}
        self.bank, self.states = self._cold()
        self.signals: list[Signal] = []
        self.told: list[EndpointState] = []

    def _cold(self) -> tuple[Bank[ReportEvent], EndpointStates]:
        detectors, states = report_detectors(self._config)
        states.watch(ENDPOINT, True)
        return Bank(detectors, place_of_report, 2_000), states

    def take(self, events: Sequence[ReportEvent]) -> list[Signal]:
        found = [signal for event in events for signal in self.bank.update([event]).signals]
        self.signals += found
        self.told += self.states.update(events)
        return found

    def restart(self) -> None:
        saved = self.bank.snapshot(ENDPOINT), self.states.snapshot(ENDPOINT)
        self.bank, self.states = self._cold()
        assert self.bank.restore(ENDPOINT, saved[0]) == []
        self.states.restore(ENDPOINT, saved[1])
        assert (self.bank.snapshot(ENDPOINT), self.states.snapshot(ENDPOINT)) == saved

    def size(self) -> int:
        return len(self.bank.snapshot(ENDPOINT)) + len(self.states.snapshot(ENDPOINT))


def invented(log: Log, count: int, wave: str, every_ms: int = 2, **fields: Any) -> list[ReportEvent]:
    """Unsigned reports of as many guards that there are not; some name callers of their own that flood."""
    return [
        log.report(
            {f"{wave}-{number}-{caller}": 400 for caller in range(2)} if number % 20 == 0 else {},
            guard=f"{wave}-{number}",
            after_ms=every_ms,
            interval_ms=1_000,
            trusted=False,
            **fields,
        )
        for number in range(count)
    ]


def opened(signals: Sequence[Signal], auth: str) -> set[str]:
    return {
        one.subject
        for one in signals
        if one.kind == "caller_rate" and one.state == "opened" and one.caller_auth == auth
    }


@pytest.mark.parametrize(
    ("guards", "before", "bound"),
    [(5_000, False, None), (5_000, True, BOUND), (20_000, False, BOUND)],
    ids=["after signed reports", "before any signed one", "20,000, and the owner's bound"],
)
def test_invented_guards_hide_no_flood_by_a_verified_caller(guards: int, before: bool, bound: float | None) -> None:
    endpoint, log, second = Endpoint(caller_rate_max=bound), Log(), crowd(1, rate=15)
    endpoint.take([log.report(second()) for _ in range(0 if before else 30)])
    endpoint.take(invented(log, guards, "evil"))
    if before:
        endpoint.take([log.report(second()) for _ in range(30)])
    size = endpoint.size()
    endpoint.restart()

    found = endpoint.take([log.report(second() | {"mallory": 300}, after_ms=500, interval_ms=1_000)])

    assert opened(found, "verified") == {"mallory"}
    assert size < 200_000


def test_invented_guards_beside_signed_ones_forge_nothing_that_the_responder_decides_by() -> None:
    endpoint, log = Endpoint(), Log()
    endpoint.take([log.report({"a": 10}, guard="real", epoch_applied=5, live_version="v2") for _ in range(3)])
    honest = endpoint.told[-1]

    worst: dict[str, Any] = {
        "epoch_applied": 0,
        "fallback_ok": False,
        "killed": True,
        "live_version": "evil",
        "distinct_callers": 999,
    }
    endpoint.take(invented(log, 300, "evil", **worst))
    endpoint.restart()
    probes = [primary(90, route="probe"), primary(1, route="fallback")]
    endpoint.take(invented(log, 300, "good", routes=probes, epoch_applied=9))
    endpoint.take([log.report({"a": 10}, guard="real", epoch_applied=5, live_version="v2", interval_ms=1_000)])

    state = endpoint.told[-1]
    assert (state.guards_live, state.epoch_applied, state.fallback_ok, state.killed) == (1, 5, True, False)
    assert (state.live_version, state.active_callers, state.asked_per_s) == ("v2", 1, 10)
    assert state.good_probes == honest.good_probes
    assert state.guard_shares == {"real": 1.0}
    assert state.knocking == []


def test_forged_probes_are_no_evidence_for_release_while_all_calls_fall_back() -> None:
    endpoint, log = Endpoint(), Log()
    fallback = [primary(50, route="fallback")]
    endpoint.take([log.report(routes=fallback, epoch_applied=3) for _ in range(3)])

    for wave in range(3):
        endpoint.take(invented(log, 200, f"good-{wave}", routes=[primary(90, route="probe")]))
        endpoint.take([log.report(routes=fallback, epoch_applied=3, after_ms=600)])

    assert {state.good_probes for state in endpoint.told} == {0}


def test_what_unsigned_reports_said_before_the_first_signed_one_is_forgotten() -> None:
    endpoint, log = Endpoint(), Log()
    endpoint.take(invented(log, 200, "evil", routes=[primary(500, route="probe")], fallback_ok=False))

    endpoint.take([log.report({"a": 4}, guard="real", routes=[primary(4)], epoch_applied=1)])

    state = endpoint.told[-1]
    assert (state.guards_live, state.fallback_ok, state.epoch_applied, state.good_probes) == (1, True, 1, 4)


def test_a_signed_endpoint_whose_guards_have_gone_believes_no_unsigned_ones_instead() -> None:
    endpoint, log = Endpoint(), Log()
    endpoint.take([log.report({"a": 10}, guard="real")])
    endpoint.take([log.tick() for _ in range(10)])

    endpoint.take(invented(log, 50, "evil", every_ms=100))
    endpoint.restart()
    endpoint.take([*invented(log, 50, "more", every_ms=100), log.tick()])

    state = endpoint.told[-1]
    assert (state.guards_live, state.fallback_ok, state.guard_shares) == (0, False, {})


@pytest.mark.parametrize("bound", [BOUND, None], ids=["the owner's bound", "the endpoint's pattern"])
def test_where_nobody_signs_invented_guards_switch_off_no_detection_of_others(bound: float | None) -> None:
    endpoint, log, second = Endpoint(caller_rate_max=bound), Log(), crowd(2, rate=15)
    endpoint.take([log.report(second(), trusted=False) for _ in range(30)])
    for wave in range(5):
        endpoint.take([
            log.report(guard=f"evil-{wave}-{number}", trusted=False, after_ms=1, interval_ms=1_000, routes=[])
            for number in range(400)
        ])  # fmt: skip
        endpoint.take([log.report(second(), trusted=False, after_ms=500, interval_ms=1_000)])
    assert endpoint.size() < 60_000
    endpoint.restart()

    flood = [log.report(second() | {"mallory": 300}, trusted=False, after_ms=200, interval_ms=1_000)]

    assert opened(endpoint.take(flood), "claimed") == {"mallory"}


def test_a_count_that_no_float_holds_is_refused() -> None:
    bad: list[dict[str, Any]] = [{"asked": 2**63}, {"seq": 10**400}, {"in_flight": 2**64}]
    for fields in bad:
        given_fields: dict[str, Any] = {
            "endpoint": ENDPOINT,
            "guard_id": "g",
            "boot_id": "b",
            "seq": 1,
            "from_ms": 0,
            "to_ms": 1,
        }
        with pytest.raises(ValueError, match="less than or equal"):
            Report(**(given_fields | fields))


STEP = 10_000
"""Offsets between signed reports: unsigned ones come between, and move none of them."""


def _signed_log() -> list[ReportEvent]:
    """75 s of two guards: a crowd, a flood, timeouts and a fallback, a guard that ends."""
    log, second = Log(), crowd(4, rate=20)
    events: list[ReportEvent] = []
    for number in range(75):
        extra = {"mallory": 300} if 30 <= number < 34 else {}
        fallback: dict[str, Any] = (
            {"routes": [primary(3, route="probe"), primary(40, route="fallback")]} if number >= 70 else {}
        )
        failing = {"routes": [primary(10, timeouts=40)]} if 66 <= number < 70 else fallback
        events.append(log.report(second() | extra, after_ms=500, interval_ms=1_000, epoch_applied=2, **failing))
        if number < 50:
            events.append(log.report(second(), guard="g2", after_ms=200, interval_ms=1_000, epoch_applied=2))
        events.append(log.tick(500 if number >= 50 else 300))
    placed: list[ReportEvent] = []
    for index, event in enumerate(events):
        at = event.at._replace(offset=index * STEP)
        placed.append(TickAt(at) if isinstance(event, TickAt) else ReportAt(event.report, True, at))
    return placed


@cache
def _without() -> tuple[list[ReportEvent], list[Signal], list[EndpointState], bytes]:
    events, endpoint = _signed_log(), Endpoint()
    endpoint.take(events)
    return events, endpoint.signals, endpoint.told, endpoint.states.snapshot(ENDPOINT)


def _of_the_signed(signals: Sequence[Signal], only_callers: bool) -> list[Signal]:
    return [
        one for one in signals if one.caller_auth == "verified" or (one.subject_kind == "endpoint" and not only_callers)
    ]


_CALLERS = st.dictionaries(
    st.sampled_from(["mallory", "caller-0", "caller-1", "x", "y"]), st.integers(0, 2**62), max_size=4
)
_COUNTS = st.integers(0, 2**62)


@st.composite
def _unsigned(draw: st.DrawFn) -> tuple[int, Report]:
    """A place in the signed log, and a report that anybody could write there."""
    from_ms = START_MS + draw(st.integers(-10_000, 100_000))
    callers = draw(_CALLERS)
    report = Report(
        endpoint=ENDPOINT,
        guard_id=draw(st.sampled_from(["g1", "g2", "evil", "g3"])),
        boot_id=draw(st.sampled_from(["boot", "other"])),
        seq=draw(_COUNTS),
        from_ms=from_ms,
        to_ms=from_ms + draw(st.integers(-1_000, 10_000)),
        epoch_applied=draw(_COUNTS),
        killed=draw(st.booleans()),
        live_version=draw(st.sampled_from(["default", "evil"])),
        asked=draw(_COUNTS),
        refused=draw(_COUNTS),
        in_flight=draw(_COUNTS),
        fallback_ok=draw(st.booleans()),
        distinct_callers=draw(_COUNTS),
        routes=[
            RouteCounts(
                route=draw(st.sampled_from(["primary", "probe", "fallback"])),
                served=draw(_COUNTS),
                errors=draw(_COUNTS),
                timeouts=draw(_COUNTS),
            )
        ],
        callers=[
            CallerCounts(caller=name, caller_auth="verified", asked=count, served=0, refused=count)
            for name, count in callers.items()
        ],
    )
    return draw(st.integers(0, 200)), report


@settings(max_examples=20, deadline=None)
@given(reports=st.lists(_unsigned(), max_size=20), repeat=st.integers(1, 20), restart_at=st.integers(0, 200))
def test_whatever_unsigned_reports_come_between_signed_ones_decide_nothing_about_them(
    reports: list[tuple[int, Report]], repeat: int, restart_at: int
) -> None:
    signed, expected_signals, expected_states, expected_snapshot = _without()
    endpoint, number = Endpoint(), 0
    for index, event in enumerate(signed):
        if index == restart_at and index > 0:
            endpoint.restart()
        for place, report in reports:
            if place % len(signed) == index:
                copies = [
                    ReportAt(
                        report if copy == 0 else report.model_copy(update={"guard_id": f"evil-{number}-{copy}"}),
                        False,
                        LogPoint("palisade.reports", 0, event.at.offset - STEP + 1 + number % STEP, 0, event.at.ms),
                    )
                    for copy in range(repeat)
                ]
                number += 1
                endpoint.take(copies)
        endpoint.take([event])

    only_callers = any(place % len(signed) == 0 for place, _ in reports)
    # before its first signed report an endpoint is judged by unsigned ones, and that may have opened incidents of its own
    assert _of_the_signed(endpoint.signals, only_callers) == _of_the_signed(expected_signals, only_callers)
    assert [one for one in endpoint.told if one.log_offset % STEP == 0] == expected_states
    assert endpoint.states.snapshot(ENDPOINT) == expected_snapshot
