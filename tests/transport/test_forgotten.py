"""librdkafka can be left without a single broker to ask: whoever holds a client for long makes it anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from palisade_client._transport import KafkaTransport, Record

from schemas.topics import ACTIONS, DIRECTIVES, PREDICTIONS, PROFILES, REPORTS
from streams.embedded_broker import EmbeddedBroker
from streams.profiles import ProfileTopic, profile_record
from streams.readers import Readers
from streams.transport.polling import Poller
from streams.transport.run import TP
from streams.transport.seams import PollingBounds
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.forgotten import FORGETS, Front
from tests.support.waiting import until
from tests.transport.test_polling import Host

Brokers = Callable[..., EmbeddedBroker]
TOPICS = {PREDICTIONS: 1, REPORTS: 1, DIRECTIVES: 1, PROFILES: 1, ACTIONS: 1}


@pytest.fixture
def broker(embedded_broker: Brokers) -> EmbeddedBroker:
    return embedded_broker(TOPICS)


@pytest.fixture
def front(broker: EmbeddedBroker) -> Iterator[Front]:
    with Front(broker.bootstrap) as front:
        yield front


def connection(front: Front) -> KafkaConnection:
    return KafkaConnection(bootstrap=front.bootstrap, extra=FORGETS)


def write(broker: EmbeddedBroker, topic: str, value: bytes, key: bytes = b"k") -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
    producer.produce(topic, value, key)
    assert producer.flush(10) == 0


@pytest.mark.anyio
async def test_a_worker_s_consumer(broker: EmbeddedBroker, front: Front) -> None:
    host, made = Host(), 0

    def consumer(settings: dict[str, Any]) -> Any:
        nonlocal made
        made += 1
        return Consumer(settings)

    settings = kafka_settings(connection(front), "consumer", group="g")
    host.poller = Poller(consumer, settings, host, host.loop, bounds=PollingBounds(renew_s=4.0, watermarks_s=0.1))
    host.poller.subscribe([REPORTS])
    host.poller.start()
    await host.until(lambda: front.told)
    front.let_through()
    write(broker, REPORTS, b"{}")
    runs = await host.runs(1, TP(REPORTS, 0))
    host.poller.halt()
    await asyncio.to_thread(host.poller.join, 60)

    assert len(runs[0]) == 1
    assert made > 1, "this librdkafka asks again by itself"


@pytest.mark.anyio
async def test_the_topic_of_profiles(broker: EmbeddedBroker, front: Front) -> None:
    name, record = profile_record(b"{}")
    topic = ProfileTopic(connection(front), ask_s=0.2, renew_s=0.1)
    topic.start()
    await asyncio.to_thread(until, lambda: front.told, "the client asks", 60)
    front.let_through()
    write(broker, PROFILES, record.value or b"", record.key or b"")
    content = await topic.get(name, 60.0)
    await asyncio.to_thread(topic.close)

    assert content == b"{}"


def test_who_looks_how_far_the_roles_are_behind(front: Front) -> None:
    readers = Readers(connection(front), embedded=True)
    with pytest.raises(KafkaException):
        readers.look(0)
    front.let_through()

    assert [one.role for one in readers.look(0)]


class Heard:
    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    def on_record(self, record: Record) -> None:
        self.values.append(record.value)

    def on_end(self) -> None: ...


def test_a_guard_s_directives(broker: EmbeddedBroker, front: Front) -> None:
    transport, heard = KafkaTransport(front.bootstrap, FORGETS, ask_s=0.1, renew_s=0.2), Heard()
    write(broker, DIRECTIVES, b"first", b"JFK")
    transport.follow("JFK", heard)
    until(lambda: front.told, "the client asks", 60)
    front.let_through()
    until(lambda: heard.values, "the directive is read", 60)
    transport.close(1)

    assert heard.values == [b"first"]


def test_a_guard_s_reports(front: Front) -> None:
    transport, delivered = KafkaTransport(front.bootstrap, FORGETS, renew_s=0.2), list[bool]()

    def send() -> bool:
        transport.send(REPORTS, "JFK", b"{}", {}, lambda delivery: delivered.append(delivery.delivered))
        transport.poll()
        return True in delivered

    until(lambda: send() or front.told, "the client asks", 60)
    assert True not in delivered
    front.let_through()
    until(send, "a report is delivered", 60)
    transport.close(1)

    assert False in delivered  # what waited is told to have failed
