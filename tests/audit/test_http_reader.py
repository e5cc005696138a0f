"""The HTTP port under a hostile reader: what is refused, by which code, and where a query ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from streams.audit.engine import EmbeddedClickHouse, LimitExceeded
from streams.audit.http_desk import Desk, Refused, Request
from streams.audit.http_port import HttpPort, PortLimits
from tests.audit.hostile_sql import HOSTILE, OUT
from tests.audit.http_asking import DDL, READER, READER_TOKEN, ask


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("DROP TABLE palisade.rows", 164),
        ("INSERT INTO palisade.rows VALUES (1, 'a')", 164),
        ("SET readonly = 0", 164),
        ("SELECT 1 SETTINGS max_execution_time = 0", 164),
        ("SELECT * FROM file('/etc/passwd')", 497),
        ("SELECT * FROM system.tables", 497),
        ("SELECT 1; SELECT 2", 62),
        ("SELECT (", 62),
    ],
)
def test_a_reader_is_told_why_by_code(reader: Client, sql: str, code: int) -> None:
    with pytest.raises(DatabaseError, match="Allowed: one SELECT") as refused:
        reader.command(sql)

    assert refused.value.code == code


def test_no_hostile_statement_gets_through_or_leaves_a_file(clickhouse_port: HttpPort, tmp_path: Path) -> None:
    tried = 0
    for sql, _ in HOSTILE:
        body = sql.replace(OUT, str(tmp_path / "out")).encode("utf-8", "surrogatepass")
        for where in ("body", "query", "both"):
            if where != "body" and (len(body) > 20_000 or "\ud800" in sql):
                continue  # a URL cannot carry it
            text = body.decode("utf-8", "surrogatepass").encode("utf-8", "replace").decode()
            query = {} if where == "body" else {"query": text if where == "query" else text[: len(text) // 2]}
            rest = {"body": body, "query": b"", "both": text[len(text) // 2 :].encode()}[where]
            status, answer, headers = ask(clickhouse_port, READER, rest, **query)
            assert status in (400, 403, 404), (where, sql, answer)
            assert headers["X-ClickHouse-Exception-Code"]
            tried += 1

    assert tried > 3 * 150
    assert list(tmp_path.iterdir()) == []


def test_readonly_alone_would_let_that_file_be_written(embedded_clickhouse: EmbeddedClickHouse, tmp_path: Path) -> None:
    session = embedded_clickhouse.session({"readonly": "1"})

    session.run(f"SELECT 1 INTO OUTFILE '{tmp_path / 'leak'}'")

    assert (tmp_path / "leak").read_text() == "1\n"
    session.close()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"readonly": "0"}, 164),
        ({"max_execution_time": "1000"}, 164),
        ({"database": "system"}, 497),
        ({"param_a`; SELECT 1": "x"}, 36),
        ({"default_format": "Template"}, 73),
    ],
)
def test_a_reader_cannot_reach_the_engine_through_the_query_string(
    clickhouse_port: HttpPort, query: dict[str, str], code: int
) -> None:
    status, _, headers = ask(clickhouse_port, READER, "SELECT 1", **query)

    assert (status >= 400, headers["X-ClickHouse-Exception-Code"]) == (True, str(code))


@pytest.mark.parametrize(
    ("limits", "sql", "code"),
    [
        (PortLimits(rows=10), "SELECT arrayJoin(range(11)) FROM rows", 396),
        (PortLimits(seconds=0.2), "SELECT 1 AS x ORDER BY x WITH FILL FROM 0 TO 100000000000", 159),
        (PortLimits(memory_bytes=10 << 20), "SELECT length(arrayMap(x -> leftPad('', 1000000, 'x'), range(100)))", 241),
        (PortLimits(), "SELECT length(range(10000000))", 69),
        (PortLimits(answer_bytes=1000), "SELECT leftPad('', 100000, 'x') FROM rows", 396),
        (PortLimits(answer_bytes=1000), "SELECT leftPad('', 100000, 'x')", 396),
    ],
)
def test_a_readers_query_ends_at_its_limit(
    fresh_tables: EmbeddedClickHouse, limits: PortLimits, sql: str, code: int
) -> None:
    fresh_tables.command(DDL)
    fresh_tables.command("INSERT INTO palisade.rows VALUES (1, 'a')")
    with HttpPort(fresh_tables, reader_token=READER_TOKEN, limits=limits) as port:
        _, body, headers = ask(port, READER, sql)

        assert headers["X-ClickHouse-Exception-Code"] == str(code), body


def test_the_audit_goes_on_while_every_readers_place_is_taken(fresh_tables: EmbeddedClickHouse) -> None:
    fresh_tables.command(DDL)
    desk = Desk(fresh_tables, {"reader": READER_TOKEN}, PortLimits(readers=1, seconds=3))
    slow = Request("SELECT 1 AS x ORDER BY x WITH FILL FROM 0 TO 100000000000", None, b"", {}, {}, "", "", "", "TSV")

    def run() -> None:
        with pytest.raises(LimitExceeded):
            desk.run("reader", slow)

    query = threading.Thread(target=run)
    query.start()
    while not desk.busy_readers:
        assert query.is_alive()
    fresh_tables.insert_arrow("rows", pa.table({"id": pa.array([1], pa.uint64()), "name": ["a"]}))

    assert (fresh_tables.command("SELECT count() FROM palisade.rows"), desk.busy_readers) == ("1", 1)
    query.join()
    desk.close()


def test_when_all_readers_are_busy_the_next_is_asked_to_come_again(embedded_clickhouse: EmbeddedClickHouse) -> None:
    desk = Desk(embedded_clickhouse, {"reader": READER_TOKEN}, PortLimits(readers=0, wait_seconds=0.01))
    request = Request("SELECT 1", None, b"", {}, {}, "", "", "", "TSV")

    with pytest.raises(Refused) as refused:
        desk.run("reader", request)

    assert (refused.value.status, refused.value.code) == (503, 202)


def test_closing_does_not_wait_for_a_readers_query(embedded_clickhouse: EmbeddedClickHouse) -> None:
    desk = Desk(embedded_clickhouse, {"reader": READER_TOKEN}, PortLimits(readers=1, seconds=1))
    slow = Request("SELECT 1 AS x ORDER BY x WITH FILL FROM 0 TO 100000000000", None, b"", {}, {}, "", "", "", "TSV")
    ends: list[BaseException] = []

    def run() -> None:
        try:
            desk.run("reader", slow)
        except LimitExceeded as ended:
            ends.append(ended)

    query = threading.Thread(target=run)
    query.start()
    while not desk.busy_readers:
        assert query.is_alive()
    desk.close()

    assert (query.is_alive(), ends) == (True, [])
    query.join()
    assert len(ends) == 1
