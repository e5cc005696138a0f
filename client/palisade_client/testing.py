"""Doubles for tests of services that use a Guard: no Kafka, no threads, a clock that stands still.

key, transport, clock = ThrowawayKey(), FakeTransport(), ManualClock()
guard = Guard("credit", fallback=0.5, directive_keys=key.public, transport=transport, clock=clock)
transport.deliver(directive("credit", key, route="fallback"))
assert guard.call(model, {"income": 1.0}, caller="carol") == 0.5
guard.flush()
assert transport.reports[-1]["epoch_applied"] == 1
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from palisade_client._transport import Delivery, Done, Follower, Record
from palisade_client._wire import (
    ARROW_TYPE,
    CONTENT_TYPE_HEADER,
    KIND_HEADER,
    PREDICTIONS,
    REPORTS,
    SCHEMA_VERSION,
    sign,
)

START_MS = 1_750_000_000_000


@dataclass
class ManualClock:
    """Stands still until `advance`."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return START_MS + round(self.seconds * 1000)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class ThrowawayKey:
    """A key pair made for one test. `public`: base64, as `directive_keys` takes it; `pem`: as `producer_key`'s file."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = base64.b64encode(raw).decode()

    @property
    def pem(self) -> bytes:
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def signed(self, kind: str, key: str, fields: Mapping[str, Any], timestamp_ms: int = START_MS) -> Record:
        """A signed record of `kind`, written at `timestamp_ms`."""
        value = json.dumps({"schema_version": SCHEMA_VERSION, **fields}).encode()
        return Record(key, value, {KIND_HEADER: kind.encode(), **sign(self.private, kind, value)}, timestamp_ms)


def directive(
    endpoint: str,
    key: ThrowawayKey,
    *,
    limits: Mapping[str, float] | None = None,
    timestamp_ms: int = START_MS,
    **fields: Any,
) -> Record:
    """A signed directive; `limits` maps a caller to its rate a second, `fields` are others of the contract.

    Defaults: `epoch` 1, `mode` `enforce`, `route` `primary`, `ttl_ms` 600,000, also of each limit.
    """
    ttl_ms = fields.get("ttl_ms", 600_000)
    wanted = {
        "endpoint": endpoint,
        "epoch": 1,
        "issued_ms": timestamp_ms,
        "ttl_ms": ttl_ms,
        "mode": "enforce",
        "route": "primary",
        "limits": [
            {"caller": caller, "rate_per_s": rate, "ttl_ms": ttl_ms, "action_id": f"limit-{caller}"}
            for caller, rate in (limits or {}).items()
        ],
    }
    return key.signed("directive", endpoint, wanted | fields, timestamp_ms)


def kill_switch(key: ThrowawayKey, *, kill: bool = True, issued_ms: int = START_MS) -> Record:
    """A signed kill switch, or with `kill=False` the word that ends it."""
    fields = {"kill": kill, "issued_ms": issued_ms, "actor": "test", "reason": "drill"}
    return key.signed("kill", "kill", fields, issued_ms)


@dataclass(frozen=True)
class Sent:
    """A record that a Guard or Emitter sent."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, bytes]


@dataclass
class FakeTransport:
    """Remembers what is sent and hands over what `deliver` is given; Guard and Emitter start no threads on it.

    `failing`: deliveries fail. `full`: nothing is taken. `broker_ms`: the time that the broker gives to a record, None
    if it gives none.
    """

    failing: bool = False
    full: bool = False
    broker_ms: int | None = None
    background: bool = False
    sent: list[Sent] = field(default_factory=list)
    stored: list[Record] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)

    @property
    def reports(self) -> list[dict[str, Any]]:
        """All reports, oldest first."""
        return [json.loads(sent.value) for sent in self.sent if sent.topic == REPORTS]

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """All predictions, oldest first, whatever their encoding."""
        return [row for sent in self.sent if sent.topic == PREDICTIONS for row in _rows(sent)]

    def deliver(self, *records: Record) -> None:
        """Records appear on the directives topic: stored for who follows later, handed to who follows now."""
        for record in records:
            self.stored.append(record)
            for follower in self.followers:
                follower.on_record(record)

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        if self.full:
            return False
        if not self.failing:
            self.sent.append(Sent(topic, key, value, dict(headers)))
        done(Delivery(not self.failing, None if self.failing else self.broker_ms))
        return True

    def poll(self) -> None: ...

    def flush(self, timeout_s: float) -> None: ...

    def follow(self, endpoint: str, follower: Follower) -> None:
        del endpoint
        for record in self.stored:
            follower.on_record(record)
        follower.on_end()
        self.followers.append(follower)

    def close(self, timeout_s: float) -> None:
        del timeout_s
        self.followers.clear()


def _rows(sent: Sent) -> list[dict[str, Any]]:
    if sent.headers[CONTENT_TYPE_HEADER] == ARROW_TYPE.encode():
        import pyarrow as pa

        rows: list[dict[str, Any]] = pa.ipc.open_stream(sent.value).read_all().to_pylist()
        return rows
    parsed = json.loads(sent.value)
    return parsed if isinstance(parsed, list) else [parsed]
