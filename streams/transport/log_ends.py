"""Where a partition's log begins and ends, as its leader says now."""

from __future__ import annotations

from typing import Protocol

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from streams.transport.run import TP


class AsksForOffsets(Protocol):
    """What is used of `confluent_kafka.Consumer`."""

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...


def log_ends(consumer: AsksForOffsets, tp: TP, timeout_s: float) -> tuple[int, int]:
    """The first offset that retention left, and the next one to be written. Raises KafkaException.

    Not `get_watermark_offsets`: it asks for both at once, and where one of the answers is an error (a leader that is just
    taking over) it gives the other one for both, so that a log full of records looks empty (librdkafka 2.16).
    """
    return log_begin(consumer, tp, timeout_s), log_end(consumer, tp, timeout_s)


def log_begin(consumer: AsksForOffsets, tp: TP, timeout_s: float) -> int:
    """The first offset that retention left. Raises KafkaException."""
    return _offset(consumer, tp, OFFSET_BEGINNING, timeout_s)


def log_end(consumer: AsksForOffsets, tp: TP, timeout_s: float) -> int:
    """The next offset to be written; of committed transactions, as the consumer reads. Raises KafkaException."""
    return _offset(consumer, tp, OFFSET_END, timeout_s)


def _offset(consumer: AsksForOffsets, tp: TP, where: int, timeout_s: float) -> int:
    (found,) = consumer.offsets_for_times([TopicPartition(tp.topic, tp.partition, where)], timeout=timeout_s)
    if found.error is not None:
        raise KafkaException(found.error)
    return int(found.offset)
