"""The outlier part of the benchmark: planted rows are outliers of their kind, splits are fair, and shortfalls are faults."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from benchmarks.quality import Done, show, show_outliers, summary
from benchmarks.quality_contenders import BASELINES
from benchmarks.quality_drift import REAL_ORDER, RESAMPLED, Clean, Trials
from benchmarks.quality_outlier_sets import KINDS, Labelled, planted
from benchmarks.quality_outliers import CLEAN, CONTAMINATED, Ranked, _split, outlier_faults, outlier_line, rank


def small(kind: str) -> Labelled:
    rng = np.random.default_rng(4)
    numbers = rng.standard_normal((1500, 3)) @ rng.normal(0, 1, (3, 6)) + 0.1 * rng.standard_normal((1500, 6))
    return planted("small", kind, numbers, rng.integers(0, 3, (1500, 1)).astype(np.int32), rng)


@pytest.fixture(scope="module")
def ranked() -> list[Ranked]:
    return rank(small("dependency"), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_in_twenty_is_an_outlier(kind: str) -> None:
    made = small(kind)

    assert made.y.mean() == pytest.approx(0.05, abs=0.002)
    assert len(made.y) == len(made.numeric) == len(made.categorical)
    assert np.isfinite(made.numeric).all()


@pytest.mark.parametrize("split", [CLEAN, CONTAMINATED])
def test_no_row_both_trains_and_is_scored(split: str) -> None:
    y = small("global").y

    train, test = _split(y, split, np.random.default_rng(1))

    assert not set(train.tolist()) & set(test.tolist())
    assert (y[train].sum() > 0) == (split == CONTAMINATED)


def test_broken_dependencies_are_ranked_first_by_what_looks_at_them_and_not_by_chance(ranked: list[Ranked]) -> None:
    by_name = {each.contender: each.roc for each in ranked if each.split == CLEAN}

    assert by_name["palisade"] > 0.9
    assert by_name["mahalanobis"] > 0.9


def test_a_tier_that_is_no_better_than_mahalanobis_is_a_fault(ranked: list[Ranked]) -> None:
    worse = [replace(each, roc=0.5, pr=0.05) if each.contender == "palisade" else each for each in ranked]

    assert any("palisade: roc" in fault for fault in outlier_faults(outlier_line(worse)))


def test_the_last_line_and_the_tables_are_of_all_that_was_done(ranked: list[Ranked]) -> None:
    names, data = ("palisade", *BASELINES), (REAL_ORDER, RESAMPLED)
    cleans = [Clean(name, kind, "x", 256, 1e-4, {"feature_drift": 0}) for name in names for kind in data]
    planted_changes = [Trials(name, kind, "x", "mean +1 sd", [256, None]) for name in names for kind in data]
    console = Console(file=StringIO())

    line = summary(Done(cleans, planted_changes, ranked), 1, 1.0)
    show(line, console)
    show_outliers(line["outliers"], console)

    assert line["feature_drift"]["palisade"]["missed"] == 2
    assert line["feature_drift"]["palisade"]["of"] == 4
    assert line["feature_drift"]["palisade"]["median_delay_events"] == 256
    assert not line["ok"]
