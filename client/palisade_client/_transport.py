"""Kafka behind a small seam: send records, and follow one endpoint's partition of the directives."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from time import monotonic
from typing import Any, NamedTuple, Protocol

from palisade_client._log import log_fault, logger
from palisade_client._plaintext import check_encryption
from palisade_client._wire import DIRECTIVES, partition_of

REPORT_QUEUE = 1_000
"""Reports that may wait while Kafka is away; older ones than 10 s are worthless and expire."""
PREDICTION_QUEUE_KB = 32_768
"""Bytes of predictions that librdkafka may hold; beyond it they are dropped and counted."""
LOOK_UP_S = 1.0
"""Pause between attempts to find the directives topic."""
GROUPS = "palisade-guard-"
"""How the groups begin that are only named; the broker must let us ask about them."""
ASK_S = 20.0
"""Between questions whether the broker is still there, while no directive comes."""
RENEW_S = 60.0
"""Nothing delivered, or nobody answering, for so long: the client is made anew. librdkafka 2.12 to 2.16 forgets every broker
where one that shuts down says that there is none (its issue 5301), and then never asks again."""
LEAVE_S = 0.5
"""How long `close` waits for the following thread; it is a daemon, so nothing depends on its end."""


class Record(NamedTuple):
    """A record read. `timestamp_ms` is the broker's time of it (or its creator's, where the broker keeps none)."""

    key: str | None
    value: bytes | None
    headers: Mapping[str, bytes]
    timestamp_ms: int


class Delivery(NamedTuple):
    """What became of a record sent; `broker_ms` is the time that the broker gave it, None if it gave none."""

    delivered: bool
    broker_ms: int | None


Done = Callable[[Delivery], None]


class Follower(Protocol):
    """Told of each record of the partition, and once when all that was in it at the start has been told."""

    def on_record(self, record: Record) -> None: ...

    def on_end(self) -> None: ...


class Transport(Protocol):
    """`background`: False makes Guard and Emitter start no threads, so that tests step them by `flush`."""

    background: bool

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        """Hands a record over without waiting; False if the queue is full. `done` is called from `poll` or `flush`."""
        ...

    def poll(self) -> None:
        """Calls what is due of `done`; never waits."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Waits until everything sent is delivered or failed, at most `timeout_s`."""
        ...

    def follow(self, endpoint: str, follower: Follower) -> None:
        """Starts telling `follower` of the endpoint's partition of `palisade.directives`."""
        ...

    def close(self, timeout_s: float) -> None:
        """Flushes, at most `timeout_s`, and stops following."""
        ...


class NullTransport:
    """No Kafka: nothing is reported, emitted or followed; timeouts and fallbacks of the Guard itself still work."""

    background = True

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        del topic, key, value, headers, done
        return True

    def poll(self) -> None: ...

    def flush(self, timeout_s: float) -> None: ...

    def follow(self, endpoint: str, follower: Follower) -> None: ...

    def close(self, timeout_s: float) -> None: ...


class KafkaTransport:
    """One producer of its own, and where asked a consumer that assigns one partition and joins no group.

    Reports and predictions have a producer each, so that a report never queues behind predictions. PlaintextRefused
    where they would leave this machine unencrypted and `allow_plaintext` does not say so.
    """

    background = True

    def __init__(
        self,
        bootstrap: str,
        settings: Mapping[str, Any],
        *,
        predictions: bool = False,
        allow_plaintext: bool = False,
        ask_s: float = ASK_S,
        renew_s: float = RENEW_S,
    ) -> None:
        from confluent_kafka import Producer  # here, so that importing the package stays cheap

        check_encryption(bootstrap, settings, allow_plaintext=allow_plaintext)
        self._base: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "error_cb": _log_error,  # librdkafka's own log would write 20 lines a second while Kafka is away
            "log_level": 2,
            "reconnect.backoff.ms": 200,
            "reconnect.backoff.max.ms": 2000,
            "fetch.wait.max.ms": 50,  # a broker answers as soon as there is a directive; a mock broker only then
        }
        self._base |= settings
        lane: dict[str, Any] = (
            {"queue.buffering.max.kbytes": PREDICTION_QUEUE_KB, "message.timeout.ms": 30_000, "compression.type": "lz4"}
            if predictions
            else {"queue.buffering.max.messages": REPORT_QUEUE, "message.timeout.ms": 10_000}
        )
        common = {"partitioner": "murmur2_random", "linger.ms": 0, "enable.idempotence": True}
        self._make = partial(Producer, self._base | common | lane)
        self._producer = self._make()
        self._ask_s, self._renew_s = ask_s, renew_s
        self._failing_since: float | None = None
        self._retired: Any = None  # a producer that was replaced, while it holds records
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        def on_delivery(error: Any, message: Any) -> None:
            self._note(error is None)
            done(Delivery(error is None, None if error is not None else _append_time(message)))

        try:
            self._producer.produce(topic, value, key, headers=dict(headers), on_delivery=on_delivery)
        except BufferError:
            return False
        except Exception as error:
            if not _is_fatal(error):
                raise
            self._begin_anew("Kafka's producer has failed for good and is replaced")
            return False
        return True

    def poll(self) -> None:
        retired = self._retired
        for producer in (self._producer, retired):
            try:
                if producer is not None:
                    producer.poll(0)
            except Exception:  # noqa: BLE001 - a fatal error, or a callback of the service's settings: no fault of a call
                log_fault("deliveries could not be told")
        if retired is not None and not len(retired):
            self._retired = None

    def _note(self, delivered: bool) -> None:
        now = monotonic()
        if delivered:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self._renew_s:
            self._begin_anew("nothing was delivered for long: Kafka's producer is replaced")

    def flush(self, timeout_s: float) -> None:
        try:
            self._producer.flush(timeout_s)
        except Exception:  # noqa: BLE001 - likewise
            log_fault("deliveries could not be told")

    def follow(self, endpoint: str, follower: Follower) -> None:
        reader = threading.Thread(
            target=self._follow, args=(endpoint, follower), name=f"palisade-follow-{endpoint}", daemon=True
        )
        self._threads.append(reader)
        reader.start()

    def close(self, timeout_s: float) -> None:
        self._stop.set()
        self.flush(timeout_s)
        for thread in self._threads:
            thread.join(LEAVE_S)

    def _begin_anew(self, why: str) -> None:
        """After a fatal error, such as a broker that lost what it had confirmed, a producer sends nothing ever again. What the
        old one still holds is delivered or fails, and is told by `poll`."""
        log_fault(why)
        self._failing_since = None
        try:
            self._retired, self._producer = self._producer, self._make()
        except Exception:  # noqa: BLE001 - no fault of a call: a certificate that is just being replaced, say
            log_fault("Kafka's producer could not be replaced yet")

    def abandon(self) -> None:
        """Called in a forked child: the parent's librdkafka threads are not here, so its destructor would never end."""
        import ctypes

        for producer in (self._producer, self._retired):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(producer))

    def _follow(self, endpoint: str, follower: Follower) -> None:
        from confluent_kafka import Consumer

        settings = {
            "group.id": f"{GROUPS}{os.getpid()}",  # demanded by librdkafka; `assign` joins no group
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_uncommitted",  # epochs fence, and a directive must not wait for a transaction
            "check.crcs": True,
        }
        place: Any = None
        while not self._stop.is_set():
            try:
                consumer = Consumer(self._base | settings)
                try:
                    place = place or self._place(consumer, endpoint)
                    if place is not None:
                        consumer.assign([place])
                        self._read(consumer, place, follower)
                finally:
                    consumer.close()
            except Exception:  # noqa: BLE001 - whatever it is, a Guard that follows no directive is of no use
                log_fault("palisade.directives is followed again in a second")
                self._stop.wait(LOOK_UP_S)

    def _place(self, consumer: Any, endpoint: str) -> Any:
        """The beginning of the endpoint's partition; None when it was not found for long."""
        from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

        until = monotonic() + self._renew_s
        while not self._stop.is_set() and monotonic() < until:
            try:
                topic = consumer.list_topics(DIRECTIVES, timeout=2.0).topics[DIRECTIVES]
                if topic.error is None and topic.partitions:
                    return TopicPartition(DIRECTIVES, partition_of(endpoint, len(topic.partitions)), OFFSET_BEGINNING)
                log_fault("palisade.directives cannot be followed yet:", topic.error)
            except KafkaException as error:
                log_fault("palisade.directives cannot be followed yet:", error)
            self._stop.wait(LOOK_UP_S)
        return None

    def _read(self, consumer: Any, place: Any, follower: Follower) -> None:
        """Until the end, or until nobody has answered for long; `place.offset` is what comes next."""
        from confluent_kafka import KafkaException

        answered_at = asked_at = monotonic()
        while not self._stop.is_set() and asked_at - answered_at <= self._renew_s:
            offset = self._step(consumer, follower)
            if offset is not None:
                place.offset, answered_at = offset + 1, monotonic()
            if monotonic() - max(asked_at, answered_at) > self._ask_s:
                asked_at = monotonic()
                try:
                    consumer.get_watermark_offsets(place, timeout=2.0)
                    answered_at = asked_at
                except KafkaException as error:
                    log_fault("following palisade.directives:", error)

    @staticmethod
    def _step(consumer: Any, follower: Follower) -> int | None:
        """The offset of the record that came, if one did."""
        from confluent_kafka import KafkaError

        message = None
        try:
            message = consumer.poll(0.2)
            if message is None:
                return None
            error = message.error()
            if error is None:
                follower.on_record(_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                follower.on_end()
            else:
                log_fault("following palisade.directives:", error)
        except Exception:  # noqa: BLE001 - a fault of ours must not end the following
            log_fault("a directive could not be handled")
        return None if message is None or message.error() is not None else int(message.offset())


def _is_fatal(error: Exception) -> bool:
    from confluent_kafka import KafkaError, KafkaException

    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError._FATAL


def _append_time(message: Any) -> int | None:
    """The broker's append time; None where the broker keeps the creator's, or where it is no time (mock brokers)."""
    from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

    kind, at_ms = message.timestamp()
    return at_ms if kind == TIMESTAMP_LOG_APPEND_TIME and at_ms > 1_000_000_000_000 else None


_headers_of = methodcaller("headers")
"""Called from C: where a name is not UTF-8 confluent-kafka 2.16 answers with a half-made list and an exception, which the
interpreter's own fast call does not look for; a look at that list ends the process."""


def _record(message: Any) -> Record:
    try:
        pairs = _headers_of(message) or []
    except (SystemError, UnicodeDecodeError):  # a header's name is not UTF-8: nothing that we or Palisade wrote
        pairs = []
    headers = {name: value for name, value in pairs if isinstance(value, bytes)}
    key = message.key()
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
    return Record(text, message.value(), headers, message.timestamp()[1])


def _log_error(error: Any) -> None:
    logger.debug("kafka: %s", error)
    log_fault("Kafka is not well:", error.name() if hasattr(error, "name") else error)
