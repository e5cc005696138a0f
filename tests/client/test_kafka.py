"""A Guard on a broker: what it writes arrives where it belongs, what it is told it does, and it never waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from palisade_client import CallerLimited, Guard, _wire
from palisade_client._clock import SystemClock
from palisade_client._transport import KafkaTransport, Record
from palisade_client.testing import ThrowawayKey, directive, kill_switch

from schemas.events import Prediction, Report
from schemas.topics import DIRECTIVES, PREDICTIONS, REPORTS
from streams.embedded_broker import EmbeddedBroker
from tests.support.kafka import RealKafka

PARTITIONS = 3
TOPICS = {PREDICTIONS: PARTITIONS, REPORTS: PARTITIONS, DIRECTIVES: PARTITIONS}
Brokers = Callable[..., EmbeddedBroker]


@pytest.fixture
def broker(embedded_broker: Brokers) -> EmbeddedBroker:
    return embedded_broker(TOPICS)


@pytest.fixture
def guards() -> Iterator[list[Guard]]:
    made: list[Guard] = []
    yield made
    for guard in made:
        guard.close()


def until(seen: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Waits for another thread's or process's doing."""
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def publish(broker: EmbeddedBroker | RealKafka, *records: Record, partition: int | None = None) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random", "linger.ms": 0})
    for record in records:
        place = -1 if partition is None else partition  # -1: by the key
        producer.produce(DIRECTIVES, record.value, record.key, partition=place, headers=dict(record.headers))
    assert producer.flush(10) == 0


def read(broker: EmbeddedBroker, topic: str, partition: int, wanted: int) -> list[Any]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test", "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(topic, partition, 0)])
    records: list[Any] = []
    until(lambda: records.extend(consumer.consume(100, 0.1)) or len(records) >= wanted, f"{wanted} of {topic}")  # type: ignore[func-returns-value]
    consumer.close()
    return records


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def model(features: Any) -> float:
    return 0.9


def test_reports_and_predictions_lie_in_the_partition_of_their_endpoint(
    broker: EmbeddedBroker, guards: list[Guard]
) -> None:
    for endpoint in ("EWR", "JFK", "LGA"):
        guard = Guard(endpoint, bootstrap=broker.bootstrap)
        guards.append(guard)
        for number in range(10):
            guard.call(model, {"delay": float(number)}, caller="AA-EWR")
        guard.flush(10)
        partition = _wire.partition_of(endpoint, PARTITIONS)
        reports = [
            Report.from_bytes(r.value()) for r in read(broker, REPORTS, partition, 2) if r.key() == endpoint.encode()
        ]
        predictions = [r for r in read(broker, PREDICTIONS, partition, 1) if r.key() == endpoint.encode()]

        assert sum(report.asked for report in reports) == 10
        assert predictions
        assert dict(predictions[0].headers())["palisade-kind"] == b"prediction"


def test_few_predictions_arrive_as_json_events(broker: EmbeddedBroker, guards: list[Guard]) -> None:
    guard = Guard("JFK", bootstrap=broker.bootstrap)
    guards.append(guard)
    guard.call(model, {"delay": 1.0}, caller="AA")
    record = read(broker, PREDICTIONS, _wire.partition_of("JFK", PARTITIONS), 1)[0]

    assert Prediction.from_bytes(record.value()).features == {"delay": 1.0}
    assert dict(record.headers())["content-type"] == b"application/json"


def test_a_directive_and_a_kill_switch_are_followed(broker: EmbeddedBroker, guards: list[Guard]) -> None:
    key = ThrowawayKey()
    guard = Guard("JFK", fallback=0.5, bootstrap=broker.bootstrap, directive_keys=key.public).start()
    guards.append(guard)

    publish(broker, directive("JFK", key, route="fallback", probe_share=0, timestamp_ms=now_ms()))
    until(lambda: guard.call(model, {}, caller="a") == 0.5, "the fallback answers")
    publish(broker, directive("JFK", key, epoch=2, limits={"b": 0.0}, timestamp_ms=now_ms()))
    until(lambda: guard.call(model, {}, caller="a") == 0.9, "the primary answers again")
    with pytest.raises(CallerLimited):
        guard.call(model, {}, caller="b")
    publish(broker, kill_switch(key), partition=_wire.partition_of("JFK", PARTITIONS))
    until(lambda: guard.status()["killed"], "the kill switch is read")

    assert guard.call(model, {}, caller="b") == 0.9


def test_a_directive_from_before_the_start_is_followed(broker: EmbeddedBroker, guards: list[Guard]) -> None:
    key = ThrowawayKey()
    publish(
        broker,
        directive("JFK", key, route="fallback", probe_share=0, timestamp_ms=now_ms()),
        directive("JFK", key, route="primary", probe_share=0, timestamp_ms=now_ms(), epoch=0),
    )
    guard = Guard("JFK", fallback=0.5, bootstrap=broker.bootstrap, directive_keys=key.public).start()
    guards.append(guard)
    until(lambda: guard.call(model, {}, caller="a") == 0.5, "the fallback answers")

    assert guard.status()["directives_refused"] == {"lower_epoch": 1}


def test_a_service_goes_on_while_kafka_is_away(broker: EmbeddedBroker, guards: list[Guard]) -> None:
    key = ThrowawayKey()
    guard = Guard("JFK", fallback=0.5, bootstrap=broker.bootstrap, directive_keys=key.public).start()
    guards.append(guard)
    publish(broker, directive("JFK", key, route="fallback", probe_share=0, timestamp_ms=now_ms()))
    until(lambda: guard.call(model, {}, caller="a") == 0.5, "the fallback answers")
    broker.down()
    answers = {guard.call(model, {"x": 1.0}, caller="a") for _ in range(2_000)}
    broker.up()
    publish(broker, directive("JFK", key, epoch=2, timestamp_ms=now_ms()))
    until(lambda: guard.call(model, {}, caller="a") == 0.9, "the primary answers after the outage")

    assert answers == {0.5}


def test_a_broker_that_never_answers_costs_no_call_anything(guards: list[Guard]) -> None:
    guard = Guard("JFK", fallback=0.5, bootstrap="127.0.0.1:1")
    guards.append(guard)
    started = time.monotonic()
    answers = {guard.call(model, {"x": 1.0}, caller="a") for _ in range(500)}

    assert answers == {0.9}
    assert time.monotonic() - started < 5.0  # an attempt to connect takes longer


OUT_OF_ORDER_SEQUENCE = 45
"""What a broker says that lost records which it had confirmed: librdkafka's idempotent producer ends on it."""


def test_a_producer_that_ends_for_good_is_replaced(broker: EmbeddedBroker) -> None:
    transport = KafkaTransport(broker.bootstrap, {})
    delivered: list[bool] = []

    def send() -> None:
        transport.send(REPORTS, "JFK", b"{}", {}, lambda delivery: delivered.append(delivery.delivered))
        transport.flush(5)

    send()
    broker.refuse("Produce", [OUT_OF_ORDER_SEQUENCE])
    for _ in range(4):
        send()
    transport.close(5)

    assert delivered.count(True) == 3  # not the one refused, nor the one that found the producer ended


@pytest.mark.kafka
def test_apache_kafka_s_time_tells_how_old_a_directive_is(kafka: RealKafka, guards: list[Guard]) -> None:
    """On LogAppendTime topics, with a machine whose own clock is a day ahead."""
    kafka.create_topics(TOPICS, {"message.timestamp.type": "LogAppendTime"})
    key = ThrowawayKey()
    publish(kafka, directive("JFK", key, route="fallback", probe_share=0, ttl_ms=60_000))
    guard = Guard("JFK", fallback=0.5, bootstrap=kafka.bootstrap, directive_keys=key.public, clock=DayAhead()).start()
    guards.append(guard)

    until(lambda: guard.call(model, {}, caller="a") == 0.5, "the directive is followed")


class DayAhead(SystemClock):
    @staticmethod
    def wall_ms() -> int:
        return now_ms() + 86_400_000
