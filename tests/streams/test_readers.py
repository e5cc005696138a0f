"""How near the roles are to being overtaken by retention: people are told in time, once, and again when it is over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from responders.alerts import alert_for
from responders.decide import Reader, decide
from responders.state import ALL_ENDPOINTS, RespondState
from schemas.roles import Role, group_of
from schemas.topics import PREDICTIONS, REQUESTS, TOPICS
from streams import readers as readers_module
from streams.embedded_broker import PARTITION_BYTES, EmbeddedBroker
from streams.metrics import Metrics
from streams.readers import READ, Behind, KeepingUp, Readers, Retention, watch
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.responders.given import mandate
from tests.streams.broker import produce
from tests.streams.responding import now
from tests.support.kafka import RealKafka
from tests.support.waiting import until

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
NOW = 1_700_000_000_000
KILO = b"x" * 1_000


def commit(connection: KafkaConnection, role: Role, topic: str, offset: int) -> None:
    consumer = Consumer(kafka_settings(connection, "consumer", group=group_of(role)))  # type: ignore[arg-type]
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()


def of(found: list[Behind], role: Role, topic: str) -> Behind | None:
    return next((one for one in found if (one.role, one.topic) == (role, topic)), None)


@pytest.fixture
def embedded(embedded_broker: Start) -> KafkaConnection:
    return embedded_broker({spec.name: 1 for spec in TOPICS}).connection


def test_each_topic_that_is_kept_for_a_time_is_watched_for_each_role_that_reads_it() -> None:
    assert set(READ) == {"ingest", "detect", "respond", "audit"}
    for role, read in READ.items():
        for topic in read:
            assert role in next(spec for spec in TOPICS if spec.name == topic).readers


def test_on_the_embedded_broker_the_share_is_of_five_mebibytes(embedded: KafkaConnection) -> None:
    produce(embedded, PREDICTIONS, *[(b"credit", KILO, ())] * 3_000)
    commit(embedded, "detect", PREDICTIONS, 2_900)
    commit(embedded, "audit", PREDICTIONS, 100)
    found = Readers(embedded, embedded=True).look(NOW)
    near, far = of(found, "detect", PREDICTIONS), of(found, "audit", PREDICTIONS)
    assert near is not None
    assert far is not None
    assert near.share < 0.05
    assert far.share == pytest.approx(2_900 * 1_070 / PARTITION_BYTES, rel=0.1)
    assert far.lost is None


def test_what_was_removed_unread_is_named(embedded: KafkaConnection) -> None:
    commit(embedded, "audit", PREDICTIONS, 10)
    produce(embedded, PREDICTIONS, *[(b"credit", os.urandom(4_000), ()) for _ in range(2_500)])
    found = of(Readers(embedded, embedded=True).look(NOW), "audit", PREDICTIONS)
    assert found is not None
    assert found.lost is not None
    assert found.lost[0] == 10
    assert found.share > 0.9


def test_a_role_that_is_not_in_use_is_not_told_of(embedded: KafkaConnection) -> None:
    produce(embedded, REQUESTS, *[(b"r", KILO, ())] * 100)
    assert of(Readers(embedded, embedded=True).look(NOW), "ingest", REQUESTS) is None
    commit(embedded, "ingest", REQUESTS, 1)
    assert of(Readers(embedded, embedded=True).look(NOW), "ingest", REQUESTS) is not None


@pytest.mark.kafka
def test_on_apache_kafka_the_share_is_of_the_topic_s_own_time(
    kafka: RealKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = KafkaConnection(bootstrap=kafka.bootstrap)
    topic = kafka.unique("kept")
    kafka.create_topics({topic: 1}, {"retention.ms": "3600000"})
    monkeypatch.setattr(readers_module, "READ", {"audit": (topic,)})
    monkeypatch.setattr(readers_module, "group_of", lambda _: group)
    group = kafka.unique("audit")
    produce(connection, topic, *[(b"credit", b"x", ())] * 10)
    consumer = Consumer(kafka_settings(connection, "consumer", group=group))  # type: ignore[arg-type]
    consumer.commit(offsets=[TopicPartition(topic, 0, 3)], asynchronous=False)
    looking = Readers(connection)
    assert looking._retention([topic]) == {topic: Retention(ms=3_600_000)}
    now_ms = now()
    shares = [looking.look(now_ms + int(hours * 3_600_000))[0].share for hours in (0.0, 0.3, 0.6, 0.9)]
    assert shares == [0.0, 0.25, 0.5, 0.75]
    consumer.commit(offsets=[TopicPartition(topic, 0, 10)], asynchronous=False)
    assert looking.look(now_ms + 3_600_000)[0].share == 0.0
    consumer.close()


def test_what_its_clients_had_to_say_of_an_outage_does_not_pile_up(embedded_broker: Start) -> None:
    """librdkafka keeps each failed connection until somebody takes the word of it: 0.3 kB each, a client."""
    broker = embedded_broker({spec.name: 1 for spec in TOPICS})
    said: list[KafkaError] = []
    heard: list[KafkaError] = []
    readers = Readers(telling(broker.connection, said), embedded=True)
    readers.look(NOW)
    another = Consumer(kafka_settings(telling(broker.connection, heard), "consumer", group="another"))
    another.list_topics(timeout=10)
    broker.down()
    until(lambda: another.poll(0.1) or heard, "a client to say that nobody answers", 30)
    broker.up()
    another.close()

    readers.look(NOW)

    assert said
    told = len(said)
    for client in readers._clients.values():
        client.poll(0)
    assert len(said) == told


def telling(connection: KafkaConnection, said: list[KafkaError]) -> KafkaConnection:
    return connection.model_copy(update={"extra": {"log_level": 2, "error_cb": said.append}})


def test_people_are_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    keeping_up = KeepingUp()

    def told(share: float, lost: tuple[int, int] | None = None) -> list[str]:
        return [news.reason for news in keeping_up.news([Behind("audit", PREDICTIONS, 0, share, lost)])]

    assert told(0.4) == []
    assert told(0.5) == ["reader_behind"]
    assert told(0.9) == []
    assert told(1.0, (3, 8)) == ["reader_lost"]
    assert told(1.0, (3, 9)) == []
    assert told(0.3) == []
    assert told(0.2) == ["reader_caught_up"]
    assert told(0.0) == []
    assert told(0.6) == ["reader_behind"]


def test_what_is_told_of_a_reader_is_a_critical_alert_with_what_to_do() -> None:
    (news,) = KeepingUp().news([Behind("audit", PREDICTIONS, 2, 0.75)])
    _, (decision,) = decide(RespondState(), news, NOW, mandate())
    assert (decision.kind, decision.endpoint, decision.outcome) == ("notify", ALL_ENDPOINTS, "published")
    alert = alert_for(decision)
    assert alert is not None
    assert (alert.name, alert.severity) == ("reader_behind", "critical")
    assert "audit, palisade.predictions[2]: 75% of what is kept is unread" in alert.text
    over = Reader("audit", PREDICTIONS, "reader_caught_up", "audit")
    _, (ended,) = decide(RespondState(), over, NOW, mandate())
    assert (told := alert_for(ended)) is not None
    assert told.severity == "info"


@pytest.mark.parametrize("away", [KafkaException("away"), TimeoutError(), ValueError("an odd answer")])
def test_a_broker_that_does_not_answer_is_asked_again(away: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "LOOK_EVERY_S", 0.0)
    answers: list[Exception | None] = [away, away, None]

    def look(_: int) -> list[Behind]:
        if (error := answers.pop(0)) is not None:
            raise error
        return [Behind("audit", PREDICTIONS, 0, 0.5)]

    async def story() -> None:
        heard = asyncio.Event()
        watching = asyncio.ensure_future(
            watch(look, lambda _: heard.set(), lambda: bool(answers), Metrics("respond").reader_share)
        )
        await asyncio.wait_for(heard.wait(), 60)
        watching.cancel()

    asyncio.run(story())
    assert answers == []


def test_only_the_active_responder_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "LOOK_EVERY_S", 0.0)
    metrics = Metrics("respond")
    looks: list[int] = []
    told: list[Reader] = []
    active = iter([False, False, True])

    def look(now_ms: int) -> list[Behind]:
        looks.append(now_ms)
        return [Behind("audit", PREDICTIONS, 0, 0.5)]

    async def story() -> None:
        heard = asyncio.Event()

        def tell(news: list[Reader]) -> None:
            told.extend(news)
            heard.set()

        watching = asyncio.ensure_future(watch(look, tell, lambda: next(active, False), metrics.reader_share))
        await asyncio.wait_for(heard.wait(), 60)
        watching.cancel()

    asyncio.run(story())
    assert len(looks) == 1
    assert [news.reason for news in told] == ["reader_behind"]
    assert metrics.reader_share.labels("audit", PREDICTIONS)._value.get() == 0.5
