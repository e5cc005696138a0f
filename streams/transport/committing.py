"""A commit whose answer is not waited for without end."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.transport.run import TP
from streams.transport.seams import Client


def commit(consumer: Client, offsets: Mapping[TP, int], timeout_s: float) -> None:
    """Sends a commit, and asks what is committed. KafkaException if that is something else, or unknown after `timeout_s`.

    The coordinator takes both in turn, but only the second wait has an end: librdkafka waited more than two minutes for the
    answer of a commit that was on its way when the broker went, and a thread that waits hears of no rebalance. 2 ms more.
    """
    wanted = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
    consumer.commit(offsets=wanted, asynchronous=True)
    for part in consumer.committed([TopicPartition(*tp) for tp in offsets], timeout=timeout_s):
        if part.error is not None:
            raise KafkaException(part.error)
        if part.offset != (sent := offsets[TP(part.topic, part.partition)]):
            told = f"the group says that {part.topic}[{part.partition}] is committed up to {part.offset}, not {sent}"
            raise KafkaException(KafkaError(KafkaError._STATE, told))
