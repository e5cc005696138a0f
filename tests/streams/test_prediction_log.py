"""One partition of the predictions log: what it concludes depends on the log alone."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.bank import Bank
from detectors.base import Reading
from schemas.blocks import Block
from schemas.deadletter import DeadLetter
from schemas.events import ProfileActivated
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, SIGNALS, VERDICTS
from schemas.wire import KIND_HEADER
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, Records, header_of
from tests.streams.fakes import no_pause
from tests.streams.log_of_predictions import (
    ENDPOINTS,
    OPERATOR,
    ROWS,
    SHIFT_FROM,
    activation,
    open_log,
    profile,
    records,
)


def feed(log: PredictionLog, what: Records, cuts: list[int], quiet_below: int = 0) -> list[Outgoing]:
    """Everything that the records lead to when they come in runs that end at `cuts`."""

    async def run() -> list[Outgoing]:
        out: list[Outgoing] = []
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(what)}), len(what)]
        for start, stop in itertools.pairwise(edges):
            out += await log.take(what.part(start, stop), quiet_below, no_pause)
        return out

    return asyncio.run(run())


def signals(out: list[Outgoing]) -> list[Signal]:
    return [Signal.from_bytes(record.value) for record in out if record.topic == SIGNALS]


def said_by_part(out: list[Outgoing]) -> list[Signal]:
    return sorted(signals(out), key=lambda signal: (signal.endpoint, signal.version or ""))


def table_of(out: list[Outgoing], kind: bytes) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for record in out:
        if record.topic == VERDICTS and header_of(record.headers, KIND_HEADER) == kind:
            rows += pa.ipc.open_stream(io.BytesIO(record.value)).read_all().to_pylist()
    return rows


def by_part(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Part after part, each in its own order: which of two parts comes first is up to what the bank took together."""
    return sorted(rows, key=lambda row: (str(row["endpoint"]), str(row["version"])))


@pytest.fixture(scope="module")
def whole() -> list[Outgoing]:
    return feed(open_log(), records(), [])


def test_every_row_is_scored_once(whole: list[Outgoing]) -> None:
    rows = table_of(whole, b"verdict_rows")

    assert len(rows) == ROWS
    assert len({(row["offset"], row["row"]) for row in rows}) == ROWS
    assert {row["outcome"] for row in rows} == {0}


def test_a_unit_change_on_one_feature_is_a_critical_signal_of_that_endpoint_alone(whole: list[Outgoing]) -> None:
    found = [signal for signal in signals(whole) if signal.kind == "feature_drift" and signal.state == "opened"]

    assert [signal.endpoint for signal in found] == ["credit"]
    worst = [signal for signal in signals(whole) if signal.severity == "critical" and signal.kind == "feature_drift"]
    assert worst
    assert worst[0].log_offset >= records().offsets[0] + SHIFT_FROM
    assert worst[0].evidence["features"][0] == "amount"  # type: ignore[index]
    assert worst[0].shares


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, ROWS), max_size=60))
def test_any_cut_of_the_log_into_runs_gives_the_same_signals_and_readings(cuts: list[int]) -> None:
    once, cut = feed(open_log(), records(), []), feed(open_log(), records(), cuts)

    assert said_by_part(cut) == said_by_part(once)
    assert by_part(table_of(cut, b"verdict_blocks")) == by_part(table_of(once, b"verdict_blocks"))


@pytest.mark.parametrize(("piece_s", "least", "most"), [(0.0, 4, 32), (10.0, 4, 4)])
def test_the_bank_takes_four_blocks_at_least_and_more_where_they_cost_little(
    monkeypatch: pytest.MonkeyPatch, whole: list[Outgoing], piece_s: float, least: int, most: int
) -> None:
    sizes: list[int] = []
    steps = Bank.steps

    def counted(bank: Bank[Block], blocks: Sequence[Block]) -> Iterator[list[Reading]]:
        sizes.append(len(blocks))
        return steps(bank, blocks)

    async def pause() -> float:
        return piece_s

    monkeypatch.setattr(Bank, "steps", counted)
    out = asyncio.run(open_log().take(records(), 0, pause))
    full = sizes[:-1]

    assert said_by_part(out) == said_by_part(whole)
    assert by_part(table_of(out, b"verdict_blocks")) == by_part(table_of(whole, b"verdict_blocks"))
    assert (min(full), max(full)) == (least, most)


def test_one_record_a_run_gives_the_same_state_as_all_at_once() -> None:
    one, all_ = open_log(), open_log()
    few = records().part(0, 1_200)
    feed(one, few, list(range(len(few))))
    feed(all_, few, [])

    for endpoint in ENDPOINTS:
        assert one.snapshot(f"{endpoint}@v1") == all_.snapshot(f"{endpoint}@v1")


@pytest.mark.parametrize("killed_at", [700, 2_049, 3_111])
def test_a_restart_from_saved_state_goes_on_as_if_nothing_had_happened(killed_at: int) -> None:
    log = records()
    uninterrupted = open_log()
    expected = feed(uninterrupted, log, [])
    first = open_log()
    before = feed(first, log.part(0, killed_at), [killed_at // 2])
    saved = {part: first.snapshot(part) for part in first.dirty()}
    start = first.restart

    second = open_log()
    for part, state in saved.items():
        second.restore(part, state)
    again = Records(
        *(column[start - 100 :] for column in (log.values, log.keys, log.headers, log.offsets, log.timestamps))
    )
    after = feed(second, again, [37], quiet_below=log.offsets[0] + killed_at)

    assert signals(before) + signals(after) == signals(expected)
    assert len(table_of(before, b"verdict_rows")) + len(table_of(after, b"verdict_rows")) == ROWS
    for endpoint in ENDPOINTS:
        assert second.snapshot(f"{endpoint}@v1") == uninterrupted.snapshot(f"{endpoint}@v1")


def test_a_version_with_an_at_sign_in_its_name_keeps_its_profile_over_a_restart() -> None:
    def of_release(value: bytes) -> bytes:
        return value.replace(b'"model_version": "v1"', b'"model_version": "v1@eu"')

    switched = ProfileActivated.from_bytes(activation("credit")[0]).model_copy(update={"version": "v1@eu"}).to_bytes()
    kind = ProfileActivated.KIND
    signed = [(KIND_HEADER, kind.encode()), *OPERATOR.headers(kind, switched)]
    log = records().part(0, 1_000)
    renamed = Records(
        [switched, *(of_release(value or b"") for value in log.values[1:])], log.keys, [signed, *log.headers[1:]],
        log.offsets, log.timestamps,
    )  # fmt: skip
    first, second = open_log(), open_log()
    feed(first, renamed, [])
    second.restore("credit@v1@eu", first.snapshot("credit@v1@eu"))

    assert b'"profile":"' + profile().hash.encode() in first.snapshot("credit@v1@eu").replace(b": ", b":")
    assert second.snapshot("credit@v1@eu") == first.snapshot("credit@v1@eu")


def test_an_unsigned_activation_changes_nothing_and_is_a_dead_letter() -> None:
    value, _ = activation("credit")
    forged = Records([value], [b"credit"], [[(KIND_HEADER, b"profile_activated")]], [0], [1])

    out = feed(open_log(), forged, [])

    letters = [DeadLetter.from_bytes(record.value) for record in out if record.topic == DEAD_LETTERS]
    assert [letter.reason for letter in letters] == ["unsigned_control"]


def test_a_record_on_which_decoding_raises_is_found_and_the_others_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log()
    what = records().part(2, 42)
    poison = what.offsets[17]
    decode = log._decoder.segments

    def raising(values, keys, headers, offsets, times):  # type: ignore[no-untyped-def]
        if poison in offsets:
            raise ZeroDivisionError("poison")
        return decode(values, keys, headers, offsets, times)

    monkeypatch.setattr(log._decoder, "segments", raising)
    out = feed(log, what, [])

    letters = [DeadLetter.from_bytes(record.value) for record in out if record.topic == DEAD_LETTERS]
    assert [(letter.reason, letter.log_offset) for letter in letters] == [("handler_failed", poison)]
    outcomes = {row["offset"]: row["outcome"] for row in table_of(out, b"verdict_rows")}
    assert outcomes[poison] == 1
    assert sum(outcome == 0 for outcome in outcomes.values()) == len(outcomes) - 1


@pytest.mark.parametrize("error", [MemoryError(), OSError("no space left")])
def test_an_exhausted_machine_is_no_records_fault(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    log = open_log()

    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr(log._decoder, "segments", raising)
    with pytest.raises(type(error)):
        feed(log, records().part(2, 42), [])


def made_up(endpoint: str, versions: int) -> Records:
    values = [
        f'{{"endpoint":"{endpoint}","model_version":"made-up-{n}","features":{{"amount":1}}}}'.encode()
        for n in range(versions)
    ]
    tick = b'{"worker":"w","at_ms":1}'
    every = [
        item for value in values for item in ((value, None, endpoint.encode()), (tick, [(KIND_HEADER, b"tick")], None))
    ]
    n = len(every)
    return Records(
        [e[0] for e in every],
        [e[2] for e in every],
        [e[1] for e in every],
        list(range(n)),
        [20_000 * k for k in range(n)],
    )


def test_an_endpoint_outside_the_configuration_is_said_once_and_becomes_no_state() -> None:
    log = open_log()
    found = signals(feed(log, made_up("stranger", 5), []))

    assert [(signal.kind, signal.endpoint) for signal in found] == [("unknown_endpoint", "stranger")]
    assert log.dirty() == []


def test_versions_without_end_become_no_state_without_end() -> None:
    log = open_log()
    found = signals(feed(log, made_up("credit", 400), []))

    assert len(log.dirty()) <= 256
    assert [signal.endpoint for signal in found if signal.kind == "unknown_version"] == ["credit"]


def test_a_detector_that_broke_goes_on_cold_with_the_profile_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log()
    feed(log, records().part(0, 1_200), [])
    detector = log._bank.detectors[0]
    update = detector.update

    def breaking(blocks: object) -> object:
        monkeypatch.setattr(detector, "update", update)
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(detector, "update", breaking)
    broken = feed(log, records().part(1_200, 1_800), [])
    after = feed(log, records().part(1_800, 2_400), [])

    assert {signal.kind for signal in signals(broken)} == {"detector_failed"}
    read = [
        row["state"] for row in table_of(after, b"verdict_blocks") if row["detector"] == "feature_drift:feature_drift"
    ]
    assert read
    assert "unknown" not in read
