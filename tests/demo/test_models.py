import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from palisade.demo.data import ANSWER_COLUMN, FEATURES, flights, training_table
from palisade.demo.models import Artifact, HourlyShare, fit_pipeline, scorecard_of, with_answers


@pytest.fixture(scope="module")
def pipeline():
    return fit_pipeline(training_table("LGA"))


@pytest.fixture(scope="module")
def replayed():
    """Labelled replay rows of one airport: features [n, features], label [n]."""
    year = flights()
    rows = year.rows(training=False)
    rows = rows[(year.origin[rows] == "LGA") & ~np.isnan(year.label[rows])]
    return np.column_stack([year.columns[name][rows].astype(object) for name in FEATURES]), year.label[rows]


def test_the_served_answer_is_the_answer_of_the_fitted_sklearn_model(pipeline, replayed):
    model = scorecard_of(pipeline)
    rows = replayed[0][:2000].copy()
    rows[::50, FEATURES.index("temp")] = np.nan
    rows[::70, FEATURES.index("dest")] = "ZZZ"
    rows[::90, FEATURES.index("distance")] = 1e9

    served = [model(dict(zip(FEATURES, row, strict=True))) for row in rows]

    assert np.abs(served - pipeline.predict_proba(rows)[:, 1]).max() < 1e-12


def test_the_training_table_is_answered_as_calls_are(pipeline):
    model = scorecard_of(pipeline)
    table = training_table("LGA").slice(0, 300)

    answered = with_answers(table, model)

    rows = [{name: table[name][at].as_py() for name in FEATURES} for at in range(300)]
    assert answered[ANSWER_COLUMN].to_pylist() == [model(row) for row in rows]


def test_the_model_tells_late_flights_from_others_on_weeks_it_never_saw(pipeline, replayed):
    rows, late = replayed

    assert roc_auc_score(late, pipeline.predict_proba(rows)[:, 1]) > 0.68


def test_a_prediction_takes_far_less_than_half_a_millisecond(pipeline, replayed):
    model = scorecard_of(pipeline)
    rows = [dict(zip(FEATURES, row, strict=True)) for row in replayed[0][:500]]
    times = []
    for row in rows:
        start = time.thread_time_ns()
        model(row)
        times.append(time.thread_time_ns() - start)

    assert sorted(times)[len(times) // 2] < 500_000


def test_an_absent_number_counts_as_the_training_median_and_text_for_a_number_is_refused(pipeline):
    model = scorecard_of(pipeline)

    assert model({"temp": None}) == model({}) == model({"temp": float("nan")})
    with pytest.raises(ValueError, match="could not convert"):
        model({"temp": "warm"})


def test_an_artifact_comes_back_from_its_file_with_the_digest_it_was_saved_under(artifact, tmp_path):
    digest = artifact.save(tmp_path / "model.json")

    assert Artifact.load(tmp_path / "model.json") == (artifact, digest)
    (tmp_path / "model.json").write_bytes((tmp_path / "model.json").read_bytes() + b" ")
    assert Artifact.load(tmp_path / "model.json")[1] != digest


def test_the_fallback_answers_the_hours_own_share_whatever_else_is_broken():
    fallback = HourlyShare(by_hour=[hour / 100 for hour in range(24)], overall=0.5)

    assert fallback({"departs": 61.0, "distance": None}) == 0.01
    assert [fallback({"departs": odd}) for odd in (-1.0, 1440.0, float("nan"), None, "six")] == [0.5] * 5
    assert fallback({}) == 0.5
