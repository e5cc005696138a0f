"""The broker's ACLs, derived from the topics and the roles: what each role is granted, and nothing else.

Read and Write each imply Describe. An idempotent producer needs no right of its own from Apache Kafka 3.0 on.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from schemas.roles import ROLES, Role, RoleSpec
from schemas.topics import TOPICS

Resource = Literal["topic", "group", "transactional-id"]
Operation = Literal["Read", "Write", "Describe", "Create", "DescribeConfigs"]
OPERATIONS: tuple[Operation, ...] = ("Read", "Write", "Describe", "Create", "DescribeConfigs")
ROLE = "{role}"
"""Stands for the role's name in a principal."""
PRINCIPAL = f"User:palisade-{ROLE}"


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on one resource. `prefixed`: on all whose names begin with `name`."""

    resource: Resource
    name: str
    operation: Operation
    prefixed: bool = False


@dataclass(frozen=True, slots=True)
class Acl:
    """A right that a principal has, from any host."""

    principal: str
    right: Right


def rights_of(role: RoleSpec) -> tuple[Right, ...]:
    """All that the role is granted."""
    return tuple(_rights(role))


def _rights(role: RoleSpec) -> Iterator[Right]:
    for topic in TOPICS:
        if role.name in topic.readers:
            yield Right("topic", topic.name, "Read")
        if role.name in topic.writers:
            yield Right("topic", topic.name, "Write")
        if role.watches_readers and not topic.compacted:
            if role.name not in topic.readers:
                yield Right("topic", topic.name, "Describe")
            yield Right("topic", topic.name, "DescribeConfigs")
        if role.makes_topics:
            yield Right("topic", topic.name, "Create")
            yield Right("topic", topic.name, "Describe")
            yield Right("topic", topic.name, "DescribeConfigs")
    if role.group is not None:
        yield Right("group", role.group, "Read")
    for group in role.asks_about:
        yield Right("group", group, "Describe", prefixed=group.endswith("-"))
    if role.transactional_id is not None:
        yield Right("transactional-id", role.transactional_id, "Write")


def principal_of(template: str, role: Role) -> str:
    """`User:palisade-{role}`, or `User:CN={role},O=Example` where certificates say who connects."""
    return template.replace(ROLE, role)


def acls(template: str = PRINCIPAL) -> list[Acl]:
    """Every ACL of every role."""
    return [Acl(principal_of(template, role.name), right) for role in ROLES for right in rights_of(role)]


def command_lines(template: str, bootstrap: str, command_config: str) -> list[str]:
    """What `kafka-acls.sh` must be told, a comment before each role."""
    lines = []
    for role in ROLES:
        lines.append(f"# {role.name}: {role.who}".replace("`", ""))
        start = ["kafka-acls.sh", "--bootstrap-server", bootstrap, "--command-config", command_config, "--add"]
        start += ["--allow-principal", principal_of(template, role.name)]
        lines += [shlex.join([*start, *options]) for options in _grouped(rights_of(role))]
    return lines


def _grouped(rights: Iterable[Right]) -> Iterator[list[str]]:
    """Options of one command each: resources of one kind that are granted the same operations."""
    operations: dict[tuple[Resource, bool, str], list[Operation]] = {}
    for right in rights:
        operations.setdefault((right.resource, right.prefixed, right.name), []).append(right.operation)
    names: dict[tuple[Resource, bool, tuple[Operation, ...]], list[str]] = {}
    for (resource, prefixed, name), granted in operations.items():
        names.setdefault((resource, prefixed, tuple(granted)), []).append(name)
    for (resource, prefixed, together), alike in names.items():
        options = [word for operation in together for word in ("--operation", operation)]
        options += ["--resource-pattern-type", "prefixed"] if prefixed else []
        yield [*options, *(word for name in alike for word in (f"--{resource}", name))]
