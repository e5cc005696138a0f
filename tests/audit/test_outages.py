"""The sink before a ClickHouse that is away, silent, slow, full or read-only, over HTTP: each row is read once in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.tables import RAW, TABLES, VIEWS, all_ddl
from streams.audit import sink as sink_module
from streams.audit.engine import EmbeddedClickHouse, ServerClickHouse
from streams.audit.http_port import HttpPort
from streams.audit.sink import AuditSink
from streams.health import HELD_S
from streams.metrics import Metrics
from tests.audit.http_asking import WRITER_TOKEN
from tests.audit.test_sink import run_of
from tests.decode.cases import as_json
from tests.support.clickhouse import Fault, FaultyClickHouse

FAULTS: tuple[Fault, ...] = ("away", "silent", "slow", "answer_lost", "readonly", "full", "too_many_parts", "denied")
COUNTED = f"SELECT count(), uniqExact(offset) FROM {VIEWS}.predictions"


@pytest.fixture
def faulty(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> Iterator[FaultyClickHouse]:
    with FaultyClickHouse(clickhouse_port.url, slow_s=0.3) as proxy:
        yield proxy
    for table in TABLES:
        fresh_tables.command(f"DROP VIEW IF EXISTS {VIEWS}.{table.name}")
        fresh_tables.command(f"DROP TABLE IF EXISTS {RAW}.{table.name}")


@pytest.fixture
def server(faulty: FaultyClickHouse, tmp_path: Path) -> Iterator[ServerClickHouse]:
    password = tmp_path / "password"
    password.write_text(WRITER_TOKEN)
    engine = ServerClickHouse(faulty.url, "writer", password, timeout_s=1.0)
    yield engine
    engine.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_each_row_is_there_and_is_read_once(
    fault: Fault,
    faulty: FaultyClickHouse,
    server: ServerClickHouse,
    fresh_tables: EmbeddedClickHouse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.05,))
    for statement in all_ddl():
        fresh_tables.command(statement)

    async def story() -> None:
        sink = AuditSink(server, Metrics("audit"))
        await sink.prepare()
        before = run_of([as_json(seq=k) for k in range(3)])
        await sink.handle(before)
        await sink.flush()
        assert before.finished

        faulty.fault = fault
        during = run_of([as_json(seq=k) for k in range(3, 6)], first=3)
        await sink.handle(during)
        flushing = asyncio.ensure_future(sink.flush())
        if fault != "slow":
            async with asyncio.timeout(60):
                while faulty.refused < 2:
                    await asyncio.sleep(0.01)
            assert not during.finished
            since = sink.store.failing_since
            assert since is not None
            assert "ClickHouse has taken nothing for 11 s" in " ".join(sink.health(since + HELD_S + 1).troubles)
            assert not sink.health(since + 1).numbers["clickhouse"]["answers"]
        faulty.fault = "none"
        async with asyncio.timeout(60):
            await flushing
        assert during.finished
        assert sink.health(0.0).troubles == []

    asyncio.run(story())
    assert fresh_tables.command(COUNTED) == "6\t6"


def test_a_server_that_is_away_at_the_start_is_waited_for(
    faulty: FaultyClickHouse, server: ServerClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.05,))
    monkeypatch.setattr(sink_module, "GATHER_S", 0.05)

    async def story() -> None:
        sink = AuditSink(server, Metrics("audit"))
        faulty.fault = "away"
        inserting = asyncio.ensure_future(sink.inserts())
        run = run_of([as_json()])
        await sink.handle(run)
        async with asyncio.timeout(60):
            while faulty.refused < 2:
                await asyncio.sleep(0.01)
        assert not sink.prepared.is_set()
        faulty.fault = "none"
        async with asyncio.timeout(60):
            while not run.finished:
                await asyncio.sleep(0.01)
        inserting.cancel()

    asyncio.run(story())
