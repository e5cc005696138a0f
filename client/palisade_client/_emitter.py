"""Predictions to Kafka, without ever making their caller wait: a bounded queue, one thread, counted drops."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

from palisade_client._caller import CallerAuth
from palisade_client._encode import Event, encode, plain_features, plain_outcome, weight_of
from palisade_client._forking import on_fork
from palisade_client._log import log_fault, logger
from palisade_client._plaintext import check_encryption
from palisade_client._redact import Redactor, Rules, UnreadableFeatures, redaction_key
from palisade_client._transport import Delivery, KafkaTransport, NullTransport, Transport
from palisade_client._wire import CONTENT_TYPE_HEADER, KIND_HEADER, PREDICTIONS, clean_id

LINGER_S = 0.020
"""How long the first waiting prediction waits for company."""
MAX_QUEUED = 20_000
"""Predictions that may wait for the thread: some 0.4 s of a very busy process."""
MAX_QUEUED_BYTES = 33_554_432
"""And their weight in bytes."""
MAX_DRAIN = 4_000
"""Predictions encoded in one go, so that one endpoint's burst does not hold the thread for long."""
IDLE_S = 0.25
"""How often deliveries are looked for while nothing comes."""


class Details(TypedDict, total=False):
    """Fields of a prediction besides endpoint, features and outcome, with the contract's defaults.

    `ts`: event time, ms since the epoch, default now. `weight`: 1 / sampling rate. `request_id`: the service's own, by which
    labels find the prediction later; see `name_request`.
    """

    model_version: str
    artifact_digest: str | None
    caller: str
    caller_auth: CallerAuth
    ts: int
    latency_ms: float
    status: Literal["ok", "error", "timeout", "unanswered"]
    served_by: str
    weight: float
    request_id: str


class Waiting(NamedTuple):
    """What a call leaves beside features and outcome: the rest of an event is made in the thread."""

    endpoint: str
    model_version: str
    artifact_digest: str | None
    caller: str
    caller_auth: CallerAuth
    ts: int
    latency_ms: float
    status: str
    served_by: str
    weight: float
    request_id: str = ""


class Taken(NamedTuple):
    """Features as plain values, and what they weigh in the queue, bytes."""

    features: dict[str, Any] | list[Any]
    size: int


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How a Guard or an Emitter reaches Kafka, as its service said. `settings` may hold passwords: they are not shown."""

    bootstrap: str | None = None
    settings: Mapping[str, Any] | None = field(default=None, repr=False)
    allow_plaintext: bool = False

    @property
    def address(self) -> str:
        """`bootstrap`, else `PALISADE_BOOTSTRAP`; empty if there is none."""
        return self.bootstrap or os.environ.get("PALISADE_BOOTSTRAP", "")

    def check(self) -> None:
        """Raises PlaintextRefused, so that a service hears of it at construction and not at its first call."""
        if self.address:
            check_encryption(self.address, self.settings or {}, allow_plaintext=self.allow_plaintext)


def connect(options: KafkaOptions, *, predictions: bool) -> Transport:
    """Kafka; nowhere without an address or with settings that are refused.

    This happens at the first call in each process, so it must not raise: what is wrong is logged as an error.
    """
    where = options.address
    if not where:
        log_fault("No Kafka address: pass bootstrap or set PALISADE_BOOTSTRAP. Nothing is reported or followed.")
        return NullTransport()
    try:
        return KafkaTransport(
            where, options.settings or {}, predictions=predictions, allow_plaintext=options.allow_plaintext
        )
    except Exception:  # noqa: BLE001 - KafkaException, ValueError or TypeError, as librdkafka likes
        logger.exception("THE KAFKA SETTINGS ARE REFUSED: nothing is reported or followed")
        return NullTransport()


class Emitter:
    """Sends predictions of one process; may be shared by several Guards. Thread-safe, ready for prefork servers.

    Its thread and its producer are made on the first prediction in each process. At most `max_queued` predictions and
    `max_queued_bytes` bytes wait; beyond it they are dropped and counted, never waited for. No method raises on
    account of Kafka or of odd values.

    `sensitive`: the rules of each endpoint for features that must not leave the process as they are, see `Redactor`;
    `sensitive_key_file`: the key of `hash` (env `PALISADE_REDACTION_KEY`). The thread applies them, before it encodes;
    what they cannot be applied to is dropped. Without TLS only Kafka on this machine is reached, unless `allow_plaintext`
    says otherwise (env `PALISADE_ALLOW_PLAINTEXT=1`). ValueError or OSError at construction for what is wrong or refused.
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        *,
        kafka_settings: Mapping[str, Any] | None = None,
        allow_plaintext: bool = False,
        max_queued: int = MAX_QUEUED,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        linger_s: float = LINGER_S,
        sensitive: Mapping[str, Rules] | None = None,
        sensitive_key_file: str | os.PathLike[str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._redactors: dict[str, Redactor] = {}
        for name, rules in (sensitive or {}).items():
            self.redact(clean_id(name), Redactor(rules, redaction_key(sensitive_key_file)))
        kafka = KafkaOptions(bootstrap, kafka_settings, allow_plaintext)
        if transport is None:
            kafka.check()
        self._connect: Callable[[], Transport] = (
            partial(connect, kafka, predictions=True) if transport is None else lambda: transport
        )
        self._max_queued, self._max_bytes, self._linger_s = max_queued, max_queued_bytes, linger_s
        self.producer_id = ""
        self._reset()
        on_fork(self, Emitter._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._queue: deque[tuple[Waiting, Any, Any, int]] = deque()
        self._bytes = 0
        self._seq = 0
        self._dropped: dict[str, int] = {}
        self._idle = True
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        old: Transport | None = getattr(self, "_transport", None)
        if isinstance(old, KafkaTransport):
            old.abandon()
        self._transport: Transport | None = None

    def redact(self, endpoint: str, redactor: Redactor) -> None:
        """From now on predictions of `endpoint` are redacted. ValueError if other rules hold for it already."""
        known = self._redactors.setdefault(endpoint, redactor)
        if known.rules != redactor.rules:
            raise ValueError(
                f"sensitive: two Guards or Emitters of {endpoint} have different rules: give both the same"
            )

    def start(self) -> None:
        """Connects and starts the thread, if this process has not yet; otherwise the first prediction does."""
        with self._lock:
            if self._transport is not None:
                return
            self.producer_id = f"emitter-{uuid.uuid4().hex[:16]}"
            self._transport = transport = self._connect()
            if transport.background:
                self._thread = threading.Thread(target=self._run, name="palisade-emit", daemon=True)
                self._thread.start()

    def emit(self, endpoint: str, features: Any, prediction: Any = None, **details: Unpack[Details]) -> bool:
        """Queues one prediction; False if it was dropped. For services that use no Guard; see `Details`."""
        known: Details = {
            "model_version": "default",
            "artifact_digest": None,
            "caller": "anonymous",
            "caller_auth": "claimed",
            "ts": time.time_ns() // 1_000_000,
            "latency_ms": 0.0,
            "status": "ok",
            "served_by": "primary",
            "weight": 1.0,
        }
        known.update(details)
        known["request_id"] = clean_id(known["request_id"]) if known.get("request_id") else ""
        endpoint = clean_id(endpoint)
        redactor = self._redactors.get(endpoint)
        known["caller"] = clean_id(known["caller"]) if redactor is None else redactor.caller(known["caller"])
        taken = self.take(endpoint, features)
        return taken is not None and self.put(Waiting(endpoint, **known), taken, prediction)

    def take(self, endpoint: str, features: Any) -> Taken | None:
        """A copy of `features` in plain values, that nobody can change any more; None, and a drop, if unreadable."""
        try:
            return Taken(*plain_features(features))
        except Exception:  # noqa: BLE001 - odd values of a service must not fail its call
            # an exception may hold the value that it stumbled on
            log_fault("the features of a prediction could not be read", trace=endpoint not in self._redactors)
            self.note_dropped(endpoint, 1)
            return None

    def put(self, waiting: Waiting, taken: Taken, prediction: Any) -> bool:
        """Queues a prediction whose ids are clean and whose features are `taken`; False if it was dropped."""
        plain, size = taken
        try:
            if self._transport is None:
                self.start()
            outcome = plain_outcome(prediction)
            size += weight_of(outcome)
        except Exception:  # noqa: BLE001 - likewise
            log_fault("the outcome of a prediction could not be read")
            self.note_dropped(waiting.endpoint, 1)
            return False
        with self._lock:
            if len(self._queue) >= self._max_queued or self._bytes + size > self._max_bytes:
                self._dropped[waiting.endpoint] = self._dropped.get(waiting.endpoint, 0) + 1
                return False
            self._queue.append((waiting, plain, outcome, size))
            self._bytes += size
        if self._idle:
            self._wake.set()
        return True

    def take_dropped(self, endpoint: str) -> int:
        """Predictions of `endpoint` dropped since the last call: queue full, too large, or not delivered."""
        with self._lock:
            return self._dropped.pop(endpoint, 0)

    def flush(self, timeout_s: float = 2.0) -> None:
        """Sends what waits now and waits for its delivery, at most `timeout_s` for Kafka."""
        self._drain_all()
        if self._transport is not None:
            self._transport.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stops the thread, sends what waits and waits for its delivery, at most `timeout_s` for Kafka."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._drain_all()
        if self._transport is not None:
            self._transport.close(timeout_s)

    def _run(self) -> None:
        """Drains every `linger_s` while predictions come; waking a thread for each would cost its caller 10 us."""
        while not self._stop.is_set():
            if self._idle:
                self._wake.wait(IDLE_S)
                self._wake.clear()
            self._idle = False
            self._stop.wait(self._linger_s)
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - such as a callback of the service's Kafka settings that raises
                log_fault("predictions could not be sent")

    def _turn(self) -> None:
        self._idle = not self._drain()
        if self._queue:  # came after the drain, and perhaps before `emit` could see that we idle
            self._idle = False
        while len(self._queue) >= MAX_DRAIN and self._drain():
            pass
        if self._transport is not None:
            self._transport.poll()

    def _drain_all(self) -> None:
        """Sends what waits now; what comes meanwhile waits for the next turn, so that this ends under any load."""
        for _ in range(len(self._queue) // MAX_DRAIN + 1):
            self._drain()

    def _drain(self) -> bool:
        """Sends at most 4,000 waiting predictions; False if none waited."""
        with self._sending:
            with self._lock:
                taken = [self._queue.popleft() for _ in range(min(MAX_DRAIN, len(self._queue)))]
                self._bytes -= sum(item[3] for item in taken)
            by_endpoint: dict[str, list[Event]] = {}
            for waiting, features, prediction, _ in taken:
                self._seq += 1
                if not self._redacted(waiting.endpoint, features):
                    continue
                event = _event(waiting, features, prediction, self.producer_id, self._seq)
                by_endpoint.setdefault(event.endpoint, []).append(event)
            for endpoint, events in by_endpoint.items():
                try:
                    self._send(endpoint, events)
                except Exception:  # noqa: BLE001 - counted as dropped; the thread must go on
                    log_fault("predictions could not be sent")
                    self.note_dropped(endpoint, len(events))
            return bool(taken)

    def _redacted(self, endpoint: str, features: Any) -> bool:
        """Redacts our copy of a prediction's features; False, and a drop, if that cannot be done."""
        redactor = self._redactors.get(endpoint)
        if redactor is None:
            return True
        try:
            redactor.row(features)
        except UnreadableFeatures as why:
            log_fault(f"{endpoint}: predictions are NOT SENT:", why, trace=False)
        except Exception:  # noqa: BLE001 - what could not be redacted is not sent, and not shown
            log_fault(f"{endpoint}: predictions are NOT SENT: they could not be redacted", trace=False)
        else:
            return True
        self.note_dropped(endpoint, 1)
        return False

    def _send(self, endpoint: str, events: list[Event]) -> None:
        transport = self._transport
        if transport is None:
            return
        for record in encode(events):
            if isinstance(record, int):
                logger.debug("%d prediction(s) of %s fit into no record", record, endpoint)
                self.note_dropped(endpoint, record)
                continue
            headers = {KIND_HEADER: b"prediction", CONTENT_TYPE_HEADER: record.content_type.encode()}
            done = partial(self._delivered, endpoint, record.rows)
            if not transport.send(PREDICTIONS, endpoint, record.value, headers, done):
                self.note_dropped(endpoint, record.rows)
        transport.poll()

    def _delivered(self, endpoint: str, rows: int, delivery: Delivery) -> None:
        if not delivery.delivered:
            self.note_dropped(endpoint, rows)

    def note_dropped(self, endpoint: str, rows: int) -> None:
        """Counts predictions that were dropped, or whose loss was told in a report that was lost itself."""
        with self._lock:
            self._dropped[endpoint] = self._dropped.get(endpoint, 0) + rows


def _event(waiting: Waiting, features: Any, prediction: Any, producer: str, seq: int) -> Event:
    return Event(
        waiting.endpoint,
        features,
        producer,
        seq,
        waiting.request_id or f"{producer}-{seq}",
        waiting.model_version,
        waiting.artifact_digest,
        waiting.caller,
        waiting.caller_auth,
        waiting.ts,
        waiting.latency_ms,
        waiting.status,
        waiting.served_by,
        prediction,
        waiting.weight,
    )
