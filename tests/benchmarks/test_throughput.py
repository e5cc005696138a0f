"""The throughput benchmark compares like with like: one log, the same blocks for both, the same verdict on them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.stock_faust import Cutter, open_bank, verdict_of
from benchmarks.throughput import Figures, summary
from benchmarks.throughput_load import (
    ANSWER,
    CALLERS,
    CATEGORICAL,
    KM_A_MILE,
    NUMERIC,
    ORDER,
    PLANTED,
    PLANTED_ROWS,
    RATE_PER_S,
    TICK_HEADERS,
    Load,
    Record,
    caller_names,
    draw,
    real_rows,
    records,
)
from detectors.base import Budget
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import Block
from schemas.topics import PREDICTIONS
from streams.blocks import BlockBuilder
from streams.decode import Decoder

BEGIN_MS = 1_700_000_000_000
LOAD = Load(3, 9_000, partitions=1)


@cache
def profile() -> Profile:
    return build_profile(real_rows()[0].table().slice(0, 6_000), order_by=ORDER, prediction=(ANSWER,), seed=1)


@cache
def log() -> list[Record]:
    return list(records(LOAD, BEGIN_MS))


def blocks_of_palisade(log: list[Record]) -> list[Block]:
    decoder = Decoder(PREDICTIONS, 0, 1, lambda endpoint, version: profile().features)
    builder = BlockBuilder(PREDICTIONS, 0, lambda endpoint, version: profile().hash)
    blocks: list[Block] = []
    headers: list[Any] = [record.headers for record in log]
    times = [record.at_ms for record in log]
    for segment in decoder.segments(
        [record.value for record in log], [record.key for record in log], headers, range(len(log)), times
    ):
        assert not segment.dead_letters
        blocks += builder.add(segment.columns)
        if segment.control is not None:
            blocks += builder.tick(segment.control.offset, segment.control.broker_ms)
    return blocks


def blocks_of_stock(log: list[Record]) -> list[Block]:
    cutter = Cutter(PREDICTIONS, 0, profile())
    blocks: list[Block] = []
    for offset, record in enumerate(log):
        if record.headers == TICK_HEADERS:
            blocks += cutter.tick(offset, record.at_ms)
        elif (block := cutter.add(json.loads(record.value), offset, record.at_ms)) is not None:
            blocks.append(block)
    return blocks


def test_stock_faust_judges_the_same_blocks_as_palisade() -> None:
    ours, theirs = blocks_of_palisade(log()), blocks_of_stock(log())

    assert len(ours) == len(theirs) > 30
    for one, other in zip(ours, theirs, strict=True):
        assert (one.endpoint, one.closed_by, one.closed_at, one.closed_ms) == (
            other.endpoint, other.closed_by, other.closed_at, other.closed_ms,
        )  # fmt: skip
        assert one.callers == other.callers
        for name in ("offsets", "numeric", "categorical", "caller", "verified", "ts", "broker_ts", "weight", "value"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_stock_faust_says_of_a_block_what_palisade_says() -> None:
    budget = Budget(1.0, 1e9)
    ours, theirs = open_bank(profile(), LOAD.names, budget), open_bank(profile(), LOAD.names, budget)

    together = ours.update(blocks_of_palisade(log()))
    one_by_one = [theirs.update([block]) for block in blocks_of_stock(log())]

    assert [signal.signal_id for signal in together.signals] == [
        signal.signal_id for concluded in one_by_one for signal in concluded.signals
    ]
    assert together.signals
    block = blocks_of_stock(log())[0]
    assert json.loads(json.dumps(verdict_of(block, one_by_one[0])))["scored"] == len(block)


def test_an_event_has_twenty_features_of_a_real_row() -> None:
    event = json.loads(log()[0].value)
    assert list(event["features"]) == [*NUMERIC, *CATEGORICAL]
    assert len(event["features"]) == 20

    row = draw(LOAD, real_rows()[1]).row[0]
    assert event["features"]["temp"] == real_rows()[1].features["temp"][row]


def test_the_change_is_planted_in_one_endpoint_for_everybody_and_long_enough() -> None:
    _, rows = real_rows()
    drawn = draw(LOAD, rows)
    planted = np.flatnonzero(drawn.planted)

    assert len(planted) == PLANTED_ROWS >= 2_000
    assert set(drawn.endpoint[planted].tolist()) == {0}
    events = [json.loads(record.value) for record in log() if record.rows]
    miles = rows.features[PLANTED][drawn.row]
    for at in (int(planted[0]), int(planted[-1])):
        assert events[at]["features"][PLANTED] == pytest.approx(miles[at] * KM_A_MILE)
    before = int(planted[0]) - 1
    assert events[before]["features"][PLANTED] == miles[before]


def test_the_log_holds_four_ticks_for_each_second_of_fifty_thousand_events() -> None:
    long = Load(1, 2 * RATE_PER_S, arrow=True, partitions=2)
    ticks = [record for record in records(long, BEGIN_MS) if record.headers == TICK_HEADERS]
    assert [record.at_ms - BEGIN_MS for record in ticks if record.partition == 1] == [
        250, 500, 750, 1000, 1250, 1500, 1750, 2000,
    ]  # fmt: skip


def test_arrow_batches_hold_the_same_events_as_the_json_log() -> None:
    load = replace(LOAD, arrow=True)
    found: list[dict[str, Any]] = []
    for record in records(load, BEGIN_MS):
        if record.rows:
            found += pa.ipc.open_stream(record.value).read_all().to_pylist()
    wanted = [json.loads(record.value) for record in log() if record.rows]

    found.sort(key=lambda event: event["seq"])
    for event in wanted:
        del event["schema_version"]
    assert found == wanted


def test_ten_thousand_callers_with_a_heavy_head_are_drawn() -> None:
    _, rows = real_rows()
    assert len(set(caller_names(rows))) == CALLERS
    asked = np.bincount(draw(Load(1, 200_000), rows).caller, minlength=CALLERS)
    assert 0.01 < asked.max() / asked.sum() < 0.05


def figures(cost: float, **changes: Any) -> Figures:
    base = Figures(
        events=1_000, events_per_s=60_000.0, cpu_s_per_million=cost, planted_change_found=True, wall_s=1.0, cpu_s=1.0,
        start_cpu_s=1.0, scored=1_000, other_alarms=0,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("name", "worse", "said"),
    [
        ("json-1", figures(20.0), "times stock"),
        ("json-1", figures(10.0, events_per_s=49_000.0), "events/s at one endpoint"),
        ("json-1000", figures(26.0), "times the cost at 1,000 endpoints"),
        ("stock", figures(100.0, planted_change_found=False), "stock: the planted change was not found"),
        ("arrow-1", figures(3.0, scored=999), "arrow-1: 999 of 1000 scored"),
    ],
)
def test_the_benchmark_fails_when_a_bound_does_not_hold(name: str, worse: Figures, said: str) -> None:
    held = {
        "stock": figures(100.0), "json-1": figures(10.0), "json-100": figures(12.0), "json-1000": figures(15.0),
        "arrow-1": figures(3.0), "arrow-100": figures(6.0),
    }  # fmt: skip
    assert summary(held)["ok"]

    line = summary(held | {name: worse})
    assert not line["ok"]
    assert said in str(line["faults"])
