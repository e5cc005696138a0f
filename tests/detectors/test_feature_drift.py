from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Budget, Detector, Reading, part_of
from detectors.caller_weights import MIN_CAP, capped_totals
from detectors.drift_windows import divergence
from detectors.feature_drift import FeatureDrift
from schemas.blocks import BLOCK_ROWS, ROUTE_CODES, UNSEEN, Block, Codes, Floats
from schemas.errors import StateRefused
from tests.detectors.drift_data import BUDGET, ENDPOINT, ROWS, make_block, ordered_blocks, profile, rows

PART = part_of(ENDPOINT, "v1")
SIZE = 2
"""The column of `size`, an independent feature, among the numeric ones."""


def fitted(*endpoints: str, budget: Budget = BUDGET) -> FeatureDrift:
    detector = FeatureDrift()
    for endpoint in endpoints or (ENDPOINT,):
        detector.fit(part_of(endpoint, "v1"), profile(), budget)
    return detector


def drift(readings: Sequence[Reading]) -> list[Reading]:
    return [reading for reading in readings if reading.kind == "feature_drift"]


def with_size(block: Block, values: Floats) -> Block:
    numeric = block.numeric.copy()
    numeric[:, SIZE] = values
    return replace(block, numeric=numeric)


def converted(block: Block) -> Block:
    """The feature pipeline sends feet for metres."""
    return with_size(block, block.numeric[:, SIZE] * 3.28)


def independent_block(rng: np.random.Generator, **options: object) -> Block:
    numeric, categorical = rows()
    index = rng.integers(0, ROWS, BLOCK_ROWS)
    return make_block(numeric[index], categorical[index], **options)  # type: ignore[arg-type]


def alarms(detector: FeatureDrift, blocks: Sequence[Block]) -> int:
    """Firing readings that are the first since a calm one."""
    open_kinds: set[tuple[str, str]] = set()
    count = 0
    for reading in detector.update(blocks):
        key = (reading.endpoint, reading.kind)
        if reading.firing and key not in open_kinds:
            open_kinds.add(key)
            count += 1
        elif reading.calm:
            open_kinds.discard(key)
    return count


def test_it_is_a_detector_of_predictions() -> None:
    detector: Detector[Block] = FeatureDrift()

    assert (detector.name, detector.log) == ("feature_drift", "predictions")
    assert detector.hash == FeatureDrift().hash != FeatureDrift(critical_factor=6.0).hash


def test_training_rows_in_their_order_are_quiet() -> None:
    readings = drift(fitted(budget=Budget(1.0, 1e6)).update(ordered_blocks(0, ROWS // BLOCK_ROWS)))

    assert len(readings) == ROWS // BLOCK_ROWS
    assert not any(reading.firing for reading in readings)
    assert sum(reading.calm for reading in readings) > 0.8 * len(readings)
    assert not any(reading.calm and reading.firing for reading in readings)


def test_chance_alarms_stay_within_the_budget_on_rows_drawn_one_by_one_and_on_rows_in_order() -> None:
    rng = np.random.default_rng(2)
    names = [f"endpoint-{k}" for k in range(8)]
    one_by_one, in_order = fitted(*names), fitted(*names)
    found = [0, 0]
    for _ in range(12):
        starts = rng.integers(0, ROWS - 20 * BLOCK_ROWS, len(names)).tolist()
        found[0] += alarms(one_by_one, [independent_block(rng, endpoint=name) for name in names for _ in range(20)])
        stretches = [ordered_blocks(start, 20, endpoint=name) for name, start in zip(names, starts, strict=True)]
        found[1] += alarms(in_order, [block for stretch in stretches for block in stretch])

    # 1,920 blocks a kind: 491,520 rows, a budget of 4.9 alarms; 12 would come by chance once in 200 times.
    assert max(found) <= 12


def test_a_unit_change_for_everybody_is_critical_in_the_first_block_and_calm_follows_its_end() -> None:
    blocks = ordered_blocks(0, 30)
    readings = drift(fitted().update([*blocks[:10], *map(converted, blocks[10:20]), *blocks[20:]]))

    assert readings[10].severity == "critical"
    assert readings[10].firing
    assert readings[10].evidence["features"][0] == "size"  # type: ignore[index]
    assert all(reading.firing for reading in readings[10:20])
    assert not any(reading.firing for reading in readings[:10])
    assert any(reading.calm for reading in readings[20:24])
    assert not any(reading.firing for reading in readings[23:])


def test_the_first_evidence_dates_the_whole_excursion() -> None:
    blocks = ordered_blocks(0, 14)
    readings = drift(fitted().update([*blocks[:10], *map(converted, blocks[10:])]))

    assert {reading.first_ms for reading in readings[10:]} == {int(blocks[10].broker_ts[0])}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_category_that_the_profile_never_saw_is_critical(share: float) -> None:
    block = ordered_blocks(0, 1)[0]
    codes = np.where(np.arange(BLOCK_ROWS)[:, None] < share * BLOCK_ROWS, UNSEEN, block.categorical).astype(np.int32)
    (reading,) = drift(fitted().update([replace(block, categorical=codes)]))

    assert reading.severity == "critical"
    assert reading.evidence["observed_unseen"][0] == pytest.approx(share)  # type: ignore[index]


def test_values_that_go_missing_are_critical_where_they_never_did() -> None:
    block = ordered_blocks(0, 1)[0]
    (reading,) = drift(fitted().update([with_size(block, np.full(BLOCK_ROWS, np.nan))]))

    assert reading.severity == "critical"
    assert reading.evidence["observed_missing"][0] == 1.0  # type: ignore[index]
    assert reading.evidence["observed_mean"][0] is None  # type: ignore[index]


def test_a_small_shift_is_a_warning_and_never_critical() -> None:
    blocks = ordered_blocks(0, 60)
    shifted = [with_size(block, block.numeric[:, SIZE] + 150) for block in blocks]
    readings = drift(fitted().update(shifted))

    first = next(k for k, reading in enumerate(readings) if reading.firing)
    assert first < 20
    assert {reading.severity for reading in readings} == {"warning"}
    assert all(reading.score > reading.threshold for reading in readings if reading.firing)


def test_a_larger_critical_factor_asks_for_more() -> None:
    strict, lax = FeatureDrift(critical_factor=1.01), FeatureDrift(critical_factor=10_000.0)
    block = converted(ordered_blocks(0, 1)[0])
    for detector in (strict, lax):
        detector.fit(PART, profile(), BUDGET)

    assert drift(strict.update([block]))[0].severity == "critical"
    assert drift(lax.update([block]))[0].severity == "warning"


def test_small_blocks_add_up_to_the_same_alarm() -> None:
    numeric, categorical = rows()
    small = [
        converted(make_block(numeric[at : at + 20], categorical[at : at + 20], first=at)) for at in range(0, 400, 20)
    ]
    readings = drift(fitted().update(small))

    first = next(k for k, reading in enumerate(readings) if reading.firing)
    assert first * 20 < 200


def test_a_block_of_one_row_is_read_and_quiet() -> None:
    numeric, categorical = rows()
    readings = drift(
        fitted().update([make_block(numeric[k : k + 1], categorical[k : k + 1], first=k) for k in range(30)])
    )

    assert len(readings) == 30
    assert not any(reading.firing for reading in readings)


def callers_of(counts: Sequence[int]) -> Codes:
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def moved_for(block: Block, moved: Floats, callers: Codes, names: Sequence[str], verified: Sequence[bool]) -> Block:
    values = np.where(moved, block.numeric[:, SIZE] * 3.28, block.numeric[:, SIZE])
    return replace(with_size(block, values), caller=callers, callers=tuple(names), verified=np.array(verified))


def test_one_caller_with_half_of_the_rows_never_makes_it_critical_alone() -> None:
    callers = callers_of([128, *[4] * 32])
    names = [f"caller-{k}" for k in range(33)]
    detector = fitted()
    for block in ordered_blocks(0, 20):
        moved = moved_for(block, callers == 0, callers, names, [True] * 33)
        assert all(reading.severity != "critical" for reading in detector.update([moved]))
    everybody = moved_for(ordered_blocks(0, 1)[0], callers >= 0, callers, names, [True] * 33)
    assert drift(detector.update([everybody]))[0].severity == "critical"


@pytest.mark.parametrize(("vouched", "severity"), [(False, "warning"), (True, "critical")])
def test_all_callers_that_nobody_vouches_for_count_as_one(vouched: bool, severity: str) -> None:
    callers = callers_of([1] * 128 + [4] * 32)
    names = [f"caller-{k}" for k in range(160)]
    block = moved_for(ordered_blocks(0, 1)[0], callers < 128, callers, names, [vouched] * 128 + [True] * 32)

    assert drift(fitted().update([block]))[0].severity == severity


def test_heavy_callers_with_habits_of_their_own_are_no_drift() -> None:
    """The cap alone moves the mix of inputs: that is not news about the inputs."""
    detector = fitted(budget=Budget(1.0, 1e6))
    rng = np.random.default_rng(3)
    for _ in range(60):
        block = independent_block(rng)
        # Caller 0 asks for everything large: 40 % of the rows.
        large = block.numeric[:, SIZE] > np.quantile(block.numeric[:, SIZE], 0.6)
        callers = np.where(large, 0, rng.integers(1, 40, BLOCK_ROWS)).astype(np.int32)
        names = tuple(f"caller-{k}" for k in range(40))
        named = replace(block, caller=callers, callers=names, verified=np.ones(40, np.bool_))
        assert not any(reading.firing for reading in detector.update([named]))


def test_shares_name_the_callers_who_brought_the_shift() -> None:
    callers = callers_of([16] * 16)
    names = [f"caller-{k}" for k in range(16)]
    block = moved_for(ordered_blocks(0, 1)[0], callers < 4, callers, names, [True] * 8 + [False] * 8)
    (reading,) = drift(fitted().update([block]))

    assert reading.firing
    assert {name for name, _, _ in reading.shares[:4]} == set(names[:4])
    assert sum(share for _, _, share in reading.shares[:4]) > 0.6
    assert {name: auth for name, auth, _ in reading.shares}["caller-0"] == "verified"


def test_what_breaks_for_a_hundred_and_fifty_callers_moved_nearly_all_of_them() -> None:
    detector = fitted()
    names = [f"c{number}" for number in range(150)]
    callers = np.random.default_rng(5).integers(0, len(names), BLOCK_ROWS).astype(np.int32)
    (block,) = ordered_blocks(4_096, 1)
    broken = replace(converted(block), caller=callers, callers=tuple(names), verified=np.ones(len(names), np.bool_))

    (reading,) = drift(detector.update([broken]))

    moved, present = reading.evidence["callers_moved"], reading.evidence["callers_present"]
    assert isinstance(moved, float)
    assert isinstance(present, float)
    assert moved > 0.8 * present > 70
    assert len(reading.shares) == 20


def test_refused_rows_do_not_count() -> None:
    detector = fitted()
    block = ordered_blocks(0, 1)[0]
    half = np.arange(BLOCK_ROWS) < 128
    mixed = with_size(block, np.where(half, block.numeric[:, SIZE] * 100, block.numeric[:, SIZE]))
    refused = replace(mixed, served_by=np.where(half, ROUTE_CODES["refused"], 0).astype(np.uint8))

    assert not drift(detector.update([refused]))[0].firing
    assert drift(fitted().update([mixed]))[0].severity == "critical"


def test_a_block_of_refused_rows_alone_says_unknown() -> None:
    block = replace(ordered_blocks(0, 1)[0], served_by=np.full(BLOCK_ROWS, ROUTE_CODES["refused"], np.uint8))
    (reading,) = fitted().update([block])

    assert not reading.known
    assert not reading.calm


def test_a_part_without_its_profile_says_unknown_once_a_second() -> None:
    blocks = ordered_blocks(0, 4)  # 5.12 s of log time apart
    again = [replace(block, closed_ms=block.closed_ms + 500) for block in blocks]
    readings = FeatureDrift().update([one for pair in zip(blocks, again, strict=True) for one in pair])

    assert len(readings) == 4
    assert not any(reading.known or reading.firing or reading.calm for reading in readings)
    other = FeatureDrift()
    other.fit(PART, profile(), BUDGET)
    (foreign,) = other.update([replace(blocks[0], profile_hash="0" * 64)])
    assert not foreign.known


def test_a_jump_of_the_live_mean_is_an_adaptive_warning() -> None:
    blocks = ordered_blocks(0, 60)
    moved = [with_size(block, block.numeric[:, SIZE] + 1_000) for block in blocks[30:]]
    adaptive = [reading for reading in fitted().update([*blocks[:30], *moved]) if reading.kind == "adaptive_drift"]

    firing = [reading for reading in adaptive if reading.firing]
    assert firing
    assert all(reading.at.offset >= 30 * BLOCK_ROWS for reading in firing)
    assert {reading.severity for reading in adaptive} == {"warning"}
    assert "size" in firing[0].evidence["features"]  # type: ignore[operator]


def mixed_batch() -> list[Block]:
    """Blocks of three endpoints and many sizes, with drift, callers over the cap and refused rows."""
    rng = np.random.default_rng(8)
    numeric, categorical = rows()
    batch = []
    for k in range(60):
        n = int(rng.choice([1, 7, 32, 37, 100, 255, 256]))
        start = int(rng.integers(0, ROWS - n))
        block = make_block(
            numeric[start : start + n],
            categorical[start : start + n],
            first=k * 256,
            endpoint=f"endpoint-{k % 3}",
            callers=[f"caller-{j}" for j in range(40)],
            of_caller=np.where(rng.random(n) < 0.3 * (k % 2), 0, rng.integers(0, 40, n)).astype(np.int32),
            served_by=3 if k % 17 == 0 else 0,
        )
        batch.append(converted(block) if k % 10 > 6 else block)
    return batch


ENDPOINTS = ("endpoint-0", "endpoint-1", "endpoint-2")


def test_any_cut_into_batches_gives_the_same_readings_to_the_bit() -> None:
    whole = fitted(*ENDPOINTS)
    batch = mixed_batch()
    expected = whole.update(batch)
    states = [whole.snapshot(part_of(endpoint, "v1")) for endpoint in ENDPOINTS]

    @settings(max_examples=15, deadline=None)
    @given(st.sets(st.integers(1, len(batch) - 1)))
    def cut(at: set[int]) -> None:
        detector = fitted(*ENDPOINTS)
        edges = [0, *sorted(at), len(batch)]
        readings = [reading for a, b in itertools.pairwise(edges) for reading in detector.update(batch[a:b])]
        assert readings == expected
        assert [detector.snapshot(part_of(endpoint, "v1")) for endpoint in ENDPOINTS] == states

    cut()


def test_a_restored_part_goes_on_as_if_nothing_had_happened_at_every_block() -> None:
    batch = mixed_batch()
    whole = fitted(*ENDPOINTS)
    broken = fitted(*ENDPOINTS)
    for block in batch:
        fresh = fitted(*ENDPOINTS)
        for endpoint in ENDPOINTS:
            fresh.restore(part_of(endpoint, "v1"), broken.snapshot(part_of(endpoint, "v1")))
        broken = fresh
        assert [r for r in broken.update([block]) if r.known] == [r for r in whole.update([block]) if r.known]


def test_foreign_and_broken_state_is_refused_and_changes_nothing() -> None:
    detector = fitted()
    detector.update(ordered_blocks(0, 20))
    state = detector.snapshot(PART)
    other_profile = FeatureDrift()
    other_profile.fit(PART, profile().model_copy(update={"seed": 99}), BUDGET)
    other_parameters = FeatureDrift(critical_factor=7.0)
    other_parameters.fit(PART, profile(), BUDGET)
    for refusing in (other_profile, other_parameters, FeatureDrift()):
        with pytest.raises(StateRefused):
            refusing.restore(PART, state)
    for broken in (b"x", state[:-1], state + b"\0", state[:100] + bytes([state[100] ^ 1]) + state[101:], b"\x80\x04."):
        with pytest.raises(StateRefused):
            detector.restore(PART, broken)
    assert detector.snapshot(PART) == state


def test_state_is_small_and_does_not_grow() -> None:
    detector = fitted()
    detector.update(ordered_blocks(0, 40))
    early = len(detector.snapshot(PART))
    for _ in range(5):
        detector.update(ordered_blocks(0, ROWS // BLOCK_ROWS))

    assert early < 12_000
    assert len(detector.snapshot(PART)) < early + 3_000


def test_fitting_again_keeps_the_state_with_the_same_profile_only() -> None:
    detector = fitted()
    detector.update(ordered_blocks(0, 10))
    state = detector.snapshot(PART)
    threshold = drift(fitted().update(ordered_blocks(0, 1)))[0].threshold

    detector.fit(PART, profile(), Budget(0.001, 1e6))
    assert detector.snapshot(PART) == state
    assert drift(detector.update(ordered_blocks(0, 1)))[0].threshold > threshold

    detector.fit(PART, profile().model_copy(update={"seed": 99}), BUDGET)
    fresh = FeatureDrift()
    fresh.fit(PART, profile().model_copy(update={"seed": 99}), BUDGET)
    assert detector.snapshot(PART) == fresh.snapshot(PART) != state


def test_a_forgotten_part_leaves_its_place_clean_for_the_next() -> None:
    detector = fitted("first")
    detector.update([replace(block, endpoint="first") for block in map(converted, ordered_blocks(0, 5))])
    detector.forget(part_of("first", "v1"))
    detector.fit(PART, profile(), BUDGET)

    assert detector.snapshot(part_of("first", "v1")) == b""
    assert detector.update(ordered_blocks(0, 5)) == fitted().update(ordered_blocks(0, 5))


totals = st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(np.array)


@settings(max_examples=300, deadline=None)
@given(totals)
def test_no_caller_weighs_more_than_the_cap_and_no_one_more_than_before(weights: Floats) -> None:
    capped = capped_totals(weights)
    cap = max(MIN_CAP, 2 / max(np.count_nonzero(weights), 1))

    assert np.all(capped <= weights)
    assert np.all(capped <= cap * capped.sum() * (1 + 1e-9))
    light = weights <= cap * capped.sum()
    assert np.array_equal(capped[light], weights[light])


shares = st.lists(st.floats(0, 1), min_size=24, max_size=24).map(lambda x: (np.array(x) + 1e-6) / (sum(x) + 24e-6))


@settings(max_examples=200, deadline=None)
@given(shares, shares, shares)
def test_a_deviation_is_never_more_than_what_either_weighting_brings(seen: Floats, fair: Floats, base: Floats) -> None:
    rows_seen = np.array(256.0)
    both, moved = divergence(seen[None], fair[None], base[None], rows_seen)
    for alone in (seen, fair):
        assert both <= divergence(alone[None], None, base[None], rows_seen)[0] + 1e-12
        assert np.all(np.abs(moved) <= np.abs(alone - base) + 1e-15)


def test_without_a_given_rate_the_first_hour_of_the_log_measures_it() -> None:
    assumed = Budget(1.0, 1_000_000.0, assumed=True)
    whole, cut, given = FeatureDrift(), FeatureDrift(), FeatureDrift()
    for detector, budget in ((whole, assumed), (cut, assumed), (given, Budget(1.0, 1_000_000.0))):
        detector.fit(PART, profile(), budget)
    hour = [
        replace(block, broker_ts=np.full(len(block), k * 300_000), closed_ms=k * 300_000 + 1)
        for k, block in enumerate(ordered_blocks(0, 16), 1)
    ]

    readings = whole.update(hour)
    for block in hour:
        cut.update([block])
        state = cut.snapshot(PART)
        cut.forget(PART)
        cut.fit(PART, profile(), assumed)
        cut.restore(PART, state)

    per_day = 13 * 256 * 24.0
    expected = FeatureDrift()
    expected.fit(PART, profile(), Budget(1.0, per_day))
    thresholds = [reading.threshold for reading in readings if reading.kind == "feature_drift"]
    assert thresholds[12] == thresholds[0]
    assert thresholds[13] == pytest.approx(expected.update(ordered_blocks(0, 1))[0].threshold, rel=1e-3)
    assert thresholds[13] < thresholds[12]
    assert cut.snapshot(PART) == whole.snapshot(PART)
    assert cut.update(hour[-1:])[0].threshold == thresholds[-1]
    assert len({reading.threshold for reading in given.update(hour) if reading.kind == "feature_drift"}) == 1
