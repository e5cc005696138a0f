"""What a model answered becomes value, label and confidence, the same from JSON and from Arrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import MISSING, UNSEEN
from schemas.outcomes import Outcomes, Words, of_matrix, of_vectors, outcomes
from streams.decode import Columns, Decoder
from tests.decode.cases import ARROW, FEATURES, SCHEMA, arrow_stream, as_json, segments

NAN = math.nan
LABELS = ("late", "early", "true", "1")
"""Those that the profile knows."""
ANSWERS: list[tuple[Any, float, int, float]] = [
    (0.25, 0.25, MISSING, NAN),
    (7, 7.0, MISSING, NAN),
    (None, NAN, MISSING, NAN),
    (True, 1.0, 2, NAN),
    (False, 0.0, UNSEEN, NAN),
    ("early", NAN, 1, NAN),
    ("never heard of", NAN, UNSEEN, NAN),
    ("", NAN, UNSEEN, NAN),
    ({"early": 0.75, "late": 0.25}, NAN, 1, 0.75),
    ({"early": 0.5, "late": 0.5}, NAN, 1, 0.5),
    ({"late": 3.5, "early": -1.0}, NAN, 0, NAN),
    ({"late": 0.4}, 0.4, MISSING, NAN),
    ([0.25, 0.75], NAN, 3, 0.75),
    ([0.75, 0.25], NAN, UNSEEN, 0.75),
    ([-2.0, 5.0], NAN, 3, NAN),
    ([0.5], 0.5, MISSING, NAN),
    ([], NAN, MISSING, NAN),
]


def decoded(values: Sequence[bytes], headers: Any = ()) -> Columns:
    decoder = Decoder("log", 0, 1, lambda *_: replace(SCHEMA, labels=LABELS))
    (segment,) = segments(values, headers, decoder=decoder)
    assert not segment.dead_letters
    return segment.columns


def in_arrow(answers: Sequence[Any], kind: pa.DataType | None = None) -> Columns:
    n = len(answers)
    columns = {
        "endpoint": pa.array(["credit"] * n),
        "features": pa.array([FEATURES] * n),
        "prediction": pa.array(answers, kind),
    }
    return decoded([arrow_stream(pa.table(columns))], ARROW)


@pytest.mark.parametrize(("answer", "value", "label", "confidence"), ANSWERS, ids=[repr(case[0]) for case in ANSWERS])
def test_an_answer_in_json_and_the_same_in_arrow(answer: Any, value: float, label: int, confidence: float) -> None:
    for columns in (decoded([as_json(prediction=answer)]), in_arrow([answer])):
        np.testing.assert_array_equal(columns.value, [value])
        assert columns.label.tolist() == [label]
        np.testing.assert_array_equal(columns.confidence, [confidence])


def test_answers_of_all_kinds_beside_each_other_stay_with_their_rows() -> None:
    columns = decoded([as_json(prediction=answer) for answer, *_ in ANSWERS])

    np.testing.assert_array_equal(columns.value, [case[1] for case in ANSWERS])
    assert columns.label.tolist() == [case[2] for case in ANSWERS]
    np.testing.assert_array_equal(columns.confidence, [case[3] for case in ANSWERS])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_in_arrow_text_of_any_kind(kind: pa.DataType) -> None:
    columns = in_arrow(["late", None, "early", "late", "other"], kind)

    assert columns.label.tolist() == [0, MISSING, 1, 0, UNSEEN]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float64(), 2)])
def test_vectors_in_arrow_lists_of_any_kind(kind: pa.DataType) -> None:
    columns = in_arrow([[0.25, 0.75], None, [2.0, 1.0], [0.75, 0.25]], kind)

    assert columns.label.tolist() == [3, MISSING, UNSEEN, UNSEEN]
    np.testing.assert_array_equal(columns.confidence, [0.75, NAN, NAN, 0.75])


@pytest.mark.parametrize("answer", [["a", "b"], [[1.0], [2.0]], {"label": "x", "score": 0.5}])
def test_what_is_no_answer_in_arrow_is_none(answer: Any) -> None:
    columns = in_arrow([answer])

    assert (columns.label.tolist(), np.isnan(columns.value).all()) == ([MISSING], True)


def test_a_version_whose_profile_knows_no_labels_has_none() -> None:
    (segment,) = segments([as_json(prediction="late"), as_json(prediction={"late": 0.75, "early": 0.25})])

    assert segment.columns.label.tolist() == [MISSING, MISSING]
    np.testing.assert_array_equal(segment.columns.confidence, [NAN, 0.75])


@pytest.mark.parametrize("odd", [[NAN, 0.5], [0.5, NAN], [math.inf, 0.5], [0.5, -math.inf]])
def test_an_answer_with_a_number_that_is_not_finite_is_none(odd: list[float]) -> None:
    for found in (outcomes([odd], Words()), outcomes([{"a": odd[0], "b": odd[1]}], Words()), vectors([odd], Words())):
        assert (found.label.tolist(), np.isnan(found.value).all(), np.isnan(found.confidence).all()) == (
            [MISSING],
            True,
            True,
        )


def test_an_integer_beyond_all_floats_is_no_finite_value() -> None:
    (segment,) = segments([b'{"endpoint":"credit","features":{},"prediction":[1' + b"0" * 400 + b"]}"])

    assert not np.isfinite(segment.columns.value).any()


def vectors(rows: Sequence[Sequence[float]], words: Words) -> Outcomes:
    return of_vectors(
        np.array([x for row in rows for x in row], dtype=np.float64), np.array([len(row) for row in rows]), words
    )


FINITE = st.floats(-3, 3, width=16)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(FINITE, max_size=5), min_size=1, max_size=8))
def test_vectors_as_columns_are_what_each_is_by_itself(rows: list[list[float]]) -> None:
    assert_equal(vectors(rows, words := Words()), words, outcomes(rows, others := Words()), others)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), FINITE, max_size=4), min_size=1, max_size=8))
def test_probabilities_as_columns_are_what_each_is_by_itself(rows: list[dict[str, float]]) -> None:
    rows = [{name: row[name] for name in sorted(row)} for row in rows]
    matrix = np.array([[row.get(name, NAN) for name in "abcd"] for row in rows])

    assert_equal(of_matrix(matrix, "abcd", words := Words()), words, outcomes(rows, others := Words()), others)


ODD_PARTS = st.one_of(FINITE, st.sampled_from([NAN, math.inf, -math.inf, 10**400, True]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 4), st.data(), st.sampled_from([dict, list]))
def test_many_answers_alike_are_what_each_is_by_itself(width: int, data: st.DataObject, form: type) -> None:
    names = "abcd"[:width]
    parts = data.draw(st.lists(st.lists(ODD_PARTS, min_size=width, max_size=width), min_size=40, max_size=40))
    rows = [dict(zip(names, row, strict=True)) if form is dict else row for row in parts]
    if data.draw(st.booleans()):
        rows[7] = {"z": 0.5, "y": 0.25} if form is dict else [0.5, 0.25, 0.25, 0.0, 0.0]

    together = outcomes(rows, words := Words())

    alone = [outcomes([row], words) for row in rows]
    np.testing.assert_array_equal(together.value, np.concatenate([each.value for each in alone]))
    np.testing.assert_array_equal(together.label, np.concatenate([each.label for each in alone]))
    np.testing.assert_array_equal(together.confidence, np.concatenate([each.confidence for each in alone]))


def assert_equal(one: Outcomes, words: Words, other: Outcomes, others: Words) -> None:
    assert [words.all()[code] for code in one.label] == [others.all()[code] for code in other.label]
    np.testing.assert_array_equal(one.value, other.value)
    np.testing.assert_array_equal(one.confidence, other.confidence)
