"""Did the outputs move? A model that answers a constant, other labels, another mix or less surely is found; its callers'
inputs, fallbacks and errors are not its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Reading, part_of
from detectors.prediction_drift import PredictionDrift
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import BLOCK_ROWS, MISSING, ROUTE_CODES, STATUS_CODES, UNSEEN, VERSION_ROUTE, Block, Codes, Floats
from schemas.errors import ConfigError
from tests.detectors.drift_data import BUDGET, ENDPOINT, make_block, profile, rows, table

LABELS = ("low", "mid", "high")
PART = part_of(ENDPOINT, "v1")


@cache
def probabilities() -> Floats:
    """What a model answers on the rows of the table, [rows, labels]: it depends on warmth, load and place; the last label
    is the rarest."""
    numeric, categorical = rows()
    warmth = np.nan_to_num(numeric[:, 0], nan=15.0)
    z = 0.05 * (warmth - 15) + 0.8 * numeric[:, 3] + 0.3 * (categorical[:, 0] == 0)
    scores = np.exp(np.stack([0.5 - z, 0.3 - 0.1 * z, z - 0.5], axis=1))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def with_answers(**columns: pa.Array) -> pa.Table:
    data = table()
    for name, column in columns.items():
        data = data.append_column(name, column)
    return data


@cache
def of_labels() -> Profile:
    """The profile of a model that answers probabilities by label."""
    return build_profile(
        with_answers(**{name: pa.array(probabilities()[:, k]) for k, name in enumerate(LABELS)}),
        order_by="at",
        prediction=LABELS,
    )


@cache
def of_scores() -> Profile:
    """The profile of a model that answers a number."""
    return build_profile(with_answers(risk=pa.array(probabilities()[:, 2])), order_by="at", prediction=["risk"])


class Answers(NamedTuple):
    """Outputs of n rows as decoding gives them."""

    value: Floats
    label: Codes
    confidence: Floats


def answered(chances: Floats, by: Profile) -> Answers:
    """What decoding makes of probabilities [n, labels], or of the last of them as a number."""
    n = len(chances)
    if not by.labels:
        return Answers(chances[:, 2].copy(), np.full(n, MISSING, np.int32), np.full(n, np.nan))
    code_of = np.array([by.labels.index(label) for label in LABELS], np.int32)
    return Answers(np.full(n, np.nan), code_of[chances.argmax(axis=1)], chances.max(axis=1))


def block_of(answers: Answers, by: Profile, first: int, **changed: object) -> Block:
    """A block of usual inputs with these answers."""
    numeric, categorical = rows()
    n = len(answers.value)
    block = make_block(numeric[:n], categorical[:n], first=first, **changed)  # type: ignore[arg-type]
    return replace(block, profile_hash=by.hash, **answers._asdict())


def played(
    by: Profile, change: Callable[[Floats], Floats] = lambda chances: chances, blocks: int = 24
) -> list[Reading]:
    """Readings of blocks in the table's order, `change` made to the probabilities of all from the ninth block on."""
    detector = fitted(by)
    found = []
    for k in range(blocks):
        at = 4_000 + k * BLOCK_ROWS
        chances = probabilities()[at : at + BLOCK_ROWS]
        answers = answered(change(chances) if k >= 8 else chances, by)
        found += detector.update([block_of(answers, by, at)])
    return found


def fitted(by: Profile) -> PredictionDrift:
    detector = PredictionDrift()
    detector.fit(PART, by, BUDGET)
    return detector


def first_firing(readings: list[Reading]) -> int:
    """In which block after the change it fired; fails if in none, or before it."""
    fired = [k for k, reading in enumerate(readings) if reading.firing]
    assert fired, "nothing fired"
    assert fired[0] >= 8, "fired before the change"
    return fired[0] - 8


def constant(chances: Floats) -> Floats:
    return np.broadcast_to(probabilities()[17], chances.shape).copy()


def inverted(chances: Floats) -> Floats:
    return chances[:, ::-1].copy()


def other_prior(chances: Floats) -> Floats:
    """The rarest label comes three times as often (prior probability shift: every posterior is weighed anew)."""
    weighed = chances * (1.0, 1.0, 3.0)
    return np.asarray(weighed / weighed.sum(axis=1, keepdims=True))


def less_sure(chances: Floats) -> Floats:
    """The same label each time, half as far above chance."""
    return (chances + 1 / 3) / 2


@pytest.mark.parametrize("by", [of_labels, of_scores], ids=["labels", "score"])
def test_a_model_that_answers_as_on_its_table_is_calm(by: Callable[[], Profile]) -> None:
    readings = played(by(), blocks=70)

    assert len(readings) == 70
    assert not [reading for reading in readings if reading.firing]
    assert {(reading.kind, reading.detector, reading.subject_kind) for reading in readings} == {
        ("prediction_drift", "prediction_drift", "endpoint")
    }


@pytest.mark.parametrize("by", [of_labels, of_scores], ids=["labels", "score"])
def test_a_model_that_answers_a_constant_is_found_at_once_and_is_critical(by: Callable[[], Profile]) -> None:
    readings = played(by(), constant)

    at = first_firing(readings)
    assert at <= 1
    assert any(reading.severity == "critical" for reading in readings[8 + at : 8 + at + 2])


@pytest.mark.parametrize("by", [of_labels, of_scores], ids=["labels", "score"])
def test_inverted_labels_are_found(by: Callable[[], Profile]) -> None:
    assert first_firing(played(by(), inverted)) <= 4


@pytest.mark.parametrize(("by", "within"), [(of_labels, 6), (of_scores, 14)], ids=["labels", "score"])
def test_a_change_of_the_class_prior_is_found(by: Callable[[], Profile], within: int) -> None:
    """Later by the score, whose thresholds are as wide as the table's slow warmth makes it swing."""
    assert first_firing(played(by(), other_prior)) <= within


def test_a_model_that_became_less_sure_is_found_though_its_labels_are_the_same() -> None:
    readings = played(of_labels(), less_sure)

    assert first_firing(readings) <= 2
    fired = next(reading for reading in readings if reading.firing)
    assert fired.evidence["outputs"][0] == "confidence"  # type: ignore[index]
    observed, expected = (fired.evidence[name][0] for name in ("observed_mean", "expected_mean"))  # type: ignore[index]
    assert observed < expected - 0.05  # type: ignore[operator]


def test_the_labels_that_moved_are_told_with_their_shares() -> None:
    readings = played(of_labels(), lambda chances: np.broadcast_to((0.1, 0.1, 0.8), chances.shape).copy())

    fired = next(reading for reading in readings if reading.firing)
    high = fired.evidence["labels"].index("high")  # type: ignore[union-attr]
    assert fired.evidence["observed_shares"][high] == 1.0  # type: ignore[index]
    assert fired.evidence["expected_shares"][high] == pytest.approx(  # type: ignore[index]
        float((probabilities().argmax(axis=1) == 2).mean())
    )


def test_a_label_that_the_profile_does_not_hold_is_critical() -> None:
    by = of_labels()
    detector, readings = fitted(by), []
    for k in range(4):
        answers = answered(probabilities()[k * 256 : k * 256 + 256], by)
        answers.label[:80] = UNSEEN
        readings += detector.update([block_of(answers, by, k * 256)])

    assert readings[-1].firing
    assert readings[-1].severity == "critical"


def test_answers_of_another_kind_than_the_profiles_are_missing_ones_and_fire() -> None:
    by = of_scores()
    nothing = Answers(np.full(256, np.nan), np.full(256, MISSING, np.int32), np.full(256, np.nan))

    (reading,) = fitted(by).update([block_of(nothing, by, 0)])

    assert reading.firing
    assert reading.evidence["observed_missing"] == [1.0]


NOT_OF_THE_MODEL = [
    ("served_by", ROUTE_CODES["fallback"]),
    ("served_by", ROUTE_CODES["refused"]),
    ("status", STATUS_CODES["error"]),
    ("status", STATUS_CODES["timeout"]),
    ("status", STATUS_CODES["unanswered"]),
]


@pytest.mark.parametrize(("field", "code"), NOT_OF_THE_MODEL)
def test_what_no_model_of_the_version_answered_does_not_count(field: str, code: int) -> None:
    by = of_labels()
    detector, other = fitted(by), np.arange(BLOCK_ROWS) % 2 == 0
    for k in range(12):
        at = 4_000 + k * BLOCK_ROWS
        chances = probabilities()[at : at + BLOCK_ROWS]
        answers = answered(np.where(other[:, None], constant(chances), chances), by)
        block = block_of(answers, by, at)
        (reading,) = detector.update([replace(block, **{field: np.where(other, code, 0).astype(np.uint8)})])
        assert reading.known
        assert not reading.firing


@pytest.mark.parametrize(("field", "code"), NOT_OF_THE_MODEL)
def test_a_block_without_an_answer_of_the_model_is_unknown(field: str, code: int) -> None:
    by = of_labels()
    block = block_of(answered(constant(probabilities()[:256]), by), by, 0)

    (reading,) = fitted(by).update([replace(block, **{field: np.full(256, code, np.uint8)})])

    assert not reading.known
    assert not reading.firing
    assert reading.evidence["reason"] == "nothing_to_judge"


@pytest.mark.parametrize("route", [ROUTE_CODES["probe"], VERSION_ROUTE])
def test_probes_and_versions_asked_by_name_count(route: int) -> None:
    by = of_labels()
    detector = fitted(by)
    blocks = [block_of(answered(constant(probabilities()[:256]), by), by, k * 256, served_by=route) for k in range(3)]

    assert detector.update(blocks)[-1].firing


def test_a_model_that_is_well_again_is_calm_after_500_probes() -> None:
    by = of_labels()
    detector = fitted(by)
    broken = [block_of(answered(constant(probabilities()[:256]), by), by, k * 256) for k in range(4)]
    assert detector.update(broken)[-1].firing

    readings = []
    for k in range(100):
        at = 6_000 + 8 * k
        answers = answered(probabilities()[at : at + 8], by)
        readings += detector.update([block_of(answers, by, 1_024 + 8 * k, served_by=ROUTE_CODES["probe"])])

    own = [reading for reading in readings if reading.subject_kind == "endpoint"]
    assert own[10].firing
    assert all(reading.calm for reading in own[63:])


def test_a_profile_without_outputs_is_said_once_a_second() -> None:
    by = profile()
    detector = fitted(by)
    blocks = [block_of(answered(probabilities()[:256], of_scores()), by, k * 10) for k in range(11)]  # 200 ms apart

    readings = detector.update(blocks)

    assert [reading.evidence["reason"] for reading in readings] == ["no_outputs_in_profile"] * 3
    assert not any(reading.known for reading in readings)
    assert detector.snapshot(PART) == b""


def test_a_version_without_a_profile_is_unknown_for_that_reason() -> None:
    block = replace(block_of(answered(probabilities()[:256], of_scores()), of_scores(), 0), profile_hash="")

    (reading,) = PredictionDrift().update([block])

    assert (reading.known, reading.evidence["reason"]) == (False, "learning")


def test_a_caller_of_60_percent_whose_answers_alone_moved_is_named_and_the_endpoint_is_not_critical() -> None:
    by = of_labels()
    detector, of = fitted(by), np.where(np.arange(BLOCK_ROWS) % 10 < 6, 0, 1 + np.arange(BLOCK_ROWS) % 39)
    readings = []
    for k in range(24):
        at = 4_000 + k * BLOCK_ROWS
        chances = probabilities()[at : at + BLOCK_ROWS]
        answers = answered(np.where((of == 0)[:, None] & (k >= 12), constant(chances), chances), by)
        readings += detector.update([block_of(answers, by, at, of_caller=of, callers=[f"c{k}" for k in range(40)])])

    assert all(reading.severity != "critical" for reading in readings)
    named = {reading.subject for reading in readings if reading.subject_kind == "caller" and reading.firing}
    assert named == {"c0"}
    assert {reading.kind for reading in readings} == {"prediction_drift"}


def test_a_changed_profile_takes_the_outputs_along_and_one_without_ends_them() -> None:
    by = of_labels()
    detector = fitted(by)
    block = block_of(answered(probabilities()[:256], by), by, 0)
    assert detector.update([block])[0].known

    detector.fit(PART, profile(), BUDGET)

    (reading,) = detector.update([block_of(answered(probabilities()[:256], by), by, 2_000)])
    assert not reading.known


def test_a_learned_profiles_outputs_are_never_critical() -> None:
    by = of_scores()
    detector = PredictionDrift()
    detector.fit(PART, by, BUDGET, learned=True)
    readings = [
        reading
        for k in range(4)
        for reading in detector.update([block_of(answered(constant(probabilities()[:256]), by), by, k * 256)])
    ]

    assert readings[-1].firing
    assert {reading.severity for reading in readings} == {"warning"}


class TestTheProfileOfOutputs:
    def test_what_is_answered_is_no_feature(self) -> None:
        by = of_scores()

        assert "risk" not in by.order
        assert by.outputs is not None
        assert by.outputs.order == ("score",)
        assert of_labels().outputs.order == ("confidence", "label")  # type: ignore[union-attr]
        assert set(of_labels().features.labels) == set(LABELS)

    def test_it_survives_its_bytes(self) -> None:
        again = Profile.from_bytes(of_labels().to_bytes())

        assert again == of_labels()
        assert again.hash == of_labels().hash
        assert again.outputs.hash == of_labels().outputs.hash  # type: ignore[union-attr]

    def test_a_profile_without_has_the_bytes_that_it_always_had(self) -> None:
        assert b"outputs" not in profile().to_bytes()

    @pytest.mark.parametrize(
        ("column", "order", "labels"),
        [
            (pa.array([0.5, 0.25, None, 1.0] * 200), ("score",), ()),
            (pa.array([1, 2, 3, 3] * 200), ("score",), ()),
            (pa.array(["a", "b", None, "b"] * 200), ("label",), ("b", "a")),
            (pa.array(["a", "b", "b", "b"] * 200).dictionary_encode(), ("label",), ("b", "a")),
            (pa.array([True, False, False, None] * 200), ("label",), ("false", "true")),
            (pa.array([{"a": 0.5, "b": 0.25}, {"a": 0.0, "b": 1.0}] * 400), ("confidence", "label"), ("a", "b")),
            (pa.array([[0.5, 0.25], [0.0, 1.0]] * 400), ("confidence", "label"), ("0", "1")),
            (pa.array([[0.5], [0.75]] * 400), ("score",), ()),
        ],
        ids=["numbers", "classes", "text", "dictionary", "booleans", "probabilities", "vectors", "lists of one"],
    )
    def test_answers_of_any_kind(self, column: pa.Array, order: tuple[str, ...], labels: tuple[str, ...]) -> None:
        data = pa.table({"x": np.arange(800.0) % 7, "answer": column})

        outputs = build_profile(data, prediction=["answer"]).outputs

        assert outputs is not None
        assert outputs.order == order
        assert (outputs.categorical[0].categories if outputs.categorical else ()) == labels

    @pytest.mark.parametrize(
        ("prediction", "said"),
        [
            (["other"], "no column 'other'"),
            (["none"], "no row of the table has an answer"),
            (["when"], "numbers, labels, or probabilities"),
            (["x", "word"], "several columns of answers are probabilities"),
            (["x", "word", "none", "when"], "no feature is left"),
        ],
    )
    def test_what_is_no_answer_is_said(self, prediction: list[str], said: str) -> None:
        data = pa.table(
            {
                "x": np.arange(800.0),
                "word": ["a", "b"] * 400,
                "none": pa.nulls(800, pa.float64()),
                "when": pa.array(np.arange(800), pa.timestamp("s")),
            }
        )

        with pytest.raises(ConfigError, match=said):
            build_profile(data, prediction=prediction, exclude=[] if "when" in prediction else ["when"])
