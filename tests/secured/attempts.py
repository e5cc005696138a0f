"""Tries every operation on every resource as one principal, for real, and says which the broker let through."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from schemas.roles import GUARD_GROUPS, READER_GROUP, ROLES
from schemas.topics import TOPICS
from streams.transport.settings import KafkaConnection, kafka_settings

TOPIC_NAMES = tuple(spec.name for spec in TOPICS)
GROUPS = (
    *{role.group for role in ROLES if role.group},
    READER_GROUP,
    f"{GUARD_GROUPS}4711",
    "somebody-elses",
)
TRANSACTIONAL_IDS = (*{role.transactional_id for role in ROLES if role.transactional_id}, "somebody-elses")
WAIT_S = 60.0
REFUSALS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
Attempt = tuple[str, str, str]
"""Kind of resource, name, operation."""


def let_through(connection: KafkaConnection, group: str) -> set[Attempt]:
    """Those of all attempts that were not refused, reading under the name of `group`. Raises KafkaException when one fails
    for another reason.

    What destroys comes last: deleting, altering, granting rights.
    """
    admin = AdminClient(kafka_settings(connection, "admin"))
    done = {("topic", name, "Write") for name in _written(connection)}
    done |= {("topic", name, "Read") for name in _read(connection, group)}
    done |= {("group", name, operation) for name, operation in _of_groups(admin)}
    done |= {("transactional-id", name, "Write") for name in TRANSACTIONAL_IDS if _begins(connection, name)}
    done |= {("topic", name, operation) for name, operation in _of_topics(admin)}
    seen = [name for kind, name, operation in done if (kind, operation) == ("topic", "Describe")]
    return done | _forbidden_to_all(admin, seen)


def _written(connection: KafkaConnection) -> set[str]:
    """Topics that took a record: of an idempotent producer, or of a plain one where the principal gets no producer id."""
    ours = kafka_settings(connection, "producer") | {"linger.ms": 0, "error_cb": lambda error: None}
    try:
        return _taken(Producer(ours))
    except KafkaException as error:
        if not (error.args[0].fatal() and _refused(error.args[0])):
            raise
        return _taken(Producer(ours | {"enable.idempotence": False}))


def _taken(producer: Producer) -> set[str]:
    written: set[str] = set()
    failures: list[KafkaError] = []

    def reported(error: KafkaError | None, message: Message) -> None:
        if error is None:
            written.add(str(message.topic()))
        else:
            failures.append(error)

    for name in TOPIC_NAMES:
        producer.produce(name, b"an attempt", b"key", partition=0, on_delivery=reported)
    assert producer.flush(WAIT_S) == 0
    assert all(_refused(failure) for failure in failures)
    return written


def _read(connection: KafkaConnection, group: str) -> set[str]:
    """Topics of which a record was read. The group is only named, but without Describe on it nothing is read."""
    consumer = Consumer(kafka_settings(connection, "consumer", group=group))
    try:
        waiting = {name for name in TOPIC_NAMES if not _hidden(consumer, name)}
        consumer.assign([TopicPartition(name, 0, OFFSET_BEGINNING) for name in waiting])
        read: set[str] = set()
        deadline = time.monotonic() + WAIT_S
        while waiting:
            assert time.monotonic() < deadline, f"neither read nor refused: {waiting}"
            message = consumer.poll(0.5)
            if message is None:
                continue
            error, name = message.error(), str(message.topic())
            if error is None:
                read.add(name)
            if error is None or _refused(error):
                waiting.discard(name)
    finally:
        consumer.close()
    return read


def _hidden(consumer: Consumer, name: str) -> bool:
    """Whether the broker does not even say where the topic lies: librdkafka would ask again for ever, and say nothing."""
    error = consumer.list_topics(name, timeout=WAIT_S).topics[name].error
    return error is not None and _refused(error)


def _of_groups(admin: AdminClient) -> set[tuple[str, str]]:
    """Groups and what could be done with them: asking about offsets, committing some."""
    place = [TopicPartition(TOPIC_NAMES[0], 0, 0)]
    asked: dict[tuple[str, str], Future[Any]] = {}
    for name in GROUPS:
        ask, commit = ConsumerGroupTopicPartitions(name), ConsumerGroupTopicPartitions(name, place)
        asked[name, "Describe"] = admin.list_consumer_group_offsets([ask], request_timeout=WAIT_S)[name]
        asked[name, "Read"] = admin.alter_consumer_group_offsets([commit], request_timeout=WAIT_S)[name]
    return _successes(asked)


def _begins(connection: KafkaConnection, name: str) -> bool:
    """Whether a producer may begin transactions under the id."""
    producer = Producer(
        kafka_settings(connection, "producer") | {"transactional.id": name, "transaction.timeout.ms": 120_000}
    )
    try:
        producer.init_transactions(WAIT_S)
    except KafkaException as error:
        return not _refused(error.args[0])
    return True


def _of_topics(admin: AdminClient) -> set[tuple[str, str]]:
    """Topics and what of their making could be done: seeing, creating, reading the settings."""
    seen = admin.list_topics(timeout=WAIT_S).topics
    done = {(name, "Describe") for name in TOPIC_NAMES if name in seen}
    wanted = [NewTopic(name, 1, 1) for name in (*TOPIC_NAMES, "somebody-elses")]
    made = admin.create_topics(wanted, validate_only=True, request_timeout=WAIT_S)
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in TOPIC_NAMES]
    settings = admin.describe_configs(resources, request_timeout=WAIT_S)
    asked: dict[tuple[str, str], Future[Any]] = {(name, "Create"): future for name, future in made.items()}
    asked |= {(resource.name, "DescribeConfigs"): future for resource, future in settings.items()}
    return done | _successes(asked)


def _forbidden_to_all(admin: AdminClient, seen: list[str]) -> set[Attempt]:
    """What no role may do, tried all the same: granting rights, changing topics, deleting groups, topics, and records (for
    which librdkafka asks where they lie: of topics that are `seen`)."""
    right = AclBinding(
        ResourceType.TOPIC, "*", ResourcePatternType.LITERAL, "User:*", "*", AclOperation.ALL, AclPermissionType.ALLOW
    )
    kept = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    changes = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=[kept]) for name in TOPIC_NAMES]
    asked: dict[Attempt, Future[Any]] = {}
    for future in admin.create_acls([right], request_timeout=WAIT_S).values():
        asked["cluster", "", "Alter"] = future
    for resource, future in admin.incremental_alter_configs(changes, request_timeout=WAIT_S).items():
        asked["topic", resource.name, "AlterConfigs"] = future
    ends = [TopicPartition(name, 0, 1) for name in seen]
    deleted = admin.delete_records(ends, request_timeout=WAIT_S, operation_timeout=WAIT_S) if ends else {}
    for place, future in deleted.items():
        asked["topic", place.topic, "DeleteRecords"] = future
    for name, future in admin.delete_consumer_groups(list(GROUPS), request_timeout=WAIT_S).items():
        asked["group", name, "Delete"] = future
    for name, future in admin.delete_topics(list(TOPIC_NAMES), request_timeout=WAIT_S).items():
        asked["topic", name, "Delete"] = future
    return _successes(asked)


def _successes(asked: dict[Any, Future[Any]]) -> set[Any]:
    """Keys of what was answered, and not by a refusal."""
    done = set()
    for key, future in asked.items():
        try:
            answer = future.result(WAIT_S)
        except KafkaException as error:
            if _refused(error.args[0]):
                continue
        else:
            places: Iterable[TopicPartition] = getattr(answer, "topic_partitions", None) or ()
            if any(
                place.error is not None and place.error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED
                for place in places
            ):
                continue
        done.add(key)
    return done


def _refused(error: KafkaError) -> bool:
    """True if the broker refused; False if it let through what then met something else that was expected."""
    if error.code() in REFUSALS:
        return True
    if error.code() in (KafkaError.TOPIC_ALREADY_EXISTS, KafkaError.GROUP_ID_NOT_FOUND):
        return False
    raise KafkaException(error)
