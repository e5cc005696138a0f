"""Who causes a shift, a spike or an excess: one caller, a few, or everybody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.attribution import MOST_NAMED, attribute, of_excess
from schemas.blocks import Floats


def counts(*of: float) -> Floats:
    return np.array(of, dtype=np.float64)


def test_an_excess_that_one_caller_brings_is_that_caller() -> None:
    found = of_excess(counts(0, 80, 1, -1), counts(100, 120, 100, 100))

    assert (found.answer, found.named) == ("one_caller", (1,))
    assert found.shares[1] == pytest.approx(80 / 81)


def test_a_caller_with_most_of_the_traffic_is_not_blamed_for_what_all_do() -> None:
    found = of_excess(counts(300, 25, 25, 25, 25), counts(600, 50, 50, 50, 50))

    assert (found.answer, found.named) == ("everybody", ())


def test_a_caller_with_most_of_the_traffic_who_does_it_alone_is_named() -> None:
    found = of_excess(counts(300, 0, 0, 1, 0), counts(600, 100, 100, 100, 100))

    assert (found.answer, found.named) == ("one_caller", (0,))


@pytest.mark.parametrize("many", [2, 3, MOST_NAMED])
def test_a_few_that_bring_equally_much_are_all_named(many: int) -> None:
    found = of_excess(counts(*[50] * many, *[0] * 10), counts(*[100] * many, *[100] * 10))

    assert found.answer == "few_callers"
    assert set(found.named) == set(range(many))


def test_more_than_five_are_everybody() -> None:
    found = of_excess(counts(*[50] * 12), counts(*[100] * 12))

    assert found.answer == "everybody"


def test_many_small_callers_who_are_not_listed_are_everybody() -> None:
    found = of_excess(counts(5, 4), counts(5, 4), others=(900.0, 1_000.0))

    assert found.answer == "everybody"


def test_the_only_caller_is_everybody() -> None:
    assert of_excess(counts(50), counts(100)).answer == "everybody"


@pytest.mark.parametrize("callers", [2, 3, 5])
def test_where_more_than_half_of_the_callers_do_it_it_is_everybody(callers: int) -> None:
    assert of_excess(counts(*[50] * callers), counts(*[100] * callers)).answer == "everybody"


def test_where_next_to_nobody_is_left_nothing_is_said() -> None:
    assert of_excess(counts(90, 0), counts(250, 6)).answer == "unclear"


def test_where_nobody_brought_anything_nothing_is_said() -> None:
    assert of_excess(counts(0, 0), counts(100, 100)).answer == "unclear"
    assert attribute(counts(np.nan, -1), lambda named: 1.0, 2).answer == "unclear"


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(0, 1e9)), min_size=1, max_size=40))
def test_at_most_five_are_named_and_each_of_them_brought_something(sent: list[tuple[float, float]]) -> None:
    excess, totals = counts(*[one for one, _ in sent]), counts(*[one for _, one in sent])

    found = of_excess(excess, totals)

    assert len(found.named) <= MOST_NAMED
    assert all(excess[place] > 0 for place in found.named)
    assert bool(found.named) == (found.answer in ("one_caller", "few_callers"))
    assert found.shares.sum() == pytest.approx(1.0) or found.shares.sum() == 0.0
