"""What is sent while something breaks: four kinds of events, with attacks and faults in turn, so that every detector has something to say.

A beat is some 50 ms of two services: `credit` with the client (predictions, signed reports, feedback), `fraud` without it
(requests, responses). What is in a beat follows from its number and the seed; only times are those of the clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from palisade.publish import encoded
from responders.signing import SigningKey
from schemas.events import CallerCounts, Report, RouteCounts
from schemas.topics import FEEDBACK, PREDICTIONS, REPORTS, REQUESTS, RESPONSES
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER
from streams.transport.settings import KafkaConnection, kafka_settings

GUARDED, PLAIN, VERSION = "credit", "fraud", "v1"
CALLERS = 30
ROWS, CALLS = 32, 8
"""A beat's rows of `credit` and calls of `fraud`."""
NUMBERS = ("income", "debt", "age", "score")
PLANS = ("free", "basic", "pro")
Phase = Literal["calm", "shift", "strange", "odd", "flood", "errors"]
PHASES: tuple[Phase, ...] = ("calm", "shift", "calm", "errors", "strange", "odd", "calm", "flood")
PHASE_BEATS = 40
DEAF_S = 20.0
"""For so long a producer may deliver nothing, and again while the broker answers others."""
LABELS_TURN_AT = 400
"""From this feedback on labels say the contrary of what was predicted."""
Headers = list[tuple[str, str | bytes | None]]


def training_table(rows: int = 6_000, seed: int = 5) -> pa.Table:
    """What the profiles are built of."""
    rng = np.random.default_rng(seed)
    columns = _features(rng, rows)
    return pa.table(
        columns
        | {"answer": _answers(columns), "caller": pa.array(f"c{n}" for n in rng.integers(0, CALLERS, rows).tolist())}
    )


def _features(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    numbers = {name: rng.normal(100 + 10 * at, 15, rows).round(2) for at, name in enumerate(NUMBERS)}
    return numbers | {"plan": rng.choice(PLANS, rows, p=[0.6, 0.3, 0.1])}


def _answers(columns: dict[str, Any]) -> Any:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp((100 - columns["income"]) / 15))).round(4)


class Load:
    """Sends beat after beat in a thread of its own until `stop`. `sent`: what the broker said that it stored.

    bounded: nothing is sent any more after so many beats, whatever is asked (the embedded broker keeps 5 MiB a partition).
    """

    def __init__(
        self,
        connection: KafkaConnection,
        signer: SigningKey,
        *,
        seed: int = 1,
        bounded: int = 1_000_000,
        beat_s: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: of the services, seconds since the epoch."""
        self._settings = kafka_settings(connection, "producer") | {"linger.ms": 5, "message.timeout.ms": 900_000}
        self._producer = Producer(self._settings)
        self._told_at = time.monotonic()
        self._answered_at: float | None = None
        self.renewed = 0
        self._signer = signer
        self._seed = seed
        self._clock = clock
        self._bounded = bounded
        self._beat_s = beat_s
        self._paused = threading.Event()
        self._boot = f"load-{time.time_ns()}"
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._asked: dict[str, int] = {}
        self._reported, self._reported_at = clock(), time.monotonic()
        self._reports = 0
        self._feedback = 0
        self._last: list[tuple[str, str, bytes, str]] = []
        self.beats = 0
        self.attempted = 0
        self.failed: list[KafkaError] = []
        self.sent: list[dict[str, Any]] = []
        """Rows of the history's table `sent`."""

    def start(self) -> Load:
        self._thread.start()
        return self

    def stop(self) -> None:
        """No beat any more; returns when the broker has told of every record."""
        self._halt.set()
        if self._thread.ident is not None:
            self._thread.join()
        left = self._producer.flush(120)
        assert left == 0, f"{left} records were not confirmed in 120 s"
        assert not self.failed, self.failed[0]

    @property
    def stopped(self) -> bool:
        return self._halt.is_set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No beats meanwhile."""
        self._paused.set()
        try:
            yield
        finally:
            self._paused.clear()

    @property
    def phase(self) -> Phase:
        return PHASES[self.beats // PHASE_BEATS % len(PHASES)]

    def send(self, topic: str, key: str, value: bytes, kind: str, content: str = JSON_TYPE, rows: int = 1) -> None:
        """One record of the caller's own making, counted like all others."""
        headers: Headers = [(KIND_HEADER, kind.encode()), (CONTENT_TYPE_HEADER, content.encode())]
        self._send(topic, key, value, headers, rows)

    def bulk(self, rows: int, a_record: int = 500) -> None:
        """So many calm predictions at once, in records of `a_record`, besides the beats. Returns when all are on their way."""
        for number in range(-(-rows // a_record)):
            rng = np.random.default_rng([self._seed, 7, number])
            columns = _features(rng, a_record)
            callers = [f"c{n}" for n in rng.integers(0, CALLERS, a_record).tolist()]
            table = self._table(columns, callers, [f"{self._boot}-bulk-{number}-{row}" for row in range(a_record)])
            self.send(PREDICTIONS, GUARDED, encoded(table), "prediction", ARROW_TYPE, a_record)

    def repeat(self) -> None:
        """The last request and response again, as a producer's retry would: the same ids, once more."""
        for topic, key, value, kind in self._last:
            self.send(topic, key, value, kind)

    def send_as(self, topic: str, key: str, value: bytes, headers: Headers, rows: int) -> None:
        """The same with headers of the caller's own, signatures among them."""
        self._send(topic, key, value, headers, rows)

    def _run(self) -> None:
        while not self._halt.wait(self._beat_s):
            if self.beats < self._bounded and not self._paused.is_set():
                self._beat()
            self._producer.poll(0)

    def _beat(self) -> None:
        rng, phase = np.random.default_rng([self._seed, self.beats]), self.phase
        self._predictions(rng, phase)
        self._calls(rng)
        if time.monotonic() - self._reported_at >= 1.0:
            self._report(phase)
        self.beats += 1

    # -- credit, which embeds the client

    def _predictions(self, rng: np.random.Generator, phase: Phase) -> None:
        columns = _features(rng, ROWS)
        callers = np.array([f"c{n}" for n in rng.integers(0, CALLERS, ROWS).tolist()], dtype=object)
        if phase == "shift":
            columns["income"] = columns["income"] * 2.5
        if phase == "strange":
            callers[::4] = "prober"
            for name in NUMBERS:
                columns[name][::4] = rng.uniform(-400, 800, len(columns[name][::4]))
        ids = [f"{self._boot}-{self.beats}-{row}" for row in range(ROWS)]
        table = self._table(columns, callers.tolist(), ids)
        self.send(PREDICTIONS, GUARDED, encoded(table), "prediction", ARROW_TYPE, ROWS)
        if phase == "odd":
            self._odd_ones()
        for caller in callers.tolist():
            self._asked[caller] = self._asked.get(caller, 0) + 1
        self._labels(ids[:4], _answers(columns)[:4].tolist())

    def _table(self, columns: dict[str, Any], callers: list[str], ids: list[str]) -> pa.Table:
        rows = len(ids)
        about = {
            "endpoint": pa.array([GUARDED] * rows),
            "model_version": pa.array([VERSION] * rows),
            "caller": pa.array(callers),
            "caller_auth": pa.array(["verified"] * rows),
            "request_id": pa.array(ids),
            "ts": pa.array([int(self._clock() * 1000)] * rows, pa.int64()),
            "prediction": pa.array(_answers(columns)),
        }
        return pa.table(about | {f"features.{name}": column for name, column in columns.items()})

    def _odd_ones(self) -> None:
        """Events that lack features and bring others, and records that cannot be decoded, all of one caller."""
        about = {"endpoint": GUARDED, "model_version": VERSION, "caller": "fuzzer", "caller_auth": "verified"}
        events = [about | {"features": {"income": float("nan"), "unheard_of": n}} for n in range(8)]
        self.send(PREDICTIONS, GUARDED, json.dumps(events).encode(), "prediction", rows=len(events))
        self.send(PREDICTIONS, GUARDED, json.dumps(about)[:-9].encode(), "prediction")

    def _labels(self, ids: list[str], answers: list[float]) -> None:
        for request_id, answer in zip(ids, answers, strict=True):
            right = round(answer)
            label = right if self._feedback < LABELS_TURN_AT else 1 - right
            feedback = {"endpoint": GUARDED, "request_id": request_id, "label": label, "source": "ledger"}
            self.send(FEEDBACK, GUARDED, json.dumps(feedback).encode(), "feedback")
            self._feedback += 1

    def _report(self, phase: Phase) -> None:
        now, since = self._clock(), self._reported
        asked, self._asked = self._asked, {}
        if phase == "flood":
            asked["flooder"] = 3_000
        total, failing = sum(asked.values()), phase == "errors"
        errors = total // 2 if failing else 0
        report = Report(
            endpoint=GUARDED,
            guard_id="guard-1",
            boot_id=self._boot,
            seq=self._reports,
            from_ms=int(since * 1000),
            to_ms=int(now * 1000),
            live_version=VERSION,
            asked=total,
            routes=[RouteCounts(route="primary", version=VERSION, served=total - errors, errors=errors)],
            fallback_ok=True,
            distinct_callers=len(asked),
            callers=[
                CallerCounts(caller=caller, caller_auth="verified", asked=count, served=count)
                for caller, count in sorted(asked.items())
            ],
        )
        value = report.to_bytes()
        headers: Headers = [(KIND_HEADER, Report.KIND.encode()), *self._signer.headers(Report.KIND, value)]
        self._send(REPORTS, GUARDED, value, headers, 1)
        self._reports, self._reported, self._reported_at = self._reports + 1, now, time.monotonic()

    # -- fraud, which does not

    def _calls(self, rng: np.random.Generator) -> None:
        columns = _features(rng, CALLS)
        for row, answer in enumerate(_answers(columns).tolist()):
            request_id = f"{self._boot}-{self.beats}-{row}"
            about = {"endpoint": PLAIN, "request_id": request_id, "ts": int(self._clock() * 1000)}
            features = {name: column[row].item() for name, column in columns.items()}
            asks = about | {"caller": f"c{row}", "caller_auth": "verified", "features": features}
            answers = about | {"prediction": answer, "model_version": VERSION, "latency_ms": 3.0, "status": "ok"}
            pair = (
                (REQUESTS, json.dumps(asks).encode(), "request"),
                (RESPONSES, json.dumps(answers).encode(), "response"),
            )
            self._last = [(topic, request_id, value, kind) for topic, value, kind in pair]
            for each in self._last:
                self.send(*each)

    def _send(self, topic: str, key: str, value: bytes, headers: Headers, rows: int) -> None:
        self.attempted += rows
        told = self._told(rows)
        while True:
            try:
                self._producer.produce(topic, value, key.encode(), headers=headers, on_delivery=told)
                return
            except BufferError:
                self._producer.poll(0.1)
                self._renew()

    def _renew(self) -> None:
        """librdkafka can forget all brokers (its issue 5301): a producer that delivers nothing while others are answered is made
        anew. What it held was not sent, or is not known to be."""
        now = time.monotonic()
        if now - self._told_at < DEAF_S:
            self._answered_at = None
        elif self._answered_at is None:
            with suppress(KafkaException):
                Producer(self._settings).list_topics(timeout=5)
                self._answered_at = now
        elif now - self._answered_at > DEAF_S:
            self._told_at, self._answered_at, self._producer = now, None, Producer(self._settings)
            self.renewed += 1

    def _told(self, rows: int) -> Callable[[KafkaError | None, Message], None]:
        def told(error: KafkaError | None, message: Message) -> None:
            self._told_at = time.monotonic()
            if error is not None:
                self.failed.append(error)
                return
            place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
            self.sent.append(place | {"rows": rows, "producer": "load"})

        return told
