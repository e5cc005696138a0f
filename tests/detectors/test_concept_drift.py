"""Concept drift: what counts as wrong, what nobody can do alone, and how often it is mistaken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from river.drift.binary import HDDMA

from detectors.base import LabelledAt, LogPoint, Reading
from detectors.concept_drift import ConceptDrift
from detectors.error_share import KNOWN_LABELS
from detectors.fair_share import WINDOW, FairShare
from detectors.hddm import DELTA, load_hddm, new_hddm, save_hddm
from detectors.label_errors import is_wrong
from schemas.config import EndpointConfig
from tests.conformance import logs

ENDPOINT = logs.ENDPOINTS[0]


def detector(**config: Any) -> ConceptDrift:
    return ConceptDrift({ENDPOINT: EndpointConfig(name=ENDPOINT, **config)})


def stream(shares: list[float], seed: int = 1, **fields: Any) -> list[LabelledAt]:
    """A label for each share of errors; `fields` as in `logs.label`, callables are asked with the label's number."""
    drawn = np.random.default_rng(seed).random(len(shares)).tolist()
    return [
        logs.label(n, wrong=draw < share,
                   **{name: value(n) if callable(value) else value for name, value in fields.items()})
        for n, (draw, share) in enumerate(zip(drawn, shares, strict=True))
    ]  # fmt: skip


def firing(readings: list[Reading]) -> list[Reading]:
    return [reading for reading in readings if reading.firing]


@pytest.mark.parametrize(
    ("prediction", "label", "tolerance", "wrong"),
    [
        (0.9, 1, None, False), (0.9, 0, None, True), (0.5, True, None, False), (0.49, True, None, True),
        (True, True, None, False), (1, 0, None, True), (3, 3, None, False), (3, 4.0, None, True),
        ("spam", "spam", None, False), ("spam", "ham", None, True), ("1", 1, None, False), ("1", True, None, False),
        (2, "2", None, False), ("2", 0.5, None, None),
        ({"yes": 0.7, "no": 0.3}, "yes", None, False), ({"yes": 0.7, "no": 0.3}, "no", None, True),
        ({"0": 0.2, "1": 0.8}, 1, None, False), ([0.1, 0.2, 0.7], 2, None, False), ([0.1, 0.2, 0.7], 0, None, True),
        (12.5, 13.0, 1.0, False), (12.5, 14.0, 1.0, True), (0.9, 0, 0.05, True), (0.5, True, 0.05, False),
        (12.5, 13.2, None, None), (0.3, 0.4, None, None), (None, 1, None, None), ({}, "a", None, None),
        ([], 0, None, None), (float("nan"), 1, None, True), (float("nan"), 1.5, 1.0, True),
        (10**400, 1, None, True), ({"a": 10**400}, "a", None, None), ({"a": 1.0}, 0.5, None, None),
    ],
)  # fmt: skip
def test_what_is_wrong_follows_one_stated_rule(prediction: Any, label: Any, tolerance: Any, wrong: Any) -> None:
    assert is_wrong(prediction, label, tolerance) is wrong


def test_below_300_labels_nothing_is_known_and_from_then_on_it_is() -> None:
    readings = detector().update(stream([0.9] * (KNOWN_LABELS - 1) + [0.9] * 20))

    assert {reading.known for reading in readings[:-2]} == {False}
    assert readings[0].evidence["reason"] == "too_few_labels"
    assert readings[-1].known
    assert firing(readings) == []


def test_labels_that_no_rule_judges_are_said_to_be_so() -> None:
    (reading,) = detector().update(stream([0.0], prediction=12.5, label=13.0))

    assert (reading.known, reading.evidence["reason"]) == (False, "labels_cannot_be_judged")


def test_amounts_are_judged_by_the_owners_tolerance() -> None:
    labels = stream([0.0] * 900, prediction=lambda n: 10.0 + (5.0 if n >= 600 else 0.0), label=10.5)

    assert firing(detector(label_tolerance=1.0).update(labels))[0].at.offset < 650
    assert firing(detector(label_tolerance=10.0).update(labels)) == []


@pytest.mark.parametrize(("usual", "worse", "most"), [(0.02, 0.1, 400), (0.1, 0.3, 150), (0.3, 0.6, 120)])
def test_a_model_that_gets_worse_is_told_within_so_many_labels(usual: float, worse: float, most: int) -> None:
    late = []
    for seed in range(9):
        found = firing(detector().update(stream([usual] * 2_000 + [worse] * 1_500, seed)))
        assert found[0].at.offset >= 2_000
        late.append(found[0].at.offset - 2_000)

    assert sorted(late)[4] <= most


def test_stationary_errors_alarm_no_more_often_than_stated() -> None:
    """12 services of a month each, 5,000 labels: 0.6 alarms are within the share of 0.05; 4 or more come once in 300 times."""
    alarms = 0
    record = {wrong: logs.label(1, wrong=wrong).labelled for wrong in (True, False)}
    for seed in range(12):
        drawn = np.random.default_rng(seed).random(5_000) < (0.02, 0.1, 0.3)[seed % 3]
        one, found = detector(), 0
        for n, wrong in enumerate(drawn.tolist()):
            at = LogPoint("palisade.labelled", 0, n, 0, logs.START_MS + n * 518_400)
            label = record[wrong].model_copy(update={"prediction_offset": n})
            found += len(firing(one.update([LabelledAt(label, at)])))
        alarms += found > 0

    assert alarms < 4


def test_better_is_no_alarm() -> None:
    assert firing(detector().update(stream([0.4] * 1_500 + [0.05] * 1_500))) == []


def test_what_is_bad_does_not_become_usual_and_it_recovers_when_it_is_good_again() -> None:
    readings = detector().update(stream([0.1] * 1_500 + [0.5] * 3_000 + [0.1] * 2_000))
    last = readings[-1]

    assert firing(readings)[-1].at.offset > 4_400
    assert float(str(last.evidence["usual_share"])) < 0.13
    assert (last.firing, last.calm) == (False, True)


def test_answers_of_a_fallback_or_refusals_say_nothing_of_the_model() -> None:
    assert detector().update(stream([1.0] * 900, served_by="fallback")) == []


def test_versions_are_judged_apart_and_the_ninth_makes_the_longest_silent_forgotten() -> None:
    one = detector()
    one.update(stream([0.1] * 2_000 + [0.9] * 2_000, model_version=lambda n: "old" if n % 2 else "new"))
    readings = one.update(stream([0.1] * 900, model_version=lambda n: f"v{n % 8}"))

    assert firing(readings) == []
    assert list(one._parts[ENDPOINT].versions) != ["old", "new"]
    assert len(one._parts[ENDPOINT].versions) == 8


@pytest.mark.parametrize("who", ["source", "caller"])
def test_one_source_or_caller_among_many_moves_nothing_alone(who: str) -> None:
    """It brings 60 % of the labels, all of them wrong."""

    def name(n: int) -> str:
        return "mallory" if n >= 2_000 and n % 10 < 6 else f"{who}{n * 7 % 40}"

    shares = [0.1] * 2_000 + [1.0 if name(n) == "mallory" else 0.1 for n in range(2_000, 6_000)]
    fields = {"source": lambda _: "bank"} | {who: name}
    alone = firing(detector().update(stream(shares, 2, **fields)))
    everybody = firing(
        detector().update(
            stream([0.1] * 2_000 + [0.64] * 4_000, 2, **({"source": "bank"} | {who: lambda n: f"{who}{n * 7 % 40}"}))
        )
    )

    assert alone == []
    assert everybody


def test_once_a_verified_source_speaks_others_count_for_nothing() -> None:
    claimed = stream([0.0] * 600, source_auth="claimed")
    verified = stream([0.1] * 600)
    lies = stream([1.0] * 900, source_auth="claimed")
    one = detector()
    assert {reading.evidence.get("trusted") for reading in one.update(claimed)} == {False}

    readings = one.update(verified)
    assert (readings[0].known, readings[0].evidence["labels"]) == (False, 1)
    assert one.update(lies) == []


def test_sources_that_nobody_vouches_for_are_one() -> None:
    counted = detector()
    counted.update(stream([0.1] * 600, source_auth="claimed", source=lambda n: f"sybil{n}"))

    assert len(counted._parts[ENDPOINT].versions["v1"].fair._counts[0]) == 1


def test_a_prediction_that_is_labelled_again_and_again_counts_once() -> None:
    one = detector()
    one.update(stream([0.1] * 600))
    one.update([logs.label(599, wrong=True)] * 500)
    version = one._parts[ENDPOINT].versions["v1"]

    assert (version.counted, version.passed_over) == (600, 500)


def test_within_the_last_labels_nobody_has_more_than_their_share() -> None:
    fair = FairShare()
    rng = np.random.default_rng(4)
    for n in range(3_000):
        fair.admits(1, 7 if rng.random() < 0.8 else int(rng.integers(100, 160)), n)
    callers = fair.saved()[:, 1].tolist()

    active = len(set(callers))
    assert len(callers) == WINDOW
    assert callers.count(7) <= max(0.05, 2 / active) * WINDOW + 1
    again = FairShare(fair.saved())
    assert [again.admits(1, n, n + 9_000) for n in (7, 200, 7)] == [fair.admits(1, n, n + 9_000) for n in (7, 200, 7)]
    assert again.saved().tolist() == fair.saved().tolist()


def test_hddm_saved_and_restored_anywhere_detects_as_one_that_was_not() -> None:
    rng = np.random.default_rng(8)
    errors = [*(rng.random(3_000) < 0.1), *(rng.random(1_500) < 0.6), *(rng.random(1_500) < 0.9)]
    plain, moved = new_hddm(), new_hddm()
    reference = HDDMA(drift_confidence=DELTA, warning_confidence=1e-3)  # type: ignore[no-untyped-call]
    found: list[int] = []
    for at, wrong in enumerate(errors):
        for each in (plain, moved, reference):
            each.update(bool(wrong))  # type: ignore[no-untyped-call]
        assert plain.drift_detected == moved.drift_detected == reference.drift_detected
        assert save_hddm(plain) == save_hddm(moved)
        moved = load_hddm(save_hddm(moved))
        found += [at] * plain.drift_detected

    assert len(found) >= 2
    assert 3_000 < found[0] < 3_200


@pytest.mark.parametrize("saved", [[], [1.0] * 6, [1.0] * 6 + [float("nan")], ["a"] * 7, [-1.0] * 7, None])
def test_what_is_no_state_of_hddm_is_refused(saved: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        load_hddm(saved)


def test_a_log_point_without_time_raises_nothing() -> None:
    label = logs.label(1).labelled
    assert detector().update([LabelledAt(label, LogPoint("l", 0, 0, 0, 0))])
