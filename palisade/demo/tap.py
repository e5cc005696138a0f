"""A plain Kafka consumer beside the product: reads topics from their first record, in a thread, without a group."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from streams.records import headers_of
from streams.transport.log_ends import log_end
from streams.transport.run import TP

POLL_S = 0.05
MOST_A_POLL = 500
META_S = 10.0


class Record(NamedTuple):
    """A record as it lies on Kafka. `at_s` is the broker's time, `seen_s` when it was read; both since the epoch."""

    topic: str
    partition: int
    offset: int
    at_s: float
    seen_s: float
    headers: dict[str, bytes]
    value: bytes | None


class Tap:
    """Calls `on_record` for each record, in the order of each partition, on the tap's own thread.

    `settings` are librdkafka's (`bootstrap.servers` and security). An exception of `on_record` or of the consumer ends the
    tap, and is raised by `drain` and `stop`: a check that stopped looking must not look like a clean one.
    """

    def __init__(
        self, settings: Mapping[str, str | int | bool], topics: Sequence[str], on_record: Callable[[Record], None]
    ) -> None:
        self._settings = {
            "group.id": "palisade-demo-tap",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            **settings,
        }
        self._consumer = Consumer(self._settings)
        self._topics = topics
        self._on_record = on_record
        self._next: dict[tuple[str, int], int] = {}
        self._moved = threading.Condition()
        self._ending = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def start(self) -> Self:
        """Returns once all partitions of the topics are assigned. Raises KafkaException if a topic is not there."""
        partitions = []
        for topic in self._topics:
            found = self._consumer.list_topics(topic, META_S).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            partitions += [TopicPartition(topic, number, OFFSET_BEGINNING) for number in found.partitions]
        self._next = {(at.topic, at.partition): 0 for at in partitions}
        self._consumer.assign(partitions)
        self._thread.start()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def drain(self, topic: str, timeout_s: float = 10.0) -> bool:
        """Waits until everything that the topic holds now has been read; False if that took too long.

        For topics without transactions: their control records have offsets, but are never read.
        """
        ends = self._ends(topic)
        with self._moved:
            read = self._moved.wait_for(
                lambda: self._failure is not None or all(self._next[at] >= end for at, end in ends.items()), timeout_s
            )
        self._raise_failure()
        return read

    def _ends(self, topic: str) -> dict[tuple[str, int], int]:
        """Asked by a consumer of its own: one that polls in another thread does not answer."""
        asking = Consumer(self._settings)
        try:
            return {
                (name, number): log_end(asking, TP(name, number), META_S)
                for name, number in self._next
                if name == topic
            }
        finally:
            asking.close()

    def stop(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self._consumer.close()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                messages = self._consumer.consume(MOST_A_POLL, POLL_S)
                for message in messages:
                    self._take(message)
                if messages:
                    with self._moved:
                        self._moved.notify_all()
        except Exception as failure:  # noqa: BLE001  kept, and raised where somebody looks
            with self._moved:
                self._failure = failure
                self._moved.notify_all()

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.retriable() or not error.fatal():
                return  # librdkafka goes on by itself
            raise KafkaException(error)
        at = (message.topic(), message.partition(), message.offset())
        topic, partition, offset = cast(tuple[str, int, int], at)  # a record without an error has them
        headers = {name: value or b"" for name, value in headers_of(message)}
        at_s = message.timestamp()[1] / 1000
        self._on_record(Record(topic, partition, offset, at_s, time.time(), headers, message.value()))
        self._next[topic, partition] = offset + 1
