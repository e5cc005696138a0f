"""Retention overtakes a reader: what nobody has read is counted and told, and detectors say what they do not know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition

from detectors.bank import Bank, Place
from detectors.base import LogPoint
from schemas.topics import DEAD_LETTERS, PREDICTIONS, PROFILES, SIGNALS, VERDICTS
from schemas.verdicts import Lost
from schemas.wire import KIND_HEADER
from streams.records import header_of
from streams.transport.settings import kafka_settings
from tests.conformance.test_bank import Counting, Event, place_of
from tests.streams.log_of_predictions import ENDPOINTS
from tests.streams.poisoned import Planted
from tests.streams.test_poison import TP0, Scene
from tests.transport.test_embedded import Start


def told(scene: Scene) -> list[tuple[int, int]]:
    found = [
        Lost.from_bytes(record.value)
        for record in scene.sent(VERDICTS)
        if header_of(record.headers, KIND_HEADER) == Lost.KIND.encode()
    ]
    return [(lost.first, lost.last) for lost in found]


def overflow(scene: Scene, records: int) -> int:
    """Writes so many large ticks that the broker drops what is older; the next offset."""
    producer = Producer(kafka_settings(scene.connection, "producer"))
    for _ in range(records):
        headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, b"tick")]
        producer.produce(PREDICTIONS, os.urandom(500_000), partition=0, headers=headers, timestamp=9_000_000)
        assert producer.flush(30) == 0
    low, end = scene._probe.get_watermark_offsets(TopicPartition(*TP0), timeout=10)
    assert low > len(scene.log)
    return int(end)


def test_rows_that_retention_removed_while_no_worker_ran_are_lost_told_and_unknown(
    embedded_broker: Start, tmp_path: Path
) -> None:
    topics = (PREDICTIONS, VERDICTS, SIGNALS, DEAD_LETTERS, PROFILES)
    scene = Scene(embedded_broker(dict.fromkeys(topics, 1)), tmp_path)
    try:
        scene.start(Planted())
        scene.until(scene.all_done)
        scene.stop()
        end = overflow(scene, 30)
        low, _ = scene._probe.get_watermark_offsets(TopicPartition(*TP0), timeout=10)
        scene.start(Planted())
        scene.until(lambda: scene.committed() == end)

        assert told(scene) == [(len(scene.log), low - 1)]
        said = [signal for signal in scene.signals() if signal.kind == "data_lost"]
        assert {(signal.endpoint, signal.state) for signal in said} == {
            (endpoint, state) for endpoint in ENDPOINTS for state in ("unknown", "opened")
        }
        assert {signal.log_offset for signal in said} == {low}
        assert {signal.evidence["last"] for signal in said} == {low - 1}
        scene.stop()
    finally:
        scene.close()


def bank_with_loss(state: bytes | None = None) -> Bank[Event]:
    bank = Bank([Counting()], place_of, 1_000)
    if state is None:
        bank.update([("x", 1, False), ("y", 1, False)])
        at = LogPoint("log", 0, 50, 0, 50)
        signals = bank.lost([Place("x", "x", None, at)], 2, 49)
        assert [(one.endpoint, one.kind, one.state) for one in signals] == [
            ("x", "data_lost", "unknown"), ("x", "data_lost", "opened"),
        ]  # fmt: skip
    else:
        bank.restore("x", state)
    return bank


@pytest.mark.parametrize("restarted", [False, True])
def test_a_loss_is_over_when_what_came_since_was_calm_for_long_enough(restarted: bool) -> None:
    bank = bank_with_loss()
    if restarted:
        bank = bank_with_loss(bank.snapshot("x"))

    def states(batch: Sequence[Event]) -> list[tuple[str, str]]:
        return [(one.endpoint, one.state) for one in bank.update(batch).signals if one.kind == "data_lost"]

    assert states([("x", 60, False), ("y", 70, False)]) == []
    assert states([("x", 1_059, False)]) == []
    assert states([("x", 1_060, False)]) == [("x", "recovered")]
    assert states([("x", 1_070, False)]) == []
