"""Outliers of rows, callers and endpoints: on made rows, and on the flights of a year."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from detectors.base import Budget, Reading, part_of
from detectors.outlier_callers import MAX_CALLERS
from detectors.outliers import QUIET_MS, Outliers
from detectors.profile import Profile
from detectors.profile_build import build_profile
from detectors.report_state import MAGIC
from palisade.demo.data import CALLER_COLUMN, LABEL_COLUMN, ORDER_COLUMN, ORIGINS, flights, training_table
from schemas.blocks import BLOCK_ROWS, ROUTE_CODES, Block, Codes, Floats
from schemas.errors import StateRefused
from tests.conformance import logs
from tests.detectors.drift_data import make_block

BUDGET = Budget(1.0, 50 * 86_400.0)
Words = npt.NDArray[np.str_]


def fitted(profile: Profile, endpoint: str = "credit", **options: object) -> Outliers:
    detector = Outliers()
    detector.fit(part_of(endpoint, "v1"), profile, BUDGET, **options)  # type: ignore[arg-type]
    return detector


def strange(callers: Sequence[int], every: int = 1, blocks: int = 12, **changed: object) -> Iterator[Block]:
    """Blocks in which each `every`-th row of `callers` is strange."""
    for k in range(blocks):
        block = logs.block(k * BLOCK_ROWS)
        numeric = np.array(block.numeric)
        own = np.flatnonzero(np.isin(block.caller, callers))[::every]
        numeric[own] = np.random.default_rng(k).uniform((180, 150), (400, 300), (len(own), 2))
        yield logs.block(k * BLOCK_ROWS, numeric=numeric, **changed)


def fired(detector: Outliers, blocks: Iterator[Block] | Sequence[Block]) -> list[Reading]:
    return [reading for block in blocks for reading in detector.update([block]) if reading.firing]


def test_each_row_of_a_block_has_a_p_value_on_the_reading_that_closes_it() -> None:
    block = logs.block(0)

    (reading,) = fitted(logs.profile()).update([block])

    assert (reading.kind, reading.subject_kind, reading.subject) == ("outliers", "endpoint", "credit")
    assert len(reading.p_values) == len(block)
    assert 0.3 < float(np.median(reading.p_values)) < 0.7


def test_blocks_say_the_same_beside_others_as_alone() -> None:
    origin, rng = ORIGINS[0], np.random.default_rng(5)
    profile = flight_profile(origin, False)
    numeric, categorical, who = flight_rows(origin, profile)
    numeric = np.array(numeric[: 4 * BLOCK_ROWS])
    numeric[rng.random(numeric.shape) < 0.05] = np.nan
    numeric[rng.random(numeric.shape) < 0.01] *= 1e20  # far beyond where products are exact
    blocks = [
        block
        for size in (37, BLOCK_ROWS, 100)
        for block in flight_blocks(profile, (numeric, categorical[: len(numeric)], who[: len(numeric)]), size)
    ]
    together, alone = fitted(profile, blocks[0].endpoint), fitted(profile, blocks[0].endpoint)

    assert together.update(blocks) == [reading for block in blocks for reading in alone.update([block])]


def test_one_caller_with_strange_rows_is_named_with_rows_to_look_at() -> None:
    readings = fired(fitted(logs.profile()), strange([7]))

    first = readings[0]
    assert {reading.subject for reading in readings} == {"c7"}
    assert (first.subject_kind, first.caller_auth, first.severity) == ("caller", "verified", "warning")
    assert first.evidence["strange_share"] == pytest.approx(1.0)
    assert first.evidence["usual_share"] == pytest.approx(0.3)
    assert float(first.evidence["median_p"]) < 0.001  # type: ignore[arg-type]
    assert len(first.evidence["offsets"]) == 8  # type: ignore[arg-type]
    assert "AML.T0043" in first.atlas


def test_everybody_is_the_endpoint_and_no_caller() -> None:
    readings = fired(fitted(logs.profile()), strange(range(40), blocks=30))

    assert {reading.subject_kind for reading in readings} == {"endpoint"}
    assert readings[0].atlas == ()
    assert 0 < len(readings[0].shares) <= 20


def test_a_strange_row_in_five_is_nobodys_fault() -> None:
    assert fired(fitted(logs.profile()), strange([7], every=5, blocks=60)) == []


def test_a_caller_is_calm_after_usual_rows_and_after_silence() -> None:
    detector = fitted(logs.profile())
    assert fired(detector, strange([7]))
    usual = [logs.block(k * BLOCK_ROWS) for k in range(12, 30)]

    of_caller = [reading for reading in detector.update(usual) if reading.subject == "c7"]

    assert of_caller[-1].calm
    silent = fitted(logs.profile())
    assert fired(silent, strange([7]))
    gone = logs.block(20 * BLOCK_ROWS)
    gone = replace(gone, caller=np.where(gone.caller == 7, 8, gone.caller), closed_ms=gone.closed_ms + QUIET_MS)
    (reading,) = [reading for reading in silent.update([gone]) if reading.subject == "c7"]
    assert reading.calm


def test_who_nobody_vouched_for_is_told_as_claimed() -> None:
    verified = np.ones(40, np.bool_)
    verified[7] = False

    readings = fired(fitted(logs.profile()), strange([7], verified=verified))

    assert {(reading.subject, reading.caller_auth) for reading in readings} == {("c7", "claimed")}


def test_made_up_names_take_no_place_of_a_verified_caller() -> None:
    detector = fitted(logs.profile())
    crowd = tuple(f"x{k}" for k in range(BLOCK_ROWS))
    nobody = np.zeros(BLOCK_ROWS, np.bool_)
    readings: list[Reading] = []
    for k, block in enumerate(strange([7], blocks=12)):
        names = tuple(f"{name}.{k}" for name in crowd)
        numeric = np.full_like(block.numeric, 350.0)
        codes = np.arange(BLOCK_ROWS, dtype=np.int32)
        made_up = logs.block((100 + k) * BLOCK_ROWS, numeric=numeric, caller=codes, callers=names, verified=nobody)
        readings += fired(detector, [block, replace(made_up, closed_ms=block.closed_ms)])

    assert ("c7", "verified") in {(reading.subject, reading.caller_auth) for reading in readings}
    assert len(detector._parts[part_of("credit", "v1")].callers.slots) <= 2 * MAX_CALLERS
    assert len(detector.snapshot(part_of("credit", "v1"))) < 64_000


def test_refused_rows_count_against_their_caller_and_not_for_the_endpoint() -> None:
    refused = np.full(BLOCK_ROWS, ROUTE_CODES["refused"], np.uint8)

    readings = fired(fitted(logs.profile()), strange(range(40), blocks=30, served_by=refused))

    assert readings
    assert {reading.subject_kind for reading in readings} == {"caller"}


def test_a_learned_profile_makes_nobody_act() -> None:
    readings = fired(fitted(logs.profile(), learned=True), strange([7]))

    assert {reading.severity for reading in readings} == {"info"}
    assert readings[0].evidence["profile"] == "learned"


def test_without_a_section_nothing_is_known() -> None:
    old = logs.profile().model_copy(update={"outliers": None})

    (reading,) = fitted(old).update([logs.block(0)])

    assert not reading.known
    assert reading.evidence == {"reason": "profile_without_outliers"}
    assert reading.p_values == ()


def test_the_rich_tier_is_another_detector_to_saved_state() -> None:
    fast, rich = fitted(logs.profile()), fitted(logs.profile(), tier="rich")

    (one,), (other,) = fast.update([logs.block(0)]), rich.update([logs.block(0)])

    assert one.detector_hash == fast.hash != other.detector_hash
    assert one.p_values != other.p_values


@cache
def flight_profile(origin: str, callers: bool) -> Profile:
    """Of the even weeks of an airport, with or without knowing whose the rows are."""
    if callers:
        return build_profile(
            training_table(origin), order_by=ORDER_COLUMN, exclude=(LABEL_COLUMN,), caller_column=CALLER_COLUMN
        )
    return build_profile(training_table(origin), order_by=ORDER_COLUMN, exclude=(LABEL_COLUMN, CALLER_COLUMN))


def flight_rows(origin: str, profile: Profile, *, training: bool | None = None) -> tuple[Floats, Codes, Words]:
    """Numbers, category codes and callers of an airport's flights in order."""
    data = flights()
    rows = np.arange(len(data.origin)) if training is None else data.rows(training=training)
    rows = rows[data.origin[rows] == origin]
    numeric = np.stack([data.columns[feature.name][rows] for feature in profile.numeric], axis=1).astype(np.float64)
    codes = []
    for feature in profile.categorical:
        code_of = {word: code for code, word in enumerate(feature.categories)}
        codes.append([code_of.get(str(word), -2) for word in data.columns[feature.name][rows]])
    return numeric, np.array(codes, np.int32).T, data.caller[rows]


def flight_blocks(profile: Profile, rows: tuple[Floats, Codes, Words], size: int = BLOCK_ROWS) -> Iterator[Block]:
    """At 50 rows a second, every caller authenticated."""
    numeric, codes, who = rows
    profile_hash = profile.hash
    for first in range(0, len(who), size):
        part = slice(first, first + size)
        names, of_caller = np.unique(who[part], return_inverse=True)
        yield replace(
            make_block(
                numeric[part],
                codes[part],
                first=first,
                endpoint="credit",
                callers=tuple(map(str, names)),
                of_caller=of_caller.astype(np.int32),
                verified=[True] * len(names),
            ),
            profile_hash=profile_hash,
            closed_ms=1_700_000_000_000 + (first + size) * 20,
        )


def mapped(profile: Profile, rows: int, rng: np.random.Generator) -> tuple[Floats, Codes]:
    """Rows drawn uniformly over the range of each feature of a profile: what maps a model."""
    numeric = [rng.uniform(feature.quantiles[0], feature.quantiles[-1], rows) for feature in profile.numeric]
    codes = [rng.integers(0, len(feature.categories), rows) for feature in profile.categorical]
    return np.stack(numeric, axis=1), np.stack(codes, axis=1).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("callers", [True, False], ids=["whose rows they are is known", "not known"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_no_carrier_is_near_its_threshold_in_a_year_of_flights(origin: str, callers: bool) -> None:
    profile = flight_profile(origin, callers)
    detector = fitted(profile)

    readings = [
        reading
        for block in flight_blocks(profile, flight_rows(origin, profile))
        for reading in detector.update([block])
        if reading.subject_kind == "caller" or reading.firing
    ]

    assert readings == []


@pytest.mark.slow
@pytest.mark.parametrize("callers", [True, False], ids=["whose rows they are is known", "not known"])
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("per_s", [1, 3])
def test_who_maps_the_model_among_flights_is_found_within_thirty_rows(origin: str, callers: bool, per_s: int) -> None:
    profile = flight_profile(origin, callers)
    numeric, codes, who = flight_rows(origin, profile, training=False)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        start = int(rng.integers(0, len(who) - 4_000))
        part = slice(start, start + 3_000)
        rows = numeric[part].copy(), codes[part].copy(), who[part].astype("U16")
        own = np.flatnonzero(rng.random(3_000) < per_s / 50)
        own = own[own > 500]
        rows[0][own], rows[1][own] = mapped(profile, len(own), rng)
        rows[2][own] = "mallory"

        readings = fired(fitted(profile), flight_blocks(profile, rows, size=64))

        assert {reading.subject for reading in readings} == {"mallory"}
        # a block is cut at 64 rows: at three rows a second up to five more of its rows lie in the block that tells
        assert (own <= readings[0].at.offset).sum() <= 30


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, BLOCK_ROWS])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_pipeline_that_breaks_for_everybody_is_no_carriers_fault(origin: str, size: int) -> None:
    profile = flight_profile(origin, True)
    numeric, codes, who = flight_rows(origin, profile, training=False)
    names = [feature.name for feature in profile.numeric]
    told = []
    for seed, (feature, factor) in enumerate([("duration", 1 / 60), ("pressure", 0.02953), ("distance", 1.609344)] * 4):
        start = int(np.random.default_rng(seed).integers(0, len(who) - 4_000))
        part = slice(start, start + 4_000)
        broken = numeric[part].copy()
        broken[1_037:3_011, names.index(feature)] *= factor

        told += fired(fitted(profile), flight_blocks(profile, (broken, codes[part], who[part]), size=size))

    assert {reading.subject for reading in told if reading.subject_kind == "caller"} == set()
    assert {reading.subject_kind for reading in told} == {"endpoint"}


def test_saved_outliers_whose_hash_holds_and_whose_time_is_none_are_refused() -> None:
    detector, part = fitted(logs.profile()), part_of("credit", "v1")
    kept = detector.snapshot(part)
    size = int.from_bytes(kept[_HEADER - 4 : _HEADER], "little")
    header = json.loads(kept[_HEADER : _HEADER + size])
    header["values"]["first_ms"] = []
    text = json.dumps(header).encode()
    body = len(text).to_bytes(4, "little") + text + kept[_HEADER + size :]

    with pytest.raises(StateRefused):
        detector.restore(part, kept[: len(MAGIC) + 32] + hashlib.sha256(body).digest() + body)
    detector.restore(part, kept)


_HEADER = len(MAGIC) + 32 + 32 + 4
