"""Prometheus metrics of a worker: one prefix, base units, bounded labels, never a caller's id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.wire import KIND_HEADER
from streams.records import Outgoing, header_of

if TYPE_CHECKING:
    from responders.delivery import Answer  # respond's alone: the other roles do not pay for its import

MAX_ENDPOINT_LABELS = 200
"""Endpoints that have series of their own; further ones share those of `OTHER`."""
OTHER = "other"


class Metrics:
    """One registry a process, so that tests can have their own."""

    def __init__(self, role: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.role = role
        self._endpoints: set[str] = set()
        self.records = self._counter("records_consumed_total", "records read, by topic", "topic")
        self.outputs = self._counter("records_sent_total", "records sent, by kind", "kind")
        self.run_seconds = Histogram(
            "palisade_run_seconds", "time to handle a run", ["topic"], registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        )  # fmt: skip
        self.delay = Histogram(
            "palisade_delay_seconds",
            "from the broker's time of a run's oldest record until what it led to is on its way, by topic",
            ["topic"], registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
        )  # fmt: skip
        self.handler_failures = self._counter(
            "handler_failures_total", "runs on which handling raised, by topic", "topic"
        )
        self.lost_offsets = self._counter("lost_offsets_total", "offsets that could not be read, by topic", "topic")
        self.cold_parts = self._counter("state_parts_cold_total", "parts whose saved state could not be taken back")
        self.snapshot_failures = self._counter("snapshot_failures_total", "rounds in which state could not be saved")
        self.snapshot_bytes = self._counter("snapshot_bytes_total", "bytes of state saved")
        self.ticks_lost = self._counter("ticks_lost_total", "ticks that the broker did not confirm")
        self.inserted_rows = self._counter(
            "audit_rows_inserted_total", "rows inserted into ClickHouse, by table", "table"
        )
        self.insert_failures = self._counter("audit_insert_failures_total", "inserts that failed and are tried again")
        self.store_failing = Gauge(
            "palisade_audit_store_failing", "1 while ClickHouse takes nothing", registry=self.registry
        )
        self.records_skipped = self._counter(
            "audit_records_skipped_total",
            "records that no row can be made of, or rows that ClickHouse refuses for good",
        )
        self.labels = self._counter("labels_joined_total", "feedback that was looked up, by what was found", "outcome")
        self.join_failures = self._counter("label_join_failures_total", "rounds of joining that are tried again")
        self.decisions = self._counter("decisions_total", "decisions, by kind and outcome", "kind", "outcome")
        self.ingested = self._counter("ingest_rows_total", "rows of requests and responses, by outcome", "outcome")
        self.held_rows = self._gauge("ingest_held_rows", "rows that wait for their counterpart, by topic", "topic")
        self.held_bytes = self._gauge("ingest_held_bytes", "bytes of rows that wait, by topic", "topic")
        self.stuck_endpoints = Gauge(
            "palisade_respond_stuck_endpoints", "endpoints about which nothing can be decided", registry=self.registry
        )
        self.active = Gauge("palisade_respond_active", "1 while this process owns the journal", registry=self.registry)

        self.reader_share = self._gauge(
            "reader_retention_share", "share of what the broker keeps that a role has not read", "role", "topic"
        )
        self.webhook_attempts = self._counter(
            "webhook_attempts_total", "attempts to deliver, by endpoint and outcome", "endpoint", "outcome"
        )
        self.webhook_seconds = Histogram(
            "palisade_webhook_seconds", "time of an attempt to deliver", registry=self.registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 15.0),
        )  # fmt: skip
        self.webhooks_failing = Gauge(
            "palisade_webhooks_failing", "endpoints whose webhook receiver takes nothing", registry=self.registry
        )

    def webhook(self, endpoint: str, answer: Answer, seconds: float) -> None:
        """An attempt to tell a webhook receiver has ended."""
        self.webhook_attempts.labels(self._named(endpoint), answer.outcome).inc()
        self.webhook_seconds.observe(seconds)

    def _named(self, endpoint: str) -> str:
        if endpoint not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINT_LABELS:
            return OTHER
        self._endpoints.add(endpoint)
        return endpoint

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"palisade_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"palisade_{name}", text, labels, registry=self.registry)

    def run(self, topic: str, records: int, seconds: float) -> None:
        """A run was handled."""
        self.records.labels(topic).inc(records)
        self.run_seconds.labels(topic).observe(seconds)

    def joined(self, outcome: str, count: int) -> None:
        """Feedback was looked up: `joined`, `ambiguous`, `no_prediction` or `failed`."""
        self.labels.labels(outcome).inc(count)

    def sent(self, record: Outgoing) -> None:
        """A record goes out."""
        kind = header_of(record.headers, KIND_HEADER) or b"none"
        self.outputs.labels(kind.decode("ascii", "replace")).inc()

    def saved(self, size: int) -> None:
        self.snapshot_bytes.inc(size)
