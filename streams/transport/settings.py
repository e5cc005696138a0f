"""Settings of librdkafka: one connection, three roles. A lost line costs silently, so a test reads them all."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

Setting = str | int | float | bool
Role = Literal["consumer", "producer", "admin"]


class PlaintextRefused(ValueError):
    """A connection without TLS leaves the machine, and nobody allowed it by name."""


class KafkaConnection(BaseModel):
    """How to reach the brokers. Secrets are never part of a repr or a dump.

    bootstrap: `host:port[,host:port]`. Without TLS only loopback is reached, unless `allow_plaintext` says otherwise.
    fetch_wait_ms: how long an empty fetch waits at the broker. A record that arrives ends the wait on Apache Kafka; the
    embedded broker lets it run out, so there it is the latency.
    extra: further librdkafka settings of the connection, by their own names (OAUTHBEARER, timeouts).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bootstrap: str = Field(min_length=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    allow_plaintext: bool = False
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: str | None = None
    ssl_certificate_location: str | None = None
    ssl_key_location: str | None = None
    ssl_key_password: SecretStr | None = None
    fetch_wait_ms: int = Field(default=100, ge=1, le=500)
    extra: Mapping[str, Setting] = Field(default_factory=dict, repr=False)

    @model_validator(mode="after")
    def _refuse_plaintext_off_loopback(self) -> Self:
        if self.security_protocol in ("PLAINTEXT", "SASL_PLAINTEXT") and not self.allow_plaintext:
            exposed = [broker for broker in self.bootstrap.split(",") if not _is_loopback(broker)]
            if exposed:
                raise PlaintextRefused(
                    f"{', '.join(exposed)} is not on this machine and {self.security_protocol} is not encrypted: "
                    "set security_protocol to SSL or SASL_SSL, or allow_plaintext to true"
                )
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism is None:
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism")
        if self.sasl_mechanism is not None and not self.security_protocol.startswith("SASL"):
            raise ValueError(f"sasl_mechanism is set, but {self.security_protocol} would ignore it")
        return self


def _is_loopback(broker: str) -> bool:
    """Whether `host:port`, read as librdkafka reads it, is this machine."""
    host_and_port = (broker.strip().partition("://")[2] or broker.strip()).partition("/")[0]
    host = (host_and_port.rpartition(":")[0] or host_and_port).strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# The reason stands beside each value.
CONSUMER: Mapping[str, Setting] = {
    "enable.auto.commit": False,  # the ledger commits
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "check.crcs": True,  # off, flipped bytes are delivered as data
    "fetch.queue.backoff.ms": 10,  # default: prefetch rests a second each time the queue is full
    # A fetch is decompressed and queued as a whole, and a report waits behind it: 256 KiB a partition halves the delay
    # beside a flood (p99 46 instead of 100 ms on two busy cores) and costs no throughput.
    "fetch.message.max.bytes": 256 << 10,
    # Prefetch lies outside the ledger's bounds, and what other topics queue stands before a report: 16 MiB is about
    # 25 ms of polling.
    "queued.max.messages.kbytes": 16 << 10,
    "partition.assignment.strategy": "range,roundrobin",  # eager: cooperative needs incremental assign
    "session.timeout.ms": 10_000,  # failover after kill -9; brokers refuse less than 6 s
    "heartbeat.interval.ms": 2_000,
    "max.poll.interval.ms": 300_000,  # also the rebalance timeout; our own bounds are shorter
    "isolation.level": "read_committed",
}
PRODUCER: Mapping[str, Setting] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",  # the same partitions as Java's clients
    "compression.type": "lz4",
    "linger.ms": 5,
    "message.timeout.ms": 120_000,  # twice the outage of a broker that no process may end of (60 s)
    "queue.buffering.max.kbytes": 64 << 10,  # default 1 GiB
    "queue.buffering.max.messages": 100_000,
}
COMMON: Mapping[str, Setting] = {
    "reconnect.backoff.max.ms": 2_000,  # default 10 s delays recovery after an outage
    "socket.keepalive.enable": True,
}
BY_ROLE: Mapping[Role, Mapping[str, Setting]] = {"consumer": CONSUMER, "producer": PRODUCER, "admin": {}}
# Wrong values of these lose or repeat records silently, so they cannot be set from outside.
OURS = frozenset({"enable.auto.commit", "enable.auto.offset.store", "check.crcs", "enable.idempotence", "acks"})
# Whom and how to connect to, which `extra` would change behind the back of what was checked, and secrets, which belong in
# files: a configuration is shown and copied.
CONNECTING = frozenset({"bootstrap.servers", "metadata.broker.list", "security.protocol", "enable.ssl.certificate.verification",
    "ssl.endpoint.identification.algorithm", "sasl.mechanisms", "sasl.mechanism"})  # fmt: skip
SECRET = frozenset({"sasl.password", "ssl.key.password", "ssl.key.pem", "ssl_key", "ssl.keystore.password",
    "sasl.oauthbearer.client.secret", "sasl.oauthbearer.config", "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.assertion.private.key.passphrase"})  # fmt: skip


def kafka_settings(
    connection: KafkaConnection,
    role: Role,
    *,
    group: str | None = None,
    client_id: str = "palisade",
    overrides: Mapping[str, Setting] | None = None,
) -> dict[str, Setting]:
    """Settings for a confluent-kafka Consumer, Producer or AdminClient.

    Later wins: defaults of the role, the connection's `extra`, `overrides`. Raises ValueError when an override would
    give up what the transport relies on, or when a consumer has no group.
    """
    changes = {**connection.extra, **(overrides or {})}
    if forbidden := (OURS | CONNECTING | SECRET) & changes.keys():
        raise ValueError(f"not open to change: {', '.join(sorted(forbidden))}")
    settings: dict[str, Setting] = {
        "bootstrap.servers": connection.bootstrap,
        "security.protocol": connection.security_protocol,
        "client.id": client_id,
        **COMMON,
        **BY_ROLE[role],
    }
    if role == "consumer":
        if not group:
            raise ValueError("a consumer needs a group")
        settings["group.id"] = group
        settings["fetch.wait.max.ms"] = connection.fetch_wait_ms
    given: Mapping[str, str | SecretStr | None] = {
        "sasl.mechanism": connection.sasl_mechanism,
        "sasl.username": connection.sasl_username,
        "sasl.password": connection.sasl_password,
        "ssl.ca.location": connection.ssl_ca_location,
        "ssl.certificate.location": connection.ssl_certificate_location,
        "ssl.key.location": connection.ssl_key_location,
        "ssl.key.password": connection.ssl_key_password,
    }
    for name, value in given.items():
        if value is not None:
            settings[name] = value.get_secret_value() if isinstance(value, SecretStr) else value
    return settings | changes
