"""One broker with its authorizer for all tests here, and the ACLs that `palisade topics acls --apply` makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.acls import PRINCIPAL, acls, principal_of
from schemas.roles import ROLES, Role
from streams.acls import grant
from streams.admin import create_topics
from tests.palisade.conftest import palisade
from tests.secured.connecting import connection_as
from tests.support.secured_kafka import SUPER, SecuredKafka

__all__ = ["palisade"]
STRANGER = "stranger"


def name_of(role: Role) -> str:
    """The principal of a role, as the broker knows it by password or certificate."""
    return principal_of(PRINCIPAL, role).removeprefix("User:")


@pytest.fixture(scope="session")
def secured() -> Iterator[SecuredKafka]:
    with SecuredKafka([*(name_of(role.name) for role in ROLES), STRANGER]) as broker:
        granted = grant(connection_as(broker, SUPER), acls())
        assert {outcome.outcome for outcome in granted} == {"created"}
        create_topics(connection_as(broker, name_of("admin")), 1, 1)
        yield broker
