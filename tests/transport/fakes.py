"""Stand-ins for confluent-kafka, for tests without a broker."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_STORED, KafkaError, KafkaException, TopicPartition

from streams.transport.ledger import Ledger
from streams.transport.run import TP

DEFAULT = TP("t", 0)


class FakeRecord:
    """A `confluent_kafka.Message`."""

    def __init__(
        self, offset: int, value: bytes | None = b"v", topic: str = "t", partition: int = 0, **rest: Any
    ) -> None:
        self._offset, self._value, self._topic, self._partition, self._rest = offset, value, topic, partition, rest

    def __len__(self) -> int:
        return len(self._value or b"")

    def error(self) -> KafkaError | None:
        return self._rest.get("error")

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._rest.get("key")

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._rest.get("headers")

    def set_headers(self, headers: list[tuple[str, bytes | None]], /) -> None:
        self._rest["headers"] = headers

    def timestamp(self) -> tuple[int, int]:
        return 1, self._rest.get("timestamp", 0)


def records(first: int, count: int, tp: TP = DEFAULT) -> list[FakeRecord]:
    return [FakeRecord(offset, topic=tp.topic, partition=tp.partition) for offset in range(first, first + count)]


class FakeConsumer:
    """A `confluent_kafka.Consumer` whose group, records and committed offsets the test writes.

    Every call is kept in `calls` with the name of its thread, so that a test can state the rule that one thread calls.
    `poll` runs what the test scheduled (rebalances), then returns records of the assigned, not paused partitions.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.calls: list[tuple[str, str, Any]] = []
        self.log: dict[TP, list[FakeRecord]] = {}
        self.stored: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}  # of the log, else 100
        self.lows: dict[TP, int] = {}  # where retention has come to, else 0
        self.position: dict[TP, int] = {}
        self.stopped: set[TP] = set()
        self.scheduled: deque[Callable[[], None]] = deque()
        self.commit_error: KafkaError | None = None
        self.committed_error: KafkaError | None = None
        self.callbacks: dict[str, Callable[..., None]] = {}
        self.closed = threading.Event()
        self.member = "member-1"  # empty while the group does not know us

    def made_with(self, settings: dict[str, Any]) -> FakeConsumer:
        """Itself, for a poller that makes its consumer."""
        self.settings = settings
        return self

    def _note(self, name: str, what: Any = None) -> None:
        self.calls.append((name, threading.current_thread().name, what))

    def named(self, name: str) -> list[Any]:
        return [what for called, _, what in self.calls if called == name]

    # -- what a test schedules

    def join(self, *tps: TP) -> None:
        self.scheduled.append(lambda: self.callbacks["on_assign"](self, [TopicPartition(*tp) for tp in tps]))

    def leave(self, *tps: TP) -> None:
        self.scheduled.append(lambda: self.callbacks["on_revoke"](self, [TopicPartition(*tp) for tp in tps]))

    def lose(self, *tps: TP) -> None:
        self.scheduled.append(lambda: self.callbacks["on_lost"](self, [TopicPartition(*tp) for tp in tps]))

    # -- the interface

    def memberid(self) -> str:
        self._note("memberid")
        return self.member

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self._note("subscribe", topics)
        self.callbacks = callbacks

    def assign(self, parts: list[TopicPartition]) -> None:
        self._note("assign", [(part.topic, part.partition, part.offset) for part in parts])
        self.position = {
            TP(part.topic, part.partition): self._start(TP(part.topic, part.partition), part.offset) for part in parts
        }

    def _start(self, tp: TP, offset: int) -> int:
        return self.stored.get(tp, 0) if offset in (OFFSET_STORED, -1001) else offset

    def unassign(self) -> None:
        self._note("unassign")
        self.position = {}

    def pause(self, parts: list[TopicPartition]) -> None:
        self._note("pause", {part.topic for part in parts})
        self.stopped |= {TP(part.topic, part.partition) for part in parts}

    def resume(self, parts: list[TopicPartition]) -> None:
        self._note("resume", {part.topic for part in parts})
        self.stopped -= {TP(part.topic, part.partition) for part in parts}

    def seek(self, part: TopicPartition) -> None:
        self._note("seek", (part.topic, part.partition, part.offset))
        self.position[TP(part.topic, part.partition)] = part.offset

    def poll(self, timeout: float) -> FakeRecord | None:
        self._note("poll")
        if self.scheduled and self.callbacks:
            self.scheduled.popleft()()
        taken = self._take(1)
        if not taken:
            self.closed.wait(min(timeout, 0.002))
        return taken[0] if taken else None

    def consume(self, num_messages: int, timeout: float) -> list[FakeRecord]:
        self._note("consume")
        return self._take(num_messages)

    def _take(self, count: int) -> list[FakeRecord]:
        taken: list[FakeRecord] = []
        for tp in self.position.keys() - self.stopped:
            there = [r for r in self.log.get(tp, []) if r.offset() >= self.position[tp]][: count - len(taken)]
            failing = next((n for n, record in enumerate(there) if record.error() is not None), len(there))
            there = there[: failing + 1]  # nothing comes behind an error before it has been looked at
            if there:
                self.position[tp] = there[-1].offset() + 1
                taken += there
        return taken

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self._note("commit", {TP(part.topic, part.partition): part.offset for part in offsets})
        assert asynchronous, "nobody waits for an answer that may never come"
        if self.commit_error is not None:
            error, on_commit = self.commit_error, self.settings["on_commit"]
            self.scheduled.append(lambda: on_commit(error, offsets))
            return
        self.stored.update({TP(part.topic, part.partition): part.offset for part in offsets})

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._note("committed")
        if self.committed_error is not None:
            raise KafkaException(self.committed_error)
        return [
            TopicPartition(p.topic, p.partition, self.stored.get(TP(p.topic, p.partition), -1001)) for p in partitions
        ]

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._note("ends", {part.topic for part in partitions})
        marks = {OFFSET_BEGINNING: (self.lows, 0), OFFSET_END: (self.ends, 100)}
        return [
            TopicPartition(part.topic, part.partition, known.get(TP(part.topic, part.partition), default))
            for part in partitions
            for known, default in [marks[part.offset]]
        ]

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        self._note("watermarks")
        tp = TP(partition.topic, partition.partition)
        return self.lows.get(tp, 0), self.ends.get(tp, 100)

    def close(self) -> None:
        self._note("close")
        if self.position and "on_revoke" in self.callbacks:
            self.callbacks["on_revoke"](self, [TopicPartition(*tp) for tp in self.position])
        self.closed.set()


def ledger_with(tp: TP, sizes: Iterable[int], ledger: Ledger | None = None, first: int = 0) -> Ledger:
    """A ledger holding one run of each given length."""
    ledger = ledger or Ledger()
    for size in sizes:
        ledger.add(tp, records(first, size, tp), 0.0)
        first += size
    return ledger
