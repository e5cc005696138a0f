"""Grants the ACLs of the contracts on a broker, and says who else may do what with our topics. It takes nothing away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from schemas.acls import Acl, Operation, Resource
from streams.admin import TIMEOUT_S
from streams.transport.settings import KafkaConnection, kafka_settings

_RESOURCES: dict[Resource, ResourceType] = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
_OPERATIONS: dict[Operation, AclOperation] = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "Create": AclOperation.CREATE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
_EVERY: tuple[Any, ...] = (
    ResourceType.ANY,
    None,  # any name, any principal, any host
    ResourcePatternType.ANY,
    None,
    None,
    AclOperation.ANY,
    AclPermissionType.ANY,
)


@dataclass(frozen=True, slots=True)
class AclOutcome:
    """What became of one ACL: `created`, `exists`, or `surplus` if the broker has it and the contracts do not."""

    outcome: Literal["created", "exists", "surplus"]
    principal: str
    resource: str
    operation: str


def grant(connection: KafkaConnection, wanted: Sequence[Acl]) -> list[AclOutcome]:
    """Makes what is missing; removes nothing. Needs Alter and Describe on the cluster. Raises KafkaException."""
    admin = AdminClient(kafka_settings(connection, "admin"))
    every: list[AclBinding] = admin.describe_acls(AclBindingFilter(*_EVERY), request_timeout=TIMEOUT_S).result()
    there = {_key(binding): binding for binding in every}
    asked = {_key(binding): binding for binding in map(_binding, wanted)}
    missing = [binding for key, binding in asked.items() if key not in there]
    made = admin.create_acls(missing, request_timeout=TIMEOUT_S) if missing else {}
    for future in made.values():
        future.result()
    surplus = [
        binding
        for key, binding in there.items()
        if key not in asked and binding.permission_type == AclPermissionType.ALLOW and _reaches(binding, asked.values())
    ]
    return [
        *(_outcome("created" if key not in there else "exists", binding) for key, binding in asked.items()),
        *(_outcome("surplus", binding) for binding in surplus),
    ]


def _binding(acl: Acl) -> AclBinding:
    right = acl.right
    pattern = ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL
    resource, operation = _RESOURCES[right.resource], _OPERATIONS[right.operation]
    return AclBinding(resource, right.name, pattern, acl.principal, "*", operation, AclPermissionType.ALLOW)


def _key(binding: AclBinding) -> tuple[object, ...]:
    return (
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


def _reaches(binding: AclBinding, ours: Iterable[AclBinding]) -> bool:
    """Whether an ACL is about a resource of ours: by its name, by a beginning of it, or by the word for all."""
    prefixed = binding.resource_pattern_type == ResourcePatternType.PREFIXED
    for each in ours:
        if binding.restype != each.restype:
            continue
        within = each.resource_pattern_type == ResourcePatternType.PREFIXED and binding.name.startswith(each.name)
        if binding.name in ("*", each.name) or within or (prefixed and each.name.startswith(binding.name)):
            return True
    return False


def _outcome(outcome: Literal["created", "exists", "surplus"], binding: AclBinding) -> AclOutcome:
    begins = "..." if binding.resource_pattern_type == ResourcePatternType.PREFIXED else ""
    kind, operation = ResourceType(binding.restype).name, AclOperation(binding.operation).name
    resource = f"{kind.lower().replace('_', '-')} {binding.name}{begins}"
    return AclOutcome(outcome, binding.principal, resource, operation.title().replace("_", ""))
