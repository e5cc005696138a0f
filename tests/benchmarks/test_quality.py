"""The benchmark of quality counts what it says it counts, and can fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from benchmarks import quality_data
from benchmarks.quality import config_hash
from benchmarks.quality_contenders import BASELINES, BUDGET, Palisade, _chi_square_p, _ks_p
from benchmarks.quality_data import Source, made
from benchmarks.quality_drift import (
    AFTER,
    CHANGES,
    CROSSED,
    REAL_ORDER,
    RESAMPLED,
    STATED,
    Clean,
    clean,
    clean_baseline,
    drift_line,
    faults_of,
    trials,
)
from detectors import drift_alarm_tails
from palisade.settings import default_policy
from schemas.blocks import BLOCK_ROWS


@pytest.fixture(scope="module")
def source() -> Source:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_data, "MADE_ROWS", 40_000)
        return made("made 0", 5, ordered=False)


def test_an_incident_that_stays_open_is_one_alarm(source: Source) -> None:
    contender = Palisade(source, 2)
    stream = source.resampled(np.random.default_rng(1))
    shifted = [rows.numeric.copy() + 50.0 for rows in (next(stream) for _ in range(12))]

    for numeric in shifted:
        rows = next(stream)
        contender.take([rows, replace(rows, numeric=numeric)])

    assert contender.opened["feature_drift"] == 1
    assert contender.is_open() == [False, True]


@pytest.mark.parametrize("change", ["mean +1 sd", "new category, 5 % of rows", "stuck value"])
def test_a_gross_planted_change_is_found(source: Source, change: str) -> None:
    (found,) = trials(source, RESAMPLED, change, 4, seed=3, names=["palisade"])

    assert None not in found.delays
    assert found.open_before == 0


def test_no_change_is_not_found(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHANGES, "nothing", lambda *_: lambda rows: rows)

    (found,) = trials(source, RESAMPLED, "nothing", 4, seed=3, names=["palisade"])

    assert found.delays == [None] * 4


def test_dummies_score_as_dummies_must(source: Source) -> None:
    never, always = trials(source, RESAMPLED, "mean +1 sd", 3, seed=3, names=["never", "always"])
    rows = 8 * BLOCK_ROWS

    assert never.delays == [None] * 3
    assert always.delays == [BLOCK_ROWS] * 3
    assert clean_baseline("never", source, RESAMPLED, rows, 1).alarms["feature_drift"] == 0
    assert clean_baseline("always", source, RESAMPLED, rows, 1).alarms["feature_drift"] == 8


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("never", "always")])
def test_every_baseline_finds_what_nobody_can_miss(source: Source, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(where: Source, *_: Any) -> Any:
        def changed(rows: Any) -> Any:
            return replace(rows, numeric=rows.numeric + 50.0)

        return changed

    monkeypatch.setitem(CHANGES, "all", plant)

    (found,) = trials(source, RESAMPLED, "all", 2, seed=3, names=[name])

    assert None not in found.delays


def test_clean_rows_are_counted(source: Source) -> None:
    done = []

    found = clean(source, RESAMPLED, 32 * BLOCK_ROWS * 3, 1, done.append)

    assert found.rows == sum(done) == 32 * BLOCK_ROWS * 3
    assert found.seconds > 0


@pytest.mark.parametrize(("alarms", "ok"), [(0, False), (8, True), (40, False)])
def test_alarms_outside_the_bounds_are_faults(alarms: int, ok: bool) -> None:
    rows = int(10 / (sum(STATED.values()) * BUDGET.alarms_per_row))
    counted = {"feature_drift": alarms, "adaptive_drift": 0}
    cleans = [Clean("palisade", data, "x", rows, 1.0, counted) for data in (REAL_ORDER, RESAMPLED, CROSSED)]
    cleans += [Clean(name, RESAMPLED, "x", 1, 1.0, {}) for name in BASELINES]

    faults = faults_of(drift_line(cleans, []))

    assert len(faults) == (0 if ok else 2)


def test_the_hash_of_the_configuration_changes_with_any_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = default_policy()
    before = config_hash(policy)

    assert config_hash(policy) == before
    assert config_hash(policy.model_copy(update={"drift_critical_factor": 6.0})) != before
    monkeypatch.setattr(drift_alarm_tails, "TAIL_EVENTS", 15.0)
    assert config_hash(policy) != before


def test_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    known, values = np.sort(rng.normal(size=500)), np.sort(rng.normal(0.2, 1, 100))
    table = np.array([[30.0, 50, 20], [20, 60, 30]])

    assert _ks_p(known, values) == pytest.approx(ks_2samp(known, values, method="asymp").pvalue)
    assert _chi_square_p(table) == pytest.approx(chi2_contingency(table, correction=False).pvalue)


def test_the_horizon_is_what_the_report_says() -> None:
    assert AFTER * BLOCK_ROWS == 20_480
