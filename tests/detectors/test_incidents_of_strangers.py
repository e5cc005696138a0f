"""Strangers who make up names: whatever they do, they fill no incident of others, and theirs end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from detectors.bank import Bank, place_of_report
from detectors.base import ReportEvent
from detectors.registry import report_detectors
from schemas.config import EndpointConfig
from schemas.signals import Signal
from tests.detectors.report_makers import ENDPOINT, Log, crowd, primary

RECOVER_MS = 30_000


class Watched:
    """An endpoint with the default bank of the reports log, a crowd, and strangers at 60 asks a second each."""

    def __init__(self) -> None:
        self.log = Log()
        self.crowd = crowd(1, rate=10)
        self.bank = new_bank()
        self.signals: list[Signal] = []
        self.quiet(90)

    def say(self, events: Sequence[ReportEvent]) -> list[Signal]:
        found = [signal for event in events for signal in self.bank.update([event]).signals]
        self.signals += found
        return found

    def quiet(self, seconds: int) -> list[Signal]:
        return self.say([self.log.report(self.crowd()) for _ in range(seconds)])

    def wave(self, number: int, seconds: int = 4, signed: dict[str, int] | None = None) -> list[Signal]:
        """Unsigned reports name 64 new callers; the crowd goes on beside them."""
        strangers, found = {f"wave-{number}-{one}": 60 for one in range(64)}, []
        for _ in range(seconds):
            found += self.say([
                self.log.report(strangers, trusted=False, guard="rogue", after_ms=500, interval_ms=1_000),
                self.log.report(self.crowd() | (signed or {}), after_ms=500, interval_ms=1_000),
            ])  # fmt: skip
        return found

    def open_subjects(self) -> set[tuple[str, str, str | None]]:
        held = {}
        for signal in self.signals:
            if signal.state != "unknown":
                held[signal.incident_id] = signal
        return {(one.kind, one.subject, one.caller_auth) for one in held.values() if one.state != "recovered"}


def new_bank() -> Bank[ReportEvent]:
    detectors, _ = report_detectors({ENDPOINT: EndpointConfig(name=ENDPOINT)}, RECOVER_MS)
    return Bank(detectors, place_of_report, RECOVER_MS)


@pytest.fixture(scope="module")
def flooded() -> Watched:
    """Two minutes of strangers."""
    watched = Watched()
    for number in range(30):
        watched.wave(number)
    return watched


def test_waves_of_strangers_hide_neither_timeouts_nor_a_flooder_and_their_incidents_end(flooded: Watched) -> None:
    assert len([one for one in flooded.open_subjects() if one[2] == "claimed"]) >= 100

    flood = flooded.wave(30, 2, signed={"flooder": 300})
    failing = [flooded.log.report(flooded.crowd(), routes=[primary(20, timeouts=40)]) for _ in range(3)]
    found = flooded.say(failing)

    assert ("flooder", "verified", "opened") in {(one.subject, one.caller_auth, one.state) for one in flood}
    assert ("timeouts", "opened") in {(one.kind, one.state) for one in found}

    flooded.quiet(150)
    assert flooded.open_subjects() == set()
    assert flooded.bank.open_parts() == set()


def test_a_restart_amid_strangers_and_after_them_changes_no_signal() -> None:
    whole = Watched()
    cut = Watched()
    for number in range(4):
        expected = whole.wave(number)
        saved, cut.bank = cut.bank.snapshot(ENDPOINT), new_bank()
        assert cut.bank.restore(ENDPOINT, saved) == []
        assert cut.wave(number) == expected

    ending = whole.quiet(110)
    saved, cut.bank = cut.bank.snapshot(ENDPOINT), new_bank()
    cut.bank.restore(ENDPOINT, saved)
    assert cut.quiet(110) == ending
    assert {one.evidence.get("reason") for one in ending if one.state == "recovered"} >= {"unheard"}
    assert cut.bank.snapshot(ENDPOINT) == whole.bank.snapshot(ENDPOINT)
