"""F5: the broker refuses what is written and what is committed: it is done again, and no offset passes what was refused."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from schemas.topics import ACTIONS, DEAD_LETTERS, DIRECTIVES, LABELLED, PREDICTIONS, REPORTS, SIGNALS, VERDICTS
from streams.transport.settings import kafka_settings
from tests.faults.ground import Ground
from tests.faults.outages import await_beats, lasts
from tests.faults.stage import Setup, Stage, fresh_seed

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

OFFSETS = "__consumer_offsets"
Rounds = Sequence[tuple[Sequence[str], float]]
TOGETHER: Rounds = (((VERDICTS, SIGNALS, DEAD_LETTERS, OFFSETS), 3.0), ((ACTIONS, DIRECTIVES), 12.0))
APART: Rounds = (
    ((VERDICTS, SIGNALS, DEAD_LETTERS), 5.0),
    ((OFFSETS,), 5.0),
    ((ACTIONS, DIRECTIVES), 30.0),
    ((PREDICTIONS, REPORTS, LABELLED), 5.0),
    ((VERDICTS, SIGNALS, ACTIONS, OFFSETS), 15.0),
)
ROUNDS: dict[str, Rounds] = {"short": TOGETHER, "full": (*TOGETHER, *APART * 4)}
"""What is refused together, and for how long. The journal's own patience is 10 s."""
COMMITS = {"short": 4, "full": 30}
"""No more than the embedded broker keeps the events of."""
OF_COMMITS = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.OFFSET_METADATA_TOO_LARGE,
)


@pytest.mark.shared
@pytest.mark.fault("F5")
def test_what_a_broker_without_enough_replicas_refuses_is_written_again(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True)) as stage:
        stage.load.start()
        writes_refused(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I5", "I6", "I9"))


def writes_refused(stage: Stage, ground: Ground) -> None:
    ended = list(stage.ended)
    for topics, seconds in ROUNDS[ground.scale]:
        await_beats(stage, 30)
        _need_replicas(stage, topics, 2)
        lasts(seconds)
        _need_replicas(stage, topics, 1)
        ground.made()
    await_beats(stage, 60)
    assert stage.ended == ended


@pytest.mark.shared
@pytest.mark.fault("F5")
def test_a_commit_that_is_refused_is_made_again_and_passes_nothing(ground: Ground) -> None:
    with ground.stage(Setup(inside=True, seed=fresh_seed())) as stage:
        stage.load.start()
        commits_refused(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def commits_refused(stage: Stage, ground: Ground) -> None:
    assert stage.embedded is not None
    chance = random.Random(stage.setup.seed)
    for _ in range(COMMITS[ground.scale]):
        await_beats(stage, chance.randrange(10, 30))
        stage.embedded.refuse("OffsetCommit", chance.choices(OF_COMMITS, k=chance.randrange(1, 10)))
        ground.made()
    await_beats(stage, 40)
    assert stage.ended == [], f"seed {stage.setup.seed}"


def _need_replicas(stage: Stage, topics: Sequence[str], number: int) -> None:
    """With two in a cluster of one broker, every write with acks=all is refused: NOT_ENOUGH_REPLICAS."""
    entry = ConfigEntry("min.insync.replicas", str(number), incremental_operation=AlterConfigOpType.SET)
    wanted = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry]) for topic in topics]
    admin = AdminClient(kafka_settings(stage.connection, "admin"))
    for future in admin.incremental_alter_configs(wanted, request_timeout=30).values():
        future.result(60)
