"""An ingest worker on the embedded broker, killed while it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from palisade.supervisor import Supervisor
from schemas.topics import TOPICS
from streams.embedded_broker import EmbeddedBroker
from tests.ingest.story import PARTITIONS, Story, twice

pytestmark = pytest.mark.slow


def test_a_worker_that_is_killed_writes_one_prediction_for_each_request(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({spec.name: spec.partitions(PARTITIONS) for spec in TOPICS})
    story = Story(tmp_path, broker.bootstrap, embedded=True)
    with Supervisor(tmp_path / "logs") as supervisor:
        story.worker(supervisor)
        for _ in range(2):
            story.write(1_000)
            story.until(len(story.asked) - 900)
            supervisor.kill("ingest")
            story.write(500)
        rows = story.until(len(story.asked))

    assert sorted(row["request_id"] for row in rows) == sorted(story.asked)
    assert not twice(rows)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["caller_auth"] for row in rows} == {"verified"}
