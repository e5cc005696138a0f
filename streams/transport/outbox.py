"""Outbox: our own outputs, each with a future that says whether the broker has it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.transport.error_log import QUIET, ErrorLog
from streams.transport.settings import Setting


class OutboxFull(Exception):
    """The local queue is at its bound: wait for earlier records to be confirmed."""


class OutboxClosed(Exception):
    """The outbox was closed before the broker confirmed this record."""


class Confirmed(NamedTuple):
    """Where the broker put a record. timestamp: ms since epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int


CLOSE_S = 10.0
"""What closing waits for confirmations. What is not confirmed then belongs to runs that are read again."""
ROOM_SHARE = 0.5
"""Share of the queue that `room` gives out; the rest is for those who do not ask (ticks, a round of snapshots)."""
QUEUE_KBYTES = 64 << 10
QUEUE_RECORDS = 100_000

Headers = Mapping[str, bytes | None] | Sequence[tuple[str, bytes | None]]


class Outbox:
    """A librdkafka producer for one event loop.

    `send` costs tens of microseconds and never blocks; futures are resolved in batches by one wake-up of the loop.
    One thread (`rdkafka-out`) polls. Use it from the loop it was started on.
    """

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        """settings: `kafka_settings(connection, "producer")`; they bound the queue (64 MiB, 100,000 records)."""
        self._settings = dict(settings)
        self._producer: Producer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._halt = threading.Event()
        self._delivered: deque[tuple[asyncio.Future[Confirmed], KafkaError | None, Message]] = deque()
        self._pending: dict[asyncio.Future[Confirmed], int] = {}  # bytes of each
        self._pending_bytes = 0
        self._held_since: float | None = None
        self._freed = asyncio.Event()
        kbytes = int(self._settings.get("queue.buffering.max.kbytes", QUEUE_KBYTES))
        self._most_bytes = int(kbytes * 1024 * ROOM_SHARE)
        self._most = int(int(self._settings.get("queue.buffering.max.messages", QUEUE_RECORDS)) * ROOM_SHARE)

    def start(self) -> None:
        """Begin; must run on the loop that will await the futures."""
        if self._thread is not None:
            return
        self._loop = loop = asyncio.get_running_loop()
        self._halt.clear()
        self._producer = producer = Producer({**QUIET, **self._settings, "error_cb": ErrorLog("producer").say})
        self._thread = threading.Thread(target=self._poll, args=(producer, loop), name="rdkafka-out", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Records sent and not yet confirmed."""
        return len(self._pending)

    def held_s(self, now: float) -> float | None:
        """Seconds for which records have waited and none was confirmed or failed: the broker is away, or slow. None: nothing
        waits. From any thread; now: monotonic."""
        since = self._held_since
        return None if since is None else max(0.0, now - since)

    async def room(self, size: int) -> None:
        """Wait until a record of `size` bytes fits beside what is on its way; returns at once when nothing is.

        For whoever sends much: `send` fails with `OutboxFull` instead of waiting. Bounded by message.timeout.ms, after
        which whatever is on its way has failed.
        """
        while self._pending and (
            self._pending_bytes + size > self._most_bytes or len(self._pending) >= max(1, self._most)
        ):
            self._freed.clear()
            await self._freed.wait()

    def send(
        self,
        topic: str,
        key: bytes | str | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> asyncio.Future[Confirmed]:
        """Queue one record. timestamp: ms since epoch.

        The future holds where it went, or `KafkaException`, `OutboxFull`, `OutboxClosed`. A run is done only when the
        futures of its outcomes are.
        """
        producer, loop = self._producer, self._loop
        if producer is None or loop is None:
            raise OutboxClosed("send on an outbox that is not started")
        future: asyncio.Future[Confirmed] = loop.create_future()
        where: dict[str, Any] = {}
        if partition is not None:
            where["partition"] = partition
        if timestamp is not None:
            where["timestamp"] = timestamp

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered.append((future, error, message))

        try:
            listed: list[Any] = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
            producer.produce(topic, value, key, headers=listed, on_delivery=delivered, **where)
        except BufferError:
            future.set_exception(OutboxFull(f"{len(self._pending)} records wait for the broker"))
        except KafkaException as error:
            # Its traceback holds this frame, and so the future and the producer: a circle that outlives `close`.
            future.set_exception(error.with_traceback(None))
        else:
            if not self._pending:
                self._held_since = monotonic()
            self._pending[future] = size = len(value or b"") + len(key or b"")
            self._pending_bytes += size
        return future

    async def flush(self) -> None:
        """Wait until every record sent so far is confirmed or failed (message.timeout.ms bounds it). Never raises."""
        if self._pending:
            await asyncio.wait(list(self._pending))

    async def close(self) -> None:
        """Flush, for `CLOSE_S` at most, then stop the thread. Futures that are still open fail with `OutboxClosed`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        self._halt.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        self._producer = None
        for future in self._pending:
            if not future.done():
                future.set_exception(OutboxClosed())
        self._pending.clear()
        self._pending_bytes = 0
        self._held_since = None
        self._freed.set()

    def _poll(self, producer: Producer, loop: asyncio.AbstractEventLoop) -> None:
        while not self._halt.is_set():
            producer.poll(0.1)
            if self._delivered:
                try:
                    loop.call_soon_threadsafe(self._resolve)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _resolve(self) -> None:
        while self._delivered:
            future, error, message = self._delivered.popleft()
            self._pending_bytes -= self._pending.pop(future, 0)
            if future.done():
                continue
            if error is not None:
                future.set_exception(KafkaException(error))
            else:
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                future.set_result(Confirmed(str(topic), int(partition or 0), int(offset or 0), message.timestamp()[1]))
        self._held_since = monotonic() if self._pending else None
        self._freed.set()
