"""The broker of a respond role in its tests: the embedded one, and Apache Kafka with topics of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from schemas.topics import ACTIONS, DEAD_LETTERS, DIRECTIVES, RESPOND_STATE, SIGNALS
from streams import journal_log, publishing
from streams.embedded_broker import EmbeddedBroker
from streams.transport.settings import KafkaConnection
from tests.streams.broker import produce
from tests.support.kafka import RealKafka

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
TOPICS = {ACTIONS: 1, RESPOND_STATE: 1, DIRECTIVES: 1, DEAD_LETTERS: 1, SIGNALS: 1}


@pytest.fixture
def embedded(embedded_broker: Start) -> KafkaConnection:
    """Its signals are as long as those that are handed over: a log that ends before what was answered begins anew."""
    connection = embedded_broker(TOPICS).connection
    produce(connection, SIGNALS, *[(b"x", b"{}", ())] * 20)
    return connection


@pytest.fixture
def real(kafka: RealKafka, monkeypatch: pytest.MonkeyPatch) -> KafkaConnection:
    for name in ("ACTIONS", "RESPOND_STATE", "DIRECTIVES"):
        topic = kafka.unique(name.lower())
        kafka.create_topics({topic: 1})
        for module in (publishing, journal_log):
            monkeypatch.setattr(module, name, topic, raising=False)
    monkeypatch.setattr(journal_log, "TRANSACTIONAL_ID", kafka.unique("respond"))
    return KafkaConnection(bootstrap=kafka.bootstrap)
