"""Services write requests and responses to a broker, and an ingest worker that dies in between makes predictions of them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from palisade.dev import DevStack, prepare
from palisade.supervisor import ChildSpec, Supervisor, python_module
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.topics import PREDICTIONS, REPORTS, REQUESTS, RESPONSES
from schemas.wire import KIND_HEADER
from streams.embedded_broker import FETCH_WAIT_MS
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.ingest.making import request, response, rows_of

PARTITIONS = 2
DEADLINE_S = 120.0
ENDPOINTS = ("credit", "fraud", "churn")
PALISADE = "palisade.cli.main"


class Story:
    """A broker with our topics, the configuration, and the events that were written."""

    def __init__(self, folder: Path, bootstrap: str, *, embedded: bool) -> None:
        plain = KafkaConnection(bootstrap=bootstrap)
        self.connection = plain.model_copy(update={"fetch_wait_ms": FETCH_WAIT_MS}) if embedded else plain
        config = PalisadeConfig(
            kafka=KafkaConfig(partitions=PARTITIONS),
            endpoints=tuple(EndpointConfig(name=name, guard=False, trust_requests=True) for name in ENDPOINTS),
        )
        self.stack: DevStack = prepare(folder / "dev", config, None, bootstrap, embedded=embedded)
        self.producer = Producer(kafka_settings(self.connection, "producer"))
        self.random = random.Random(7)
        self.asked: list[str] = []

    def worker(self, supervisor: Supervisor, name: str = "ingest") -> None:
        """Starts an ingest worker that is started again when it dies."""
        command = python_module(PALISADE, "worker", "ingest", "--config", str(self.stack.config_path), "--name", name)
        supervisor.start(ChildSpec(name, command, ready='"ready"'), timeout_s=90)

    def write(self, count: int, *, answered: bool = True) -> None:
        """Requests and, shuffled among the next ones, their responses; keyed by request id, as the page of contracts says."""
        events: list[tuple[float, str, str, dict[str, Any]]] = []
        for _ in range(count):
            number = len(self.asked)
            one = f"r-{number}"
            self.asked.append(one)
            endpoint = ENDPOINTS[number % len(ENDPOINTS)]
            events.append(
                (
                    number,
                    REQUESTS,
                    one,
                    request(one, endpoint=endpoint, caller=f"c{number % 7}", caller_auth="verified"),
                )
            )
            if answered:
                at = number + self.random.uniform(-40, 200)  # some come before their request
                events.append((at, RESPONSES, one, response(one, endpoint=endpoint)))
        for _, topic, key, event in sorted(events, key=lambda each: each[0]):
            self.producer.produce(topic, json.dumps(event), key)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0

    def predictions(self) -> list[dict[str, Any]]:
        """All that ingest has written so far."""
        return [
            row
            for partition in range(PARTITIONS)
            for message in read_to_end(self.connection, PREDICTIONS, partition)
            if header_of(headers_of(message), KIND_HEADER) == b"prediction"
            for row in rows_of(message.value() or b"")
        ]

    def reports(self) -> list[dict[str, Any]]:
        return [
            json.loads(message.value() or b"{}")
            for partition in range(PARTITIONS)
            for message in read_to_end(self.connection, REPORTS, partition)
        ]

    def until(self, count: int) -> list[dict[str, Any]]:
        """Waits for so many predictions of different requests; a request that is written twice fails."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found = self.predictions()
            if len({row["origin"] for row in found}) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} predictions of {count} after {DEADLINE_S:.0f} s"
            time.sleep(0.2)


def twice(rows: list[dict[str, Any]]) -> list[str]:
    """Origins of more than one prediction."""
    return [origin for origin, count in Counter(row["origin"] for row in rows).items() if count > 1]
