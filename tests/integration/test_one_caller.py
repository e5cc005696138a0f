"""From rows to decisions by the shipped policy in enforce mode: who breaks alone is limited, and nobody else pays for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from detectors.bank import Bank, place_of_block
from detectors.registry import block_detectors, fit
from palisade.settings import default_policy
from schemas.actions import Decision
from schemas.blocks import Block
from schemas.config import EndpointConfig
from tests.detectors.drift_data import BUDGET, ENDPOINT, profile
from tests.detectors.test_drift_callers import HEAVY, LEARNED, PART, THIRTY, blocks, feet
from tests.responders.given import T0, Responder, mandate, view

MEDIAN = 5.0


class Line:
    """A bank, and a responder that takes what the bank says."""

    def __init__(self, active: int = 30) -> None:
        detectors = block_detectors(default_policy())
        fit(detectors, PART, profile(), BUDGET)
        self.bank = Bank(detectors, place_of_block, 2_000)
        self.responder = Responder(mandate(EndpointConfig(name=ENDPOINT)), healthy=False)
        self.views = {"active_callers": active, "median_caller_rate": MEDIAN}
        self.responder.take(view(ENDPOINT, T0, **self.views))

    def send(self, batch: Sequence[Block]) -> list[Decision]:
        """Signals are stamped with the responder's time: blocks have the log's."""
        decisions: list[Decision] = []
        for signal in self.bank.update(batch).signals:
            decisions += self.responder.take(signal.model_copy(update={"at_ms": self.responder.now_ms}))
        return decisions + self.responder.later(300, **self.views)

    @property
    def on_fallback(self) -> bool:
        return self.responder.state.record(ENDPOINT).route is not None

    @property
    def limited(self) -> dict[str, float | None]:
        return {
            name: action.rate_per_s
            for name, action in self.responder.state.record(ENDPOINT).actions()
            if name is not None
        }


def test_a_caller_with_60_percent_of_the_traffic_that_breaks_alone_is_limited_and_the_endpoint_stays_up() -> None:
    line = Line()
    line.send(blocks(LEARNED, HEAVY))
    decisions = line.send(blocks(12, HEAVY, feet(0), first=LEARNED))

    assert line.limited == {"caller-0": pytest.approx(max(1.0, 0.1 * MEDIAN))}
    assert not line.on_fallback
    assert not any(decision.kind == "fallback" and decision.outcome != "refused" for decision in decisions)


def test_what_breaks_for_everybody_flips_the_endpoint_and_limits_nobody() -> None:
    for shares in (HEAVY, THIRTY):
        line = Line()
        line.send(blocks(LEARNED, shares))
        line.send(blocks(4, shares, lambda size, _: size * 3.28, first=LEARNED))

        assert line.on_fallback
        assert line.limited == {}


def test_a_caller_that_nobody_authenticated_is_told_and_not_limited() -> None:
    line = Line()
    line.send(blocks(LEARNED, HEAVY, claimed=(0,)))
    line.send(blocks(12, HEAVY, feet(0), first=LEARNED, claimed=(0,)))

    assert line.limited == {}
    assert not line.on_fallback


def test_a_change_of_the_mix_of_callers_limits_nobody() -> None:
    shares = np.array([0.15, *[0.85 / 29] * 29])
    line = Line()
    line.send(blocks(LEARNED, shares, habits=True))
    line.send(blocks(12, shares * np.array([4.0, *[1.0] * 29]), first=LEARNED, habits=True))

    assert line.limited == {}
    assert not line.on_fallback


def test_a_mended_caller_is_released() -> None:
    line = Line()
    line.send(blocks(LEARNED, HEAVY))
    line.send(blocks(4, HEAVY, feet(0), first=LEARNED))
    assert line.limited
    line.send(blocks(60, HEAVY, first=LEARNED + 4))

    assert line.limited == {}
