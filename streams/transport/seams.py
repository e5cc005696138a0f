"""The seams of the polling thread: the client below it, the host above it, its bounds and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import KafkaError, TopicPartition

from streams.transport.ledger import Ledger
from streams.transport.run import TP

# What cannot get better by waiting: the worker ends.
FATAL = frozenset(
    {
        KafkaError._FATAL,
        KafkaError._AUTHENTICATION,
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._BAD_MSG,
        KafkaError._NOT_IMPLEMENTED,
        KafkaError._UNDERFLOW,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.FENCED_INSTANCE_ID,
    }
)

# What is said while a leader or a coordinator is sought, or while a connection is made again: asked again, somebody answers.
PASSING = frozenset(
    {
        KafkaError._DESTROY_BROKER,  # it is no more in the metadata: what it was asked is told so
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._MSG_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.KAFKA_STORAGE_ERROR,  # of the leader's disk: the next one has another
        KafkaError.LISTENER_NOT_FOUND,
    }
)


# What is said of a topic that is gone, and for a moment of each by a broker that has just begun.
NOT_THERE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})


class LoopStuck(RuntimeError):
    """The event loop did not answer a rebalance or a rewind in time, or did not ask to read what was assigned: a worker
    that holds partitions and never reads them is a zombie."""


class Halted(Exception):
    """The worker is stopping: nobody needs the answer any more."""


class Client(Protocol):
    """What is used of `confluent_kafka.Consumer`."""

    def subscribe(self, topics: list[str], **callbacks: Any) -> None: ...
    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def unassign(self) -> None: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition) -> None: ...
    def poll(self, timeout: float) -> Any: ...
    def consume(self, num_messages: int, timeout: float) -> list[Any]: ...
    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> object: ...
    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int] | None: ...
    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def memberid(self) -> str | None: ...
    def close(self) -> None: ...


class Host(Protocol):
    """The loop side. Coroutines run on the loop; the plain methods are called in the polling thread."""

    async def assigned(self, tps: frozenset[TP]) -> None: ...
    async def revoked(self, tps: frozenset[TP]) -> None: ...
    async def lost(self, tps: frozenset[TP]) -> None: ...
    async def start_at(self, committed: Mapping[TP, int]) -> Mapping[TP, int]: ...
    def new_ledger(self, generation: int) -> Ledger: ...
    def fed(self) -> None: ...
    def failed(self, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class PollingBounds:
    """Seconds, except read_max (records taken in one round).

    renew_s: for how long no group may know the consumer before it is made anew. rejoin_s: the same of one that is known and
    waits for its partitions; above loop_s, for which a rebalance may wait for another member.
    again_s: between two attempts to learn where to read from. not_there_s: for so long a topic may be unknown meanwhile.
    loop_s is above drain + flush + one commit + session timeout, so that a loop which is merely busy is not called stuck.
    """

    poll_s: float = 0.1
    read_max: int = 2_000
    full_s: float = 0.5
    wake_s: float = 0.1
    loop_s: float = 90.0
    renew_s: float = 15.0
    rejoin_s: float = 120.0
    again_s: float = 1.0
    not_there_s: float = 60.0
    committed_s: float = 5.0
    watermarks_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What the transport knows of itself, for metrics and the watchdog's dump.

    read: records read since the start, a topic. held: bytes read and not done, a topic. busy: runs being worked on.
    uncommitted: offsets done and not committed, a partition. lag: offsets up to the end of the log that are not done, of
    partitions whose end is known; a transaction marker at the end is a lag of 1 that stays. oldest_ms: the broker's time of
    the oldest record that was read and is not done.
    """

    read: Mapping[str, int]
    held: Mapping[str, int]
    busy: int
    paused: frozenset[str]
    uncommitted: Mapping[TP, int]
    lag: Mapping[TP, int]
    oldest_ms: Mapping[TP, int]
    commit_age_s: float
