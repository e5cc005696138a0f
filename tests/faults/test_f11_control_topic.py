"""F11: the control topic is deleted, made again, and filled with old directives; the responder's state is deleted, too."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from schemas.topics import DIRECTIVES, RESPOND_STATE
from streams.admin import create_topics, input_partitions
from streams.reading import read_to_end
from streams.transport.settings import kafka_settings
from tests.faults.ground import Ground
from tests.faults.load import GUARDED
from tests.faults.respond_pair import WITHIN_S, Follower, Responders
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.shared, pytest.mark.fault("F11")]
ROUNDS, FULL_ROUNDS = 1, 5


def delete(stage: Stage, topic: str) -> None:
    admin = AdminClient(kafka_settings(stage.connection, "admin"))  # held until it has answered
    (deleted,) = admin.delete_topics([topic]).values()
    deleted.result(60)


def make_again(stage: Stage) -> None:
    """As `palisade topics create` does; a deletion may still be under way."""

    def made() -> bool:
        try:
            create_topics(stage.connection, stage.setup.partitions, 1)
        except KafkaException:
            return False
        return True

    until(made, "the topics to be made again", WITHIN_S, 0.5)


def all_directives(stage: Stage) -> list[Message]:
    return [
        message
        for partition in range(input_partitions(stage.connection, DIRECTIVES))
        for message in read_to_end(stage.connection, DIRECTIVES, partition)
    ]


def write_again(stage: Stage, snapshot: list[Message]) -> None:
    """Old records with their own signatures, in the partitions where they lay."""
    producer = Producer(kafka_settings(stage.connection, "producer"))
    for message in snapshot:
        producer.produce(
            DIRECTIVES, message.value(), message.key(), partition=message.partition() or 0, headers=message.headers()
        )
    assert producer.flush(60) == 0


def the_topic_is_lost(stage: Stage, responders: Responders, follower: Follower) -> None:
    """A Guard keeps what it was told, is told anew once the topic is back, and takes nothing that is older."""
    until(lambda: follower.limited, "somebody is limited", WITHIN_S)
    snapshot = all_directives(stage)
    held = {limit.action_id: limit.until for limit in follower.state.orders(may_fall_back=True).limits.values()}
    epoch = follower.state.epoch
    delete(stage, DIRECTIVES)
    kept = {limit.action_id: limit.until for limit in follower.state.orders(may_fall_back=True).limits.values()}
    assert kept.items() >= held.items() or follower.state.epoch > epoch, "an order was forgotten before its end"
    make_again(stage)
    until(lambda: responders.directives(GUARDED), "the whole state on the new topic", WITHIN_S)
    followed = len(follower.taken)
    until(lambda: len(follower.taken) > followed, "it is followed again", WITHIN_S)

    refused = sum(follower.state.refusals.values())
    write_again(stage, snapshot)
    until(lambda: sum(follower.state.refusals.values()) > refused, "old directives are refused", WITHIN_S)
    with Follower(stage, GUARDED) as newcomer:  # a serving process that starts now and knows of no epoch
        until(lambda: newcomer.state.epoch >= follower.state.epoch, "the whole state corrects a newcomer", WITHIN_S)


def the_state_is_lost(stage: Stage, responders: Responders) -> None:
    """The journal is enough: who is limited stays so, by the same actions, and none is decided anew."""
    before = {decision.action_id for decision in responders.limits()}
    delete(stage, RESPOND_STATE)
    takeovers = responders.takeovers()
    stage.kill(responders.active())
    responders.await_takeover(takeovers)
    epoch = responders.journal()[-1].epoch
    until(lambda: responders.directives(GUARDED)[-1].epoch >= epoch, "directives of the new epoch", WITHIN_S)
    assert before <= {decision.action_id for decision in responders.limits()}
    make_again(stage)


def test_a_lost_control_topic_frees_nobody_and_an_old_one_binds_nobody(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True)) as stage:
        stage.load.start()
        with Follower(stage, GUARDED) as follower:
            topics_of_control_lost(stage, ground, follower)
        stage.settle()
        stage.prove(must=("I1", "I6", "I7", "I8"))


def topics_of_control_lost(stage: Stage, ground: Ground, follower: Follower) -> None:
    responders = Responders(stage)
    for _ in range(FULL_ROUNDS if ground.full else ROUNDS):
        the_topic_is_lost(stage, responders, follower)
        the_state_is_lost(stage, responders)
        ground.made(3)
