"""A header's name is any bytes on Kafka; confluent-kafka raises on what is no UTF-8. It must cost that record only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from palisade_client._transport import Record, _record

from schemas.topics import PREDICTIONS, REPORTS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.audit.rows import rows_of
from streams.embedded_broker import EmbeddedBroker
from streams.records import UNREADABLE_KIND, Records, headers_of
from streams.transport.ledger import Ledger
from streams.transport.run import TP
from tests.support.raw_kafka import produce_raw

UNREADABLE = [(KIND_HEADER, UNREADABLE_KIND)]


@pytest.fixture
def messages() -> Iterator[list[Message]]:
    """Three records, the second with a header whose name is no UTF-8."""
    with EmbeddedBroker({"t": 1}) as broker:
        for name in (b"palisade-kind", b"\xff\xfe", b"\xc3\xa9"):
            produce_raw(broker.bootstrap, "t", b"{}", name)
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition("t", 0, 0)])
        found: list[Message] = []
        while len(found) < 3:
            found += consumer.consume(3 - len(found), 10.0)
        yield found
        consumer.close()


def test_the_headers_of_that_record_are_a_kind_that_no_topic_holds(messages: list[Message]) -> None:
    assert [headers_of(message) for message in messages] == [[("palisade-kind", b"v")], UNREADABLE, [("é", b"v")]]
    assert [headers_of(message) for message in messages][1] == UNREADABLE  # confluent-kafka alone would die here


MANY = 300
"""Calls until the interpreter has specialised them; it is then that an answer with an exception passes unseen."""


@pytest.mark.parametrize("read", [headers_of, _record])
def test_it_is_found_out_by_code_that_has_run_often(messages: list[Message], read: Callable[[Message], Any]) -> None:
    def all_of_them(found: list[Message]) -> list[Any]:
        return [read(message) for message in found]

    for _ in range(20):
        all_of_them([messages[0]] * MANY)

    *_, before, unreadable, after = all_of_them([messages[0]] * MANY + messages[1:])

    assert before == read(messages[0])
    assert unreadable in (UNREADABLE, Record("k", b"{}", {}, messages[1].timestamp()[1]))
    assert after == read(messages[2])


def test_a_run_hands_over_all_its_records(messages: list[Message]) -> None:
    ledger, tp = Ledger(), TP("t", 0)
    ledger.add(tp, [messages[0]] * MANY + messages[1:], 0.0)  # type: ignore[arg-type]  # messages are records
    (run,) = ledger.take({tp})[tp]

    for _ in range(2):
        assert run.headers == [[("palisade-kind", b"v")]] * MANY + [UNREADABLE, [("é", b"v")]]


@pytest.mark.parametrize("topic", [PREDICTIONS, REPORTS, SIGNALS])
def test_the_audit_keeps_no_row_of_it(topic: str) -> None:
    assert rows_of(topic, 0, Records([b"{}"], [b"k"], [UNREADABLE], [0], [0])) == {}
