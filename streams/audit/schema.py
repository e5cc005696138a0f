"""The tables of the audit: made, or where this user may not make any, looked at."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.tables import RAW, TABLES, all_ddl
from streams.audit.engine import ClickHouse, ClickHouseError, EmbeddedClickHouse, NotPermitted

_COLUMNS = "SELECT table, name FROM system.columns WHERE database = {database:String}"
SHOWN = 3
"""Tables that an error names."""


OFTEN = "cleanup_delay_period = 5, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 10"
"""Seconds between two looks for parts that were merged into others. By itself ClickHouse waits up to five minutes, with 25 kB of
memory for each of them: the embedded engine, which is given some tables a few rows each second, held 2,400 of them."""


class TablesMissing(ClickHouseError):
    """The audit cannot write: tables or columns are missing, or this user may not see them."""


def prepare_tables(engine: ClickHouse) -> None:
    """Makes tables and views. A user without that right is fine where they are there. Raises ClickHouseError.

    On a server the owner makes them, and is not who the audit worker connects as (`palisade clickhouse roles`).
    """
    try:
        for statement in all_ddl():
            engine.command(statement)
        if isinstance(engine, EmbeddedClickHouse):  # a server's owner knows better what it has memory for
            for table in TABLES:
                engine.command(f"ALTER TABLE {RAW}.{table.name} MODIFY SETTING {OFTEN}")
    except NotPermitted:
        missing = list(_missing(engine))
        if missing:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise TablesMissing(
                f"{', '.join(missing[:SHOWN])}{more}: missing, or this user may not write there, and it may make no tables: "
                "run what `palisade clickhouse roles` prints, then what `palisade clickhouse tables` prints as palisade_tables"
            ) from None


def _missing(engine: ClickHouse) -> Iterator[str]:
    """Tables and columns that nobody shows us: a user sees what it has any right on."""
    there: dict[str, set[str]] = {}
    for row in engine.query_arrow(_COLUMNS, {"database": RAW}).to_pylist():
        there.setdefault(row["table"], set()).add(row["name"])
    for table in TABLES:
        columns = there.get(table.name)
        if columns is None:
            yield f"{RAW}.{table.name}"
        else:
            yield from (f"{RAW}.{table.name}.{name}" for name, _ in table.all_columns if name not in columns)
