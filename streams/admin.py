"""Makes the topics, and says where existing ones differ from what the contracts ask for."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from schemas.errors import PalisadeError
from schemas.topics import TOPICS, TopicSpec
from streams.transport.settings import KafkaConnection, kafka_settings

TIMEOUT_S = 15.0
NO_TOPIC = (
    "there is no topic {} that this principal may see: make the topics with `palisade topics create`, or have its role's "
    "rights granted (`palisade topics acls`)"
)


class BrokerAway(PalisadeError):
    """The broker did not answer in time."""


@dataclass(frozen=True, slots=True)
class TopicOutcome:
    """What became of one topic: `created`, `exists`, or `differs` with what to change by hand."""

    name: str
    outcome: str
    detail: str = ""


def create_topics(connection: KafkaConnection, partitions: int, replication: int) -> list[TopicOutcome]:
    """Makes what is missing; never changes what exists. Raises BrokerAway or KafkaException.

    partitions: of the input topics. It is never changed in place: endpoints would move to other partitions, and with
    them the order of their log.
    """
    admin = AdminClient(kafka_settings(connection, "admin"))
    existing = _cluster(admin, connection, TIMEOUT_S).partitions
    missing = [spec for spec in TOPICS if spec.name not in existing]
    made = (
        admin.create_topics([_new(spec, partitions, replication) for spec in missing], request_timeout=TIMEOUT_S)
        if missing
        else {}
    )
    created = {name for name, future in made.items() if _created(future)}
    there = [spec for spec in TOPICS if spec.name not in created]
    known = _known(admin, connection, {spec.name for spec in TOPICS})
    return [TopicOutcome(name, "created") for name in created] + _differences(admin, there, known, partitions)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which brokers answer: the cluster's own id, and the partitions of each topic by name."""

    cluster_id: str
    partitions: dict[str, int]


def cluster_of(connection: KafkaConnection, timeout_s: float | None = None) -> Cluster:
    """The cluster that answers. Raises BrokerAway after `timeout_s` (TIMEOUT_S if None)."""
    admin = AdminClient(kafka_settings(connection, "admin"))
    return _cluster(admin, connection, TIMEOUT_S if timeout_s is None else timeout_s)


def _cluster(admin: AdminClient, connection: KafkaConnection, wait_s: float) -> Cluster:
    try:
        found = admin.list_topics(timeout=wait_s)
    except KafkaException as error:
        raise BrokerAway(
            f"no broker answered at {connection.bootstrap} in {wait_s:.0f} s ({error.args[0].str()}): "
            "start it, or check kafka.bootstrap in the configuration"
        ) from error
    topics = {name: len(topic.partitions) for name, topic in found.topics.items()}
    return Cluster(str(found.cluster_id), topics)


def input_partitions(connection: KafkaConnection, topic: str) -> int:
    """How many partitions a topic has. Raises BrokerAway, or PalisadeError if there is no such topic."""
    found = cluster_of(connection).partitions.get(topic)
    if not found:
        raise PalisadeError(NO_TOPIC.format(topic))
    return found


def _known(admin: AdminClient, connection: KafkaConnection, names: set[str]) -> dict[str, int]:
    """Name -> number of partitions, once all of `names` are there: a broker knows a topic a moment after it was made."""
    deadline = time.monotonic() + TIMEOUT_S
    while lacking := names - (known := _cluster(admin, connection, TIMEOUT_S).partitions).keys():
        if time.monotonic() > deadline:
            raise BrokerAway(
                f"the broker did not show in {TIMEOUT_S:.0f} s what was made: {', '.join(sorted(lacking))}"
            )
        time.sleep(0.05)
    return known


def _new(spec: TopicSpec, partitions: int, replication: int) -> NewTopic:
    return NewTopic(spec.name, spec.partitions(partitions), replication, config=spec.config())


def _created(future: Future[None]) -> bool:
    """False if the topic is there already. Raises KafkaException."""
    try:
        future.result(TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise
    return True


def _differences(
    admin: AdminClient, specs: list[TopicSpec], existing: dict[str, int], partitions: int
) -> list[TopicOutcome]:
    if not specs:
        return []
    asked = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, spec.name) for spec in specs], request_timeout=TIMEOUT_S
    )
    settings = {resource.name: future.result(TIMEOUT_S) for resource, future in asked.items()}
    outcomes = []
    for spec in specs:
        wrong = [
            f"{key} is {settings[spec.name][key].value}, should be {value}"
            for key, value in spec.config().items()
            if key in settings[spec.name] and settings[spec.name][key].value != value
        ]
        if existing.get(spec.name) != spec.partitions(partitions):
            wrong.append(
                f"it has {existing.get(spec.name)} partitions, the configuration says {spec.partitions(partitions)}"
            )
        outcomes.append(TopicOutcome(spec.name, "differs" if wrong else "exists", "; ".join(wrong)))
    return outcomes
