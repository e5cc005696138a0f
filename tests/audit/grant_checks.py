"""What must hold of ClickHouse's users, whoever decides on their rights: the engine by itself, or a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from palisade.queries import CALLER_EVENTS, CALLER_SUMMARY, TIMELINE, ask
from schemas.clickhouse import READER_SECONDS, RoleName
from schemas.tables import RAW, TABLES, VIEWS
from schemas.topics import FEEDBACK, PREDICTIONS, SIGNALS
from streams.audit.engine import ClickHouseError, LimitExceeded, NotPermitted, ServerClickHouse
from streams.audit.sink import AuditSink
from streams.metrics import Metrics
from streams.transport.run import TP
from tests.audit.labelling import Labelling, feedback, prediction
from tests.audit.test_sink import run_of
from tests.streams.test_rows import CONTRACTS, TOPIC_OF

As = Callable[[RoleName], AbstractContextManager[ServerClickHouse]]
"""A connection as the user of a role."""
STATEMENTS: dict[str, tuple[RoleName, ...]] = {
    **{f"DELETE FROM {RAW}.{table.name} WHERE 1": () for table in TABLES},
    **{f"TRUNCATE TABLE {RAW}.{table.name}": () for table in TABLES},
    f"ALTER TABLE {RAW}.journal DELETE WHERE 1": (),
    f"ALTER TABLE {RAW}.journal UPDATE kind = '' WHERE 1": (),
    f"ALTER TABLE {RAW}.journal DROP COLUMN kind": (),
    f"ALTER TABLE {RAW}.journal DROP PARTITION tuple()": (),
    f"OPTIMIZE TABLE {RAW}.journal FINAL": (),
    f"DROP TABLE {RAW}.journal": (),
    f"DROP DATABASE {RAW}": (),
    f"RENAME TABLE {RAW}.journal TO {RAW}.elsewhere": (),
    f"DETACH TABLE {RAW}.journal": (),
    "CREATE USER mallory NOT IDENTIFIED": (),
    f"GRANT SELECT ON {RAW}.journal TO default": (),
    "CREATE DATABASE elsewhere": (),
    "CREATE FUNCTION twice AS x -> x * 2": (),
    "CREATE TEMPORARY TABLE mine (a Int8)": ("owner",),
    "SYSTEM FLUSH LOGS": (),
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a Int8')": (),
    "SELECT * FROM remote('127.0.0.1:1', system.one)": (),
    f"ALTER TABLE {RAW}.journal MODIFY TTL toDateTime(broker_time) + INTERVAL 9 DAY": ("owner",),
    f"CREATE TABLE {RAW}.more (a Int8) ENGINE = MergeTree ORDER BY a": ("owner",),
    f"CREATE VIEW {VIEWS}.more AS SELECT 1": ("owner",),
    f"SELECT count() FROM {VIEWS}.journal": ("reader", "owner"),
    f"SELECT count() FROM {RAW}.journal": ("reader", "owner"),
    f"INSERT INTO {RAW}.journal (topic) VALUES ('t')": ("writer",),
    f"INSERT INTO {RAW}.journal SELECT * FROM {RAW}.journal": (),
}
"""Statements, and who may run them."""


def let_through(engine: ServerClickHouse, statement: str) -> bool:
    """False if access was denied. Raises ClickHouseError on any other failure, for it would say nothing about rights."""
    try:
        engine.command(statement)
    except NotPermitted:
        return False
    return True


def wrongly_decided(connected: As, role: RoleName) -> dict[str, bool]:
    """Statements that passed though the role needs them not, or were denied though it does; and whether they passed."""
    with connected(role) as engine:
        passed = {statement: let_through(engine, statement) for statement in STATEMENTS}
    return {statement: let for statement, let in passed.items() if let != (role in STATEMENTS[statement])}


def assert_audit_and_people_can_work(connected: As) -> None:
    """The sink inserts every contract, labels are joined, and people's queries answer with what was inserted."""
    with connected("writer") as engine:
        stage = Labelling(engine)

        async def kept() -> None:
            sink = AuditSink(engine, Metrics("audit"))
            await sink.prepare()
            for name, record in CONTRACTS:
                run = run_of([record.to_bytes()], tp=TP(TOPIC_OF.get(name, SIGNALS), 0), kind=record.KIND)
                await sink.handle(run)
                await sink.flush()
                assert run.finished, name

        asyncio.run(kept())
        stage.insert(PREDICTIONS, [prediction("r1")], first=10)
        stage.insert(FEEDBACK, [feedback("r1")])
        stage.round()
        assert [one.label for one in stage.said()] == [1]
    with connected("reader") as engine:
        written = {name for name, _ in CONTRACTS} | {"predictions", "answers", "feedback", "label_joins"}
        for table in TABLES:
            rows = engine.query_arrow(f"SELECT * FROM {VIEWS}.{table.name}").num_rows
            assert (rows > 0) or table.name not in written, table.name
        assert ask(engine, TIMELINE, {"endpoint": ""}).num_rows
        assert ask(engine, CALLER_SUMMARY, {"caller": "ann"}).num_rows
        ask(engine, CALLER_EVENTS, {"caller": "ann"})


def assert_a_reader_keeps_its_limits(connected: As) -> None:
    with connected("reader") as reader:
        for name in ("max_execution_time", "max_memory_usage", "max_result_rows"):
            for value in ("0", "99999999999"):
                with pytest.raises(ClickHouseError) as refused:
                    reader.command(f"SELECT 1 SETTINGS {name} = {value}")
                assert refused.value.code == 452, name
        with pytest.raises(ClickHouseError) as refused:
            reader.command("SELECT 1 SETTINGS readonly = 0")
        assert isinstance(refused.value, NotPermitted)
        assert reader.command(f"SELECT 1 SETTINGS max_execution_time = {READER_SECONDS - 1}") == "1"
        with pytest.raises(LimitExceeded):
            reader.command("SELECT number FROM numbers(2000000)")
