"""What ingest has written already, read back from the predictions: a restart reads requests again, and writes none twice.

Every prediction of ingest says where its request and its response lie. From the broker's time of the oldest record that is
read again, those places are collected; what was written by a process that nobody knew to be alive still is not among them,
and is told by two predictions of one `origin`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, Message, TopicPartition
from pydantic_core import from_json

from responders.signing import Keyring
from schemas.blocks import Longs
from schemas.errors import SignatureRefused
from schemas.roles import READER_GROUP
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.decode.arrow import read_streams
from streams.decode.headers import ARROW_MAGIC
from streams.decode.ipc import ArrowRefused, inspect
from streams.ingest.pieces import ROW_BITS
from streams.ingest.predictions import INGEST_HEADER, SIGNED_KIND, signed_part
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

MAX_PLACES = 8_000_000
"""Places that are remembered (64 MB); beyond it the newest count, and older ones may be written twice, which their `origin` tells."""
MARGIN_MS = 10_000
"""Read back from so much earlier: the clocks of two brokers differ."""
TIMEOUT_S = 30.0


@dataclass(slots=True)
class Already:
    """Places whose outcome the one before this process has written: sorted, by topic."""

    places: dict[str, Longs] = field(default_factory=dict)

    def fresh(self, topic: str, place: Longs) -> npt.NDArray[np.bool_] | None:
        """Which places [n] are not among them; None if all are fresh. Forgets them once they are passed."""
        known = self.places.get(topic)
        if known is None or not len(place):
            return None
        if not len(known) or place[0] > known[-1]:
            del self.places[topic]
            return None
        return ~np.isin(place, known)

    def last(self, topic: str) -> int:
        """The highest place of the topic, -1 if there is none."""
        known = self.places.get(topic)
        return int(known[-1]) if known is not None and len(known) else -1

    @classmethod
    def of(cls, places: Iterable[tuple[str, Longs]]) -> Already:
        """From places by topic, in the order in which they were found."""
        by_topic: dict[str, list[Longs]] = {}
        for topic, found in places:
            by_topic.setdefault(topic, []).append(found)
        return cls({topic: np.unique(np.concatenate(parts)[-MAX_PLACES:]) for topic, parts in by_topic.items()})


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Reads predictions back. `keys`: records signed by none of them are not believed (None: all are).

    `timed`: the broker can say which offset belongs to a time; the embedded one cannot, and keeps little.
    """

    connection: KafkaConnection
    partitions: int
    keys: Keyring | None = None
    timed: bool = True

    def places(self, partition: int, since_ms: int) -> Already:
        """What was written of this source partition since then. Blocks; raises KafkaException, or TimeoutError."""
        overrides = {"enable.partition.eof": True, "fetch.message.max.bytes": 1 << 20}
        consumer = Consumer(kafka_settings(self.connection, "consumer", group=READER_GROUP, overrides=overrides))
        try:
            starts = self._starts(consumer, since_ms - MARGIN_MS)
            consumer.assign(starts)
            found = Already.of(self._found(consumer, {each.partition for each in starts}, partition))
        finally:
            consumer.close()
        count = sum(map(len, found.places.values()))
        if count:
            log.info(
                "partition %d: %d places were written since %d and are not written again", partition, count, since_ms
            )
        return found

    def _starts(self, consumer: Consumer, since_ms: int) -> list[TopicPartition]:
        """Where to read each partition from; those without anything since then are left out."""
        every = [TopicPartition(PREDICTIONS, each, max(0, since_ms)) for each in range(self.partitions)]
        if not self.timed:
            return [TopicPartition(PREDICTIONS, each.partition, OFFSET_BEGINNING) for each in every]
        found = consumer.offsets_for_times(every, timeout=TIMEOUT_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return [each for each in found if each.offset != OFFSET_END]

    def _found(self, consumer: Consumer, reading: set[int], partition: int) -> Iterable[tuple[str, Longs]]:
        """Places of the records that ingest wrote, until every partition has been read to its end."""
        mine = str(partition).encode()
        while reading:
            message = consumer.poll(TIMEOUT_S)
            if message is None:
                raise TimeoutError(f"{PREDICTIONS} could not be read back: no answer in {TIMEOUT_S:.0f} s")
            # consume(n, timeout) alone would wait for n records
            for each in (message, *consumer.consume(1_000, 0)):
                error = each.error()
                if error is None:
                    if header_of(headers_of(each), INGEST_HEADER) == mine and self._believed(each):
                        yield from places_of(each.value() or b"", partition)
                elif error.name() == "_PARTITION_EOF":
                    reading.discard(int(each.partition() or 0))
                else:
                    raise KafkaException(error)

    def _believed(self, message: Message) -> bool:
        if self.keys is None:
            return True
        try:
            self.keys.verify(SIGNED_KIND, signed_part(message.value() or b""), headers_of(message))
        except SignatureRefused:
            return False
        return True


def places_of(value: bytes, partition: int) -> list[tuple[str, Longs]]:
    """Places of requests and responses of this partition that the predictions in a record came from."""
    try:
        if value.startswith(ARROW_MAGIC):
            batch = read_streams([inspect(value)])
            columns = [batch.column(name).to_pylist() for name in ("origin", "answer") if name in batch.schema.names]
        else:
            rows = from_json(value)
            columns = [[row.get("origin") for row in rows], [row.get("answer") for row in rows]]
    except (ArrowRefused, pa.ArrowException, ValueError, AttributeError, TypeError, RecursionError):
        return []
    return [
        found for column in columns for topic in (REQUESTS, RESPONSES) for found in _packed(column, topic, partition)
    ]


def _packed(column: Sequence[object], topic: str, partition: int) -> list[tuple[str, Longs]]:
    front = f"{topic}/{partition}/"
    ends = [text[len(front) :].split("/") for text in column if isinstance(text, str) and text.startswith(front)]
    if not ends:
        return []
    try:
        return [(topic, np.array([int(offset) << ROW_BITS | int(row) for offset, row in ends], dtype=np.int64))]
    except (ValueError, OverflowError):
        return []
