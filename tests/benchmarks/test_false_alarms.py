"""The false-alarm benchmark can fail: it says so of thresholds that are too low, of odd rows, and of a service that fails."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

from benchmarks.false_alarms import (
    RESAMPLED,
    STATED,
    STREAMS,
    TIGHT,
    Counts,
    Figures,
    main,
    of_predictions,
    of_reports,
    poisson_interval,
    summary,
)
from benchmarks.stationary_rows import Rows, decoded, flights_table, halves, profile_of, resampled, weeks_in_order
from benchmarks.stationary_service import Answers, ReportingGuard, flights, hours_of
from detectors.profile import SPAN_ROWS, AlarmTail, Profile
from detectors.registry import DETECTORS_OF_PREDICTIONS, DETECTORS_OF_REPORTS, report_detectors
from schemas.blocks import BLOCK_ROWS
from schemas.config import EndpointConfig
from schemas.events import RouteCounts
from schemas.flags import RowFlag

TURNS = 30
ROWS = TURNS * STREAMS * BLOCK_ROWS
AIRPORT = "JFK"
HOURS = 0.1


@pytest.fixture(scope="module")
def real() -> tuple[Profile, Rows]:
    own, _ = halves(flights_table(AIRPORT))
    profile = profile_of(own, seed=2)
    return profile, decoded(own, profile)


def judged(profile: Profile, rows: Rows) -> dict[str, Any]:
    """The last line of a small run."""
    rng = np.random.default_rng(7)
    counts = of_predictions(profile, [resampled(rows, rng) for _ in range(STREAMS)], range(TURNS))
    return line_of(counts, ROWS, ROWS * TIGHT.alarms_per_row)


def line_of(counts: Counts, rows: int, budget: float) -> dict[str, Any]:
    return summary([Figures(name, RESAMPLED, AIRPORT, rows, 0.0, budget, dict(of)) for name, of in counts.items()])


def test_detectors_of_predictions_keep_their_rate(real: tuple[Profile, Rows]) -> None:
    line = judged(*real)

    assert line["ok"], line["faults"]
    assert {each["detector"] for each in line["detectors"]} == set(DETECTORS_OF_PREDICTIONS)


def test_thresholds_a_quarter_as_high_do_not_pass(real: tuple[Profile, Rows]) -> None:
    profile, rows = real
    calibration = profile.calibration
    lower = calibration.model_copy(update={"tails": tuple(quarter(tail) for tail in calibration.tails)})

    line = judged(profile.model_copy(update={"calibration": lower}), rows)

    assert not line["ok"]
    assert "feature_drift" in str(line["faults"])


def quarter(tail: AlarmTail) -> AlarmTail:
    """The same rates at a quarter of the score."""
    changed = {"score": tail.score / 4, "far_score": tail.far_score / 4, "decay": tail.decay * 4, "calm": tail.calm / 4}
    return tail.model_copy(update=changed)


def test_what_chance_does_to_a_steady_feature_is_not_far_out(real: tuple[Profile, Rows]) -> None:
    """A timetable spreads its destinations more evenly than chance does: what chance does is no drift all the same."""
    profile, _ = real
    dest = next(k for k, feature in enumerate(profile.categorical) if feature.name == "dest")
    largest = profile.calibration.spreads[len(profile.numeric) + dest].largest[SPAN_ROWS.index(BLOCK_ROWS)]
    shares = np.array(profile.categorical[dest].probabilities)
    held = shares[shares > 0]
    draws = np.random.default_rng(3).multinomial(BLOCK_ROWS, held / held.sum(), 4_000) / BLOCK_ROWS
    coarse = ((draws - held) ** 2 / np.maximum(held, 0.03)).sum(axis=1)

    assert coarse.max() < 1.5 * largest


def test_odd_rows_of_a_small_caller_do_not_pass(real: tuple[Profile, Rows]) -> None:
    profile, rows = real
    carriers = np.bincount(rows.caller)
    small = int(np.argsort(carriers)[len(carriers) // 2])
    flags = rows.flags | np.where(rows.caller == small, np.uint32(RowFlag.UNKNOWN_FEATURE), np.uint32(0))

    counts = of_predictions(
        profile,
        [weeks_in_order(replace(rows, flags=flags), np.random.default_rng(1)) for _ in range(STREAMS)],
        range(TURNS),
    )

    assert counts["odd_input"]["odd_input"] > 0
    assert not line_of(counts, ROWS, ROWS * TIGHT.alarms_per_row)["ok"]


def test_detectors_of_reports_keep_their_rate_and_a_service_that_fails_does_not_pass() -> None:
    config = {AIRPORT: EndpointConfig(name=AIRPORT, false_alarms_per_30_days=30)}
    rng = np.random.default_rng(4)
    requests = list(hours_of(*flights(AIRPORT), HOURS, rng, in_order=True))
    answers = Answers(rng, bunched=True)
    end_ms = requests[-1][0]

    def failing(at_ms: int, calls: int) -> list[RouteCounts]:
        return answers(at_ms, calls) if at_ms < end_ms - 60_000 else [RouteCounts(route="primary", errors=calls)]

    kept = of_reports(report_detectors(config)[0], ReportingGuard(AIRPORT, answers).reports(requests))
    flood = [(end_ms + 5 * k, "stranger") for k in range(1_000)]
    found = of_reports(report_detectors(config)[0], ReportingGuard(AIRPORT, failing).reports(chain(requests, flood)))

    assert set(kept) == set(found) == set(DETECTORS_OF_REPORTS)
    assert line_of(kept, 0, HOURS / 24)["ok"]
    assert found["traffic"]["caller_rate"] == found["health"]["errors"] == 1
    assert not line_of(found, 0, HOURS / 24)["ok"]


def test_intervals_are_exact() -> None:
    assert poisson_interval(0) == pytest.approx((0.0, 3.689), abs=1e-3)
    assert poisson_interval(100) == pytest.approx((81.36, 121.63), abs=0.01)


@pytest.mark.parametrize(("alarms", "ok"), [(0, True), (110, True), (150, False)])
def test_a_rate_is_broken_only_beyond_its_interval(alarms: int, ok: bool) -> None:
    budget = 100 / STATED["feature_drift"]
    figures = Figures("feature_drift", RESAMPLED, AIRPORT, 10_000_000, 0.0, budget, {"feature_drift": alarms})

    assert summary([figures])["ok"] is ok


@pytest.mark.parametrize("arguments", [["--rows", "10"], ["--hours", "0"], ["--airports", "LAX"]])
def test_what_cannot_be_measured_is_no_result(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["false_alarms", *arguments])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2


def test_every_detector_states_a_rate() -> None:
    assert set(STATED) == {*DETECTORS_OF_PREDICTIONS, *DETECTORS_OF_REPORTS}
