"""Row scores: strange rows score high, and the share of clean rows below alpha is at most alpha."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from river.anomaly import HalfSpaceTrees
from scipy.stats import binom

from detectors.outlier_scores import TIERS, Calibration, OutlierModel, OutlierScorer, Tier
from schemas.blocks import MISSING, UNSEEN, Codes, Floats
from schemas.errors import ConfigError

SIZES = (5, 40)
each_tier = pytest.mark.parametrize("tier", TIERS)
each_size = pytest.mark.parametrize("rows", [3_000, 16_000], ids=["folds", "held out"])


def made(rows: int, seed: int) -> tuple[Floats, Codes]:
    """Rows of a heavy tail, two clusters, a near copy, holes, and a category that says which cluster it is."""
    rng = np.random.default_rng(seed)
    cluster = rng.random(rows) < 0.4
    first = np.where(cluster, 10.0, 0.0) + rng.normal(0, 1, rows)
    columns = [
        first,
        np.where(cluster, -5.0, 5.0) + rng.normal(0, 1, rows),
        first + rng.normal(0, 0.1, rows),
        rng.lognormal(0, 2, rows),
        (rng.random(rows) < 0.02).astype(float),
        np.full(rows, 7.0),
        np.where(rng.random(rows) < 0.1, np.nan, rng.normal(0, 1, rows)),
    ]
    side = np.where(cluster, rng.integers(0, 2, rows), rng.integers(2, 5, rows))
    common = np.minimum(rng.geometric(0.15, rows) - 1, 39)
    return np.stack(columns, axis=1), np.stack([side, common], axis=1).astype(np.int32)


@cache
def model(rows: int) -> OutlierModel:
    return OutlierModel.fit(*made(rows, 1), SIZES)


@cache
def scorer(tier: Tier, rows: int = 16_000) -> OutlierScorer:
    return OutlierScorer(model(rows), tier)


@each_size
@each_tier
def test_the_share_of_clean_rows_below_alpha_is_alpha(tier: Tier, rows: int) -> None:
    fresh = made(20_000, 2)

    p_values = scorer(tier, rows).score(*fresh).p_values

    calibrated = rows if rows < 8_192 else rows // 4
    for alpha in (0.1, 0.01, 0.002):
        # the threshold is itself an order statistic of the rows held out: its share of clean rows varies by as much
        spread = 4 * np.sqrt(alpha * (1 / calibrated + 1 / len(p_values)))
        below = float((p_values <= alpha).mean())
        assert below <= alpha + spread
        assert below >= alpha - spread - 2 / calibrated
    assert binom.sf((p_values <= 0.01).sum(), len(p_values), 0.01 + 3 * np.sqrt(0.01 / calibrated)) > 1e-4


def test_the_smallest_p_value_is_one_in_the_rows_held_out() -> None:
    numeric, categorical = made(1, 3)

    (p_value,) = scorer("fast").score(numeric + 1e6, categorical).p_values

    assert p_value == 1 / 4_001


@each_tier
def test_what_no_row_was_like_is_stranger_than_nearly_all_rows(tier: Tier) -> None:
    numeric, categorical = made(400, 4)
    usual = scorer(tier).score(numeric, categorical).p_values
    low = numeric[:, 0] < 5

    between, copy, hole, other = numeric.copy(), numeric.copy(), numeric.copy(), categorical.copy()
    between[:, 0] = between[:, 2] = 5.0
    copy[:, 2] += np.where(low, 3.0, -3.0)
    hole[:, 0] = np.nan
    other[:, 0] = np.where(low, 0, 3)

    assert np.median(usual) > 0.3
    assert np.median(scorer(tier).score(between, categorical).p_values) < 0.05
    for name, rows in {
        "two numbers apart that go together": (copy, categorical),
        "a number absent that never is": (hole, categorical),
        "the other cluster's category": (numeric, other),
        "a category that nobody saw": (numeric, np.full_like(categorical, UNSEEN)),
        "a category absent that never is": (numeric, np.full_like(categorical, MISSING)),
        "a constant changed": (numeric + np.eye(7)[5], categorical),
    }.items():
        assert np.median(scorer(tier).score(*rows).p_values) < 0.01, name


@each_tier
def test_a_row_scores_the_same_bits_whatever_stands_beside_it(tier: Tier) -> None:
    numeric, categorical = made(300, 5)
    far = np.arange(300) % 50 == 0
    numeric[far] *= 1e4
    whole = scorer(tier).score(numeric, categorical)

    for size in (256, 100, 7):
        cut = [scorer(tier).score(numeric[at : at + size], categorical[at : at + size]) for at in range(0, 300, size)]
        scores = np.concatenate([part.scores for part in cut])
        # beyond 64 deviations float32 is not exact, and its last bits may be those of the place in the block
        same = np.ones(300, dtype=np.bool_) if size == 256 else ~far
        assert np.array_equal(scores[same], whole.scores[same])
        assert np.allclose(scores, whole.scores, rtol=1e-6)
        assert np.array_equal(np.concatenate([part.p_values for part in cut]), whole.p_values)


@each_tier
def test_any_value_gives_a_finite_score_and_leaves_the_input_as_it_was(tier: Tier) -> None:
    numeric, categorical = made(9, 6)
    for row, value in enumerate((np.nan, np.inf, -np.inf, 1e308, -1e308, 1e30, 5e-324)):
        numeric[row] = value
    categorical[:3] = ((2**31 - 1, -(2**31)), (UNSEEN, MISSING), (5, 40))
    before = numeric.copy(), categorical.copy()

    scored = scorer(tier).score(numeric, categorical)

    assert np.isfinite(scored.scores).all()
    assert ((scored.p_values > 0) & (scored.p_values <= 1)).all()
    assert np.array_equal(numeric, before[0], equal_nan=True)
    assert np.array_equal(categorical, before[1])


@pytest.mark.parametrize(
    ("numeric", "categorical", "sizes"),
    [
        (np.zeros((40, 3)), None, ()),
        (np.full((40, 1), np.nan), None, ()),
        (np.zeros((40, 0)), np.arange(40, dtype=np.int32)[:, None] % 3, (3,)),
        (np.zeros((40, 0)), np.zeros((40, 1), np.int32), (1,)),
        (np.random.default_rng(0).normal(size=(40, 300)), None, ()),
    ],
    ids=["constants", "nothing present", "categories alone", "one category", "wider than long"],
)
def test_odd_tables_have_a_shape_too(numeric: Floats, categorical: Codes | None, sizes: tuple[int, ...]) -> None:
    fitted = OutlierModel.fit(numeric, categorical, sizes)

    for tier in TIERS:
        scored = OutlierScorer(fitted, tier).score(numeric, categorical)
        assert np.isfinite(scored.scores).all()
        assert (scored.p_values <= 0.02).mean() <= 0.1


def area(scores: Floats, strange: Floats) -> float:
    """The area under the ROC curve: how often a strange row scores above a usual one."""
    ranks = np.argsort(np.argsort(scores)) + 1.0
    many = strange.sum()
    return float((ranks[strange > 0].sum() - many * (many + 1) / 2) / (many * (len(strange) - many)))


def half_space_trees(train: Floats, rows: Floats) -> Floats:
    """river's half-space trees (Tan, Ting and Liu, 2011) in its own parameters: the reference for ranking."""
    low, high = train.min(axis=0), train.max(axis=0)
    trees = HalfSpaceTrees(seed=1)
    for row in (train - low) / (high - low):
        trees.learn_one(dict(enumerate(row.tolist())))
    scaled = np.clip((rows - low) / (high - low), 0, 1)
    return np.array([trees.score_one(dict(enumerate(row.tolist()))) for row in scaled])


@each_tier
def test_it_ranks_at_least_as_well_as_half_space_trees(tier: Tier) -> None:
    rng = np.random.default_rng(8)
    directions = rng.normal(size=(2, 6))
    train, usual = (rng.normal(size=(rows, 2)) @ directions + 0.1 * rng.normal(size=(rows, 6)) for rows in (3_000, 500))
    strange = rng.uniform(train.min(axis=0), train.max(axis=0), (50, 6))
    rows, labels = np.concatenate([usual, strange]), np.repeat([0.0, 1.0], [500, 50])

    ours = area(OutlierScorer(OutlierModel.fit(train), tier).score(rows).scores, labels)

    assert ours > 0.99
    assert ours >= area(half_space_trees(train, rows), labels)


@each_tier
def test_a_dense_group_in_the_table_itself_does_not_make_its_rows_usual(tier: Tier) -> None:
    rng = np.random.default_rng(9)
    table, rows = (
        np.concatenate([rng.normal(size=(usual, 6)), 2.0 + 0.3 * rng.normal(size=(strange, 6))])
        for usual, strange in ((3_000, 90), (500, 50))
    )
    labels = np.repeat([0.0, 1.0], [500, 50])

    scored = OutlierScorer(OutlierModel.fit(table), tier).score(rows)

    assert area(scored.scores, labels) > 0.9


def by_hand(fitted: OutlierModel, numeric: Floats, categorical: Codes) -> tuple[Floats, Floats, Floats]:
    """Nearness, distance to the mass and depth of rows in the fast tier, by every pair of points."""
    shape = fitted.shape
    assert shape.remoteness is not None
    references = shape.whitening.of(shape.references[:1_024].astype(np.float64)) / 32.0
    points = shape.whitening.of(shape.coordinates.points(numeric, categorical)) / 32.0
    squares = ((points[:, None] - references) ** 2).sum(axis=2)
    far = squares[:, : len(shape.remoteness)] + shape.remoteness / 32.0**2
    samples = [np.sqrt(far[:, at::4].min(axis=1)) for at in range(4)]
    return np.sqrt(squares.min(axis=1)), np.mean(samples, axis=0), (points**2).sum(axis=1)


def test_a_score_is_the_weighted_harmonic_mean_of_what_three_measures_say() -> None:
    fitted, rows = model(3_000), made(40, 7)
    curves = fitted.calibrations["fast"].curves

    near, far, depth = (
        np.exp(-curve.of(measure)) for curve, measure in zip(curves, by_hand(fitted, *rows), strict=True)
    )

    assert scorer("fast", 3_000).score(*rows).scores == pytest.approx(np.log(2 / near + 1 / far + 1 / depth), rel=1e-4)


def test_a_model_of_a_release_before_remoteness_adds_two_measures() -> None:
    fitted, rows = model(3_000), made(40, 7)
    near, _, depth = fitted.calibrations["fast"].curves
    shape = replace(fitted.shape, remoteness=None)
    nowhere = replace(fitted.shape, remoteness=np.zeros(1_024, np.float32))
    _, in_samples, out = by_hand(replace(fitted, shape=nowhere), *rows)

    calibrations: dict[Tier, Calibration] = {"fast": replace(fitted.calibrations["fast"], curves=(near, depth))}
    scored = OutlierScorer(OutlierModel(shape, calibrations)).score(*rows)

    assert scored.scores == pytest.approx(near.of(in_samples) + 0.5 * depth.of(out), rel=1e-4)


def test_equal_tables_give_equal_scores() -> None:
    again = OutlierScorer(OutlierModel.fit(*made(3_000, 1), SIZES), "rich").score(*made(300, 7))

    assert np.array_equal(again.scores, scorer("rich", 3_000).score(*made(300, 7)).scores)


def test_few_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        OutlierModel.fit(np.zeros((31, 2)))


def test_no_rows_give_no_scores() -> None:
    scored = scorer("fast").score(np.zeros((0, 7)), np.zeros((0, 2), np.int32))

    assert len(scored.scores) == len(scored.p_values) == 0
