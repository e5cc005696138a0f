"""Values that leave the grid of their table: a change of unit that every season could hide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Budget, Reading, part_of
from detectors.drift_resolution import odd_events
from detectors.feature_drift import FeatureDrift
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import BLOCK_ROWS, Block, Codes, Floats
from tests.detectors.drift_data import ENDPOINT, make_block

ROWS = 24_000
PART = part_of(ENDPOINT, "v1")
BUDGET = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""
TEMP, PRICE, LOAD = range(3)
HEAVY = np.array([0.4, *[0.6 / 29] * 29])
"""Caller 0 holds 40 % of the traffic."""

Change = Callable[[Floats, Codes], Floats]


@cache
def columns() -> dict[str, Floats]:
    """Three winters and summers: `temp` in Fahrenheit of a sensor of tenths of a Celsius, read once in 20 rows; `price` in
    cents; `load` has no grid."""
    rng = np.random.default_rng(4)
    season = 5 - 20 * np.cos(np.arange(ROWS) * (6 * np.pi / ROWS))
    read = np.repeat(season[::20] + rng.normal(0, 3, ROWS // 20), 20)
    return {
        "temp": np.round(32 + 1.8 * np.round(read, 1), 2),
        "price": np.round(rng.gamma(3.0, 9.0, ROWS), 2),
        "load": rng.normal(0, 1, ROWS),
    }


@cache
def profile() -> Profile:
    return build_profile(pa.table(columns()), outliers=False)


def blocks(
    start: int, count: int, change: Change = lambda rows, _: rows, shares: Sequence[float] = (1.0,)
) -> list[Block]:
    """Blocks of the table's rows in order, sent by verified callers with `shares`; `change` is made of rows [n, 3]."""
    rng = np.random.default_rng([start, count])
    numbers = np.stack(list(columns().values()), axis=1)
    made = []
    for at in range(start, start + count):
        caller = rng.choice(len(shares), BLOCK_ROWS, p=np.array(shares) / sum(shares)).astype(np.int32)
        rows = change(numbers[at * BLOCK_ROWS : (at + 1) * BLOCK_ROWS].copy(), caller)
        names = [f"caller-{k}" for k in range(len(shares))]
        block = make_block(
            rows, np.zeros((len(rows), 0), np.int32), first=at * BLOCK_ROWS, callers=names, of_caller=caller
        )
        made.append(replace(block, profile_hash=profile().hash))
    return made


def celsius(*callers: int, part: float = 1.0) -> Change:
    """A `part` of the rows of `callers` (of all, if none is given) come with their temperature in Celsius."""

    def change(rows: Floats, caller: Codes) -> Floats:
        here = np.random.default_rng(int(rows[0, LOAD] * 1e6) % 2**31).random(len(rows)) < part
        here &= np.isin(caller, callers) if callers else True
        rows[here, TEMP] = (rows[here, TEMP] - 32) / 1.8
        return rows

    return change


def fitted(by: Profile | None = None) -> FeatureDrift:
    detector = FeatureDrift()
    detector.fit(PART, by or profile(), BUDGET)
    return detector


def drift(readings: Sequence[Reading], kind: str = "endpoint") -> list[Reading]:
    return [each for each in readings if (each.kind, each.subject_kind) == ("feature_drift", kind)]


def first_firing(readings: Sequence[Reading]) -> int:
    """Blocks up to the first that fires, counted from 1."""
    return next(at for at, reading in enumerate(drift(readings), 1) if reading.firing)


def test_a_column_has_the_largest_step_that_all_its_values_keep() -> None:
    steps = [each.resolution and each.resolution.step for each in profile().numeric]

    assert steps == [pytest.approx(0.18), pytest.approx(0.01), None]
    assert profile().calibration.resolution is not None


@pytest.mark.parametrize(
    "column",
    [
        np.random.default_rng(0).normal(0, 1, 4_000),
        np.tile([0.0, 1.0], 2_000),
        np.full(4_000, 3.0),
        np.full(4_000, np.nan),
        1.7e9 + np.arange(4_000.0),
        np.where(np.arange(4_000) < 1_000, np.random.default_rng(0).random(4_000), np.arange(4_000) % 50),
    ],
    ids=["measured", "of two values", "constant", "missing", "too fine for float32", "of a part of the table alone"],
)
def test_what_keeps_no_grid_all_over_its_table_has_none(column: Floats) -> None:
    built = build_profile(
        pa.table({"it": column, "load": np.random.default_rng(1).random(len(column))}), outliers=False
    )

    assert built.numeric[0].resolution is None
    assert built.calibration.resolution is None


@pytest.mark.parametrize("broken", ["float32", "rows"])
def test_a_grid_is_found_in_a_table_of_float32_and_beside_a_few_broken_rows(broken: str) -> None:
    temp = columns()["temp"].copy()
    if broken == "rows":
        temp[::2_500] += 0.0437
    typed = temp.astype(np.float32) if broken == "float32" else temp
    (feature,) = build_profile(pa.table({"temp": typed}), outliers=False).numeric

    assert feature.resolution is not None
    assert feature.resolution.step == pytest.approx(0.18, rel=1e-4)


def test_rows_of_the_table_in_their_order_keep_to_its_grids() -> None:
    readings = drift(fitted().update(blocks(0, ROWS // BLOCK_ROWS)))

    assert not any("resolution" in reading.evidence.get("reasons", ()) for reading in readings)  # type: ignore[operator]


def test_celsius_within_the_seasons_is_a_warning_at_once_and_calm_follows_its_end() -> None:
    readings = drift(fitted().update([*blocks(0, 42), *blocks(42, 10, celsius()), *blocks(52, 10)]))

    assert not any(reading.firing for reading in readings[:42])
    assert all(reading.firing for reading in readings[43:52])
    assert {reading.severity for reading in readings} == {"warning"}
    assert readings[43].evidence["features"][0] == "temp"  # type: ignore[index]
    assert readings[43].evidence["reasons"][0] == "resolution"  # type: ignore[index]
    assert readings[43].evidence["steps"][0] == pytest.approx(0.18)  # type: ignore[index]
    assert readings[43].evidence["observed_off_grid"][0] > 0.7  # type: ignore[index, operator]
    assert any(reading.calm for reading in readings[52:57])


def test_celsius_in_one_row_of_twenty_is_found_within_four_blocks() -> None:
    detector = fitted()
    detector.update(blocks(0, 40))

    assert first_firing(detector.update(blocks(40, 10, celsius(part=0.05)))) <= 4


def test_small_blocks_find_it_too() -> None:
    detector = fitted()
    found = []
    for block in blocks(40, 3, celsius()):
        parts = [np.arange(at, at + 32) for at in range(0, BLOCK_ROWS, 32)]
        found += [
            replace(
                make_block(block.numeric[part], block.categorical[part], first=int(block.offsets[part[0]])),
                profile_hash=block.profile_hash,
            )
            for part in parts
        ]

    assert first_firing(detector.update(found)) <= 16


def test_a_profile_of_an_earlier_release_has_no_such_test_and_keeps_its_bytes() -> None:
    numeric = tuple(each.model_copy(update={"resolution": None}) for each in profile().numeric)
    calibration = profile().calibration.model_copy(update={"resolution": None})
    early = profile().model_copy(update={"numeric": numeric, "calibration": calibration})
    detector = fitted(early)
    as_early = [replace(block, profile_hash=early.hash) for block in blocks(40, 4, celsius())]

    assert b'"resolution"' not in early.to_bytes()
    assert Profile.from_bytes(early.to_bytes()).hash == early.hash
    assert not any(reading.firing for reading in drift(detector.update(as_early)))


def test_what_odd_values_may_spend_is_taken_from_the_histograms() -> None:
    held = profile().calibration
    without = held.model_copy(update={"resolution": None})

    assert held.thresholds(1e-7)[0] > without.thresholds(1e-7)[0]
    assert held.resolution_limit(1e-9) > held.resolution_limit(1e-7) >= 1.0
    assert without.resolution_limit(1e-7) == np.inf


def test_a_value_that_stays_is_one_event_and_tells_of_itself_again_every_32_rows() -> None:
    stays, moves = np.full((1, 64), 0.5), np.linspace(0.1, 0.9, 64)[None]

    assert odd_events(stays, 0.0, 1.0).sum() == 2
    assert odd_events(moves, 0.0, 1.0).sum() == 64
    assert odd_events(np.full((1, 64), np.nan), 0.0, 1.0).sum() == 0
    assert odd_events(moves, 0.0, np.inf).sum() == 0


def test_one_odd_reading_of_the_weather_is_no_alarm_and_a_sensor_stuck_at_one_is() -> None:
    def odd(rows: Floats, _: Codes) -> Floats:
        rows[:20, TEMP] = 50.07
        return rows

    def stuck(rows: Floats, _: Codes) -> Floats:
        rows[:, TEMP] = 50.07
        return rows

    once, always = fitted(), fitted()

    assert not any(reading.firing for reading in drift(once.update([*blocks(0, 4, odd), *blocks(4, 20)])))
    assert first_firing(always.update(blocks(30, 10, stuck))) <= 6


def test_the_one_caller_who_sends_celsius_is_told_and_neither_limited_nor_the_endpoints_fall_back() -> None:
    detector = fitted()
    detector.update(blocks(0, 40, shares=HEAVY.tolist()))
    after = detector.update(blocks(40, 12, celsius(0), HEAVY.tolist()))
    callers = [reading for reading in drift(after, "caller") if reading.firing]

    assert {reading.subject for reading in callers} == {"caller-0"}
    assert {reading.severity for reading in callers} == {"info"}
    assert callers[0].evidence["reason"] == "resolution"
    assert callers[0].evidence["features"] == ["temp"]
    assert "critical" not in {reading.severity for reading in after}


def test_what_everybody_sends_off_the_grid_is_everybodys() -> None:
    detector = fitted()
    detector.update(blocks(0, 40, shares=HEAVY.tolist()))
    after = detector.update(blocks(40, 8, celsius(), HEAVY.tolist()))

    assert not drift(after, "caller")
    assert drift(after)[-1].evidence["attributed_to"] == "everybody"


def test_odd_values_of_one_caller_do_not_hide_what_breaks_for_all() -> None:
    def broken(rows: Floats, caller: Codes) -> Floats:
        rows[:, LOAD] = 3.0 * rows[:, LOAD] + 4.0
        return celsius(0)(rows, caller)

    detector = fitted()
    detector.update(blocks(0, 40, shares=HEAVY.tolist()))
    after = drift(detector.update(blocks(40, 6, broken, HEAVY.tolist())))

    assert after[-1].severity == "critical"
    assert after[-1].evidence["attributed_to"] == "everybody"
    assert after[-1].evidence["callers_moved"] > 10  # type: ignore[operator]


def test_a_restored_part_goes_on_counting_odd_values_to_the_bit() -> None:
    whole, before = fitted(), fitted()
    some, rest = blocks(40, 2, celsius(0, part=0.2), HEAVY.tolist()), blocks(42, 6, celsius(0), HEAVY.tolist())
    expected = whole.update([*some, *rest])
    first = before.update(some)
    after = fitted()
    after.restore(PART, before.snapshot(PART))

    assert [*first, *after.update(rest)] == expected
