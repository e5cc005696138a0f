import json
import threading

import pytest
from confluent_kafka import KafkaException, Producer

from palisade.demo.checks import EventCount
from palisade.demo.tap import Record, Tap

TOPIC = "palisade.predictions"


def produce(bootstrap: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for at, value in enumerate(values):
        producer.produce(TOPIC, value, key=f"k{at % 7}", headers=[("palisade-kind", b"prediction")])
    assert producer.flush(10) == 0


def test_everything_from_the_first_record_on_is_counted_once_over_all_partitions(embedded_broker):
    broker = embedded_broker({TOPIC: 3})
    event = json.dumps({"endpoint": "flights-ewr", "features": {}}).encode()
    produce(broker.bootstrap, [event] * 40)
    events = EventCount()

    with Tap({"bootstrap.servers": broker.bootstrap}, [TOPIC], events.add) as tap:
        produce(broker.bootstrap, [event] * 60)
        assert tap.drain(TOPIC)

    assert events.total == 100
    assert len(set(events.identities())) == 100
    assert len({key.partition for key in events.identities()}) > 1


def test_records_come_with_their_headers_and_the_brokers_time(embedded_broker):
    broker = embedded_broker({TOPIC: 1})
    records: list[Record] = []
    seen = threading.Event()

    def keep(record: Record) -> None:
        records.append(record)
        seen.set()

    with Tap({"bootstrap.servers": broker.bootstrap}, [TOPIC], keep):
        produce(broker.bootstrap, [b"x"])
        assert seen.wait(10)

    assert records[0].headers == {"palisade-kind": b"prediction"}
    assert (records[0].topic, records[0].offset, records[0].value) == (TOPIC, 0, b"x")
    assert abs(records[0].seen_s - records[0].at_s) < 10


def test_a_check_that_failed_while_reading_is_not_taken_for_a_clean_one(embedded_broker):
    broker = embedded_broker({TOPIC: 1})

    def fail(record: Record) -> None:
        raise RuntimeError("cannot count this")

    produce(broker.bootstrap, [b"x"])
    tap = Tap({"bootstrap.servers": broker.bootstrap}, [TOPIC], fail).start()

    with pytest.raises(RuntimeError, match="cannot count this"):
        tap.drain(TOPIC)
    with pytest.raises(RuntimeError, match="cannot count this"):
        tap.stop()


def test_a_topic_that_is_not_there_is_said_so_at_once(embedded_broker):
    broker = embedded_broker({TOPIC: 1})
    tap = Tap({"bootstrap.servers": broker.bootstrap, "allow.auto.create.topics": False}, ["no.such.topic"], print)

    with pytest.raises(KafkaException):
        tap.start()
    tap.stop()
