"""One partition of the log of labels: repeated records count once, whatever the cut; restarts go on where they were."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank import Bank, place_of_label
from detectors.registry import labelled_detectors
from schemas.config import EndpointConfig
from schemas.deadletter import DeadLetter
from schemas.errors import StateRefused
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, LABELLED, SIGNALS
from schemas.wire import KIND_HEADER
from streams.detect import DetectRole
from streams.labelled_log import EndpointLabels, LabelledLog
from streams.metrics import Metrics
from streams.records import Outgoing, RawHeaders, Records
from streams.transport.run import TP
from tests.conformance import logs
from tests.streams.fakes import FakeOutbox, FakeStore, no_pause

KIND: RawHeaders = [(KIND_HEADER, b"labelled")]
CHANGE, LABELS = 800, 1_300


def labels() -> list[bytes]:
    """An endpoint whose predictions are wrong in a tenth, then in half of the cases; 30 predictions a second."""
    drawn = np.random.default_rng(3).random(LABELS)
    return [
        logs.label(n, wrong=bool(drawn[n] < (0.5 if n >= CHANGE else 0.1))).labelled.to_bytes() for n in range(LABELS)
    ]


def records(values: list[bytes | None], headers: RawHeaders = KIND) -> Records:
    n = len(values)
    return Records(
        values, [b"credit"] * n, [headers] * n, list(range(n)), [logs.START_MS + 1_000 * k for k in range(n)]
    )


def open_log(partitions: int = 1, endpoints: tuple[str, ...] = ("credit",)) -> LabelledLog:
    known = {name: EndpointConfig(name=name) for name in endpoints}

    def make(endpoint: str) -> EndpointLabels:
        return EndpointLabels(Bank(labelled_detectors({endpoint: known[endpoint]}), place_of_label, 2_000))

    return LabelledLog(0, partitions, known, make)


def feed(log: LabelledLog, what: Records, cuts: list[int], quiet_below: int = 0) -> list[Outgoing]:
    async def run() -> list[Outgoing]:
        out: list[Outgoing] = []
        for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(what)}), len(what)]):
            out += await log.take(what.part(start, stop), quiet_below, no_pause)
        return out

    return asyncio.run(run())


def signals(out: list[Outgoing]) -> list[Signal]:
    return [Signal.from_bytes(record.value) for record in out if record.topic == SIGNALS]


LOG = records([*labels()])


def test_a_model_that_gets_worse_opens_one_incident_of_its_version() -> None:
    found = [signal for signal in signals(feed(open_log(), LOG, [])) if signal.state != "unknown"]

    assert {(signal.kind, signal.subject_kind, signal.subject) for signal in found} == {
        ("concept_drift", "model_version", "v1")
    }
    assert found[0].state == "opened"
    assert CHANGE < found[0].log_offset < CHANGE + 120
    assert len({signal.incident_id for signal in found}) == 1


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, LABELS), max_size=30))
def test_any_cut_of_the_log_gives_the_same_signals(cuts: list[int]) -> None:
    assert signals(feed(open_log(), LOG, cuts)) == signals(feed(open_log(), LOG, []))


@pytest.mark.parametrize("killed_at", [5, 400, CHANGE + 3, CHANGE + 200])
def test_a_restart_goes_on_as_if_uninterrupted(killed_at: int) -> None:
    uninterrupted = open_log()
    expected = feed(uninterrupted, LOG, [])
    first = open_log()
    before = feed(first, LOG.part(0, killed_at), [])
    saved, start = {part: first.snapshot(part) for part in first.dirty()}, first.restart

    second = open_log()
    for part, state in saved.items():
        second.restore(part, state)
    after = feed(second, LOG.part(max(0, start - 4), len(LOG)), [], quiet_below=killed_at)

    assert signals(before) + signals(after) == signals(expected)
    assert second.snapshot("credit") == uninterrupted.snapshot("credit")


def _repeating(values: list[bytes]) -> list[bytes]:
    """Three crashes of the audit: from places before it says again what it said."""
    return values[:300] + values[250:900] + values[900 - 640 :] + values[-50:]


def test_records_that_a_crash_of_the_audit_repeated_count_once() -> None:
    once, again = open_log(), open_log()
    feed(once, LOG, [])
    feed(again, records([*_repeating(labels())]), [])

    def numbers(log: LabelledLog) -> bytes:
        """The detector's counts and evidence, without the times at which it spoke."""
        (detector,) = log._running["credit"].bank.detectors
        version = detector._parts["credit"].versions["v1"]  # type: ignore[attr-defined]
        return repr((version.errors.saved(), version.counted, version.fair.saved().tolist())).encode()

    assert numbers(again) == numbers(once)


def test_a_repetition_across_a_restart_counts_once_too() -> None:
    first, second = open_log(), open_log()
    feed(first, LOG.part(0, 700), [])
    second.restore("credit", first.snapshot("credit"))
    position = second._running["credit"].position
    feed(second, Records(LOG.values[:700], LOG.keys[:700], LOG.headers[:700], range(700, 1_400), [9] * 700), [])

    assert (second._running["credit"].position, second._running["credit"].applied) == (position, 1_399)
    (detector,) = second._running["credit"].bank.detectors
    assert detector._parts["credit"].versions["v1"].counted == 700  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [(None, KIND, "tombstone"), (b"", KIND, "empty"), (b"{", KIND, "not_json"), (b"{}", KIND, "wrong_shape"),
     (b" " * 70_000, KIND, "too_large"), (b"{}", [(KIND_HEADER, b"tick")], "unknown_kind")],
)  # fmt: skip
def test_what_is_no_label_is_a_dead_letter_with_its_reason(
    value: bytes | None, headers: RawHeaders, reason: str
) -> None:
    out = feed(open_log(), records([value], headers), [])

    assert [DeadLetter.from_bytes(record.value).reason for record in out if record.topic == DEAD_LETTERS] == [reason]


def test_labels_of_a_stranger_endpoint_or_on_the_wrong_partition_start_nothing() -> None:
    elsewhere = open_log(partitions=64)
    letters = [DeadLetter.from_bytes(record.value) for record in feed(elsewhere, LOG.part(0, 1), [])]
    assert [letter.reason for letter in letters] == ["wrong_partition"]

    stranger = open_log(endpoints=("spam",))
    assert feed(stranger, LOG.part(0, 50), []) == []
    assert stranger.dirty() == elsewhere.dirty() == []


def test_a_saved_endpoint_that_is_gone_and_foreign_bytes_are_refused() -> None:
    log = open_log()
    feed(log, LOG.part(0, 20), [])

    with pytest.raises(StateRefused, match="not in the configuration"):
        open_log(endpoints=("spam",)).restore("credit", log.snapshot("credit"))
    for foreign in (b"", b"\x05\x00\x00\x00{}", b"\x02\x00\x00\x00{}", b"\x10\x00\x00\x00" + b'{"applied": 1}  '):
        with pytest.raises(StateRefused):
            open_log().restore("credit", foreign)


def test_no_ticks_are_written_into_the_log_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from streams import detect

    monkeypatch.setattr(detect, "TICK_S", 0.0)
    monkeypatch.setattr(detect, "SLOW_TICK_S", 0.0)
    outbox: Any = FakeOutbox()

    async def open_any(_: TP) -> LabelledLog:
        return open_log()

    async def story() -> None:
        role = DetectRole("w", open_any, FakeStore(), lambda: outbox, Metrics("detect"))
        await role.start_at({}, frozenset({TP(LABELLED, 0), TP("palisade.reports", 0)}))
        ticking = asyncio.ensure_future(role.ticks())
        while not outbox.sent:
            await asyncio.sleep(0)
        ticking.cancel()

    asyncio.run(story())
    assert {sent.topic for sent in outbox.sent} == {"palisade.reports"}
