"""How near each role is to being overtaken by retention: looked at from outside, for a role that is dead says nothing.

A topic keeps records for some time, or some bytes a partition. A reader whose committed offset has fallen behind half of that
has as much time left as it has lost already; what it has not read in the end is lost to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from prometheus_client import Gauge

from responders.decide import Reader
from schemas.roles import READER_GROUP, Role, group_of
from schemas.topics import BY_NAME, COMMANDS, LABELLED, PREDICTIONS, REPORTS, REQUESTS, RESPONSES, SIGNALS, TOPICS
from streams.embedded_broker import PARTITION_BYTES
from streams.transport.error_log import QUIET
from streams.transport.log_ends import log_ends
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

READ: Mapping[Role, tuple[str, ...]] = {
    "ingest": (REQUESTS, RESPONSES),
    "detect": (PREDICTIONS, REPORTS, LABELLED),
    "respond": (SIGNALS, COMMANDS),
    "audit": tuple(spec.name for spec in TOPICS if "audit" in spec.readers and not spec.compacted),
}
"""What each role's group reads. Compaction removes nothing that is not written anew."""
OPTIONAL: frozenset[Role] = frozenset({"ingest"})
"""Without any commit such a role is not in use."""
LOOK_EVERY_S = 15.0
ANSWER_S = 10.0
HALF, WELL = 0.5, 0.25
"""Of what is kept: unread so much, people are told; below the other, they are told that it is over."""
STEPS = (0.25, 0.5, 0.75)
"""Shares of a time that the broker is asked about."""
SAMPLE = 200
"""Records that are looked at to learn how large they are."""
RECORD_OVERHEAD = 64
MARKER = 1
"""A transaction's marker at the end of a log is an offset that nobody commits."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps of a partition; None: without that bound."""

    ms: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Behind:
    """Of one role and topic, its worst partition. `share` of what is kept that is unread (of a time: at least that much);
    `lost`: first and last offset that were removed unread."""

    role: Role
    topic: str
    partition: int = 0
    share: float = 0.0
    lost: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Ends:
    low: int
    end: int
    at: Mapping[float, int]
    """The first offset that is younger than so much of the time that is kept."""


class Readers:
    """Asks a broker. Blocking: call from one thread at a time. `embedded`: it tells no settings, and keeps 5 MiB a partition.

    Consumers that join nothing ask, one for each group: an admin client that asks about groups while a broker goes away ends
    the process (librdkafka issue 4605).
    """

    def __init__(self, connection: KafkaConnection, *, embedded: bool = False) -> None:
        self._connection = connection
        self._embedded = embedded
        self._kept: dict[str, Retention] = {}
        self._clients: dict[str, Consumer] = {}

    def look(self, now_ms: int) -> list[Behind]:
        """Every role that is in use, topic by topic. Raises KafkaException or TimeoutError where nobody answers; the next look
        asks through new clients then, as librdkafka can forget every broker (its issue 5301)."""
        try:
            found = self._look(now_ms)
            # they join nothing: what comes is what each had to say of brokers that went away
            for client in self._clients.values():
                while client.poll(0) is not None:
                    pass
            return found
        except KafkaException:
            while self._clients:
                self._clients.popitem()[1].close()
            raise

    def _client(self, group: str) -> Consumer:
        if group not in self._clients:
            settings = kafka_settings(self._connection, "consumer", group=group)
            self._clients[group] = Consumer({**QUIET, **settings})  # who looks says what failed
        return self._clients[group]

    @property
    def _asking(self) -> Consumer:
        return self._client(READER_GROUP)

    def _look(self, now_ms: int) -> list[Behind]:
        topics = sorted({topic for read in READ.values() for topic in read})
        known = self._asking.list_topics(timeout=ANSWER_S).topics
        partitions = [TP(topic, number) for topic in topics if topic in known for number in known[topic].partitions]
        kept = self._retention(topics)
        ends = self._ends(partitions, kept, now_ms)
        found: list[Behind] = []
        for role, read in READ.items():
            committed = self._committed(role, [tp for tp in partitions if tp.topic in read])
            if role in OPTIONAL and not any(offset is not None for offset in committed.values()):
                continue
            for topic in read:
                places = [(tp, offset) for tp, offset in committed.items() if tp.topic == topic and tp in ends]
                behind = [self._behind(role, tp, offset, ends[tp], kept[topic]) for tp, offset in places]
                found += [max(behind, key=lambda one: (one.lost is not None, one.share))] if behind else []
        return found

    def _behind(self, role: Role, tp: TP, committed: int | None, ends: _Ends, kept: Retention) -> Behind:
        at = ends.low if committed is None else committed
        lost = (at, ends.low - 1) if at < ends.low - MARKER else None
        at = max(at, ends.low)
        if ends.end - at <= MARKER:
            return Behind(role, *tp, 0.0, lost)
        share = max((step for step, young in ends.at.items() if at < young), default=0.0)
        if kept.bytes is not None:
            share = max(share, self._share_of_bytes(tp, at, ends, kept.bytes))
        return Behind(role, *tp, share, lost)

    def _share_of_bytes(self, tp: TP, at: int, ends: _Ends, most: int) -> float:
        """By the size of some records; where they may not be read, by offsets, once the log is full."""
        if (size := self._mean_bytes(tp, at)) is not None:
            return min(1.0, (ends.end - at) * size / most)
        return (ends.end - at) / (ends.end - ends.low) if ends.low else 0.0

    def _mean_bytes(self, tp: TP, start: int) -> float | None:
        settings = kafka_settings(self._connection, "consumer", group=READER_GROUP)
        consumer = Consumer(settings)
        try:
            consumer.assign([TopicPartition(*tp, start)])
            read = [message for message in consumer.consume(SAMPLE, 1.0) if message.error() is None]
            sizes = [len(message) + len(message.key() or b"") + RECORD_OVERHEAD for message in read]
        except KafkaException as error:
            log.info("the records of %s cannot be measured: %s", tp.topic, error)
            return None
        finally:
            consumer.close()
        return sum(sizes) / len(sizes) if sizes else None

    def _retention(self, topics: Sequence[str]) -> dict[str, Retention]:
        """By the broker, asked once; where it does not let us ask, by the contracts that the topics were made of."""
        if self._embedded:
            return dict.fromkeys(topics, Retention(bytes=PARTITION_BYTES))
        if lacking := [topic for topic in topics if topic not in self._kept]:
            self._kept |= self._described(lacking)
        agreed = {topic: Retention(ms=BY_NAME[topic].retention_ms) for topic in topics if topic in BY_NAME}
        return agreed | self._kept

    def _described(self, topics: Sequence[str]) -> dict[str, Retention]:
        admin = AdminClient(kafka_settings(self._connection, "admin"))
        asked = admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, topic) for topic in topics], request_timeout=ANSWER_S
        )
        kept = {}
        for resource, future in asked.items():
            try:
                settings = {name: entry.value for name, entry in future.result(ANSWER_S).items()}
            except KafkaException as error:
                log.info("the settings of %s are not known (%s): the contract's count", resource.name, error)
                continue
            kept[resource.name] = Retention(_bound(settings, "retention.ms"), _bound(settings, "retention.bytes"))
        return kept

    def _ends(self, partitions: Sequence[TP], kept: Mapping[str, Retention], now_ms: int) -> dict[TP, _Ends]:
        bounds: dict[TP, tuple[int, int]] = {}
        for tp in partitions:
            try:
                bounds[tp] = log_ends(self._asking, tp, ANSWER_S)
            except KafkaException as error:  # its leader is away
                log.debug("%s[%d] tells no offsets: %s", *tp, error)
        young: dict[TP, dict[float, int]] = {tp: {} for tp in bounds}
        for step in STEPS:
            ages = {tp: kept[tp.topic].ms for tp in bounds}
            asked = [TopicPartition(*tp, now_ms - int(step * ms)) for tp, ms in ages.items() if ms is not None]
            for place in self._asking.offsets_for_times(asked, timeout=ANSWER_S) if asked else ():
                if place.error is None:
                    tp = TP(place.topic, place.partition)
                    young[tp][step] = bounds[tp][1] if place.offset < 0 else place.offset  # none is younger
        return {tp: _Ends(low, end, young[tp]) for tp, (low, end) in bounds.items()}

    def _committed(self, role: Role, partitions: Sequence[TP]) -> dict[TP, int | None]:
        if not partitions:
            return {}
        places = self._client(group_of(role)).committed([TopicPartition(*tp) for tp in partitions], timeout=ANSWER_S)
        return {
            TP(place.topic, place.partition): place.offset if place.offset >= 0 else None
            for place in places
            if place.error is None
        }


class KeepingUp:
    """What is told of readers: once when one is behind, once when it lost records, once when it has caught up."""

    def __init__(self) -> None:
        self._behind: set[tuple[Role, str]] = set()
        self._lost: set[tuple[Role, str]] = set()

    def news(self, found: Iterable[Behind]) -> list[Reader]:
        """What people do not know yet."""
        told: list[Reader] = []
        for one in found:
            reader, where = (one.role, one.topic), f"{one.role}, {one.topic}[{one.partition}]"
            if one.lost is not None and reader not in self._lost:
                told.append(Reader(*reader, "reader_lost", f"{where}: offsets {one.lost[0]} to {one.lost[1]}"))
            if one.share >= HALF and reader not in self._behind:
                detail = (
                    f"{where}: {one.share:.0%} of what is kept is unread; start it, give it more workers, or keep more"
                )
                told.append(Reader(*reader, "reader_behind", detail))
            well = one.share < WELL and one.lost is None
            if well and reader in self._behind | self._lost:
                told.append(Reader(*reader, "reader_caught_up", where))
            self._lost = self._lost | {reader} if one.lost is not None else self._lost - {reader}
            if one.share >= HALF or well:
                self._behind = self._behind | {reader} if one.share >= HALF else self._behind - {reader}
        return told


async def watch(
    look: Callable[[int], Sequence[Behind]],
    tell: Callable[[list[Reader]], None],
    active: Callable[[], bool],
    share: Gauge,
) -> None:
    """Looks each `LOOK_EVERY_S` while this process is active, until cancelled. `share`: a gauge by role and topic."""
    keeping_up = KeepingUp()
    while True:
        if active():
            try:
                found = await asyncio.to_thread(look, int(time.time() * 1000))
            except Exception as error:  # noqa: BLE001 - a broker that is away must not end who only watches
                log.warning("how far the roles are behind is not known: %r", error)
            else:
                for one in found:
                    share.labels(one.role, one.topic).set(one.share)
                tell(keeping_up.news(found))
        await asyncio.sleep(LOOK_EVERY_S)


def _bound(settings: Mapping[str, str | None], name: str) -> int | None:
    """-1 says that there is none."""
    value = int(settings.get(name) or -1)
    return value if value > 0 else None
