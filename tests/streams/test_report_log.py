"""One partition of the reports log: a flood and a hang become signals, whatever the cut; restarts keep baselines."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank import Bank, place_of_report
from detectors.registry import report_detectors
from responders.signing import SigningKey
from schemas.config import EndpointConfig
from schemas.deadletter import DeadLetter
from schemas.errors import StateRefused
from schemas.events import CallerCounts, Report, RouteCounts
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.records import Outgoing, RawHeaders, Records, header_of
from streams.report_log import EndpointReports, ReportLog
from tests.streams.fakes import no_pause

PRODUCER = SigningKey.generate()
ENDPOINT = "credit"
CALLERS = {f"c{n}": 2 + n for n in range(12)}
FLOOD_AT, FLOOD_UNTIL, SECONDS = 40, 48, 70


def report(second: int, *, flood: int = 0, seconds: float = 1.0) -> bytes:
    callers = [
        CallerCounts(caller=name, caller_auth="verified", asked=rate, served=rate) for name, rate in CALLERS.items()
    ]
    if flood:
        callers.append(CallerCounts(caller="mallory", caller_auth="verified", asked=flood, served=flood))
    asked = sum(caller.asked for caller in callers)
    latency = [0] * 10 + [asked]
    return Report(
        endpoint=ENDPOINT, guard_id="g", boot_id="b", seq=second, from_ms=0, to_ms=int(seconds * 1000), asked=asked,
        fallback_ok=True, routes=[RouteCounts(route="primary", served=asked, latency=latency)],
        distinct_callers=len(callers), callers=callers,
    ).to_bytes()  # fmt: skip


def headers(value: bytes, *, signed: bool = True) -> RawHeaders:
    kind = [(KIND_HEADER, b"report")]
    return [*kind, *PRODUCER.headers("report", value)] if signed else kind


def log_of_reports(*, signed: bool = True) -> Records:
    values: list[bytes | None] = []
    heads: list[RawHeaders] = []
    times: list[int] = []
    for second in range(SECONDS):
        value = report(second, flood=300 if FLOOD_AT <= second < FLOOD_UNTIL else 0)
        values += [value, b'{"worker":"w","at_ms":1}']
        heads += [headers(value, signed=signed), [(KIND_HEADER, b"tick")]]
        times += [1_000_000 + 1000 * second, 1_000_400 + 1000 * second]
    return Records(values, [None] * len(values), heads, list(range(len(values))), times)


def open_log(partitions: int = 1, keys: tuple[str, ...] = (PRODUCER.public_base64,)) -> ReportLog:
    endpoints = {ENDPOINT: EndpointConfig(name=ENDPOINT, producer_keys=keys)}

    def make(endpoint: str) -> EndpointReports:
        detectors, states = report_detectors({endpoint: endpoints[endpoint]})
        return EndpointReports(Bank(detectors, place_of_report, 2_000), states)

    return ReportLog(0, partitions, endpoints, make)


def feed(log: ReportLog, what: Records, cuts: list[int], quiet_below: int = 0) -> list[Outgoing]:
    async def run() -> list[Outgoing]:
        out: list[Outgoing] = []
        for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(what)}), len(what)]):
            out += await log.take(what.part(start, stop), quiet_below, no_pause)
        return out

    return asyncio.run(run())


def signals(out: list[Outgoing]) -> list[Signal]:
    found = [
        record for record in out if record.topic == SIGNALS and header_of(record.headers, KIND_HEADER) == b"signal"
    ]
    return [Signal.from_bytes(record.value) for record in found]


def test_a_flood_opens_one_incident_of_its_caller_and_recovers_after_it() -> None:
    found = [signal for signal in signals(feed(open_log(), log_of_reports(), [])) if signal.kind == "caller_rate"]

    assert {signal.subject for signal in found} == {"mallory"}
    assert len({signal.incident_id for signal in found}) == 1
    assert [found[0].state, found[-1].state] == ["opened", "recovered"]
    assert found[0].log_offset == 2 * FLOOD_AT
    assert found[0].caller_auth == "verified"


def test_unsigned_reports_vouch_for_nobody() -> None:
    found = [
        signal for signal in signals(feed(open_log(), log_of_reports(signed=False), [])) if signal.kind == "caller_rate"
    ]

    assert {signal.caller_auth for signal in found} == {"claimed"}


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 2 * SECONDS), max_size=40))
def test_any_cut_of_the_log_gives_the_same_signals(cuts: list[int]) -> None:
    assert signals(feed(open_log(), log_of_reports(), cuts)) == signals(feed(open_log(), log_of_reports(), []))


@pytest.mark.parametrize("killed_at", [5, 2 * FLOOD_AT + 3, 2 * FLOOD_UNTIL + 1])
def test_a_restart_keeps_baselines_and_open_incidents(killed_at: int) -> None:
    log = log_of_reports()
    uninterrupted = open_log()
    expected = feed(uninterrupted, log, [])
    first = open_log()
    before = feed(first, log.part(0, killed_at), [])
    saved, start = {part: first.snapshot(part) for part in first.dirty()}, first.restart

    second = open_log()
    for part, state in saved.items():
        second.restore(part, state)
    after = feed(second, log.part(max(0, start - 4), len(log)), [], quiet_below=killed_at)

    assert signals(before) + signals(after) == signals(expected)
    assert second.snapshot(ENDPOINT) == uninterrupted.snapshot(ENDPOINT)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "tombstone"), (b"", "empty"), (b"{", "not_json"), (b"{}", "wrong_shape"), (b" " * 70_000, "too_large")],
)
def test_what_is_no_report_is_a_dead_letter_with_its_reason(value: bytes | None, reason: str) -> None:
    out = feed(open_log(), Records([value], [None], [[(KIND_HEADER, b"report")]], [0], [1]), [])

    assert [DeadLetter.from_bytes(record.value).reason for record in out if record.topic == DEAD_LETTERS] == [reason]


def test_a_record_of_another_kind_is_a_dead_letter() -> None:
    out = feed(open_log(), Records([b"{}"], [None], [[(KIND_HEADER, b"directive")]], [0], [1]), [])

    assert [DeadLetter.from_bytes(record.value).reason for record in out] == ["unknown_kind"]


def test_a_saved_endpoint_that_is_not_configured_any_more_starts_nothing() -> None:
    log = open_log()
    feed(log, log_of_reports().part(0, 20), [])
    state = log.snapshot(ENDPOINT)

    with pytest.raises(StateRefused, match="not in the configuration"):
        open_log().restore("gone", state)


def test_a_report_on_the_wrong_partition_starts_no_second_history() -> None:
    log = open_log(partitions=64)
    letters = [DeadLetter.from_bytes(record.value) for record in feed(log, log_of_reports().part(0, 1), [])]

    assert [letter.reason for letter in letters] == ["wrong_partition"]
    assert log.dirty() == []


def test_an_endpoint_whose_producer_keys_are_taken_away_starts_anew_from_unsigned_reports() -> None:
    signed, unsigned = open_log(), open_log(keys=())
    feed(signed, log_of_reports(), [])

    with pytest.raises(StateRefused, match="producer key"):
        unsigned.restore(ENDPOINT, signed.snapshot(ENDPOINT))
    found = signals(feed(unsigned, log_of_reports(signed=False), []))

    assert ("mallory", "claimed", "opened") in {(one.subject, one.caller_auth, one.state) for one in found}
