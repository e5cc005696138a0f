"""Requests and responses as services write them, the log that pairs them, and what it wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS, PREDICTIONS, REPORTS, REQUESTS, RESPONSES
from streams.ingest.batches import Redaction, Rules
from streams.ingest.counting import Counts
from streams.ingest.partition import Handled, PairingLog
from streams.records import Outgoing, RawHeaders, Records
from tests.streams.fakes import no_pause

NOW = 1_760_000_000_000
PARTITIONS = 4


def request(request_id: str, **fields: Any) -> dict[str, Any]:
    features = {"amount": 12.5, "country": "NL"}
    return {"endpoint": "credit", "request_id": request_id, "caller": "ann", "features": features} | fields


def response(request_id: str, **fields: Any) -> dict[str, Any]:
    return {"request_id": request_id, "endpoint": "credit", "prediction": 0.25, "latency_ms": 3.5} | fields


def as_json(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def records(
    values: Sequence[bytes | None], first: int = 0, ms: int = NOW, headers: Sequence[RawHeaders] | None = None
) -> Records:
    n = len(values)
    return Records(list(values), [None] * n, list(headers or [None] * n), list(range(first, first + n)), [ms] * n)


class Pairing:
    """A `PairingLog` and all that it has written. `guarded`: endpoints that have a Guard, so no reports of ingest."""

    def __init__(
        self,
        *,
        vouched: bool = False,
        guarded: bool = False,
        redactions: dict[str, Redaction] | None = None,
        **options: Any,
    ) -> None:
        counts = Counts(
            0, "boot", lambda _: not guarded, options.pop("fallback_ok", lambda _: False), options.get("signer")
        )
        rules = Rules(lambda _: vouched, redactions or {})
        self.log = PairingLog(0, PARTITIONS, rules, counts, **options)
        self.sent: list[Outgoing] = []
        self.next = {REQUESTS: 0, RESPONSES: 0}

    def take(
        self, topic: str, *values: bytes | None, ms: int = NOW, headers: Sequence[RawHeaders] | None = None
    ) -> Handled:
        taken = records(values, self.next[topic], ms, headers)
        self.next[topic] += len(values)
        handled = asyncio.run(self.log.take(topic, taken, ms, no_pause))
        self.sent += handled.outgoing
        return handled

    def log_at(self, now_ms: int, *, ask: dict[str, Any], ms: int) -> None:
        """A request that the broker's clock puts at `ms`, read at the log's `now_ms`."""
        taken = records(as_json(ask), self.next[REQUESTS], ms)
        self.next[REQUESTS] += 1
        self.sent += asyncio.run(self.log.take(REQUESTS, taken, now_ms, no_pause)).outgoing

    def ask(self, *events: dict[str, Any], ms: int = NOW) -> Handled:
        return self.take(REQUESTS, *as_json(*events), ms=ms)

    def answer(self, *events: dict[str, Any], ms: int = NOW) -> Handled:
        return self.take(RESPONSES, *as_json(*events), ms=ms)

    def expire(self, now_ms: int) -> Handled:
        handled = self.log.expire(now_ms, now_ms, now_ms)
        self.sent += handled.outgoing
        return handled

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return [row for row in self._rows if "features" in row]

    @property
    def blamed(self) -> list[dict[str, Any]]:
        """Refused rows that were passed on."""
        return [row for row in self._rows if "features" not in row]

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return [row for record in self.sent if record.topic == PREDICTIONS for row in rows_of(record.value)]

    @property
    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.from_bytes(record.value) for record in self.sent if record.topic == DEAD_LETTERS]

    def reports(self, now_ms: int) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in self.log.reports(now_ms) if record.topic == REPORTS]


def rows_of(value: bytes) -> list[dict[str, Any]]:
    """Predictions of a record."""
    if value.startswith(b"["):
        return list(json.loads(value))
    rows: list[dict[str, Any]] = pa.ipc.open_stream(value).read_all().to_pylist()
    return rows
