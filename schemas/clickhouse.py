"""What each of ClickHouse's users may do, made from the tables: a new table is in the grants, or nobody may touch it.

Three roles. The writer is the audit worker's, the reader is people's, and the owner makes tables and is in no configuration
of a running process. A view of ClickHouse is run with the rights of who asks, so the reader needs the raw tables too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.tables import RAW, READ_BY_AUDIT, TABLES, VIEWS

RoleName = Literal["writer", "reader", "owner"]

READER_SECONDS = 60
"""A reader's query ends after so long."""
READER_MEMORY = 4_000_000_000
"""Bytes that it may use."""
READER_ROWS = 1_000_000
"""Rows that it may answer."""
READER_QUERIES_AN_HOUR = 3_600
READER_SECONDS_AN_HOUR = 1_800
"""Of the server's time, for all readers of one name together."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Privileges on one thing: `database.table`, or `database.*`."""

    privileges: tuple[str, ...]
    on: str

    def __str__(self) -> str:
        return f"{', '.join(self.privileges)} ON {self.on}"


@dataclass(frozen=True, slots=True)
class ClickHouseRole:
    """One role, and the user that has it. `settings`: of its profile, as ClickHouse writes them; `quota`: an hour's maxima."""

    name: RoleName
    user: str
    who: str
    grants: tuple[Grant, ...]
    settings: tuple[str, ...] = ()
    quota: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        return f"palisade_{self.name}"

    def statements(self) -> list[str]:
        """What makes it, to be run by somebody who manages access; each may be run again, and grants nothing twice.

        The user cannot connect from anywhere until it is given a password or certificate, and hosts.
        """
        granted = ",\n    ".join(map(str, self.grants))
        made = [
            f"CREATE ROLE IF NOT EXISTS {self.role}",
            f"GRANT\n    {granted}\nTO {self.role} WITH REPLACE OPTION",
        ]
        if self.settings:
            settings = ",\n    ".join(self.settings)
            made.append(f"CREATE SETTINGS PROFILE OR REPLACE {self.role} SETTINGS\n    {settings}\nTO {self.role}")
        if self.quota:
            maxima = ", ".join(self.quota)
            made.append(
                f"CREATE QUOTA OR REPLACE {self.role} KEYED BY user_name FOR INTERVAL 1 hour MAX {maxima} TO {self.role}"
            )
        return [
            *made,
            f"CREATE USER IF NOT EXISTS {self.user} NOT IDENTIFIED HOST NONE",
            f"GRANT {self.role} TO {self.user}",
        ]


_SWAPS = ("CREATE TABLE", "DROP TABLE", "INSERT")
"""CREATE OR REPLACE VIEW swaps two names, for which ClickHouse asks these rights, as for tables. There are only views."""
ROLES: tuple[ClickHouseRole, ...] = (
    ClickHouseRole(
        "writer",
        "palisade_audit",
        "`palisade worker audit`: puts rows in, and finds the prediction of a late label; changes and removes nothing",
        tuple(
            Grant(("INSERT", "SELECT") if table.name in READ_BY_AUDIT else ("INSERT",), f"{RAW}.{table.name}")
            for table in TABLES
        ),
    ),
    ClickHouseRole(
        "reader",
        "palisade_forensics",
        "people: `palisade forensics`, `palisade verify`, notebooks",
        tuple(Grant(("SELECT",), f"{database}.{table.name}") for database in (VIEWS, RAW) for table in TABLES),
        (
            "readonly = 2",  # may choose settings, as clients do, within these bounds
            f"max_execution_time = {READER_SECONDS} MIN 1 MAX {READER_SECONDS}",
            f"max_memory_usage = {READER_MEMORY} MIN 1 MAX {READER_MEMORY}",
            f"max_result_rows = {READER_ROWS} MIN 1 MAX {READER_ROWS}",
        ),
        (f"queries = {READER_QUERIES_AN_HOUR}", f"execution_time = {READER_SECONDS_AN_HOUR}"),
    ),
    ClickHouseRole(
        "owner",
        "palisade_tables",
        "who sets up and upgrades: `palisade clickhouse tables`; sets how long rows stay. No running process is it",
        (
            Grant(("CREATE DATABASE", "CREATE TABLE", "SELECT", "ALTER ADD COLUMN", "ALTER TTL"), f"{RAW}.*"),
            Grant(("CREATE DATABASE", "CREATE VIEW", "DROP VIEW", "SELECT", *_SWAPS), f"{VIEWS}.*"),
        ),
    ),
)
BY_NAME: dict[str, ClickHouseRole] = {role.name: role for role in ROLES}


def roles_script() -> str:
    """All statements, with comments: to be read, and run by somebody who manages access."""
    lines = [
        "-- Who may do what with the audit: to be run by somebody who manages access, again after each upgrade.",
        "-- The users can connect from nowhere until they are given a password and hosts, such as",
        "--   ALTER USER palisade_audit IDENTIFIED WITH sha256_password BY '...' HOST IP '10.0.0.0/8';",
        "-- A server that takes no user without a password: make the users first, and leave their CREATE USER out.",
    ]
    for role in ROLES:
        lines += ["", f"-- {role.name}: {role.who}", *(f"{statement};\n" for statement in role.statements())]
    return "\n".join(lines).rstrip() + "\n"
