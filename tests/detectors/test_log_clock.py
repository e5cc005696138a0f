"""The log's time: it never goes back, and goes on behind a broker's clock that was set back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detectors.log_clock import HELD_MS, MAX_MS, LogClock

NOW, DAY_MS = 1_700_000_000_000, 86_400_000


def times(*broker_ms: int) -> list[int]:
    clock = LogClock()
    return [clock.at(ms) for ms in broker_ms]


def test_it_is_the_brokers_time_as_long_as_that_does_not_fall() -> None:
    assert times(NOW, NOW, NOW + 5, NOW + DAY_MS) == [NOW, NOW, NOW + 5, NOW + DAY_MS]


def test_it_is_held_while_the_brokers_time_is_a_little_behind() -> None:
    assert times(NOW, NOW - 1, NOW - HELD_MS, NOW + 1) == [NOW, NOW, NOW, NOW + 1]


def test_it_goes_on_at_once_behind_a_clock_that_was_set_back() -> None:
    ahead = NOW + DAY_MS
    assert times(NOW, ahead, NOW + 1_000, NOW + 2_000) == [NOW, ahead, ahead, ahead + 1_000]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, 20))
def test_whatever_the_broker_says_it_never_falls_and_a_saved_one_goes_on_alike(said: list[int], cut: int) -> None:
    whole = times(*said)
    assert whole == sorted(whole)
    assert all(0 <= ms <= MAX_MS for ms in whole)
    clock = LogClock()
    before = [clock.at(ms) for ms in said[:cut]]
    clock = LogClock.of(clock.saved())
    assert before + [clock.at(ms) for ms in said[cut:]] == whole
