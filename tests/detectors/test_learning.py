"""How a version without a profile learns one: the vote on its schema, its table, its places, its bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import part_of
from detectors.learning import (
    LEAST_ROWS,
    MAX_LEARNED_FEATURES,
    MAX_LEARNERS,
    MAX_OF_ENDPOINT,
    MAX_TABLE_BYTES,
    SILENT_MS,
    Learning,
)
from detectors.profile import QUANTILE_LEVELS
from detectors.profile_build import build_profile
from detectors.report_state import MAX_STATE_BYTES
from detectors.schema_vote import SCHEMA_ROWS, SchemaVote
from schemas.blocks import BLOCK_ROWS, Block, RowId
from tests.conformance import logs

PART = part_of("credit", "v1")


def voted(*rows: object) -> SchemaVote:
    vote = SchemaVote()
    for row in rows:
        vote.add(row)  # type: ignore[arg-type]
    return vote


def learner(features: list[dict[str, object]], rows: int = 40 * BLOCK_ROWS) -> Learning:
    learning = Learning(rows, at_least_ms=0)
    assert learning.admit("credit", "v1", 0)
    for at in range(SCHEMA_ROWS):
        learning.vote(PART, RowId(at, 0), features[at % len(features)])
    learning.decide(PART)
    return learning


def blocks(count: int, width: int = 2, callers: int = 40, heavy: float = 0.0) -> list[Block]:
    rng = np.random.default_rng(3)
    made = []
    for k in range(count):
        caller = np.where(rng.random(BLOCK_ROWS) < heavy, 0, rng.integers(0, callers, BLOCK_ROWS)).astype(np.int32)
        made.append(
            replace(
                logs.block(
                    k * BLOCK_ROWS,
                    numeric=rng.normal(50, 5, (BLOCK_ROWS, width)),
                    categorical=np.zeros((BLOCK_ROWS, 0), np.int32),
                    caller=caller,
                ),
                profile_hash="",
            )
        )
    return made


def test_the_vote_names_numbers_and_categories_by_what_they_mostly_were() -> None:
    rows = [{"a": 1, "b": "x", "c": True, "odd": "?"}] + [{"a": 1.5, "b": "y", "c": None, "odd": 3}] * 9
    schema = voted(*rows).schema()

    assert schema.order == ("a", "b", "c", "odd")
    assert schema.numeric == ("a", "odd")
    assert dict(zip(schema.categorical, schema.categories, strict=True)) == {"b": ("y", "x"), "c": ("true",)}


def test_a_name_that_few_rows_have_is_no_feature() -> None:
    schema = voted(*[{"a": 1}] * 99, {"a": 1, "planted": 1}).schema()

    assert schema.order == ("a",)


def test_features_of_a_list_are_named_by_their_place_and_none_is_left_out() -> None:
    schema = voted(*[[1.0, None, "x"]] * 20).schema()

    assert schema.order == ("0", "1", "2")
    assert schema.categorical == ("2",)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=300), st.text(max_size=200) | st.integers(), max_size=40), max_size=60)
)
def test_whatever_votes_the_state_is_bounded_and_comes_back_as_it_was(rows: list[dict[str, object]]) -> None:
    vote = voted(*rows * 5)

    again = SchemaVote.of(vote.state())
    assert again.state() == vote.state()
    assert again.schema() == vote.schema()


def test_the_profile_is_that_of_the_rows_to_half_a_per_mille() -> None:
    learning, made = learner([{"a": 1.0, "b": 1.0}]), blocks(40)
    learning.update(made)
    rows = np.concatenate([block.numeric for block in made])

    profile = learning.build(PART)

    expected = build_profile(pa.table({"a": rows[:, 0], "b": rows[:, 1]}))
    assert profile.rows == expected.rows
    for learned, built in zip(profile.numeric, expected.numeric, strict=True):
        assert learned.mean == pytest.approx(built.mean, abs=0.01)
        assert learned.quantiles == pytest.approx(built.quantiles, abs=0.02)
        assert learned.probabilities == pytest.approx(built.probabilities, abs=0.005)


def test_what_was_answered_meanwhile_becomes_the_profile_of_outputs() -> None:
    learning, made = learner([{"a": 1.0, "b": 1.0}]), blocks(40)
    fallbacks = [
        replace(block, served_by=np.full(BLOCK_ROWS, 2, np.uint8), value=block.value + 7) for block in made[:4]
    ]
    learning.update([*fallbacks, *made[4:]])

    outputs = learning.build(PART).outputs

    assert outputs is not None
    (score,) = outputs.numeric
    value = np.concatenate([block.value for block in made[4:]])
    assert score.name == "score"
    assert score.mean == pytest.approx(value.mean(), abs=0.001)
    assert score.quantiles == pytest.approx(np.quantile(value, QUANTILE_LEVELS), abs=0.002)
    assert score.missing_rate == pytest.approx(0.1)


def test_a_feature_that_comes_late_is_learned_as_it_is() -> None:
    learning, made = learner([{"a": 1.0, "b": 1.0}]), blocks(40)
    late = [replace(block, numeric=block.numeric * (1.0, np.nan)) for block in made[:3]]
    learning.update([*late, *made[3:]])

    b = learning.build(PART).numeric[1]

    assert b.mean == pytest.approx(np.concatenate([block.numeric[:, 1] for block in made[3:]]).mean(), abs=0.01)
    assert b.missing_rate == pytest.approx(3 / 40)


def test_labels_are_voted_and_learned_with_their_confidence() -> None:
    learning = Learning(40 * BLOCK_ROWS, at_least_ms=0)
    learning.admit("credit", "v1", 0)
    for at in range(SCHEMA_ROWS):
        learning.vote(PART, RowId(at, 0), {"a": 1.0}, "yes" if at % 4 else "no")
    learning.decide(PART)
    assert learning.schema(PART).labels == ("yes", "no")  # type: ignore[union-attr]
    again = Learning(40 * BLOCK_ROWS, at_least_ms=0)
    again.restore(PART, learning.snapshot(PART))
    label = (np.arange(BLOCK_ROWS) % 4 == 0).astype(np.int32)
    confidence = np.where(label, 0.625, 0.875)

    again.update([replace(block, label=label, confidence=confidence, value=np.full(BLOCK_ROWS, np.nan))
                  for block in blocks(40, width=1)])  # fmt: skip
    profile = again.build(PART)

    assert profile.labels == ("yes", "no")
    assert profile.outputs.categorical[0].category_rates == pytest.approx((0.75, 0.25))  # type: ignore[union-attr]
    (sure,) = profile.outputs.numeric  # type: ignore[union-attr]
    assert (sure.name, sure.mean) == ("confidence", pytest.approx(0.8125, abs=1e-3))


def test_a_version_that_answers_nothing_learns_no_outputs() -> None:
    learning = learner([{"a": 1.0, "b": 1.0}])
    learning.update([replace(block, value=np.full(BLOCK_ROWS, np.nan)) for block in blocks(40)])

    assert learning.build(PART).outputs is None


def test_a_caller_over_its_cap_is_thinned_and_not_dropped() -> None:
    learning = learner([{"a": 1.0, "b": 1.0}])
    learning.update(blocks(40, heavy=0.5))

    part = learning._parts[PART]
    assert part.table is not None
    kept, who = part.table.fair(), part.table.who
    shares = np.unique(who[kept], return_counts=True)[1] / kept.sum()
    assert part.ready
    assert shares.max() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("width", [2, 20, MAX_LEARNED_FEATURES])
def test_a_wide_table_keeps_fewer_stretches_of_the_whole_time(width: int) -> None:
    learning = learner([{f"f{k}": 1.0 for k in range(width)}])
    learning.update(blocks(40, width))

    part = learning._parts[PART]
    assert part.table is not None
    assert part.ready
    assert LEAST_ROWS <= len(part.table.who) <= 40 * BLOCK_ROWS
    assert part.table.numbers.nbytes + part.table.who.nbytes <= MAX_TABLE_BYTES
    assert len(learning.snapshot(PART)) <= MAX_STATE_BYTES
    assert part.rows == 40 * BLOCK_ROWS


def test_too_many_features_are_said_and_not_learned() -> None:
    learning = learner([{f"f{k}": 1.0 for k in range(MAX_LEARNED_FEATURES + 1)}])

    (reading,) = learning.update(blocks(1))

    assert not reading.known
    assert reading.evidence["reason"] == "features_cannot_be_learned"
    assert learning.schema(PART) is None


def test_places_are_few_and_the_silent_give_theirs_away() -> None:
    learning = Learning()
    admitted = [learning.admit("one", f"v{k}", 0) for k in range(MAX_OF_ENDPOINT + 1)]
    others = [learning.admit(f"e{k}", "v", 0) for k in range(MAX_LEARNERS)]

    assert admitted == [True] * MAX_OF_ENDPOINT + [False]
    assert others == [True] * (MAX_LEARNERS - MAX_OF_ENDPOINT) + [False] * MAX_OF_ENDPOINT
    assert learning.admit("one", "v0", SILENT_MS)
    silent = learning.due(SILENT_MS + 1).ended
    assert "one@v0" not in silent
    assert len(silent) == MAX_LEARNERS - 1


def test_nothing_is_ready_before_its_time_however_many_rows_come() -> None:
    learning = Learning(rows=4 * BLOCK_ROWS, at_least_ms=60_000)
    learning.admit("credit", "v1", 0)
    for at in range(SCHEMA_ROWS):
        learning.vote(PART, RowId(at, 0), {"a": 1.0, "b": 2.0})
    learning.decide(PART)
    made = blocks(14)  # 256 rows take 5.1 s

    learning.update(made[:11])
    assert not learning.due(made[10].closed_ms).ready
    learning.update(made[11:])
    assert learning.due(made[13].closed_ms).ready == [PART]
