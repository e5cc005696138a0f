"""Who is watched and who is named, where a crowd of callers sends odd rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.odd_input import MAX_CALLERS, OddInput, _Caller, _Part, _Places
from schemas.blocks import Block
from schemas.flags import RowFlag
from tests.detectors.drift_data import make_block, rows


def block_of(counts: Sequence[tuple[str, int, int]], first: int = 0, *, verified: bool = True) -> Block:
    """counts: of each caller its name, its odd rows and its good ones."""
    numeric, categorical = rows()
    of_caller = np.repeat(np.arange(len(counts)), [odd + good for _, odd, good in counts])
    odd = np.concatenate([[True] * odd + [False] * good for _, odd, good in counts])
    names = [name for name, _, _ in counts]
    n = len(of_caller)
    block = make_block(
        numeric[:n], categorical[:n], first=first, callers=names, of_caller=of_caller, verified=[verified] * len(counts)
    )
    return replace(block, flags=np.where(odd, np.uint32(RowFlag.ODD_ID), np.uint32(0)).astype(np.uint32))


def named(detector: OddInput, *blocks: Block) -> set[str]:
    return {reading.subject for block in blocks for reading in detector.update([block]) if reading.firing}


def test_a_crowd_of_made_up_callers_hides_nobody_who_sent_more() -> None:
    crowd = [[("eve", 6, 0), *((f"c{number}-{k}", 1, 0) for k in range(200))] for number in range(5)]
    blocks = [block_of(counts, 206 * number, verified=False) for number, counts in enumerate(crowd)]

    assert named(OddInput(), *blocks) == {"eve"}


@pytest.mark.parametrize(("good", "expected"), [(2, set()), (3, {"a", "b", "c"})])
def test_verified_callers_are_named_while_as_many_others_are_seen_without(good: int, expected: set[str]) -> None:
    counts = [*((name, 25, 0) for name in "abc"), *((f"well{k}", 0, 3) for k in range(good))]

    assert named(OddInput(), block_of(counts, 500), block_of(counts, 1_000)) == expected


@settings(max_examples=60)
@given(
    before=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=MAX_CALLERS),
    steps=st.lists(st.tuples(st.integers(0, 2 * MAX_CALLERS), st.integers(1, 3)), max_size=200),
)
def test_who_gives_way_is_the_weakest_that_never_fired_and_the_oldest_of_those(
    before: list[tuple[int, bool]], steps: list[tuple[int, int]]
) -> None:
    def part() -> _Part:
        held = {(f"c{k}", "claimed"): _Caller(float(odd), fired=fired) for k, (odd, fired) in enumerate(before)}
        return _Part(0, 0, held, {})  # type: ignore[arg-type]  # the words are those of the type

    ours, plain = part(), part()
    places = _Places(ours)
    for number, odd in steps:
        key = (f"c{number}", "claimed")
        watched = ours.callers.get(key) or places.admit(key)  # type: ignore[arg-type]  # as above
        if watched is not None:
            watched.odd += odd
        _plainly_counted(plain, key, odd)

    assert list(ours.callers.items()) == list(plain.callers.items())


def _plainly_counted(part: _Part, key: tuple[str, str], odd: int) -> None:
    callers: dict[tuple[str, str], _Caller] = part.callers  # type: ignore[assignment]  # as above
    if key not in callers and len(callers) >= MAX_CALLERS:
        quiet = [other for other, each in callers.items() if not each.fired]
        if not quiet:
            return
        del callers[min(quiet, key=lambda other: callers[other].odd)]
    callers.setdefault(key, _Caller()).odd += odd
