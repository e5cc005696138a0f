"""What the tests of outages share: how long one lasts, and how far a role has come meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.actions import JournalEntry
from schemas.roles import Role, group_of
from schemas.topics import ACTIONS
from streams.failpoints import Point
from streams.reading import read_to_end
from streams.transport.log_ends import log_end
from streams.transport.run import TP
from streams.transport.settings import kafka_settings
from tests.faults.stage import Stage
from tests.support.waiting import until

KILLS = 5


def await_beats(stage: Stage, beats: int) -> None:
    """So many more beats of the load, however long they take. AssertionError where the broker would not keep them."""
    goal = stage.load.beats + beats
    assert goal <= stage.setup.bounded, f"beat {goal} is never sent: the broker keeps {stage.setup.bounded}"
    until(lambda: stage.load.beats >= goal, f"beat {goal}", 120)


def trip_at_start(stage: Stage, name: str, point: Point, what: Literal["raise", "kill"]) -> None:
    """Kills a worker until one that starts in its place gets to the point, and raises or dies there; returns when one is back.

    A start reads again only where more was committed than saved. Raises AssertionError after `KILLS` kills.
    """
    if what == "kill":
        stage.expect_exit(name)
    exits = stage.exits_of(name)
    armed = stage.arm(name, point, what)
    for _ in range(KILLS):
        stage.await_saved("predictions")
        exits += 1
        stage.kill(name)
        stage.await_back(name, exits)
        await_beats(stage, 20)
        if not armed.exists():
            return
    raise AssertionError(f"{armed.name} was not reached in {KILLS} starts")


def lasts(seconds: float) -> None:
    """The time that an outage takes: it is the fault itself, and nothing is awaited."""
    threading.Event().wait(seconds)


def committed(stage: Stage, role: Role, topics: Iterable[str]) -> int:
    """What a role has committed of these topics, over all partitions."""
    consumer = Consumer(kafka_settings(stage.connection, "consumer", group=group_of(role)))  # type: ignore[arg-type]
    try:
        known = consumer.list_topics(timeout=30).topics
        places = [TopicPartition(topic, number) for topic in topics for number in known[topic].partitions]
        return sum(max(0, place.offset) for place in consumer.committed(places, timeout=30))
    finally:
        consumer.close()


def written(stage: Stage, topic: str) -> int:
    """How much was ever written to a topic, as soon as a broker that has just begun leads its partitions."""
    consumer = Consumer(kafka_settings(stage.connection, "consumer", group="palisade.tests"))  # type: ignore[arg-type]

    def asked() -> list[int]:
        try:
            known = consumer.list_topics(timeout=30).topics[topic].partitions
            return [log_end(consumer, TP(topic, number), 30) for number in known]
        except KafkaException:
            return []

    try:
        return sum(until(asked, f"the ends of {topic}", 60))
    finally:
        consumer.close()


def alerted(stage: Stage, reason: str) -> list[str]:
    """What people were told for this reason, by the journal."""
    entries = [JournalEntry.from_bytes(m.value() or b"") for m in read_to_end(stage.connection, ACTIONS, 0)]
    return [one.detail for entry in entries for one in entry.decisions if (one.kind, one.reason) == ("notify", reason)]
