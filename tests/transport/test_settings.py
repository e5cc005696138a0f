"""Settings of librdkafka: a lost line costs silently, so each is read here."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer
from pydantic import ValidationError

from streams.transport.settings import KafkaConnection, Role, kafka_settings

LOCAL = KafkaConnection(bootstrap="127.0.0.1:9092")


def test_every_consumer_setting_is_as_decided() -> None:
    assert kafka_settings(LOCAL, "consumer", group="g") == {
        "bootstrap.servers": "127.0.0.1:9092",
        "security.protocol": "PLAINTEXT",
        "client.id": "palisade",
        "group.id": "g",
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "check.crcs": True,
        "fetch.queue.backoff.ms": 10,
        "fetch.wait.max.ms": 100,
        "fetch.message.max.bytes": 262_144,
        "queued.max.messages.kbytes": 16_384,
        "partition.assignment.strategy": "range,roundrobin",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "max.poll.interval.ms": 300_000,
        "isolation.level": "read_committed",
    }


def test_every_producer_setting_is_as_decided() -> None:
    settings = kafka_settings(LOCAL, "producer")
    assert {name: settings[name] for name in settings.keys() - {"bootstrap.servers", "security.protocol"}} == {
        "client.id": "palisade",
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.timeout.ms": 120_000,
        "queue.buffering.max.kbytes": 65_536,
        "queue.buffering.max.messages": 100_000,
    }


def test_librdkafka_accepts_what_we_set() -> None:
    Producer(kafka_settings(LOCAL, "producer"))
    Consumer(kafka_settings(LOCAL, "consumer", group="g")).close()


@pytest.mark.parametrize(
    "bootstrap",
    [
        "kafka:9092",
        "127.0.0.1:9092,10.0.0.1:9092",
        "0.0.0.0:9092",
        "[2001:db8::1]:9092",
        "PLAINTEXT://kafka:9092/://127.0.0.1:9092",
    ],
)
@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
def test_plaintext_off_this_machine_is_refused_unless_allowed_by_name(bootstrap: str, protocol: str) -> None:
    rest = {"sasl_mechanism": "PLAIN"} if protocol.startswith("SASL") else {}
    with pytest.raises(ValidationError, match="is not encrypted"):
        KafkaConnection(bootstrap=bootstrap, security_protocol=protocol, **rest)  # type: ignore[arg-type]
    KafkaConnection(bootstrap=bootstrap, security_protocol=protocol, allow_plaintext=True, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("bootstrap", ["localhost:9092", "127.0.0.2:1", "[::1]:9092", "PLAINTEXT://127.0.0.1:9092"])
def test_plaintext_on_loopback_is_fine(bootstrap: str) -> None:
    assert KafkaConnection(bootstrap=bootstrap).bootstrap == bootstrap


def test_sasl_and_tls_settings_reach_librdkafka_and_secrets_stay_out_of_reprs() -> None:
    connection = KafkaConnection(
        bootstrap="kafka:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="palisade",
        sasl_password="canary-secret",  # type: ignore[arg-type]
        ssl_ca_location="/ca.pem",
    )
    settings = kafka_settings(connection, "admin")
    assert settings["security.protocol"] == "SASL_SSL"
    assert settings["sasl.mechanism"] == "SCRAM-SHA-512"
    assert settings["sasl.password"] == "canary-secret"
    assert settings["ssl.ca.location"] == "/ca.pem"
    assert "canary-secret" not in repr(connection) + connection.model_dump_json()


@pytest.mark.parametrize(
    "given", [{"security_protocol": "SASL_SSL"}, {"security_protocol": "SSL", "sasl_mechanism": "PLAIN"}]
)
def test_a_connection_that_librdkafka_would_read_otherwise_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="sasl_mechanism"):
        KafkaConnection(bootstrap="kafka:9093", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["enable.auto.commit", "check.crcs", "acks", "enable.idempotence"])
@pytest.mark.parametrize("role", ["consumer", "producer"])
def test_what_the_transport_leans_on_cannot_be_overridden(name: str, role: Role) -> None:
    with pytest.raises(ValueError, match=name):
        kafka_settings(LOCAL, role, group="g", overrides={name: "x"})


def test_a_consumer_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        kafka_settings(LOCAL, "consumer")
