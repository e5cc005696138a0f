from __future__ import annotations

import datetime
import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.cells import CELLS, numeric_cells, numeric_edges, padded_edges
from detectors.outlier_scores import TIERS, OutlierModel, OutlierScorer
from detectors.outlier_section import section_of
from detectors.profile import MAX_CATEGORIES, MAX_PROFILE_BYTES, AlarmTail, Profile
from detectors.profile_build import build_profile, calibration_rows
from schemas.errors import ConfigError
from tests.detectors.drift_data import PLACES, columns, decoded, profile, table


def small(**more: object) -> pa.Table:
    rng = np.random.default_rng(3)
    return pa.table({"size": rng.normal(0, 1, 1_500), **more})


def test_a_profile_comes_back_from_its_bytes_with_every_bit() -> None:
    back = Profile.from_bytes(profile().to_bytes())

    assert back == profile()
    assert back.to_bytes() == profile().to_bytes()
    assert back.hash == profile().hash
    assert len(profile().hash) == 64


def test_the_same_table_and_seed_give_the_same_profile() -> None:
    assert build_profile(small(), seed=4).hash == build_profile(small(), seed=4).hash
    assert build_profile(small(), seed=4).hash != build_profile(small(), seed=5).hash


def test_features_are_what_decoding_needs_in_the_tables_order() -> None:
    features = profile().features

    assert features.order == ("warmth", "hour", "size", "load", "place")
    assert features.numeric == ("warmth", "hour", "size", "load")
    assert features.categorical == ("place",)
    assert features.categories == (PLACES,)


def test_cell_probabilities_sum_to_one_and_missing_values_have_their_own_cell() -> None:
    probabilities = profile().probabilities()

    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    warmth = profile().numeric[0]
    assert warmth.missing_rate == pytest.approx(0.02, abs=0.005)
    assert warmth.probabilities[0] == pytest.approx(warmth.missing_rate)


def test_the_order_column_decides_the_order_and_is_no_feature() -> None:
    shuffled = table().take(np.random.default_rng(0).permutation(table().num_rows))

    assert build_profile(shuffled, order_by="at") == profile()
    assert profile().order_by == "at"


def test_without_an_order_column_the_rows_order_is_taken_and_the_profile_says_so() -> None:
    assert build_profile(table(), exclude=["at"]).order_by is None


def test_rows_in_their_order_spread_wider_than_shuffled_rows() -> None:
    shuffled = table().take(np.random.default_rng(0).permutation(table().num_rows))
    slow = profile().calibration.spreads[0].level[3]
    fast = build_profile(shuffled, exclude=["at"]).calibration.spreads[0].level[3]

    assert slow > 10 * fast


def test_a_smaller_budget_needs_a_higher_score() -> None:
    enter_often, leave = profile().calibration.thresholds(1e-5)
    enter_rarely, _ = profile().calibration.thresholds(1e-8)

    assert all(rare > often > calm for rare, often, calm in zip(enter_rarely, enter_often, leave, strict=True))


def test_what_is_known_of_few_events_needs_a_higher_score() -> None:
    tail = AlarmTail(score=5.0, rate=1e-4, far_score=5.0, far_rate=1e-4, decay=1.0, calm=3.0)
    few, many = (tail.model_copy(update={"events": events}).threshold(1e-7) for events in (20.0, 1e6))

    assert many == pytest.approx(tail.threshold(1e-7), abs=1e-3)
    assert many < few < 5.0 + 1.5 * (many - 5.0)


def test_a_table_whose_rows_hang_together_needs_a_higher_score_than_the_same_rows_shuffled() -> None:
    shuffled = build_profile(table().take(np.random.default_rng(0).permutation(table().num_rows)), exclude=["at"])
    (ordered, _), (independent, _) = (each.calibration.thresholds(1e-7) for each in (profile(), shuffled))

    assert ordered[-1] > independent[-1]
    assert profile().calibration.gross_limit(1e-7) > shuffled.calibration.gross_limit(1e-7) > 0


def test_a_profile_of_an_earlier_release_keeps_its_bytes_and_its_name() -> None:
    held = profile().calibration
    tails = tuple(tail.model_copy(update={"events": None}) for tail in held.tails)
    calibration = held.model_copy(update={"tails": tails, "gross": None, "resolution": None})
    early = profile().model_copy(update={"calibration": calibration})

    assert b'"events"' not in early.to_bytes()
    assert b'"gross"' not in early.to_bytes()
    assert Profile.from_bytes(early.to_bytes()).hash == early.hash
    assert early.calibration.gross_limit(1e-7) == 0.0


def test_booleans_and_dictionaries_are_categories_by_name_most_frequent_first() -> None:
    words = pa.array((["b"] * 1_000) + (["a"] * 500))
    built = build_profile(small(flag=[True] * 400 + [False] * 1_100, word=words.dictionary_encode(), same=words))

    assert built.features.categories == (("false", "true"), ("b", "a"), ("b", "a"))
    assert built.categorical[1].category_rates == built.categorical[2].category_rates


def test_a_column_of_thousands_of_values_keeps_the_most_frequent_and_knows_the_rest_as_unseen() -> None:
    rare = [f"tail-{k % 1_000}" if k % 3 else "usual" for k in range(1_500)]
    feature = build_profile(small(tail=rare)).categorical[0]

    assert feature.categories[0] == "usual"
    assert len(feature.categories) == MAX_CATEGORIES
    assert feature.unseen_rate == pytest.approx(1 - sum(feature.category_rates))
    assert feature.unseen_rate > 0.3


def test_missing_infinite_and_huge_numbers_are_missing() -> None:
    odd = np.random.default_rng(0).normal(0, 1, 1_500)
    odd[:4] = [np.nan, np.inf, -np.inf, 1e300]
    feature = build_profile(small(odd=odd)).numeric[1]

    assert feature.missing_rate == pytest.approx(4 / 1_500)
    assert abs(feature.mean) < 0.1


@pytest.mark.parametrize(
    "column",
    [np.zeros(1_500), np.full(1_500, np.nan), np.r_[np.zeros(1_499), 1.0], np.full(1_500, 1e29), np.arange(1_500) % 2],
    ids=["constant", "never there", "one other value", "huge constant", "two values"],
)
def test_a_feature_without_spread_has_a_profile_too(column: np.ndarray) -> None:
    built = build_profile(small(odd=column))

    assert Profile.from_bytes(built.to_bytes()) == built
    assert sum(built.numeric[1].probabilities) == pytest.approx(1.0)


def test_what_cannot_be_a_feature_is_refused_with_what_to_do() -> None:
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    refused = [
        (small(when=[day] * 1_500), {}, "exclude it"),
        (small(vector=[[1.0, 2.0]] * 1_500), {}, "exclude it"),
        (small(), {"order_by": "when"}, "no column 'when'"),
        (small(), {"exclude": ["nothing"]}, "no column 'nothing'"),
        (small(), {"exclude": ["size"]}, "no feature is left"),
        (small().slice(0, 100), {}, "at least 512"),
        (pa.table([pa.array([1.0] * 600)] * 2, ["twice", "twice"]), {}, "rename"),
    ]
    for data, options, words in refused:
        with pytest.raises(ConfigError, match=words):
            build_profile(data, **options)


def test_a_timestamp_may_order_the_table() -> None:
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    when = [day + datetime.timedelta(minutes=k) for k in range(1_500)]

    assert build_profile(small(when=when), order_by="when").features.numeric == ("size",)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1", b'{"format": 2}', b"\x80\x04K\x01.", b"x" * (MAX_PROFILE_BYTES + 1)],
    ids=["empty", "no profile", "not JSON", "another format", "a pickle", "too long"],
)
def test_bytes_that_are_no_profile_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Profile.from_bytes(data)


def test_a_profile_with_a_number_that_is_none_is_refused() -> None:
    text = profile().to_bytes().decode()
    for broken in (text.replace('"mean":', '"mean":1e999,"x":', 1), text.replace('"level":[', '"level":[-1,', 1)):
        with pytest.raises(ConfigError):
            Profile.from_bytes(broken.encode())


def test_a_profile_of_a_release_without_outliers_keeps_its_name() -> None:
    bare = build_profile(small(), outliers=False)

    assert b"outliers" not in bare.to_bytes()
    assert Profile.from_bytes(bare.to_bytes()).outliers is None
    assert Profile.from_bytes(bare.to_bytes()).hash == hashlib.sha256(bare.to_bytes()).hexdigest()


def test_the_section_of_outliers_scores_as_the_model_of_the_table_does() -> None:
    section = Profile.from_bytes(profile().to_bytes()).outliers
    assert section is not None
    numeric, codes = decoded(table(), profile())
    model = OutlierModel.fit(numeric, codes, [len(PLACES)], seed=0)

    for tier in TIERS:
        built = OutlierScorer(model, tier).score(numeric[:500], codes[:500])
        kept = OutlierScorer(section.model, tier).score(numeric[:500], codes[:500])
        assert np.array_equal(kept.scores, built.scores)
        assert np.array_equal(kept.p_values, built.p_values)


def test_a_section_of_a_release_before_remoteness_is_read_and_keeps_its_bytes() -> None:
    section = profile().outliers
    assert section is not None
    tiers = tuple(tier.model_copy(update={"curves": (tier.curves[0], *tier.curves[2:])}) for tier in section.tiers)
    older = section.model_copy(update={"remoteness": None, "tiers": tiers})
    before = profile().model_copy(update={"outliers": older}).to_bytes()

    read = Profile.from_bytes(before)

    assert b"remoteness" not in before
    assert read.to_bytes() == before
    assert read.outliers is not None
    for tier in TIERS:
        scored = OutlierScorer(read.outliers.model, tier).score(*decoded(table(), profile()))
        assert (scored.p_values < 1).any()


def test_the_caller_column_is_no_feature_and_says_how_callers_differ() -> None:
    rng = np.random.default_rng(5)
    who = rng.choice(["a", "b", "rare"], 9_000, p=[0.6, 0.397, 0.003])
    size = np.where(who == "rare", 9.0, rng.normal(0, 1, 9_000))
    data = pa.table({"size": size, "load": rng.normal(0, 1, 9_000), "who": who.tolist()})

    built, blind = build_profile(data, caller_column="who"), build_profile(data, exclude=["who"])

    assert built.features.order == ("size", "load")
    assert built.outliers is not None
    assert blind.outliers is not None
    assert [tier.of_callers for tier in blind.outliers.tiers] == [None, None]
    # all rows of the rare caller are among the strangest hundredth, few as they are
    of_callers = built.outliers.tiers[0].of_callers
    assert of_callers is not None
    assert of_callers[0] == 1.0
    assert of_callers[2] < 0.3
    with pytest.raises(ConfigError, match="no column 'whom'"):
        build_profile(data, caller_column="whom")


@pytest.mark.parametrize(
    ("place", "broken"),
    [
        (("references", "shape"), [4, 4]),
        (("references", "data"), "AAAA"),
        (("references", "data"), "no base64!"),
        (("scale", "data"), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (("radii", "shape"), [8]),
        (("remoteness", "shape"), [8]),
        (("remoteness", "data"), "no base64!"),
        (("remoteness",), None),
        (("whitening", 0, "shape"), [2]),
        (("categories", 0, "shape"), [2, 14]),
        (("tiers", 0, "rows"), 40),
        (("tiers", 0, "of_endpoint"), [0.1]),
        (("tiers", 0, "of_callers"), [0.1, 0.1, 2.0]),
        (("tiers", 1, "curves"), []),
        (("tiers", 0, "above", "dtype"), "<f8"),
        (("tiers",), []),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_broken_section_of_outliers_is_refused(place: tuple[str | int, ...], broken: object) -> None:
    whole = json.loads(profile().to_bytes())
    at = whole["outliers"]
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = broken

    with pytest.raises(ConfigError):
        Profile.from_bytes(json.dumps(whole).encode())


def test_a_very_wide_table_has_no_section_of_outliers() -> None:
    wide = OutlierModel.fit(np.random.default_rng(0).normal(size=(64, 800)))  # the scorer itself takes it

    assert wide.shape.coordinates.size == 801
    assert section_of(np.zeros((64, 800)), np.zeros((64, 0), np.int32), (), None, 0) is None


def test_a_large_table_is_calibrated_on_long_stretches_all_over_it() -> None:
    picked = calibration_rows(5_000_000)

    assert isinstance(picked, np.ndarray)
    assert len(picked) == 1 << 20
    assert (picked[0], picked[-1]) == (0, 4_999_999)
    assert np.count_nonzero(np.diff(picked) != 1) == 63


numbers = st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=200)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_any_numbers_have_rising_edges_and_lie_within_them(values: list[float]) -> None:
    edges = numeric_edges(np.array(values))
    cells = numeric_cells(np.array(values)[None, None], padded_edges(edges)[None, None])

    assert np.all(np.diff(edges) > 0)
    assert np.isfinite(edges).all()
    assert cells.min() > 1
    assert cells.max() <= len(edges) < CELLS


def test_a_value_far_outside_is_alien_and_one_just_outside_is_not() -> None:
    edges = padded_edges(numeric_edges(np.linspace(0.0, 100.0, 5_000)))
    below, near_below, inside, near_above, above = numeric_cells(
        np.array([[[-60.0, -5.0, 50.0, 105.0, 160.0]]]), edges[None, None]
    ).ravel()

    assert below == 1
    assert above == np.isfinite(edges).sum() + 1
    assert below < near_below < inside < near_above < above


def test_the_columns_of_the_made_table_are_what_the_tests_believe() -> None:
    made = columns()
    assert np.corrcoef(np.nan_to_num(np.asarray(made["warmth"])[:-1]), np.nan_to_num(made["warmth"][1:]))[0, 1] > 0.3


def test_a_profile_whose_array_has_a_shape_beyond_all_numbers_is_refused() -> None:
    said = json.loads(profile().to_bytes())
    said["outliers"]["references"]["shape"] = [2**70, 2**70]
    with pytest.raises(ConfigError):
        Profile.from_bytes(json.dumps(said).encode())


def test_a_changed_copy_of_a_profile_has_a_hash_of_its_own() -> None:
    known = profile().hash
    changed = profile().model_copy(update={"seed": 99})

    assert changed.hash == Profile.from_bytes(changed.to_bytes()).hash != known
    assert profile().model_copy().hash == known
