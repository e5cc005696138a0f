"""Brokers for tests: the embedded one, and Apache Kafka from wherever this machine can have it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from streams.embedded_broker import EmbeddedBroker
from tests.support.apache_kafka import ApacheKafka

BROKER = "PALISADE_TEST_KAFKA"  # host:port of a broker to use instead of starting one


class RealKafka:
    """A running Apache Kafka. `broker` is set when this process started it and may stop and start it."""

    def __init__(self, bootstrap: str, broker: ApacheKafka | None = None) -> None:
        self.bootstrap = bootstrap
        self.broker = broker
        self._admin = AdminClient({"bootstrap.servers": bootstrap})

    def create_topics(self, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
        """Make topics (name to partitions); returns when the broker knows them."""
        wanted = [NewTopic(name, partitions, 1, config=dict(config or {})) for name, partitions in topics.items()]
        for future in self._admin.create_topics(wanted, request_timeout=60).values():
            future.result(60)
        deadline = time.monotonic() + 60
        while not topics.keys() <= self._admin.list_topics(timeout=60).topics.keys():
            assert time.monotonic() < deadline, f"topics did not appear: {', '.join(topics)}"
            time.sleep(0.02)

    def unique(self, name: str) -> str:
        """A name that no other test uses: for topics and groups."""
        return f"{name}-{uuid.uuid4().hex[:8]}"


@contextmanager
def real_kafka() -> Iterator[RealKafka]:
    """A given broker, else testcontainers where Docker answers, else Apache Kafka on the local Java."""
    if given := os.environ.get(BROKER):
        yield RealKafka(given)
    elif docker_answers():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer("apache/kafka:4.1.0") as container:
            yield RealKafka(container.get_bootstrap_server())
    else:
        with ApacheKafka() as broker:
            yield RealKafka(broker.bootstrap, broker)


def docker_answers() -> bool:
    """Whether a Docker engine answers within 2 s."""
    try:
        import docker
    except ImportError:
        return False
    try:
        client: Any = docker.from_env(timeout=2)
        client.ping()
    except docker.errors.DockerException:
        return False
    return True


@pytest.fixture
def embedded_broker() -> Iterator[Callable[[Mapping[str, int]], EmbeddedBroker]]:
    """Start embedded brokers: `embedded_broker({"topic": partitions})`; they end with the test."""
    started: list[EmbeddedBroker] = []

    def start(topics: Mapping[str, int]) -> EmbeddedBroker:
        broker = EmbeddedBroker(topics).start()
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture(scope="session")
def kafka() -> Iterator[RealKafka]:
    """Apache Kafka for the whole session; use names from `kafka.unique`."""
    with real_kafka() as broker:
        yield broker
