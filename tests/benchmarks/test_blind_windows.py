"""Blind windows are measured to the last partition's first outcome of an event that was sent after the kill."""

from __future__ import annotations

import time

import pytest

from benchmarks import blind_windows
from benchmarks.blind_windows import Overdue, Sent, Trial


class Stream:
    """Two partitions; outcomes are withheld for some beats after the kill, of partition 1 for longer."""

    role = "detect"

    def __init__(self, blind_beats: tuple[int, int]) -> None:
        self.sent: dict[tuple[int, int] | str, Sent] = {}
        self.beats = 0
        self.came_at: dict[int, float] = {}
        self._blind = blind_beats
        self._killed = 0
        self._late: list[Sent] = []

    def kill(self, _: str) -> int:
        self._killed, self.came_at = self.beats, {}
        self._late = list(self.sent.values())  # outcomes of what was sent before tell nothing of the process after it
        return 1

    def beat(self) -> None:
        self.beats += 1
        for partition in (0, 1):
            self.sent[partition, self.beats] = Sent(partition, self.beats, "", time.monotonic())

    def heard(self) -> list[Sent]:
        if not self._killed:
            return list(self.sent.values())
        since = self.beats - self._killed
        found = [
            each for each in self.sent.values() if each.offset > self._killed and since > self._blind[each.partition]
        ]
        for each in found:
            self.came_at.setdefault(each.partition, time.monotonic())
        return self._late + found


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind_windows, "BEAT_S", 0.01)
    monkeypatch.setattr(blind_windows, "WITHIN_S", 3.0)


def test_the_slowest_partition_counts_and_what_was_sent_before_the_kill_does_not() -> None:
    stream = Stream((5, 30))
    trial = Trial(stream, stream)  # type: ignore[arg-type]
    trial.steady(0.05)
    began = time.monotonic()
    blind = trial.blind_s("detect")

    assert stream.came_at[0] - began < blind <= time.monotonic() - began


def test_a_process_that_does_not_come_back_is_no_figure() -> None:
    stream = Stream((5, 1_000_000))
    trial = Trial(stream, stream)  # type: ignore[arg-type]
    trial.steady(0.05)
    with pytest.raises(Overdue, match="no detect"):
        trial.blind_s("detect")
