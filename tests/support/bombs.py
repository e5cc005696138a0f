"""Batches that weigh little on the wire and much when they are unpacked."""

from __future__ import annotations

from confluent_kafka import Producer

RECORDS = 110
"""Of a megabyte each: more than librdkafka unpacks."""


def bomb(bootstrap: str, topic: str, partition: int = 0, compression: str = "zstd", records: int = RECORDS) -> None:
    """Writes one batch of `records` megabytes of zeros."""
    one_batch = {"batch.size": 2_000_000_000, "batch.num.messages": records, "linger.ms": 60_000}
    room = {"message.max.bytes": 1_000_000_000, "queue.buffering.max.kbytes": 2_000_000}
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": compression} | one_batch | room)
    # What waits for a leader to be known is sent as soon as it is: in two batches.
    producer.list_topics(topic, timeout=30)
    for _ in range(records):
        producer.produce(topic, bytes(1_000_000), partition=partition)
    assert producer.flush(120) == 0
