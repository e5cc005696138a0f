"""One ClickHouse engine for all tests of a run: chdb opens one directory a process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from streams.audit.engine import DATABASE, EmbeddedClickHouse
from streams.audit.http_port import HttpPort
from tests.audit.http_asking import READER_TOKEN, WRITER_TOKEN, connect


@pytest.fixture(scope="session")
def embedded_clickhouse() -> Iterator[EmbeddedClickHouse]:
    """The engine, shared: use tables of your own, or `fresh_tables`."""
    directory = Path(tempfile.mkdtemp(prefix="palisade-clickhouse-"))
    engine = EmbeddedClickHouse(directory / "data")
    yield engine
    engine.close()
    shutil.rmtree(directory)


@pytest.fixture
def fresh_tables(embedded_clickhouse: EmbeddedClickHouse) -> Iterator[EmbeddedClickHouse]:
    """The engine, with every table and view of `palisade` that the test made dropped afterwards."""
    before = set(_tables(embedded_clickhouse))
    yield embedded_clickhouse
    # Not DROP ... SYNC: that waits for every session that ever read the table, for ever.
    for name in set(_tables(embedded_clickhouse)) - before:
        embedded_clickhouse.command(f"DROP TABLE IF EXISTS {DATABASE}.`{name}`")


def _tables(engine: EmbeddedClickHouse) -> list[str]:
    return engine.command(
        f"SELECT name FROM system.tables WHERE database = '{DATABASE}' ORDER BY engine = 'View' DESC"
    ).split()


@pytest.fixture(scope="session")
def clickhouse_port(embedded_clickhouse: EmbeddedClickHouse) -> Iterator[HttpPort]:
    """The HTTP port over the shared engine, with both users: `reader` and `writer`, tokens in `http_asking`."""
    with HttpPort(embedded_clickhouse, reader_token=READER_TOKEN, writer_token=WRITER_TOKEN) as port:
        yield port


@pytest.fixture
def writer(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> Iterator[Client]:
    with contextlib.closing(connect(clickhouse_port, "writer", WRITER_TOKEN)) as client:
        yield client


@pytest.fixture
def reader(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> Iterator[Client]:
    with contextlib.closing(connect(clickhouse_port, "reader", READER_TOKEN, database="palisade")) as client:
        yield client
