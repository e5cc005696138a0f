"""Role ingest on Apache Kafka: a worker is killed at its work, two share the partitions, one leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palisade.supervisor import Supervisor
from schemas.topics import REQUESTS, RESPONSES
from streams.admin import create_topics
from streams.ingest.pieces import ROW_BITS
from streams.ingest.written import ReadBack
from tests.ingest.story import PARTITIONS, Story, twice
from tests.support.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """A broker of its own: the topics have fixed names."""
    with ApacheKafka() as broker:
        story = Story(tmp_path, broker.bootstrap, embedded=False)
        create_topics(story.connection, PARTITIONS, 1)
        yield story


def test_each_request_is_one_prediction_through_kills_and_rebalances(story: Story, tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        story.worker(supervisor, "ingest")
        for turn in range(3):
            story.write(4_000)
            story.until(len(story.asked) - 3_000)
            supervisor.kill("ingest")
            if turn == 1:
                story.worker(supervisor, "ingest-2")
            story.write(2_000)
        unanswered = len(story.asked)
        story.write(50, answered=False)
        rows = story.until(len(story.asked))

    assert sorted(row["request_id"] for row in rows) == sorted(story.asked)
    assert not twice(rows)
    late = {row["request_id"] for row in rows if row["status"] == "unanswered"}
    assert late == set(story.asked[unanswered:])
    places = {topic: set[tuple[int, int]]() for topic in (REQUESTS, RESPONSES)}
    for row in rows:
        for place in filter(None, (row["origin"], row["answer"])):
            topic, partition, offset, _ = place.split("/")
            places[topic].add((int(partition), int(offset)))
    assert {topic: len(found) for topic, found in places.items()} == {
        REQUESTS: len(story.asked), RESPONSES: unanswered,
    }  # fmt: skip
    reports = story.reports()
    asked = sum(report["asked"] for report in reports)
    # a restart counts again what was read and open; what no report had said yet is lost, here whole bursts of less than a
    # second, but nothing that came after the last kill
    assert 2_050 <= asked <= 1.02 * len(story.asked)


def test_only_what_was_written_since_a_time_is_read_back(story: Story, tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        story.worker(supervisor)
        story.write(100)
        story.until(100)
    since = int(time.time() * 1000)
    read_back = ReadBack(story.connection, PARTITIONS)

    found = [read_back.places(partition, 0).places[REQUESTS] >> ROW_BITS for partition in range(PARTITIONS)]
    later = [read_back.places(partition, since + 60_000).places for partition in range(PARTITIONS)]

    assert sum(map(len, found)) == 100
    assert later == [{}, {}]
