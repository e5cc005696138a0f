"""The HTTP port under the unmodified clickhouse-connect client.

This proves our SQL, formats and error handling over the real client and engine. It does not prove a server's users,
grants, quotas or replication: chdb has none, a ClickHouse server is tested where one runs.
"""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from streams.audit.engine import EmbeddedClickHouse
from streams.audit.http_port import HttpPort, PortLimits
from tests.audit.http_asking import DDL, READER_TOKEN, WRITER, WRITER_TOKEN, ask, connect


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_rows_go_in_and_come_back_under_every_compression(
    clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse, compress: bool | str
) -> None:
    with contextlib.closing(connect(clickhouse_port, "writer", WRITER_TOKEN, compress=compress)) as client:
        client.command(DDL)
        client.insert_arrow("palisade.rows", pa.table({"id": pa.array([1, 2], pa.uint64()), "name": ["a", "b"]}))
        written = client.insert("palisade.rows", [[i, "n" * i] for i in range(3, 2000)], column_names=["id", "name"])

        assert written.written_rows == 1997
        assert client.query("SELECT count(), max(length(name)) FROM palisade.rows").result_rows == [(1999, 1999)]
        assert client.query_arrow("SELECT name FROM palisade.rows WHERE id <= 2 ORDER BY id").to_pydict() == {
            "name": ["a", "b"]
        }


@pytest.mark.parametrize("columns", [9, 10, 13, 32])
def test_a_native_block_whose_first_byte_is_a_blank_is_read_whole(writer: Client, columns: int) -> None:
    names = [f"c{i}" for i in range(columns)]
    writer.command(
        f"CREATE TABLE palisade.wide ({', '.join(f'{n} UInt8' for n in names)}) ENGINE = MergeTree ORDER BY c0"
    )

    writer.insert("palisade.wide", [[7] * columns], column_names=names)

    assert writer.query("SELECT * FROM palisade.wide").result_rows == [(7,) * columns]


def test_an_insert_token_is_stored_once(writer: Client) -> None:
    writer.command(DDL + " SETTINGS non_replicated_deduplication_window = 10")
    one = pa.table({"id": pa.array([1], pa.uint64()), "name": ["a"]})

    for _ in range(2):
        writer.insert_arrow("palisade.rows", one, settings={"insert_deduplication_token": "t"})

    assert writer.command("SELECT count() FROM palisade.rows") == 1


def test_a_session_keeps_its_temporary_table_and_a_request_its_settings(
    clickhouse_port: HttpPort, writer: Client
) -> None:
    writer.command("CREATE TEMPORARY TABLE mine (a Int8)")
    writer.command("SET max_block_size = 1234")
    writer.query("SELECT 1", settings={"max_block_size": 77, "max_execution_time": 5})

    assert writer.command("SELECT count() FROM mine") == 0
    settings = "SELECT value FROM system.settings WHERE name IN ('max_block_size', 'max_execution_time') ORDER BY name"
    assert writer.query(settings).result_rows == [("1234",), ("0",)]
    status, body, _ = ask(clickhouse_port, WRITER, "SELECT count() FROM mine")
    assert (status, b"UNKNOWN_TABLE" in body) == (404, True)


def test_an_error_carries_clickhouses_code(writer: Client) -> None:
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE") as refused:
        writer.command("SELECT * FROM palisade.no_such_table")

    assert refused.value.code == 60


def test_the_oldest_session_goes_when_there_are_too_many(embedded_clickhouse: EmbeddedClickHouse) -> None:
    limits = PortLimits(sessions=2)
    with HttpPort(embedded_clickhouse, reader_token=READER_TOKEN, writer_token=WRITER_TOKEN, limits=limits) as port:
        ask(port, WRITER, "CREATE TEMPORARY TABLE mine (a Int8)", session_id="first")
        for other in ("second", "third"):
            ask(port, WRITER, "SELECT 1", session_id=other)

        assert ask(port, WRITER, "SELECT count() FROM mine", session_id="first")[0] == 404


def test_a_reader_opens_and_asks_in_every_way(writer: Client, reader: Client) -> None:
    writer.command(DDL)
    writer.insert("palisade.rows", [[i, f"n{i % 3}"] for i in range(1000)], column_names=["id", "name"])

    assert reader.ping()
    assert reader.query("SELECT count() FROM rows WHERE name = {n:String}", parameters={"n": "n1"}).result_rows == [
        (333,)
    ]
    assert reader.query_arrow("SELECT id FROM palisade.rows ORDER BY id LIMIT 2").to_pydict() == {"id": [0, 1]}
    assert reader.query("SELECT id, name FROM rows LIMIT 0").column_names == ("id", "name")
    assert reader.query("SELECT id FROM rows WHERE id > 5000").result_rows == []
    assert reader.raw_query("SELECT id FROM rows WHERE id = 7", fmt="JSONEachRow") == b'{"id":7}\n'
    with reader.query_row_block_stream("SELECT id FROM rows") as blocks:
        assert sum(len(block) for block in blocks) == 1000
    with reader.query_arrow_stream("SELECT id FROM rows") as tables:
        assert sum(table.num_rows for table in tables) == 1000


def test_long_parameters_that_the_client_sends_as_a_form_arrive(reader: Client) -> None:
    names = [f"caller-{i}" for i in range(5000)]

    assert reader.query("SELECT length({n:Array(String)})", parameters={"n": names}).result_rows == [(5000,)]
