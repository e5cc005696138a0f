"""river's ADWIN keeps its state as raw numbers that we save: this holds for the pinned version, or the upgrade fails."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.adwin import JumpWatch, load_adwin, new_adwin, save_adwin
from schemas.errors import StateRefused


def values() -> list[float]:
    """10,000 values whose mean changes every 500 and whose spread changes once."""
    rng = np.random.default_rng(5)
    means = np.repeat(rng.normal(0, 1, 20), 500)
    return (means + rng.normal(0, 1, 10_000) * np.where(np.arange(10_000) < 5_000, 0.3, 1.0)).tolist()


def test_a_window_saved_and_restored_at_each_of_10_000_values_detects_as_one_that_never_stopped() -> None:
    whole, broken = new_adwin(), new_adwin()
    detections = 0
    for value in values():
        whole.update(value)
        broken = load_adwin(save_adwin(broken))
        broken.update(value)
        assert broken.drift_detected == whole.drift_detected
        assert (broken.estimation, broken.width, broken.variance) == (whole.estimation, whole.width, whole.variance)
        detections += whole.drift_detected
    assert detections >= 10


def test_the_state_stays_small_however_long_the_window() -> None:
    adwin = new_adwin()
    for _ in range(20_000):
        adwin.update(0.5)

    assert adwin.width == 20_000
    assert len(save_adwin(adwin)) < 2_500


def test_a_state_that_was_not_saved_by_us_is_refused_before_the_helper_reads_it() -> None:
    adwin = new_adwin()
    for value in values()[:300]:
        adwin.update(value)
    state = save_adwin(adwin)

    for broken in (b"", b"x", state[:-1], state + b"x", state[:40] + b"\xff" + state[41:], b"\x80\x04" + state[2:]):
        with pytest.raises(StateRefused):
            load_adwin(broken)


def test_a_jump_is_measured_only_where_the_window_was_cut() -> None:
    watch = JumpWatch()
    jumps = [watch.update(value) for value in [0.0, 0.1] * 50 + [3.0, 3.1] * 20]

    found = [jump for jump in jumps if jump > 0]
    assert not any(jumps[:100])
    assert found
    assert max(found) > 1.0
    assert watch.update(float("nan")) == 0.0
