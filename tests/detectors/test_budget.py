"""What the user states is a bound on all detectors together."""

from __future__ import annotations

import pytest

from benchmarks.false_alarms import KINDS
from detectors.budget import RESERVE, SHARES


def test_the_shares_of_all_kinds_and_what_is_kept_back_are_the_budget() -> None:
    assert sum(SHARES.values()) + RESERVE == pytest.approx(1.0)
    assert min(SHARES.values()) > 0


def test_a_detector_measured_for_false_alarms_is_held_to_the_shares_of_its_kinds_and_no_kind_is_counted_twice() -> None:
    kinds = [kind for of in KINDS.values() for kind in of]

    assert len(kinds) == len(set(kinds))
    assert set(kinds) <= set(SHARES)


def test_what_health_spends_on_each_of_its_kinds_is_the_same() -> None:
    assert SHARES["errors"] == SHARES["timeouts"] == SHARES["latency"]
