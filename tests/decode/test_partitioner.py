"""The partition of a key is the one that Kafka's clients choose."""

from __future__ import annotations

import os

import pytest
from confluent_kafka import Message, Producer

from streams.decode import partition_of
from streams.decode.partitioner import murmur2


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_agrees_with_the_vectors_of_the_java_client(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % (1 << 32)


def test_keys_land_where_librdkafka_puts_them() -> None:
    keys = [f"endpoint-{n}".encode() for n in range(50)] + [b"x" * n for n in range(1, 12)] + [os.urandom(9)]
    landed: dict[bytes, int | None] = {}

    def remember(error: object, message: Message) -> None:
        assert error is None
        landed[message.key() or b""] = message.partition()

    producer = Producer(
        {
            "bootstrap.servers": "",
            "test.mock.num.brokers": 1,
            "partitioner": "murmur2_random",
            "allow.auto.create.topics": True,
            "log_level": 0,
        }
    )
    producer.list_topics("keys", timeout=10)
    for key in keys:
        producer.produce("keys", value=b"", key=key, on_delivery=remember)
    assert producer.flush(20) == 0
    count = len(producer.list_topics("keys", timeout=10).topics["keys"].partitions)
    assert landed == {key: partition_of(key, count) for key in keys}
    assert count > 1
