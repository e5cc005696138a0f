"""Whose shift it is: callers who move an endpoint's inputs alone have readings of their own, and nobody else has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Reading, part_of
from detectors.drift_callers import LINGER_MS, OWN_CALM, OWN_LEAST, CallerCells
from detectors.feature_drift import FeatureDrift
from schemas.blocks import BLOCK_ROWS, ROUTE_CODES, Block, Codes, Floats
from schemas.errors import StateRefused
from tests.detectors.drift_data import BUDGET, ENDPOINT, ROWS, make_block, profile, rows

PART = part_of(ENDPOINT, "v1")
SIZE, LOAD = 2, 3
THIRTY = np.full(30, 1 / 30)
HEAVY = np.array([0.6, *[0.4 / 29] * 29])
"""Caller 0 holds 60 % of the traffic."""
LEARNED = 24
"""Blocks after which it is known what is usual of each caller."""

Moved = Callable[[Floats, Codes], Floats]


def fitted(*, learned: bool = False) -> FeatureDrift:
    detector = FeatureDrift()
    detector.fit(PART, profile(), BUDGET, learned=learned)
    return detector


def feet(*callers: int) -> Moved:
    """The pipelines of `callers` send feet for metres."""
    return lambda size, caller: np.where(np.isin(caller, callers), size * 3.28, size)


def blocks(
    count: int,
    shares: Floats,
    moved: Moved = lambda size, _: size,
    *,
    first: int = 0,
    seed: int = 1,
    claimed: Sequence[int] = (),
    habits: bool = False,
) -> list[Block]:
    """Rows drawn one by one, sent by callers with `shares` of the traffic. `habits`: caller 0 asks for large sizes alone."""
    rng = np.random.default_rng([seed, first])
    numeric, categorical = rows()
    large = np.flatnonzero(numeric[:, SIZE] > np.quantile(numeric[:, SIZE], 0.7))
    names = tuple(f"caller-{k}" for k in range(len(shares)))
    verified = np.isin(np.arange(len(shares)), claimed, invert=True)
    made = []
    for at in range(first, first + count):
        caller = rng.choice(len(shares), BLOCK_ROWS, p=shares / shares.sum()).astype(np.int32)
        index = rng.integers(0, ROWS, BLOCK_ROWS)
        if habits:
            index = np.where(caller == 0, rng.choice(large, BLOCK_ROWS), index)
        values = numeric[index]
        values[:, SIZE] = moved(values[:, SIZE], caller)
        block = make_block(values, categorical[index], first=at * BLOCK_ROWS)
        made.append(replace(block, caller=caller, callers=names, verified=verified))
    return made


def named(readings: Iterable[Reading]) -> set[str]:
    """The callers that fired."""
    return {reading.subject for reading in readings if reading.firing and reading.subject_kind == "caller"}


def answers(readings: Iterable[Reading]) -> list[object]:
    return [reading.evidence.get("attributed_to") for reading in readings if reading.firing and by_all(reading)]


def by_all(reading: Reading) -> bool:
    return reading.subject_kind == "endpoint" and reading.kind == "feature_drift"


def test_a_caller_with_60_percent_of_the_traffic_that_shifts_alone_is_named_and_moves_no_endpoint() -> None:
    detector = fitted()
    before = detector.update(blocks(LEARNED, HEAVY))
    after = detector.update(blocks(3, HEAVY, feet(0), first=LEARNED))

    assert not any(reading.firing for reading in before)
    assert named(after) == {"caller-0"}
    (first, *_) = (reading for reading in after if reading.firing and reading.subject_kind == "caller")
    assert first.at.ms == after[0].at.ms
    assert (first.caller_auth, first.severity, first.kind) == ("verified", "warning", "feature_drift")
    assert first.evidence["features"] == ["size"]
    assert all(reading.severity != "critical" for reading in after)


@pytest.mark.parametrize("factor", [1.5, 3.28, 100.0])
def test_a_heavy_caller_cannot_hide_behind_the_cap_on_its_weight(factor: float) -> None:
    detector = fitted()
    detector.update(blocks(LEARNED, HEAVY))
    moved = lambda size, caller: np.where(caller == 0, size * factor, size)  # noqa: E731

    assert named(detector.update(blocks(8, HEAVY, moved, first=LEARNED))) == {"caller-0"}


def test_what_breaks_for_all_is_everybodys_and_names_nobody() -> None:
    for shares in (HEAVY, THIRTY):
        detector = fitted()
        detector.update(blocks(LEARNED, shares))
        after = detector.update(blocks(6, shares, lambda size, _: size * 3.28, first=LEARNED))

        assert named(after) == set()
        assert set(answers(after)) == {"everybody"}
        assert any(reading.severity == "critical" for reading in after)


def test_the_only_caller_is_everybody() -> None:
    detector = fitted()
    detector.update(blocks(LEARNED, np.ones(1)))
    after = detector.update(blocks(3, np.ones(1), feet(0), first=LEARNED))

    assert named(after) == set()
    assert set(answers(after)) == {"everybody"}


def test_two_callers_that_break_together_are_both_named() -> None:
    shares = np.array([0.2, 0.2, *[0.6 / 20] * 20])
    detector = fitted()
    detector.update(blocks(LEARNED, shares))
    after = detector.update(blocks(4, shares, feet(0, 1), first=LEARNED))

    assert named(after) == {"caller-0", "caller-1"}
    assert "few_callers" in answers(after)


@pytest.mark.parametrize("times", [2, 4, 10])
def test_a_heavy_caller_with_habits_of_its_own_that_asks_more_is_nobodys_shift(times: int) -> None:
    """The mix of callers changes (Simpson), no caller does."""
    shares = np.array([0.15, *[0.85 / 29] * 29])
    more = shares * np.array([times, *[1.0] * 29])
    detector = fitted()
    detector.update(blocks(LEARNED, shares, habits=True))
    after = detector.update(blocks(12, more, first=LEARNED, habits=True))

    assert named(after) == set()
    assert "one_caller" not in answers(after)


def test_what_was_like_that_from_the_beginning_is_in_nobodys_past() -> None:
    """Without calm blocks nobody has a past: a caller is held against what the training table can have held."""
    detector = fitted()
    shares = np.array([0.5, *[0.5 / 10] * 10])

    assert named(detector.update(blocks(8, shares, habits=True))) == set()
    grams = lambda size, caller: np.where(caller == 0, size * 1_000, size)  # noqa: E731
    assert named(fitted().update(blocks(4, HEAVY, grams))) == {"caller-0"}


def test_callers_whom_nobody_authenticated_are_named_in_evidence_as_one_and_have_no_readings() -> None:
    shares = np.array([*[0.15] * 3, *[0.55 / 20] * 20])
    detector = fitted()
    detector.update(blocks(LEARNED, shares, claimed=(0, 1, 2)))
    after = detector.update(blocks(4, shares, feet(0, 1, 2), first=LEARNED, claimed=(0, 1, 2)))

    assert named(after) == set()
    evidence = [reading.evidence["attributed_callers"] for reading in after if reading.firing]
    assert evidence
    assert all(callers == ["(unauthenticated)"] for callers in evidence)


def test_a_limited_caller_stays_named_while_it_sends_the_same_and_is_calm_once_it_is_mended() -> None:
    detector = fitted()
    detector.update(blocks(LEARNED, HEAVY))
    detector.update(blocks(3, HEAVY, feet(0), first=LEARNED))
    limited = np.array([0.03, *[0.97 / 29] * 29])
    still = detector.update(blocks(40, limited, feet(0), first=LEARNED + 3))
    mended = detector.update(blocks(60, limited, first=LEARNED + 43))

    of_caller = [reading for reading in still if reading.subject == "caller-0"]
    assert all(reading.firing for reading in of_caller)
    assert len(of_caller) > 30
    assert named(still) == {"caller-0"}
    assert [reading for reading in mended if reading.subject == "caller-0"][-1].calm


def test_a_mended_caller_is_read_on_for_a_while_and_then_let_go() -> None:
    detector = fitted()
    detector.update(blocks(LEARNED, HEAVY))
    detector.update(blocks(3, HEAVY, feet(0), first=LEARNED))
    detector.update(blocks(30, HEAVY, first=LEARNED + 3))
    (late, later) = (
        replace(block, closed_ms=block.closed_ms + LINGER_MS * after)
        for block, after in zip(blocks(2, HEAVY, first=LEARNED + 33), (1, 2), strict=True)
    )

    assert any(reading.subject == "caller-0" for reading in detector.update([late]))
    assert not any(reading.subject == "caller-0" for reading in detector.update([later]))


@pytest.mark.parametrize("weight", [0.01, 50.0])
def test_sampled_traffic_is_judged_by_its_rows(weight: float) -> None:
    detector = fitted()
    sampled = [replace(block, weight=np.full(BLOCK_ROWS, weight)) for block in blocks(40, HEAVY)]
    broken = [replace(block, weight=np.full(BLOCK_ROWS, weight)) for block in blocks(3, HEAVY, feet(0), first=40)]

    assert named(detector.update(sampled)) == set()
    assert named(detector.update(broken)) == {"caller-0"}


def test_refused_rows_accuse_nobody() -> None:
    detector = fitted()
    detector.update(blocks(LEARNED, HEAVY))
    broken = blocks(4, HEAVY, feet(0), first=LEARNED)
    refused = [
        replace(block, served_by=np.where(block.caller == 0, ROUTE_CODES["refused"], 0).astype(np.uint8))
        for block in broken
    ]

    assert named(detector.update(refused)) == set()


def test_against_a_learned_profile_a_caller_is_told_and_no_more() -> None:
    detector = fitted(learned=True)
    detector.update(blocks(LEARNED, HEAVY))
    after = [each for each in detector.update(blocks(3, HEAVY, feet(0), first=LEARNED)) if each.subject == "caller-0"]

    assert {(reading.severity, reading.evidence["profile"]) for reading in after} == {("info", "learned")}


def test_a_restored_part_names_the_same_callers_at_the_same_blocks() -> None:
    log = blocks(10, HEAVY) + blocks(6, HEAVY, feet(0), first=10) + blocks(20, HEAVY, first=16)
    whole, broken = fitted(), fitted()
    for block in log:
        fresh = fitted()
        fresh.restore(PART, broken.snapshot(PART))
        broken = fresh
        assert broken.update([block]) == whole.update([block])
        assert broken.snapshot(PART) == whole.snapshot(PART)


def test_broken_states_of_callers_are_refused() -> None:
    detector = fitted()
    detector.update(blocks(10, HEAVY) + blocks(2, HEAVY, feet(0), first=10))
    (held,) = [part.callers for part in detector._parts.values()]
    state = held.saved()

    assert CallerCells.load(held.features, state).saved() == state
    for broken in (b"", b"x" * 40, state[:-1], state + b"\0", state.replace(b"caller-0", b"caller-x", 1)):
        with pytest.raises(StateRefused):
            CallerCells.load(held.features, broken)
    with pytest.raises(StateRefused):
        CallerCells.load(held.features + 1, state)


@pytest.mark.parametrize(("features", "kept"), [(5, 8), (21, 8), (50, 3), (170, 1), (171, 0), (512, 0)])
def test_fewer_callers_are_kept_of_wide_rows(features: int, kept: int) -> None:
    held = CallerCells(features)

    assert held.most == kept
    assert held.usual.nbytes <= 16_384


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_block_that_decoding_lets_through_upsets_it(data: st.DataObject) -> None:
    """Any callers, weights, routes and values, in any order of calm and alarm; and its state comes back as it was."""
    detector = fitted()
    for at in range(data.draw(st.integers(1, 12))):
        n, callers = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 12))
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        scale = data.draw(st.sampled_from((1.0, 1.0, 50.0, -1e30, np.nan)))
        numeric = rng.normal(0, 1, (n, 4)) * scale
        block = make_block(numeric, rng.integers(-2, 5, (n, 1)).astype(np.int32), first=at * BLOCK_ROWS)
        block = replace(
            block,
            caller=rng.integers(0, callers, n).astype(np.int32),
            callers=tuple(f"c{data.draw(st.integers(0, 30))}-{k}" for k in range(callers)),
            verified=rng.random(callers) < 0.8,
            served_by=rng.choice([0, 3], n, p=[0.9, 0.1]).astype(np.uint8),
            weight=rng.choice([1.0, 1e6, 1e-9, np.nan], n),
        )
        again = fitted()
        again.restore(PART, detector.snapshot(PART))
        assert again.update([block]) == detector.update([block])


def test_entry_is_above_exit() -> None:
    assert OWN_CALM < OWN_LEAST
