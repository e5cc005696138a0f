"""The bank: a detector that breaks is said and isolated; state of a part is taken back whole, or by the detectors that can."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from detectors import bank as bank_module
from detectors.bank import MAGIC, Bank, Place
from detectors.base import LogPoint, Reading
from detectors.feature_drift import FeatureDrift
from detectors.signal_book import SignalBook
from schemas.blocks import Block
from schemas.errors import StateRefused
from schemas.signals import Signal
from tests.conformance.scenarios import SCENARIOS

Event = tuple[str, int, bool]
"""endpoint, log time, whether it fires."""


class Counting:
    """Fires where the event says so; its state is a count a part."""

    log: Literal["predictions", "reports"] = "reports"

    def __init__(self, name: str = "counting", version: int = 1) -> None:
        self.name = name
        self.hash = f"{name}-{version}"
        self.counts: dict[str, int] = {}
        self.raises_on: str | None = None

    def update(self, batch: Sequence[Event]) -> list[Reading]:
        readings = []
        for endpoint, ms, fires in batch:
            if endpoint == self.raises_on:
                raise ZeroDivisionError("planted")
            self.counts[endpoint] = self.counts.get(endpoint, 0) + 1
            readings.append(
                Reading(
                    detector=self.name, detector_hash=self.hash, kind="errors", endpoint=endpoint,
                    subject_kind="endpoint", subject=endpoint, score=float(fires), threshold=0.5, firing=fires,
                    calm=not fires, severity="warning", at=LogPoint("log", 0, ms, 0, ms), first_ms=ms,
                )
            )  # fmt: skip
        return readings

    def snapshot(self, part: str) -> bytes:
        return struct.pack("<I", self.counts[part]) if part in self.counts else b""

    def restore(self, part: str, state: bytes) -> None:
        try:
            (self.counts[part],) = struct.unpack("<I", state)
        except struct.error as error:
            raise StateRefused(str(error)) from error

    def forget(self, part: str) -> None:
        self.counts.pop(part, None)


def place_of(event: Event) -> Place | None:
    endpoint, ms, _ = event
    return None if endpoint == "tick" else Place(endpoint, endpoint, None, LogPoint("log", 0, ms, 0, ms))


def bank_of(*detectors: Counting, recover_for_ms: int = 1_000) -> Bank[Event]:
    return Bank(detectors, place_of, recover_for_ms)


def test_an_empty_batch_concludes_nothing() -> None:
    concluded = bank_of(Counting()).update([])

    assert (concluded.readings, concluded.signals) == ([], [])


def test_what_several_detectors_say_comes_in_the_order_of_the_log() -> None:
    concluded = bank_of(Counting("a"), Counting("b")).update([("x", 1, True), ("y", 2, True)])

    assert [(reading.at.ms, reading.detector) for reading in concluded.readings] == [
        (1, "a"), (1, "b"), (2, "a"), (2, "b"),
    ]  # fmt: skip
    assert [(signal.endpoint, signal.detector) for signal in concluded.signals] == [
        ("x", "a"), ("x", "b"), ("y", "a"), ("y", "b"),
    ]  # fmt: skip


def test_a_detector_that_raises_becomes_a_signal_and_the_others_go_on() -> None:
    broken, sound = Counting("broken"), Counting("sound")
    broken.raises_on = "x"

    signals = bank_of(broken, sound).update([("x", 1, True)]).signals

    assert [(signal.kind, signal.state) for signal in signals] == [("detector_failed", "opened"), ("errors", "opened")]
    assert signals[0].evidence["detector"] == "broken"
    assert "ZeroDivisionError: planted at test_bank.py" in str(signals[0].evidence["error"])
    assert (signals[1].detector, signals[0].severity) == ("sound", "warning")


def test_what_no_signal_can_hold_is_its_detectors_failure_and_the_others_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fold = SignalBook.fold

    def raising(self: SignalBook, readings: Sequence[Reading]) -> list[Signal]:
        if any(reading.detector == "odd" and reading.kind != "detector_failed" for reading in readings):
            raise OverflowError("planted")
        return fold(self, readings)

    monkeypatch.setattr(SignalBook, "fold", raising)
    signals = bank_of(Counting("odd"), Counting("sound")).update([("x", 1, True)]).signals

    assert [(signal.kind, signal.subject) for signal in signals] == [("detector_failed", "x:odd"), ("errors", "x")]


@pytest.mark.parametrize("error", [MemoryError(), OSError("no space left")])
def test_an_exhausted_machine_is_no_detectors_fault(error: Exception) -> None:
    broken = Counting()

    def exhausted(_: Sequence[Event]) -> list[Reading]:
        raise error

    broken.update = exhausted  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        bank_of(broken).update([("x", 1, True), ("y", 2, True)])


@pytest.mark.parametrize("poison_at", [0, 2, 4])
def test_an_input_that_breaks_a_detector_makes_only_its_own_part_cold(poison_at: int) -> None:
    broken, untouched = Counting("broken"), Counting("broken")
    bank, alone = bank_of(broken), bank_of(untouched)
    before = [("x", 0, False), ("y", 1, False), ("z", 2, False)]
    sound = [("y", 10, True), ("z", 11, False), ("y", 12, False), ("new", 13, True)]
    bank.update(before)
    alone.update(before)
    expected = alone.update(sound)
    broken.raises_on = "x"

    concluded = bank.update([*sound[:poison_at], ("x", 9, False), *sound[poison_at:]])

    untouched.counts.pop("x")
    assert broken.counts == untouched.counts == {"y": 3, "z": 2, "new": 1}
    failures = [reading for reading in concluded.readings if reading.kind == "detector_failed"]
    assert [(reading.endpoint, reading.firing) for reading in failures] == [("x", True)]
    assert [one for one in concluded.readings if one not in failures] == expected.readings
    assert [one for one in concluded.signals if one.kind != "detector_failed"] == expected.signals


def test_a_batch_that_fails_as_a_whole_alone_is_said_once_and_loses_nothing() -> None:
    class OnlyOne(Counting):
        def update(self, batch: Sequence[Event]) -> list[Reading]:
            readings = super().update(batch)
            if len(batch) > 1:
                raise ZeroDivisionError("planted")
            return readings

    broken = OnlyOne()
    concluded = bank_of(broken).update([("x", 1, False), ("y", 2, True), ("x", 3, False)])

    assert broken.counts == {"x": 2, "y": 1}
    assert [(one.endpoint, one.kind) for one in concluded.signals] == [("y", "errors"), ("x", "detector_failed")]


def test_a_block_that_breaks_the_drift_detector_half_way_leaves_the_other_endpoint_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = SCENARIOS["feature_drift"]
    sound, poisoned = scenario.parts
    log = scenario.planted()[:80]
    alone, bank = scenario.bank(), scenario.bank()
    expected = [one for start in range(0, 80, 20) for one in alone.update(log[start : start + 20]).readings]
    usual = FeatureDrift._reading

    def breaks(self: FeatureDrift, block: Block, *rest: Any) -> Reading:
        if block is log[51]:
            raise ZeroDivisionError("planted")
        return usual(self, block, *rest)

    monkeypatch.setattr(FeatureDrift, "_reading", breaks)
    readings = [one for start in range(0, 80, 20) for one in bank.update(log[start : start + 20]).readings]

    of_sound = sound.partition("@")[0]
    assert log[51].endpoint == poisoned.partition("@")[0]
    assert [one for one in readings if one.endpoint == of_sound] == [
        one for one in expected if one.endpoint == of_sound
    ]
    assert bank.snapshot(sound) == alone.snapshot(sound)
    assert [one.endpoint for one in readings if one.kind == "detector_failed" and one.firing] == [log[51].endpoint]
    assert bank.detectors[0].snapshot(poisoned) == b""


def test_a_part_whose_state_before_a_failed_batch_is_refused_starts_cold_and_says_so() -> None:
    broken = Counting("broken")
    bank = bank_of(broken)
    bank.update([("y", 0, False)])
    broken.snapshot = lambda part: b"no count"  # type: ignore[method-assign]
    broken.raises_on = "x"

    signals = bank.update([("x", 1, False), ("y", 2, False)]).signals

    assert broken.counts == {"y": 1}
    said = {(one.endpoint, str(one.evidence["error"])[:24]) for one in signals}
    assert ("y", "the state before the bat") in said


def test_a_broken_detector_starts_cold_and_its_failure_recovers_after_lasting_good_work() -> None:
    broken = Counting("broken")
    bank = bank_of(broken)
    bank.update([("x", 0, False), ("x", 1, False)])
    broken.raises_on = "x"
    bank.update([("x", 2, False)])
    assert broken.counts == {}

    broken.raises_on = None
    states = [
        signal.state for ms in (10, 500, 1_009, 1_010, 1_020) for signal in bank.update([("x", ms, False)]).signals
    ]

    assert states == ["recovered"]
    assert bank.open_parts() == set()


def test_a_failure_that_was_open_at_a_restart_recovers_too() -> None:
    broken = Counting("broken")
    broken.raises_on = "x"
    before = bank_of(broken)
    before.update([("x", 0, False)])
    after = bank_of(Counting("broken"))
    after.restore("x", before.snapshot("x"))

    assert after.open_parts() == {"x"}
    signals = after.update([("x", 10, False), ("x", 2_000, False)]).signals

    assert [(signal.kind, signal.state) for signal in signals] == [("detector_failed", "recovered")]


def test_a_part_comes_back_with_its_detectors_and_its_open_incidents() -> None:
    before = bank_of(Counting("a"), Counting("b"))
    (opened, _) = before.update([("x", 0, True)]).signals
    after = bank_of(Counting("a"), Counting("b"))

    assert after.restore("x", before.snapshot("x")) == []
    assert after.snapshot("x") == before.snapshot("x")
    assert after.update([("x", 1_000, True)]).signals[0].incident_id == opened.incident_id


def test_a_detector_that_is_new_or_of_other_parameters_starts_cold_and_is_named() -> None:
    before = bank_of(Counting("a"), Counting("b", version=1))
    before.update([("x", 0, False)])
    a, b, c = Counting("a"), Counting("b", version=2), Counting("c")

    assert bank_of(a, b, c).restore("x", before.snapshot("x")) == ["b", "c"]
    assert (a.counts, b.counts, c.counts) == ({"x": 1}, {}, {})


def test_a_detector_that_refuses_its_state_starts_cold_alone() -> None:
    a, b = Counting("a"), Counting("b")
    before = bank_of(a, b)
    before.update([("x", 0, False)])
    a.snapshot = lambda part: b"no count"  # type: ignore[method-assign]
    fresh = Counting("a"), Counting("b")

    assert bank_of(*fresh).restore("x", before.snapshot("x")) == ["a"]
    assert (fresh[0].counts, fresh[1].counts) == ({}, {"x": 1})


def _sealed(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    content = struct.pack("<I", len(text)) + text + body
    return MAGIC + hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    "state",
    [b"", b"\x80\x04K\x01.", MAGIC, _sealed([]), _sealed({}), _sealed({"detectors": [1], "book": 0}),
     _sealed({"detectors": [["a", "b", "c"]], "book": 0}), _sealed({"detectors": [], "book": "x"}),
     _sealed({"detectors": [], "book": 9}, b"no book!!"), MAGIC + hashlib.sha256(b"").digest()],
)  # fmt: skip
def test_what_is_no_part_is_refused_and_leaves_it_cold(state: bytes) -> None:
    bank = bank_of(Counting())

    with pytest.raises(StateRefused):
        bank.restore("x", state)
    assert bank.snapshot("x") == bank_of(Counting()).snapshot("x")


def test_any_damaged_byte_of_a_part_is_refused() -> None:
    bank = bank_of(Counting())
    bank.update([("x", 0, True)])
    saved = bank.snapshot("x")
    for place in range(len(saved)):
        damaged = saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :]
        with pytest.raises(StateRefused):
            bank_of(Counting()).restore("x", damaged)


def test_a_forgotten_part_is_cold() -> None:
    bank = bank_of(Counting())
    bank.update([("x", 0, True)])
    bank.forget("x")

    assert bank.open_parts() == set()
    assert bank.snapshot("x") == bank_of(Counting()).snapshot("x")


def test_a_flood_of_names_keeps_those_with_open_incidents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "MAX_PARTS", 10)
    bank = bank_of(Counting())
    bank.update([("open", 0, True)])

    bank.update([(f"x{number}", number, False) for number in range(1_000)])

    assert bank.open_parts() == {"open"}
    assert len(bank._books) == 10


def test_the_hash_of_a_bank_names_its_detectors_their_order_and_its_patience() -> None:
    a, b = Counting("a"), Counting("b")
    hashes = {bank_of(a, b).hash, bank_of(b, a).hash, bank_of(a).hash, bank_of(a, b, recover_for_ms=2).hash}

    assert len(hashes) == 4
    assert bank_of(a, b).hash == bank_of(Counting("a"), Counting("b")).hash
