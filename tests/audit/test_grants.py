"""What ClickHouse's roles are granted is enough for what each sends, and for nothing else: the engine itself decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schemas.clickhouse import BY_NAME, ROLES, RoleName
from schemas.tables import RAW, TABLES, VIEWS, all_ddl
from streams.audit import schema
from streams.audit.engine import EmbeddedClickHouse, StatementRefused
from streams.audit.schema import TablesMissing, prepare_tables
from tests.audit.grant_checks import (
    assert_a_reader_keeps_its_limits,
    assert_audit_and_people_can_work,
    wrongly_decided,
)
from tests.audit.granted import server_as

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables that the owner made, as `palisade clickhouse tables` says."""
    folder = tmp_path_factory.mktemp("granted")
    with server_as("owner", folder) as owner:
        for _ in range(2):
            for statement in all_ddl():
                owner.command(statement)
    return folder


def test_the_audit_inserts_every_contract_and_joins_labels_as_the_writer_and_people_read_it_as_the_reader(
    data: Path,
) -> None:
    assert_audit_and_people_can_work(lambda name: server_as(name, data))


@pytest.mark.parametrize("role", [role.name for role in ROLES])
def test_a_role_is_let_through_where_it_has_a_right_and_nowhere_else(role: RoleName, data: Path) -> None:
    assert wrongly_decided(lambda name: server_as(name, data), role) == {}


def test_a_reader_can_lift_none_of_its_limits(data: Path) -> None:
    assert_a_reader_keeps_its_limits(lambda name: server_as(name, data))


def test_a_writer_without_tables_says_who_is_to_make_them(tmp_path: Path) -> None:
    with server_as("writer", tmp_path) as engine, pytest.raises(TablesMissing, match=r"palisade clickhouse tables"):
        prepare_tables(engine)


def test_a_column_that_an_upgrade_brought_is_named_where_it_is_missing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(TABLES[0], columns=(*TABLES[0].columns, ("brand_new", "String")))
    monkeypatch.setattr(schema, "TABLES", (newer, *TABLES[1:]))
    with (
        server_as("writer", data) as engine,
        pytest.raises(TablesMissing, match=rf"^{RAW}.predictions.brand_new: missing"),
    ):
        prepare_tables(engine)


@pytest.mark.parametrize("statement", [one for role in ROLES for one in role.statements()])
def test_the_engine_can_read_each_statement(statement: str, embedded_clickhouse: EmbeddedClickHouse) -> None:
    embedded_clickhouse.command(f"EXPLAIN AST {statement}")


def test_the_engine_would_not_read_a_privilege_that_it_does_not_know(embedded_clickhouse: EmbeddedClickHouse) -> None:
    (grant,) = [one for one in BY_NAME["writer"].statements() if "INSERT ON" in one]
    with pytest.raises(StatementRefused):
        embedded_clickhouse.command(f"EXPLAIN AST {grant.replace('INSERT ON', 'INSRT ON', 1)}")


def test_every_table_can_be_written_and_read_by_somebody_and_is_changed_by_nobody() -> None:
    writer, reader = BY_NAME["writer"], BY_NAME["reader"]
    assert {grant.on for grant in writer.grants if "INSERT" in grant.privileges} == {f"{RAW}.{t.name}" for t in TABLES}
    assert {grant.on for grant in reader.grants} == {f"{base}.{t.name}" for base in (RAW, VIEWS) for t in TABLES}
    assert {one for grant in writer.grants for one in grant.privileges} == {"INSERT", "SELECT"}
    assert {one for grant in reader.grants for one in grant.privileges} == {"SELECT"}
