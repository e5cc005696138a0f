"""Writes what is generated from the contracts: JSON Schemas, ClickHouse DDL, the page of contracts. `make schemas`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from schemas import (
    acls,
    actions,
    clickhouse,
    config,
    deadletter,
    events,
    feedback,
    ingest,
    roles,
    signals,
    tables,
    topics,
    webhooks,
)

HERE = Path(__file__).parent
ROOT = HERE.parent

MODELS: dict[str, type[BaseModel]] = {
    "prediction": events.Prediction,
    "request": ingest.Request,
    "response": ingest.Response,
    "report": events.Report,
    "feedback": feedback.Feedback,
    "labelled": feedback.Labelled,
    "tick": events.Tick,
    "profile_activated": events.ProfileActivated,
    "signal": signals.Signal,
    "endpoint_state": signals.EndpointState,
    "action": actions.JournalEntry,
    "directive": actions.Directive,
    "kill": actions.KillSwitch,
    "command": actions.Command,
    "webhook": webhooks.WebhookBody,
    "webhook_data": webhooks.WantedState,
    "dead_letter": deadletter.DeadLetter,
    "palisade_config": config.PalisadeConfig,
    "policy_config": config.PolicyConfig,
}


def generated() -> dict[Path, str]:
    """Path -> text of every generated file."""
    files = {
        HERE / "json" / f"{name}.json": json.dumps(model.model_json_schema(), indent=1, sort_keys=True) + "\n"
        for name, model in MODELS.items()
    }
    files[HERE / "sql" / "palisade.sql"] = tables.ddl_script()
    files[HERE / "sql" / "roles.sql"] = clickhouse.roles_script()
    files[ROOT / "docs" / "contracts.md"] = _contracts_page()
    return files


_SENDERS = (
    "Who sends from another language: the key is the endpoint, and the partitioner that of Java's clients "
    "(`partitioner=murmur2_random` in librdkafka); a row on another partition is dead-lettered as `wrong_partition`. The",
    'smallest event is `{"endpoint": "credit", "features": {"amount": 12}}`; no header is needed. Many events travel '
    "best as one Arrow IPC stream with the columns of `prediction` and a struct column `features`.",
    "",
    "Who writes request and response apart sends them to `palisade.requests` and `palisade.responses`, JSON, JSON array, "
    "Arrow IPC stream or CloudEvent, with the request id (or anything else that both share) as the key of both records: "
    "they meet on the same partition number. Role ingest makes predictions of them.",
)


def _contracts_page() -> str:
    lines = ["# Contracts", "", "Generated from `schemas/` by `make schemas`: do not edit.", "", "## Topics", ""]
    lines += ["| topic | key | partitions | kept | holds | who may write | who may read |", "|" + " --- |" * 7]
    for spec in topics.TOPICS:
        kept = "compacted" if spec.compacted else f"{spec.retention_ms // topics.DAY_MS} days"
        partitions = "as predictions" if spec.follows_input else "1"
        may = " | ".join("; ".join(some) for some in (spec.writers, spec.readers))
        lines.append(f"| `{spec.name}` | {spec.key} | {partitions} | {kept} | {spec.purpose} | {may} |")
    lines += ["", *_SENDERS, "", *_roles(), "", "## Records", ""]
    for name, model in MODELS.items():
        if not issubclass(model, config.Config):
            lines += _record(name, model)
    lines += ["## ClickHouse", "", "| view | one row by | kept | holds |", "| --- | --- | --- | --- |"]
    for table in tables.TABLES:
        lines.append(
            f"| `palisade.{table.name}` | {', '.join(table.one_row_by)} | {table.keep_days} days | {table.purpose} |"
        )
    return "\n".join([*lines, "", *_clickhouse_roles()]) + "\n"


def _clickhouse_roles() -> list[str]:
    """ClickHouse's roles in short; `palisade clickhouse roles` has them to the letter."""
    lines = ["What `palisade clickhouse roles` grants; nothing else is needed.", ""]
    lines += ["| role | user | who | may |", "| --- | --- | --- | --- |"]
    for role in clickhouse.ROLES:
        lines.append(f"| {role.role} | {role.user} | {role.who} | {_granted(role)} |")
    return lines


def _granted(role: clickhouse.ClickHouseRole) -> str:
    things: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for grant in role.grants:
        database, _, name = grant.on.partition(".")
        things.setdefault((database, grant.privileges), []).append(name)
    said = []
    for (database, privileges), names in things.items():
        every = len(names) == len(tables.TABLES) or names == ["*"]
        on = f"all of `{database}`" if every else ", ".join(f"`{database}.{name}`" for name in names)
        said.append(f"{', '.join(privileges)} on {on}")
    return "; ".join([*said, *(f"`{bound}`" for bound in (*role.settings, *role.quota))])


def _roles() -> list[str]:
    """Who connects, and what each is granted beside its topics. `palisade topics acls` has the same as ACLs."""
    lines = ["## Roles", "", "What `palisade topics acls` grants; nothing else is needed.", ""]
    lines += ["| role | who | besides reading and writing topics |", "| --- | --- | --- |"]
    for role in roles.ROLES:
        more = [
            f"{right.operation} on {right.resource} `{right.name}{'*' if right.prefixed else ''}`"
            for right in acls.rights_of(role)
            if right.resource != "topic"
        ]
        more += ["Create, Describe, DescribeConfigs on each topic"] if role.makes_topics else []
        lines.append(f"| {role.name} | {role.who} | {'; '.join(more)} |")
    return lines


def _record(name: str, model: type[BaseModel]) -> list[str]:
    doc = " ".join((model.__doc__ or "").split())
    lines = [f"### {name}", "", doc, "", "| field | ClickHouse | default |", "| --- | --- | --- |"]
    kinds = dict(tables.columns_of(model))
    for field_name, field in model.model_fields.items():
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        lines.append(f"| `{field_name}` | {kinds.get(field_name, 'String')} | {default} |")
    return [*lines, ""]


def main() -> None:
    """Writes all generated files."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
