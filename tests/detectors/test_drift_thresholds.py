"""Tails of drift's thresholds, by themselves."""

from __future__ import annotations

import math

import numpy as np

from detectors.drift_thresholds import _jump_tail
from detectors.profile import AdaptiveTail

ROWS = 1_000_000


def once_in(rows: int, tail: AdaptiveTail) -> float:
    """The jump that comes by chance once in so many rows."""
    return tail.jump + tail.scale * math.log(tail.rate * rows)


def test_the_largest_jump_of_the_table_is_no_alarm_when_it_comes_once_a_pass_again() -> None:
    ordinary = np.sort(np.random.default_rng(1).exponential(0.1, 200))
    stormy = np.append(ordinary, 5.0)

    light, heavy = (_jump_tail(0, jumps, ROWS, spread=0.1) for jumps in (ordinary, stormy))

    assert once_in(ROWS, heavy) >= 5.0
    assert once_in(ROWS, light) < 1.0
