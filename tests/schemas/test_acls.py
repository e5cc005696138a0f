"""The commands that are printed for `kafka-acls.sh` grant exactly what the contracts say."""

from __future__ import annotations

import argparse
import shlex
from itertools import product

from palisade_client import _transport

from schemas.acls import Acl, Right, acls, command_lines
from schemas.roles import GUARD_GROUPS, ROLES
from schemas.topics import TOPICS


def granted_by(line: str) -> set[Acl]:
    """What the tool grants for its words: each operation on each resource."""
    tool, *words = shlex.split(line)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    for name in ("--bootstrap-server", "--command-config", "--allow-principal"):
        parser.add_argument(name, required=True)
    for name in ("--operation", "--topic", "--group", "--transactional-id"):
        parser.add_argument(name, action="append", default=[])
    told = parser.parse_args(words)
    assert tool == "kafka-acls.sh"
    assert (told.bootstrap_server, told.command_config) == ("kafka-1:9093", "admin.properties")
    prefixed = told.resource_pattern_type == "prefixed"
    named = {"topic": told.topic, "group": told.group, "transactional-id": told.transactional_id}
    return {
        Acl(told.allow_principal, Right(resource, name, operation, prefixed))
        for resource, names in named.items()
        for name, operation in product(names, told.operation)
    }


def test_the_printed_commands_grant_what_the_contracts_say_and_no_more() -> None:
    template = "User:CN={role},O=Some Company"
    lines = [line for line in command_lines(template, "kafka-1:9093", "admin.properties") if not line.startswith("#")]

    granted = [granted_by(line) for line in lines]
    assert set().union(*granted) == set(acls(template))
    assert sum(map(len, granted)) == len(acls(template))
    assert {acl.principal for acl in acls(template)} == {f"User:CN={role.name},O=Some Company" for role in ROLES}


def test_each_topic_has_somebody_who_writes_and_somebody_who_reads_it() -> None:
    assert all(topic.writers and topic.readers for topic in TOPICS)


def test_a_guard_names_a_group_that_it_may_ask_about() -> None:
    assert _transport.GROUPS == GUARD_GROUPS
