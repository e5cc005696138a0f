"""What every detector of the registry promises, whatever its idea."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Detector, LabelledAt, Reading, ReportAt, Reversible
from detectors.registry import (
    DETECTORS_OF_LABELS,
    DETECTORS_OF_PREDICTIONS,
    DETECTORS_OF_REPORTS,
    block_detectors,
    labelled_detectors,
    names,
    report_detectors,
)
from palisade.settings import default_policy
from schemas.blocks import Block
from schemas.errors import StateRefused
from schemas.signals import Signal
from tests.conformance.scenarios import SCENARIOS, Scenario

MAX_STATE_BYTES = 262_144
each_detector = pytest.mark.parametrize("name", sorted(SCENARIOS))


def run(detector: Detector[Any], log: Sequence[Any], cuts: Iterable[int] = ()) -> list[Reading]:
    """All readings when the log comes in batches that end at `cuts`."""
    readings: list[Reading] = []
    for start, stop in pairwise([0, *sorted({cut for cut in cuts if 0 < cut < len(log)}), len(log)]):
        readings += detector.update(log[start:stop])
    return readings


def state(detector: Detector[Any], scenario: Scenario) -> dict[str, bytes]:
    return {part: detector.snapshot(part) for part in scenario.parts}


@cache
def uninterrupted(name: str) -> tuple[list[Reading], dict[str, bytes]]:
    """Readings and state of a detector that met its planted change in one piece."""
    scenario = SCENARIOS[name]
    detector = scenario.make()
    return run(detector, scenario.planted()), state(detector, scenario)


def state_after_planted(name: str) -> tuple[str, bytes]:
    """A part, and its state."""
    part = SCENARIOS[name].parts[0]
    return part, uninterrupted(name)[1][part]


def plain(event: Any) -> Any:
    """An input as comparable values."""
    if isinstance(event, Block):
        return [np.asarray(value).tobytes() if isinstance(value, np.ndarray) else value
                for value in (getattr(event, field.name) for field in fields(event))]  # fmt: skip
    if isinstance(event, LabelledAt):
        return repr(event)
    return copy.deepcopy(event.report.model_dump()) if isinstance(event, ReportAt) else event


def test_every_registered_detector_has_a_scenario_and_every_scenario_a_detector() -> None:
    registered = (*DETECTORS_OF_PREDICTIONS, *DETECTORS_OF_REPORTS, *DETECTORS_OF_LABELS)
    reports, _ = report_detectors({})

    assert sorted(registered) == sorted(SCENARIOS)
    assert names(block_detectors(default_policy())) == DETECTORS_OF_PREDICTIONS
    assert names(reports) == DETECTORS_OF_REPORTS
    assert names(labelled_detectors({})) == DETECTORS_OF_LABELS


@each_detector
def test_it_names_its_parameters_and_its_log(name: str) -> None:
    one, other = SCENARIOS[name].make(), SCENARIOS[name].make()

    assert one.name == name
    assert one.hash == other.hash
    logs = {"predictions": DETECTORS_OF_PREDICTIONS, "reports": DETECTORS_OF_REPORTS, "labelled": DETECTORS_OF_LABELS}
    assert name in logs[one.log]


@each_detector
@pytest.mark.parametrize("size", [1, 5_000], ids=["one event a run", "5,000 events a run"])
def test_the_size_of_a_run_changes_neither_readings_nor_signals_nor_state(name: str, size: int) -> None:
    scenario = SCENARIOS[name]
    log = scenario.planted()
    whole, cut = scenario.bank(), scenario.bank()

    expected = whole.update(log)
    readings: list[Reading] = []
    signals: list[Signal] = []
    for start in range(0, len(log), size):
        found = cut.update(log[start : start + size])
        readings, signals = readings + found.readings, signals + found.signals

    assert readings == expected.readings
    assert signals == expected.signals
    assert [signal.signal_id for signal in signals]
    for part in scenario.parts:
        assert cut.snapshot(part) == whole.snapshot(part)


@each_detector
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_cut_of_the_log_gives_the_same_readings_and_state(name: str, data: st.DataObject) -> None:
    scenario = SCENARIOS[name]
    log = scenario.planted()
    cuts = data.draw(st.lists(st.integers(1, len(log) - 1), max_size=40))
    cut = scenario.make()

    assert (run(cut, log, cuts), state(cut, scenario)) == uninterrupted(name)


@each_detector
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_saved_and_restored_anywhere_it_goes_on_as_if_uninterrupted(name: str, data: st.DataObject) -> None:
    scenario = SCENARIOS[name]
    log = scenario.planted()
    places = sorted(data.draw(st.sets(st.integers(1, len(log) - 1), min_size=1, max_size=3)))
    resumed = scenario.make()

    readings: list[Reading] = []
    for start, stop in pairwise([0, *places, len(log)]):
        readings += resumed.update(log[start:stop])
        saved, resumed = state(resumed, scenario), scenario.make()
        for part, bytes_ in saved.items():
            if bytes_:
                resumed.restore(part, bytes_)

    assert (readings, state(resumed, scenario)) == uninterrupted(name)


@pytest.mark.parametrize("name", DETECTORS_OF_PREDICTIONS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_a_batch_taught_is_taken_back_and_learned_again(name: str, data: st.DataObject) -> None:
    scenario = SCENARIOS[name]
    log = scenario.planted()
    first, last = sorted(data.draw(st.lists(st.integers(0, len(log)), min_size=2, max_size=2, unique=True)))
    detector = scenario.make()
    run(detector, log[:first])
    before = state(detector, scenario)
    assert isinstance(detector, Reversible)

    undo = detector.undo(scenario.parts)
    said = run(detector, log[first:last])
    for part in scenario.parts:
        undo(part)

    assert state(detector, scenario) == before
    assert run(detector, log[first:last]) == said


@each_detector
def test_its_state_is_small_and_never_unpickled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS[name]
    detector = scenario.make()
    run(detector, scenario.planted())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("state was handed to pickle")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "dumps", refuse)
    monkeypatch.setattr(np, "load", refuse)
    for part, saved in state(detector, scenario).items():
        assert 0 < len(saved) <= MAX_STATE_BYTES
        assert not saved.startswith(b"\x80")
        scenario.make().restore(part, saved)


@each_detector
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_truncated_or_altered_state_is_refused_and_leaves_the_part_cold(name: str, data: st.DataObject) -> None:
    scenario = SCENARIOS[name]
    part, saved = state_after_planted(name)
    place = data.draw(st.integers(0, len(saved) - 1))
    if data.draw(st.booleans()):
        damaged = saved[: max(place, 1)]
    else:
        damaged = saved[:place] + bytes([saved[place] ^ data.draw(st.integers(1, 255))]) + saved[place + 1 :]
    detector = scenario.make()
    cold = detector.snapshot(part)

    with pytest.raises(StateRefused):
        detector.restore(part, damaged)
    assert detector.snapshot(part) == cold


@each_detector
@settings(max_examples=40, deadline=None, derandomize=True)
@given(foreign=st.binary(min_size=1, max_size=400))
def test_foreign_bytes_are_refused(name: str, foreign: bytes) -> None:
    scenario = SCENARIOS[name]
    others = [state_after_planted(other)[1] for other in SCENARIOS if other != name]
    prefix = state_after_planted(name)[1][:24]
    detector = scenario.make()
    for candidate in (foreign, prefix + foreign, pickle.dumps({"a": 1}), b"{}", *others):
        with pytest.raises(StateRefused):
            detector.restore(scenario.parts[0], candidate)


@each_detector
def test_input_is_never_changed(name: str) -> None:
    scenario = SCENARIOS[name]
    log = [*scenario.planted(), *scenario.hostile()]
    before = [plain(event) for event in log]

    run(scenario.make(), log)

    assert [plain(event) for event in log] == before


@each_detector
def test_it_never_looks_at_a_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS[name]
    log = scenario.planted()
    detector = scenario.make()

    def refuse(*_: object) -> float:
        raise AssertionError("a detector asked for the time")

    with monkeypatch.context() as patched:
        for clock in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"):
            patched.setattr(time, clock, refuse)
        readings = run(detector, log)
    assert readings


@each_detector
def test_hostile_input_never_raises_and_gives_finite_numbers(name: str) -> None:
    scenario = SCENARIOS[name]
    whole, cut = scenario.make(), scenario.make()
    log = scenario.hostile()

    readings = run(whole, log)

    assert run(cut, log, range(len(log))) == readings
    for reading in readings:
        assert math.isfinite(reading.score)
        assert math.isfinite(reading.threshold)
        json.dumps(reading.evidence, allow_nan=False)


@each_detector
def test_not_even_impossible_input_raises(name: str) -> None:
    scenario = SCENARIOS[name]
    detector = scenario.make()

    readings = run(detector, [*scenario.planted(), *scenario.impossible(), *scenario.planted()])

    assert not [reading for reading in readings if reading.firing and reading.calm]


@each_detector
def test_after_hostile_input_its_state_can_be_saved_and_taken_back(name: str) -> None:
    scenario = SCENARIOS[name]
    detector = scenario.make()
    run(detector, scenario.hostile())

    for part, saved in state(detector, scenario).items():
        resumed = scenario.make()
        if saved:
            resumed.restore(part, saved)
            assert resumed.snapshot(part) == saved


@each_detector
def test_without_data_it_says_unknown_and_never_that_all_is_well(name: str) -> None:
    scenario = SCENARIOS[name]

    concluded = scenario.bank().update(scenario.lacking())

    assert concluded.readings
    assert not [reading for reading in concluded.readings if reading.known]
    assert {signal.state for signal in concluded.signals} == {"unknown"}


@each_detector
def test_what_is_not_known_neither_fires_nor_is_calm_and_nothing_is_both(name: str) -> None:
    scenario = SCENARIOS[name]
    for log in (scenario.quiet(), scenario.planted(), scenario.hostile(), scenario.lacking()):
        for reading in run(scenario.make(), log):
            assert not (reading.firing and reading.calm)
            assert reading.known or not (reading.firing or reading.calm)


@each_detector
def test_stationary_input_stays_quiet(name: str) -> None:
    scenario = SCENARIOS[name]

    readings = run(scenario.make(), scenario.quiet())

    assert not [reading for reading in readings if reading.firing]
    assert any(reading.known for reading in readings)


@each_detector
def test_the_planted_change_fires_where_it_is_and_not_before(name: str) -> None:
    scenario = SCENARIOS[name]
    detector, log = scenario.make(), scenario.planted()

    before = run(detector, log[: scenario.change_at])
    after = run(detector, log[scenario.change_at : scenario.change_at + scenario.within])

    assert not [reading for reading in before if reading.firing and reading.kind in scenario.fires]
    found = [reading for reading in after if reading.firing]
    assert {reading.kind for reading in found} >= set(scenario.fires)
    assert {reading.endpoint for reading in found} == {"credit"}


@each_detector
def test_every_signal_survives_its_way_over_kafka(name: str) -> None:
    scenario = SCENARIOS[name]
    for log in (scenario.planted(), scenario.hostile()):
        for signal in scenario.bank().update(log).signals:
            assert Signal.from_bytes(signal.to_bytes()) == signal


@each_detector
def test_memory_does_not_grow_with_the_number_of_endpoints_and_callers(name: str) -> None:
    """Once 4,500 endpoints and callers are seen, which is more than any bound, 2,500 new ones cost next to nothing."""
    scenario = SCENARIOS[name]
    detector = scenario.make()
    first_log, second_log = (
        [scenario.many(start, 500) for start in range(*edges, 500)] for edges in ((0, 4_500), (4_500, 7_000))
    )
    tracemalloc.start()
    try:
        empty = tracemalloc.get_traced_memory()[0]
        sizes = []
        for log in (first_log, second_log):
            for batch in log:
                detector.update(batch)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    assert sizes[1] - sizes[0] < 0.1 * (sizes[0] - empty) + 200_000
    for saved in state(detector, scenario).values():
        assert len(saved) <= MAX_STATE_BYTES
