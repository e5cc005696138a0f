"""Each role may do on a broker what the contracts grant it, and nothing else: every operation is tried."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from schemas.acls import Right, rights_of
from schemas.roles import GUARD_GROUPS, READER_GROUP, ROLES, RoleSpec
from streams.transport.settings import kafka_settings
from tests.secured.attempts import GROUPS, TOPIC_NAMES, Attempt, let_through
from tests.secured.conftest import STRANGER, name_of
from tests.secured.connecting import connection_as
from tests.support.secured_kafka import SUPER, SecuredKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def records(secured: SecuredKafka) -> None:
    """One on each topic, so that reading shows."""
    producer = Producer(kafka_settings(connection_as(secured, SUPER), "producer"))
    for name in TOPIC_NAMES:
        producer.produce(name, b"a record", b"key", partition=0)
    assert producer.flush(60) == 0


def granted(role: RoleSpec) -> set[Attempt]:
    """The attempts that the role's rights let through."""
    done: set[Attempt] = set()
    for right in rights_of(role):
        names = [name for name in GROUPS if name.startswith(GUARD_GROUPS)] if right.prefixed else [right.name]
        done |= {(right.resource, name, right.operation) for name in names}
        if right.operation in ("Read", "Write") and right.resource != "transactional-id":
            done.add((right.resource, right.name, "Describe"))
    return done


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_is_let_through_where_it_has_a_right_and_nowhere_else(role: RoleSpec, secured: SecuredKafka) -> None:
    group = role.group or next(iter(role.asks_about), READER_GROUP)
    assert let_through(connection_as(secured, name_of(role.name)), group) == granted(role)


def test_who_has_no_rights_is_let_through_nowhere(secured: SecuredKafka) -> None:
    assert let_through(connection_as(secured, STRANGER), READER_GROUP) == set()


def test_what_the_roles_say_to_each_other_each_says_alone() -> None:
    writers = {right: role.name for role in ROLES for right in rights_of(role) if right.operation == "Write"}

    for topic, role in (("signals", "detect"), ("verdicts", "detect"), ("snapshots", "detect"), ("actions", "respond"),
                        ("respond_state", "respond"), ("labelled", "audit"), ("commands", "operators")):  # fmt: skip
        assert writers[Right("topic", f"palisade.{topic}", "Write")] == role
        holders = [each.name for each in ROLES if Right("topic", f"palisade.{topic}", "Write") in rights_of(each)]
        assert holders == [role]
