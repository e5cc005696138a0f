"""Reading a partition to its end, once, without a consumer group: state topics, the journal, the ends of logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.roles import READER_GROUP
from streams.transport.log_ends import log_end, log_ends
from streams.transport.run import TP
from streams.transport.seams import PASSING
from streams.transport.settings import KafkaConnection, kafka_settings
from streams.transport.unreadable import Unreadable

REFUSALS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
"""The broker's ways to say that this principal may not."""
TIMEOUT_S = 30.0
"""Without a record for so long the broker is away."""
END_S = 5.0
AGAIN_S = 0.2

T = TypeVar("T")
SteppedOver = Callable[[int, int], None]
"""Told of offsets [first, next) that cannot be unpacked, before the record behind them."""


def read_to_end(
    connection: KafkaConnection,
    topic: str,
    partition: int,
    start: int = OFFSET_BEGINNING,
    last: int | None = None,
    stepped_over: SteppedOver | None = None,
) -> Iterator[Message]:
    """Committed records from `start` (or the `last` ones) to the end, oldest first, without those that cannot be unpacked.

    Raises KafkaException when the broker answers with an error, TimeoutError when it does not answer.
    """
    consumer = Consumer(
        kafka_settings(connection, "consumer", group=READER_GROUP, overrides={"enable.partition.eof": True})
    )
    try:
        low, end = _ends(consumer, TP(topic, partition))
        if end <= low:
            return
        if last is not None:
            start = max(low, end - last)
        consumer.assign([TopicPartition(topic, partition, start if start < 0 else max(start, low))])
        yield from _to_end(consumer, TP(topic, partition), max(start, low), stepped_over)
    finally:
        consumer.close()


def first_offset(connection: KafkaConnection, topic: str, partition: int) -> int:
    """The first offset that retention left. Raises KafkaException."""
    consumer = Consumer(kafka_settings(connection, "consumer", group=READER_GROUP))
    try:
        return _ends(consumer, TP(topic, partition))[0]
    finally:
        consumer.close()


def read_newest(connection: KafkaConnection, topic: str, partition: int, prefix: str = "") -> dict[str, Message]:
    """The newest record of each key that starts with `prefix`; a tombstone removes its key. Raises as `read_to_end`."""
    newest: dict[str, Message] = {}
    for message in read_to_end(connection, topic, partition):
        key = (message.key() or b"").decode("utf-8", "replace")
        if not key.startswith(prefix):
            continue
        if message.value() is None:
            newest.pop(key, None)
        else:
            newest[key] = message
    return newest


def tail(connection: KafkaConnection, topic: str, most: int) -> Iterator[Message]:
    """Up to `most` last records of each partition, partition by partition. Raises as `read_to_end`."""
    consumer = Consumer(kafka_settings(connection, "consumer", group=READER_GROUP))
    try:
        found = consumer.list_topics(topic, timeout=TIMEOUT_S).topics.get(topic)
    finally:
        consumer.close()
    if found is not None and found.error is not None and found.error.code() in REFUSALS:
        raise KafkaException(found.error)  # a topic that is hidden from us is not one without records
    for partition in found.partitions if found is not None else ():
        yield from read_to_end(connection, topic, partition, last=most)


def ends_of(connection: KafkaConnection, places: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
    """The next offset of each partition; without those that the broker does not know, or does not tell within `END_S`."""
    if not places:
        return {}
    ends: dict[tuple[str, int], int] = {}
    consumer = Consumer(kafka_settings(connection, "consumer", group=READER_GROUP))
    try:
        for place in places:
            with suppress(KafkaException):
                tp = TP(place.topic, place.partition)
                ends[tp] = _again(partial(log_end, consumer, tp, END_S), END_S)
    finally:
        consumer.close()
    return ends


def _ends(consumer: Consumer, tp: TP) -> tuple[int, int]:
    """The first offset of the log and its end; asked again while its leader is sought, as after a broker's restart."""
    return _again(partial(log_ends, consumer, tp, TIMEOUT_S), TIMEOUT_S)


def _again(ask: Callable[[], T], within_s: float) -> T:
    """The answer, asked for again while what is said instead passes. Raises KafkaException."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                raise
            time.sleep(AGAIN_S)


def _to_end(consumer: Consumer, tp: TP, position: int, stepped_over: SteppedOver | None) -> Iterator[Message]:
    """`position`: the next offset to read."""
    unreadable = Unreadable(
        lambda _, offset: consumer.seek(TopicPartition(*tp, offset)),
        lambda _: _ends(consumer, tp)[1],
    )
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        message, now = consumer.poll(1.0), time.monotonic()
        if message is None:
            unreadable.tick((), now)
            if now > deadline:
                raise TimeoutError(f"{tp.topic} could not be read to its end: no answer in {TIMEOUT_S:.0f} s")
            continue
        error = message.error()
        if error is not None and error.code() in PASSING and now <= deadline:
            continue
        deadline = now + TIMEOUT_S
        if error is not None and error.code() == KafkaError._BAD_COMPRESSION:
            unreadable.failed(tp, int(message.offset() or 0), position, now)
            continue
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        if not unreadable.take(tp, now):
            continue
        if (over := unreadable.lost(tp)) and stepped_over is not None:
            stepped_over(*over)
        if error is not None:
            return
        position = int(message.offset() or 0) + 1
        yield message
