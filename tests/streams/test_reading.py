"""Reading a partition to its end while its broker comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from streams.embedded_broker import EmbeddedBroker
from streams.reading import first_offset, read_to_end

Brokers = Callable[..., EmbeddedBroker]


@pytest.fixture
def broker(embedded_broker: Brokers) -> EmbeddedBroker:
    broker = embedded_broker({"t": 1})
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for number in range(3):
        producer.produce("t", str(number), partition=0)
    assert producer.flush(10) == 0
    return broker


def test_while_its_leader_is_sought_it_is_asked_again(broker: EmbeddedBroker) -> None:
    broker.refuse("ListOffsets", [KafkaError.NOT_LEADER_FOR_PARTITION] * 3)

    assert [message.value() for message in read_to_end(broker.connection, "t", 0)] == [b"0", b"1", b"2"]
    broker.refuse("ListOffsets", [KafkaError.LEADER_NOT_AVAILABLE] * 3)
    assert first_offset(broker.connection, "t", 0) == 0


def test_a_refusal_is_told_at_once(broker: EmbeddedBroker) -> None:
    broker.refuse("ListOffsets", [KafkaError.TOPIC_AUTHORIZATION_FAILED] * 2)
    with pytest.raises(KafkaException, match="authorization"):
        next(read_to_end(broker.connection, "t", 0))
