"""A batch that cannot be unpacked costs its own records and nobody else's, and stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from streams.transport.run import TP
from streams.transport.unreadable import ANSWER_S, Unreadable
from tests.support.bombs import bomb
from tests.support.kafka import RealKafka
from tests.transport.bench import Bench
from tests.transport.worker import Spec, Topic

A = TP("t", 0)


class Log:
    """A partition with batches that cannot be unpacked, and a reader that fetches where it is told to."""

    def __init__(self, end: int, bad: list[tuple[int, int]], silent: frozenset[int] = frozenset()) -> None:
        """bad: batches [first, next). silent: offsets behind which no record comes, only markers."""
        self.end, self._bad, self._silent = end, bad, silent
        self.position, self.expected, self.now, self.fetches = 0, 0, 0.0, 0
        self.read: list[int] = []
        self.told: list[tuple[int, int]] = []
        self.unreadable = Unreadable(self._seek, lambda _: self.end)

    def _seek(self, _: TP, offset: int) -> None:
        self.position = offset

    def run(self) -> None:
        """Reads on until nothing more comes."""
        while self.position < self.end or self.unreadable.searching:
            self.fetches += 1
            batch = next(((first, after) for first, after in self._bad if first <= self.position < after), None)
            if batch is not None:
                self.unreadable.failed(A, batch[0], self.expected, self.now)
            elif self.position >= self.end or self.position in self._silent:
                self.now += ANSWER_S
                self.unreadable.tick((), self.now)
                if not self.unreadable.searching:
                    self.position = max(self.position, *(0, *(k + 1 for k in self._silent)))
            elif self.unreadable.take(A, self.now):
                if lost := self.unreadable.lost(A):
                    self.told.append(lost)
                self.read.append(self.position)
                self.position += 1
                self.expected = self.position


@given(
    before=st.integers(0, 5), size=st.integers(1, 3_000), between=st.integers(1, 40), second=st.integers(1, 50),
    after=st.integers(1, 40),
)  # fmt: skip
def test_whatever_it_holds_exactly_that_batch_is_stepped_over_and_told(
    before: int, size: int, between: int, second: int, after: int
) -> None:
    first_bad, second_bad = (before, before + size), (before + size + between, before + size + between + second)
    log = Log(second_bad[1] + after, [first_bad, second_bad])

    log.run()

    bad = {offset for batch in (first_bad, second_bad) for offset in range(*batch)}
    assert log.read == [offset for offset in range(log.end) if offset not in bad]
    assert log.told == [first_bad, second_bad]


def test_the_end_of_a_batch_of_a_million_records_is_found_in_some_forty_fetches() -> None:
    log = Log(1_000_001, [(0, 1_000_000)])

    log.run()

    assert (log.read, log.told) == ([1_000_000], [(0, 1_000_000)])
    assert log.fetches < 45


def test_a_batch_at_the_end_of_the_log_is_told_with_the_first_record_behind_it() -> None:
    log = Log(8, [(3, 8)])
    log.run()
    assert (log.read, log.told, log.position) == ([0, 1, 2], [], 8)

    log.end = 9
    log.run()
    assert (log.read[-1], log.told) == (8, [(3, 8)])


def test_a_reader_that_stands_in_the_middle_of_the_batch_has_lost_the_rest_of_it() -> None:
    log = Log(9, [(2, 6)])
    log.position = log.expected = 4
    log.run()
    assert (log.read, log.told) == ([6, 7, 8], [(4, 6)])


def test_an_answer_that_was_meant_for_another_question_steps_over_nothing_readable() -> None:
    sought: list[int] = []
    unreadable = Unreadable(lambda _, offset: sought.append(offset), lambda _: 10)
    unreadable.failed(A, 2, 2, 0.0)
    unreadable.failed(A, 2, 2, 0.0)  # late, of the first fetch: the batch ends at 4, long before what was asked
    while unreadable.searching:
        if sought[-1] < 4:
            unreadable.failed(A, 2, 2, 0.0)
        else:
            unreadable.take(A, 0.0)

    assert unreadable.lost(A) == (2, 4)


def test_a_paused_topic_answers_nothing() -> None:
    sought: list[int] = []
    unreadable = Unreadable(lambda _, offset: sought.append(offset), lambda _: 10)
    unreadable.failed(A, 2, 2, 0.0)
    unreadable.tick({"t"}, 100.0)
    assert len(sought) == 1
    unreadable.tick((), 100.0 + ANSWER_S)
    assert len(sought) == 2


@pytest.mark.kafka
@pytest.mark.slow
def test_a_batch_that_unpacks_to_more_than_librdkafka_takes_stops_no_worker(kafka: RealKafka, tmp_path: Path) -> None:
    topic = kafka.unique("t")
    kafka.create_topics({topic: 2}, {"max.message.bytes": "1100000"})
    plain = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(3):
        plain.produce(topic, f"{number}", partition=0)
    assert plain.flush(60) == 0
    bomb(kafka.bootstrap, topic)
    for partition in (0, 1):
        for number in range(3):
            plain.produce(topic, f"{number}", partition=partition)
    assert plain.flush(60) == 0

    spec = Spec(kafka.bootstrap, kafka.unique("g"), str(tmp_path), {topic: Topic()}, fetch_wait_ms=100)
    with Bench(spec, 2) as b:
        worker = b.start()
        b.until(lambda: b.total() >= 9, "all that can be read")
        assert worker.stop() == 0
        assert b.seen() == {
            TP(topic, 0): dict.fromkeys((0, 1, 2, 113, 114, 115), 1),
            TP(topic, 1): dict.fromkeys((0, 1, 2), 1),
        }
        assert b.committed() == {TP(topic, 0): 116, TP(topic, 1): 3}
