"""Who moved an endpoint: everybody, or a few? (the responder's rail R7 reads these numbers)"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors.drift_evidence import breadth_of
from schemas.blocks import Block
from tests.detectors.drift_data import make_block, rows


def block_of(counts: list[int], verified: bool = True) -> Block:
    numeric, categorical = rows()
    n = sum(counts)
    callers = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    block = make_block(numeric[:n], categorical[:n])
    names = tuple(f"c{number}" for number in range(len(counts)))
    return replace(block, caller=callers, callers=names, verified=np.full(len(counts), verified))


@pytest.mark.parametrize("present", [8, 40, 120])
def test_what_all_bring_alike_moves_as_many_as_are_present(present: int) -> None:
    breadth = breadth_of(block_of([2] * present), np.full(present, 0.3))

    assert breadth["callers_moved"] == pytest.approx(present)
    assert breadth["callers_present"] == pytest.approx(present)


def test_a_flood_that_fills_the_block_is_one_of_many_callers() -> None:
    breadth = breadth_of(block_of([200, 8, 8, 8, 8, 8, 8, 8]), np.array([98.0, 2, 0, 0, 0, 0, 0, 0]))

    assert breadth["callers_moved"] < 1.5  # type: ignore[operator]
    assert breadth["callers_present"] > 5  # type: ignore[operator]


def test_the_only_caller_of_an_endpoint_is_everybody() -> None:
    breadth = breadth_of(block_of([100]), np.array([50.0]))

    assert breadth == {"callers_moved": pytest.approx(1), "callers_present": pytest.approx(1)}


def test_all_claimed_callers_count_as_one() -> None:
    breadth = breadth_of(block_of([30] * 8, verified=False), np.full(8, 30.0))

    assert breadth == {"callers_moved": pytest.approx(1), "callers_present": pytest.approx(1)}
