"""Records on which a role raises: found, dead-lettered, passed over; nothing else of the log is changed by them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.deadletter import DeadLetter
from schemas.events import ProfileActivated
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, PREDICTIONS, PROFILES, SIGNALS, VERDICTS
from streams.embedded_broker import EmbeddedBroker
from streams.poison import Poison
from streams.profiles import Active
from streams.reading import read_to_end
from streams.records import Outgoing, Records, headers_of
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.streams.log_of_predictions import OPERATOR, ROWS, open_log, profile, records
from tests.streams.poisoned import Planted, main
from tests.streams.test_prediction_log import feed, said_by_part, table_of
from tests.transport.bench import PROCESSES
from tests.transport.test_embedded import Start

TP0 = TP(PREDICTIONS, 0)
RUN = 200
POISON, BROKEN = 1_234, 2_345


def log_on_broker() -> Records:
    """The small log, from offset 0 on."""
    log = records()
    return Records(log.values, log.keys, log.headers, list(range(len(log))), log.timestamps)


def without(log: Records, *offsets: int) -> Records:
    kept = [at for at, offset in enumerate(log.offsets) if offset not in offsets]
    columns = (log.values, log.keys, log.headers, log.offsets, log.timestamps)
    return Records(*([column[at] for at in kept] for column in columns))


class Scene:
    """The small log on an embedded broker, and workers on it, one after the other."""

    def __init__(self, broker: EmbeddedBroker, folder: Path) -> None:
        self.connection = KafkaConnection(bootstrap=broker.bootstrap, fetch_wait_ms=10)
        self.folder = folder
        self.log = log_on_broker()
        self.early: list[int] = []
        producer = Producer(kafka_settings(self.connection, "producer"))
        for value, key, headers, ms in zip(
            self.log.values, self.log.keys, self.log.headers, self.log.timestamps, strict=True
        ):
            producer.produce(PREDICTIONS, value, key, partition=0, timestamp=ms, headers=list(headers or ()))
        assert producer.flush(60) == 0
        self._probe = Consumer(kafka_settings(self.connection, "consumer", group="palisade.detect"))

    def start(self, planted: Planted, run_max: int = RUN) -> None:
        self.worker = PROCESSES.Process(
            target=main,
            args=(
                self.connection.bootstrap,
                str(self.folder),
                planted,
                run_max,
                profile().to_bytes(),
                OPERATOR.public_base64,
                [self.active(0), self.active(1)],
            ),
        )
        self.worker.start()

    def active(self, offset: int) -> Active:
        """The activation that lies there."""
        value, headers = self.log.values[offset] or b"", self.log.headers[offset]
        return Active(ProfileActivated.from_bytes(value), 0, offset, value, headers or ())  # type: ignore[arg-type]

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")[-4_000:]

    def until(self, done: Callable[[], object], timeout_s: float = 240.0) -> None:
        """Waits; meanwhile no commit may pass a row without an outcome (the commit is asked first: a violation is proof)."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert self.worker.is_alive(), self.said()
            assert time.monotonic() < deadline, self.said()
            committed = self.committed()
            outcomes = self.outcomes()
            self.early += [at for at in self.rows() if at < committed and at not in outcomes]
            time.sleep(0.1)

    def committed(self) -> int:
        (answer,) = self._probe.committed([TopicPartition(*TP0)], timeout=10)
        return int(answer.offset)

    def rows(self) -> list[int]:
        return [at for at, value in enumerate(self.log.values) if b'"features"' in (value or b"")]

    def sent(self, topic: str) -> list[Outgoing]:
        return [
            Outgoing(topic, message.key(), message.value() or b"", tuple(headers_of(message)))  # type: ignore[arg-type]
            for message in read_to_end(self.connection, topic, 0)
        ]

    def outcomes(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for row in table_of(self.sent(VERDICTS), b"verdict_rows"):
            found.setdefault(int(str(row["offset"])), set()).add(int(str(row["outcome"])))
        return found

    def all_done(self) -> bool:
        return self.committed() == len(self.log)

    def stop(self) -> None:
        self.worker.terminate()
        self.worker.join(60)
        assert self.worker.exitcode == 0, self.said()

    def letters(self) -> dict[int, DeadLetter]:
        """By offset; one that came again after a restart says the same."""
        letters = [DeadLetter.from_bytes(record.value) for record in self.sent(DEAD_LETTERS)]
        found = {letter.log_offset: letter for letter in letters}
        assert all(found[letter.log_offset] == letter for letter in letters)
        return found

    def signals(self) -> list[Signal]:
        """Each once, in the order of the log."""
        return said_by_part(list({record.value: record for record in self.sent(SIGNALS)}.values()))

    def close(self) -> None:
        self.worker.kill()
        self.worker.join()
        self._probe.close()


@pytest.fixture
def scene(embedded_broker: Start, tmp_path: Path) -> Iterator[Scene]:
    topics = (PREDICTIONS, VERDICTS, SIGNALS, DEAD_LETTERS, PROFILES)
    found = Scene(embedded_broker(dict.fromkeys(topics, 1)), tmp_path)
    yield found
    found.close()


def test_a_record_on_which_handling_raises_half_way_is_a_dead_letter_and_changes_nothing_else(scene: Scene) -> None:
    scene.start(Planted(half_way=POISON, decoder=POISON + 700))
    scene.until(scene.all_done)

    letters = scene.letters()
    assert {offset: letter.reason for offset, letter in letters.items()} == {
        POISON: "handler_failed",
        POISON + 700: "handler_failed",
    }
    assert letters[POISON].detail.startswith(
        "handling predictions: ZeroDivisionError: planted half-way; at poisoned.py:"
    )
    assert "prediction_log.py" in letters[POISON].detail
    assert letters[POISON + 700].detail.startswith("decoding: ValueError: planted in the decoder; at poisoned.py:")
    assert base64.b64decode(letters[POISON].head) == scene.log.values[POISON]
    outcomes = scene.outcomes()
    assert {offset for offset, seen in outcomes.items() if seen == {1}} == set(letters)
    assert sorted(outcomes) == scene.rows()
    assert all(len(seen) == 1 for seen in outcomes.values())
    expected = feed(open_log(), without(scene.log, *letters), [])
    assert scene.signals() == said_by_part(expected)
    assert scene.signals()
    assert scene.early == []
    scene.stop()


def test_a_worker_that_takes_over_half_way_finds_the_same_record(scene: Scene) -> None:
    scene.start(Planted(half_way=POISON), run_max=50)
    scene.until(lambda: scene.committed() > POISON + 100)
    scene.worker.kill()
    scene.worker.join()
    scene.start(Planted(half_way=POISON), run_max=333)
    scene.until(scene.all_done)

    assert list(scene.letters()) == [POISON]
    assert {offset for offset, seen in scene.outcomes().items() if seen == {1}} == {POISON}
    assert sorted(scene.outcomes()) == scene.rows()
    assert scene.signals() == said_by_part(feed(open_log(), without(scene.log, POISON), []))
    assert scene.early == []
    scene.stop()


def test_an_error_that_does_not_come_again_costs_no_record(scene: Scene) -> None:
    scene.start(Planted(once=POISON))
    scene.until(scene.all_done)

    assert "will be handled apart" in scene.said()
    assert scene.letters() == {}
    assert len(scene.outcomes()) == ROWS
    assert scene.signals() == said_by_part(feed(open_log(), scene.log, []))
    scene.stop()


def test_a_row_on_which_a_detector_raises_is_scored_and_only_that_detector_of_its_part_starts_cold(
    scene: Scene,
) -> None:
    scene.start(Planted(detector=BROKEN))
    scene.until(scene.all_done)

    assert scene.letters() == {}
    assert len(scene.outcomes()) == ROWS
    expected = said_by_part(feed(open_log(), scene.log, []))
    (endpoint,) = {signal.endpoint for signal in scene.signals() if signal.kind == "detector_failed"}
    failed = next(signal for signal in scene.signals() if signal.kind == "detector_failed")
    assert (failed.state, failed.evidence["detector"]) == ("opened", "feature_drift")

    def of_others(signals: list[Signal]) -> list[Signal]:
        return [one for one in signals if one.endpoint != endpoint or one.detector not in ("feature_drift", "bank")]

    assert of_others(scene.signals()) == of_others(expected)
    assert of_others(expected)
    assert scene.early == []
    scene.stop()


def test_a_machine_that_is_exhausted_ends_the_process_and_condemns_nothing(scene: Scene) -> None:
    scene.start(Planted(half_way=POISON, error=MemoryError))
    scene.worker.join(120)

    assert scene.worker.exitcode, scene.said()
    assert scene.letters() == {}
    assert scene.committed() <= POISON


def of(first: int, last: int) -> Records:
    offsets = list(range(first, last + 1))
    return Records([b"v"] * len(offsets), [None] * len(offsets), [None] * len(offsets), offsets, [0] * len(offsets))


def pieces(poison: Poison, first: int, last: int) -> list[tuple[int, int, bool]]:
    found = poison.pieces(TP0, of(first, last))
    return [(piece.records.offsets[0], piece.records.offsets[-1], piece.reason is not None) for piece in found]


def test_what_failed_together_is_handled_one_by_one_and_what_fails_alone_twice_is_passed_over() -> None:
    poison = Poison()
    assert pieces(poison, 0, 9) == [(0, 9, False)]

    poison.failed(TP0, of(4, 6), ValueError("x"), "step")
    assert pieces(poison, 0, 9) == [(0, 3, False), (4, 4, False), (5, 5, False), (6, 6, False), (7, 9, False)]
    assert next(iter(poison.pieces(TP(PREDICTIONS, 1), of(4, 6)))).records.offsets == [4, 5, 6]

    poison.failed(TP0, of(5, 5), ValueError("x"), "step")
    assert pieces(poison, 3, 7) == [(3, 3, False), (4, 4, False), (5, 5, False), (6, 6, False), (7, 7, False)]
    poison.failed(TP0, of(5, 5), ValueError("x"), "step")
    assert pieces(poison, 3, 7) == [(3, 3, False), (4, 4, False), (5, 5, True), (6, 6, False), (7, 7, False)]


def test_a_long_stretch_is_narrowed_in_parts_until_it_can_be_handled_one_by_one() -> None:
    poison, poisonous, readings, handled = Poison(), 13_579, 0, 0
    while (TP0, poisonous) not in poison._condemned:
        readings += 1
        for piece in poison.pieces(TP0, of(0, 19_999)):
            handled += 1
            if poisonous in piece.records.offsets:
                poison.failed(TP0, piece.records, ValueError("x"), "step")
                break

    assert readings == 4
    assert handled < 2 * 20_000 / 16 + 2 * 16
    assert (poisonous, poisonous, True) in pieces(poison, 0, 19_999)


def test_a_single_record_is_tried_as_often() -> None:
    poison = Poison()
    for _ in range(2):
        poison.failed(TP0, of(5, 5), ValueError("x"), "step")
        assert pieces(poison, 5, 5) == [(5, 5, False)]

    poison.failed(TP0, of(5, 5), ValueError("x"), "step")
    assert pieces(poison, 5, 5) == [(5, 5, True)]
    assert pieces(poison, 6, 9) == [(6, 9, False)]
