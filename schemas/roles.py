"""Who connects to Kafka, in which consumer groups: with the topics' readers and writers, all that a broker must grant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "ingest",
    "detect",
    "respond",
    "audit",
    "serving",
    "services",
    "operators",
    "viewers",
    "verifiers",
    "redrivers",
    "admin",
]

READER_GROUP = "palisade.reader"
"""Named by whoever reads partitions by itself: it has no members and no offsets, but the broker is asked about it."""
GUARD_GROUPS = "palisade-guard-"
"""A Guard names one that begins so, as the reader does."""


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One role. `group`: whose member it is; `asks_about`: groups (or the beginning of groups, where it ends in "-") that
    it only names. `transactional_id`: under which it writes. `makes_topics`: makes them, and reads their settings.
    `watches_readers`: how far the other roles are behind what the topics keep."""

    name: Role
    who: str
    group: str | None = None
    asks_about: tuple[str, ...] = ()
    transactional_id: str | None = None
    makes_topics: bool = False
    watches_readers: bool = False


ROLES: tuple[RoleSpec, ...] = (
    RoleSpec("ingest", "`palisade worker ingest`", group="palisade.ingest", asks_about=(READER_GROUP,)),
    RoleSpec("detect", "`palisade worker detect`", group="palisade.detect", asks_about=(READER_GROUP,)),
    RoleSpec(
        "respond",
        "`palisade worker respond`",
        group="palisade.respond",
        asks_about=(READER_GROUP, "palisade.ingest", "palisade.detect", "palisade.audit"),
        transactional_id="palisade.respond",
        watches_readers=True,
    ),
    RoleSpec("audit", "`palisade worker audit`", group="palisade.audit"),
    RoleSpec("serving", "services with a Guard or an Emitter; `palisade publish`", asks_about=(GUARD_GROUPS,)),
    RoleSpec("services", "services that write requests, responses, labels; `palisade feedback publish`"),
    RoleSpec(
        "operators",
        "people who order: `palisade kill`, `limit`, `fallback`, `profile activate`, ...; and look",
        asks_about=(READER_GROUP,),
    ),
    RoleSpec("viewers", "people who look: `palisade status`, `deadletter list`, `show`", asks_about=(READER_GROUP,)),
    RoleSpec(
        "verifiers",
        "`palisade verify`",
        asks_about=(READER_GROUP, "palisade.detect", "palisade.audit", "palisade.ingest"),
    ),
    RoleSpec("redrivers", "`palisade deadletter redrive`, of what services write", asks_about=(READER_GROUP,)),
    RoleSpec("admin", "`palisade topics create`", makes_topics=True),
)
_BY_NAME = {role.name: role for role in ROLES}


def group_of(role: Role) -> str:
    """The consumer group of a worker's role. ValueError if it has none."""
    group = _BY_NAME[role].group
    if group is None:
        raise ValueError(f"{role} is in no group")
    return group


def transactional_id_of(role: Role) -> str:
    """The id under which the role writes in transactions. ValueError if it does not."""
    found = _BY_NAME[role].transactional_id
    if found is None:
        raise ValueError(f"{role} writes in no transactions")
    return found
