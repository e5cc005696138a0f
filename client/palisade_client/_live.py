"""What a Guard knows and does in one process: admits calls, counts them, reports, follows its directive."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from palisade_client._clock import Clock
from palisade_client._counts import CallerKey, Counts, Failure, Route
from palisade_client._directives import NOTHING, DirectiveState, Orders
from palisade_client._emitter import Emitter, Taken, Waiting
from palisade_client._errors import CallerLimited
from palisade_client._fallback import Fallback
from palisade_client._keys import PublicKeys
from palisade_client._limits import Limiter
from palisade_client._log import log_fault, logger
from palisade_client._redact import Redactor
from palisade_client._transport import Delivery, Record, Transport
from palisade_client._wire import (
    CONTENT_TYPE_HEADER,
    JSON_TYPE,
    KIND_HEADER,
    REPORTS,
    SCHEMA_VERSION,
    clean_id,
    sign,
    to_json,
)

REPORT_S = 1.0
EARLY_REPORT_S = 0.25
"""Reports come at most 4 a second."""
KILL_CHECK_S = 0.5
POLL_S = 0.1
BROKER_TIME_WAIT_S = 2.0
"""How long a directive found at the start waits for the broker's time of our first report."""
MAX_PROBES = 4
"""Probes under way: without `timeout_s` a model that hangs holds so many of its service's threads, and no more."""
MAX_HELD = 1_000
"""Directives of this endpoint held while the partition is read for the first time; the oldest give way."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a Guard is, in every process of the service."""

    endpoint: str
    version: str
    artifact_digest: str | None
    keys: PublicKeys
    signer: Ed25519PrivateKey | None
    kill_file: str | None
    sample: float
    redactor: Redactor | None = None


class Live:
    """One process's half of a Guard. Its threads: reporter, follower (in the transport), emitter (in the Emitter)."""

    def __init__(
        self, identity: Identity, fallback: Fallback, emitter: Emitter, transport: Transport, clock: Clock
    ) -> None:
        self.identity, self.fallback, self.emitter, self.clock = identity, fallback, emitter, clock
        self.transport = transport
        self.counts = Counts(identity.version)
        self.orders: Orders = NOTHING
        self.killed = self._killed_here = False
        self.known_as = clean_id if identity.redactor is None else identity.redactor.caller
        """The id by which a caller is counted, reported and limited."""
        self.guard_id = f"guard-{uuid.uuid4().hex[:16]}"
        self.state = DirectiveState(identity.endpoint, identity.keys, self.guard_id)
        self._boot_id = uuid.uuid4().hex
        self._limiter = Limiter()
        self._routed = count(1)
        self._probes = threading.Semaphore(MAX_PROBES)
        self._random = Random()  # noqa: S311 - sampling, not secrecy
        self._wake, self._stop = threading.Event(), threading.Event()
        self._directive_lock, self._report_lock = threading.RLock(), threading.Lock()
        self._held: deque[Record] = deque(maxlen=MAX_HELD)
        self._read_to_end = False
        self._broker_offset_ms: float | None = None
        self._broker_known = threading.Event()
        self._seq = 0
        self._from_ms = clock.wall_ms()
        self._last_report = self._last_kill_check = float("-inf")
        self._directive_refused: str | None = None
        self._reporter: threading.Thread | None = None

    def start(self) -> None:
        """Starts following and reporting; the first report is written at once."""
        self.emitter.start()
        self._check_kill()
        if self.transport.background:
            self._reporter = threading.Thread(
                target=self._run, name=f"palisade-report-{self.identity.endpoint}", daemon=True
            )
            self._reporter.start()
        else:
            self.report()
        self.transport.follow(self.identity.endpoint, self)

    def close(self, timeout_s: float) -> None:
        """Stops the threads and writes a last report."""
        self._stop.set()
        self._wake.set()
        if self._reporter is not None:
            self._reporter.join(timeout_s)
        self.report()
        self.transport.close(timeout_s)

    # -- calls -------------------------------------------------------------------------------------------------------

    def admit(self, key: CallerKey, features: Any) -> Route:
        """Counts a call that begins and says who is to answer it; CallerLimited if nobody is."""
        if self.counts.ask(key):
            self._wake.set()
        if self.fallback.wants_features:
            self.fallback.last_features = features
        orders = self.orders
        if orders is NOTHING:
            return "primary"
        now = self.clock.monotonic()
        limit = orders.limits.get(key[0])
        if limit is not None and now < limit.until:
            refusal = self._limiter.admit(limit, key[0], key[1], now)
            if refusal is not None:
                self.counts.refuse(key)
                taken = self.take(features) if refusal.emit else None
                if taken is not None:
                    self.emit(key, taken, None, served_by="refused", status="unanswered", ts=self.clock.wall_ms())
                raise CallerLimited(key[0], refusal.retry_after, limit.action_id)
        if now < orders.route_until and self.fallback.ok:
            due = orders.probe_every and next(self._routed) % orders.probe_every == 0
            return "probe" if due and self._probes.acquire(blocking=False) else "fallback"
        return "primary"

    def end_probe(self) -> None:
        """A call that was admitted as a probe has ended."""
        self._probes.release()

    def failed(self, route: Route, failure: Failure) -> None:
        """Counts a failed attempt, and hurries the report if it is the first."""
        if self.counts.fail(route, failure):
            self._wake.set()

    def take(self, features: Any) -> Taken | None:
        """The features as the call got them, to be emitted at its end; None if sampling leaves it out."""
        sample = self.identity.sample
        if sample < 1.0 and self._random.random() >= sample:
            return None
        return self.emitter.take(self.identity.endpoint, features)

    def emit(
        self,
        key: CallerKey,
        taken: Taken,
        prediction: Any,
        *,
        served_by: str,
        status: str = "ok",
        ts: int,
        latency_ms: float = 0.0,
        request_id: str = "",
    ) -> None:
        """Queues the prediction."""
        identity = self.identity
        waiting = Waiting(
            identity.endpoint,
            identity.version,
            identity.artifact_digest,
            key[0],
            key[1],
            ts,
            latency_ms,
            status,
            served_by,
            1.0 / identity.sample,
            request_id,
        )
        self.emitter.put(waiting, taken, prediction)

    # -- directives --------------------------------------------------------------------------------------------------

    def on_record(self, record: Record) -> None:
        """A record of our partition of `palisade.directives`. Directives wait until the partition is read to its end."""
        with self._directive_lock:
            if not self.state.concerns(record):
                return
            if record.headers.get(KIND_HEADER) == b"kill":
                self._note_refusal(self.state.accept_kill(record))
            elif self._read_to_end:
                self._take(record)
            else:
                self._held.append(record)
            self._refresh()

    def on_end(self) -> None:
        """All that the partition held at the start is read: from now on the directive is followed."""
        if self._read_to_end:
            return
        if self._held and self.transport.background:
            self._broker_known.wait(BROKER_TIME_WAIT_S)
        with self._directive_lock:
            while self._held:
                self._take(self._held.popleft())
            self._read_to_end = True
            self._refresh()

    def _take(self, record: Record) -> None:
        now = self.clock.monotonic()
        self._note_refusal(self.state.accept(record, now, self._age_s(record, now)))

    def _age_s(self, record: Record, now: float) -> float:
        """How long ago the record was written: on the broker's clock once a report of ours told it; before that, on
        the wall clock for what was found at the start (a clock ahead ends an order early, never late), else 0.
        """
        if self._broker_offset_ms is not None:
            return (now * 1000 + self._broker_offset_ms - record.timestamp_ms) / 1000
        return 0.0 if self._read_to_end else (self.clock.wall_ms() - record.timestamp_ms) / 1000

    def _note_refusal(self, refused: str | None) -> None:
        if refused is not None:
            self._directive_refused = refused
            log_fault(f"{self.identity.endpoint}: a directive was refused:", refused)

    def _refresh(self) -> None:
        killed = self.state.killed or self._killed_here
        if killed != self.killed:
            logger.warning("%s: kill switch %s", self.identity.endpoint, "set" if killed else "cleared")
        orders = NOTHING if killed else self.state.orders(may_fall_back=self.fallback.exists)
        self._limiter.follow(orders.limits, self.clock.monotonic())
        self.killed, self.orders = killed, orders

    def _check_kill(self) -> None:
        path = self.identity.kill_file
        said = os.environ.get("PALISADE_KILL", "").strip().lower()
        self._killed_here = said not in ("", "0", "false", "no", "off") or (path is not None and os.path.exists(path))
        with self._directive_lock:
            self._refresh()

    # -- reports -----------------------------------------------------------------------------------------------------

    def step(self, *, report: bool = False) -> None:
        """One turn of the reporter: kill file, fallback, report, deliveries; each when it is due or asked for."""
        now = self.clock.monotonic()
        if now - self._last_kill_check >= KILL_CHECK_S:
            self._last_kill_check = now
            self._check_kill()
        self.fallback.check(in_thread=self.transport.background)
        since = now - self._last_report
        if report or since >= REPORT_S or (since >= EARLY_REPORT_S and self._wake.is_set()):
            self.report()
        self.transport.poll()

    def report(self) -> None:
        """Closes the interval and writes its report."""
        with self._report_lock:
            now, to_ms = self.clock.monotonic(), self.clock.wall_ms()
            self._wake.clear()
            self._last_report = now
            fields = self._fields(now, to_ms)
            value = to_json(fields)
            self._from_ms = to_ms
            headers = {KIND_HEADER: b"report", CONTENT_TYPE_HEADER: JSON_TYPE.encode()}
            if self.identity.signer is not None:
                headers |= sign(self.identity.signer, "report", value)

            def untold() -> None:  # the traffic of a lost report is past, but what was dropped is owed to somebody
                self.emitter.note_dropped(self.identity.endpoint, fields["dropped"])

            def done(delivery: Delivery) -> None:
                self._learn_broker_time(delivery, now)
                if not delivery.delivered:
                    untold()

            if not self.transport.send(REPORTS, self.identity.endpoint, value, headers, done):
                untold()
                log_fault("a report found no place in the queue: is Kafka away?")

    def _fields(self, now: float, to_ms: int) -> dict[str, Any]:
        identity = self.identity
        self._seq += 1
        loaded = {"version": identity.version, "digest": identity.artifact_digest}
        fields = {
            "schema_version": SCHEMA_VERSION,
            "endpoint": identity.endpoint,
            "guard_id": self.guard_id,
            "boot_id": self._boot_id,
            "seq": self._seq - 1,
            "from_ms": self._from_ms,
            "to_ms": to_ms,
            "epoch_applied": self.state.epoch,
            "killed": self.killed,
            "live_version": identity.version,
            "versions": [{name: value for name, value in loaded.items() if value is not None}],
            "dropped": self.emitter.take_dropped(identity.endpoint),
            "breaker": "none",
            "fallback_ok": self.fallback.ok,
            **self.counts.close(now),
        }
        refused, self._directive_refused = self._directive_refused, None
        return fields if refused is None else fields | {"directive_refused": refused}

    def _learn_broker_time(self, delivery: Delivery, sent_at: float) -> None:
        """Keeps the tightest bound: a report that waited in the queue makes the broker's clock seem ahead."""
        if delivery.broker_ms is not None:
            offset = delivery.broker_ms - sent_at * 1000
            known = self._broker_offset_ms
            self._broker_offset_ms = offset if known is None else min(known, offset)
        if delivery.delivered:
            self._broker_known.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.step()
                early_in = self._last_report + EARLY_REPORT_S - self.clock.monotonic()
                if self._wake.is_set():
                    self._stop.wait(max(0.0, min(POLL_S, early_in)))
                else:
                    self._wake.wait(POLL_S)
            except Exception:  # noqa: BLE001 - a fault of ours must not end the reports
                log_fault("a report could not be written")
                self._stop.wait(POLL_S)
