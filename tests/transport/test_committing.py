"""A commit has an end, and what confluent_kafka must do for that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.embedded_broker import EmbeddedBroker
from streams.transport.committing import commit
from streams.transport.run import TP
from streams.transport.settings import kafka_settings
from tests.support.waiting import until

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
A, B = TP("t", 0), TP("t", 1)


class Callback:
    """`on_commit`, which raises once it is told to."""

    def __init__(self) -> None:
        self.raises: Exception | None = None

    def __call__(self, *_: object) -> None:
        if self.raises is not None:
            self.raises, raised = None, self.raises
            raise raised


@pytest.fixture
def callback() -> Callback:
    return Callback()


@pytest.fixture
def broker(embedded_broker: Start) -> EmbeddedBroker:
    return embedded_broker({"t": 2})


@pytest.fixture
def consumer(broker: EmbeddedBroker, callback: Callback) -> Iterator[Consumer]:
    settings = kafka_settings(broker.connection, "consumer", group="g")
    consumer = Consumer({**settings, "on_commit": callback, "log_level": 0})
    joined: list[TopicPartition] = []
    consumer.subscribe(["t"], on_assign=lambda _, parts: joined.extend(parts))
    until(lambda: consumer.poll(0.1) or joined, "a member", 30)
    yield consumer
    consumer.close()


def test_what_was_sent_is_committed_when_it_returns(consumer: Consumer) -> None:
    for offset in range(100):
        commit(consumer, {A: offset, B: 100 - offset}, 10)
        answers = consumer.committed([TopicPartition(*A), TopicPartition(*B)], timeout=10)
        assert [part.offset for part in answers] == [offset, 100 - offset]


def test_without_a_broker_it_fails_in_time(consumer: Consumer, broker: EmbeddedBroker) -> None:
    broker.down()
    began = time.monotonic()
    with pytest.raises(KafkaException):
        commit(consumer, {A: 1}, 0.5)
    assert time.monotonic() - began < 5  # `commit(asynchronous=False)` waits for a session at least
    broker.up()


def test_what_the_callback_of_a_commit_raises_comes_out_of_poll(consumer: Consumer, callback: Callback) -> None:
    callback.raises = KeyError("refused")
    commit(consumer, {A: 1}, 10)
    with pytest.raises(KeyError, match="refused"):
        until(lambda: consumer.poll(0.1), "the callback", 60)
