"""A Guard on doubles: no Kafka, no threads, a clock that stands still."""

from __future__ import annotations

from typing import Any

import pytest
from palisade_client import Guard
from palisade_client.testing import FakeTransport, ManualClock, Sent, ThrowawayKey

from schemas.events import Prediction, Report

ENDPOINT = "credit"


class Bench:
    """An endpoint under test: `guard()` makes the Guard, `reports` and `predictions` are judged by the contracts."""

    def __init__(self) -> None:
        self.key = ThrowawayKey()
        self.clock = ManualClock()
        self.transport = FakeTransport()

    def guard(self, **options: Any) -> Guard:
        doubles: dict[str, Any] = {"directive_keys": self.key.public, "transport": self.transport, "clock": self.clock}
        return Guard(ENDPOINT, **(doubles | options))

    def sent(self, kind: str) -> list[Sent]:
        return [sent for sent in self.transport.sent if sent.headers["palisade-kind"] == kind.encode()]

    @property
    def reports(self) -> list[Report]:
        return [Report.from_bytes(sent.value) for sent in self.sent("report")]

    @property
    def predictions(self) -> list[Prediction]:
        return [Prediction.model_validate(row) for row in self.transport.predictions]

    @property
    def report(self) -> Report:
        return self.reports[-1]


@pytest.fixture
def bench() -> Bench:
    return Bench()
