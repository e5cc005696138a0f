"""What only Apache Kafka shows: topics as documented, transactions, compaction, fencing of the responder."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from schemas.topics import BY_NAME, PREDICTIONS, TOPICS
from streams import admin, snapshots
from streams.admin import create_topics, input_partitions
from streams.reading import read_newest, read_to_end
from streams.snapshots import TopicStore
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.streams.broker import produce, with_outbox
from tests.support.kafka import RealKafka

pytestmark = pytest.mark.kafka


@pytest.fixture
def connection(kafka: RealKafka) -> KafkaConnection:
    return KafkaConnection(bootstrap=kafka.bootstrap)


def test_topics_are_made_as_documented_and_a_second_call_changes_nothing(
    kafka: RealKafka, connection: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = kafka.unique("x")
    specs = tuple(replace(spec, name=f"{spec.name}.{mark}") for spec in TOPICS)
    monkeypatch.setattr(admin, "TOPICS", specs)

    made = create_topics(connection, partitions=3, replication=1)
    again = create_topics(connection, partitions=3, replication=1)

    assert {outcome.name: outcome.outcome for outcome in made} == {spec.name: "created" for spec in specs}
    assert {(outcome.outcome, outcome.detail) for outcome in again} == {("exists", "")}
    client = AdminClient(kafka_settings(connection, "admin"))
    asked = client.describe_configs([ConfigResource(ResourceType.TOPIC, spec.name) for spec in specs])
    found = {resource.name: future.result(15) for resource, future in asked.items()}
    for spec in specs:
        assert input_partitions(connection, spec.name) == (3 if spec.follows_input else 1)
        settings = {key: found[spec.name][key].value for key in found[spec.name]}
        assert settings["message.timestamp.type"] == "LogAppendTime"
        assert settings["cleanup.policy"] == ("compact" if spec.compacted else "delete")
        assert settings["max.message.bytes"] == str(spec.max_message_bytes)
        if not spec.compacted:
            assert settings["retention.ms"] == str(spec.retention_ms)


def test_a_topic_that_differs_is_left_as_it_is_and_told(
    kafka: RealKafka, connection: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(BY_NAME[PREDICTIONS], name=kafka.unique("differs"))
    monkeypatch.setattr(admin, "TOPICS", (spec,))
    kafka.create_topics({spec.name: 2}, {"retention.ms": "1000"})

    (outcome,) = create_topics(connection, partitions=3, replication=1)

    assert outcome.outcome == "differs"
    assert "message.timestamp.type is CreateTime, should be LogAppendTime" in outcome.detail
    assert "retention.ms is 1000, should be 604800000" in outcome.detail
    assert "it has 2 partitions, the configuration says 3" in outcome.detail
    assert input_partitions(connection, spec.name) == 2


def test_reading_to_the_end_passes_transaction_markers_and_sees_committed_records_alone(
    kafka: RealKafka, connection: KafkaConnection
) -> None:
    topic = kafka.unique("journal")
    kafka.create_topics({topic: 1})
    transactions = {"transactional.id": kafka.unique("tx"), "transaction.timeout.ms": 120_000}
    settings = kafka_settings(connection, "producer") | transactions
    producer = Producer(settings)
    producer.init_transactions(30)
    for value, committed in ((b"1", True), (b"2", False), (b"3", True)):
        producer.begin_transaction()
        producer.produce(topic, value, b"k")
        producer.flush(10)
        if committed:
            producer.commit_transaction(10)
        else:
            producer.abort_transaction(10)

    assert [message.value() for message in read_to_end(connection, topic, 0)] == [b"1", b"3"]
    assert [message.value() for message in read_to_end(connection, topic, 0, start=5)] == []
    assert [message.value() for message in read_to_end(connection, topic, 0, last=2)] == [b"3"]


def test_a_compacted_topic_of_snapshots_gives_the_newest_state(
    kafka: RealKafka, connection: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.unique("snapshots")
    eager = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.001",
             "max.compaction.lag.ms": "100", "segment.bytes": "1048576"}  # fmt: skip
    kafka.create_topics({topic: 1}, eager)
    monkeypatch.setattr(snapshots, "SNAPSHOTS", topic)

    async def story(outbox: object) -> None:
        store = TopicStore(connection, lambda: outbox)  # type: ignore[arg-type, return-value]
        for turn in range(30):
            await store.save("predictions", 0, {"a": b"%d" % turn * 20_000, f"once-{turn}": b"1"}, turn)
        time.sleep(0.3)  # so that the next record rolls the segment: compaction never touches the one being written
        await store.save("predictions", 0, {"a": b"last"}, 99)

        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts["a"], len(saved.parts)) == (99, b"last", 31)

    with_outbox(connection, story)
    produce(connection, topic, (b"predictions|once-3", None, ()))
    assert "predictions|once-3" not in read_newest(connection, topic, 0, "predictions|")
