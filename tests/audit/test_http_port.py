"""The HTTP port under the unmodified clickhouse-connect client, under raw HTTP, and under a hostile reader.

This proves our SQL, formats, error handling and the reader's limits over the real client and engine. It does not prove a
server's users, grants, quotas or replication: chdb has none, a ClickHouse server is tested where one runs.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from streams.audit.engine import EmbeddedClickHouse, LimitExceeded
from streams.audit.http_desk import Desk, Refused, Request
from streams.audit.http_port import HttpPort, PortLimits
from tests.audit.conftest import READER_TOKEN, WRITER_TOKEN
from tests.audit.hostile_sql import HOSTILE, OUT

READER = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER_TOKEN}
WRITER = {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": WRITER_TOKEN}
DDL = "CREATE TABLE palisade.rows (id UInt64, name String) ENGINE = MergeTree ORDER BY id"


def connect(port: HttpPort, user: str, token: str, **options: Any) -> Client:
    parts = urlsplit(port.url)
    return clickhouse_connect.get_client(host=parts.hostname, port=parts.port, username=user, password=token, **options)


@pytest.fixture
def writer(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> Iterator[Client]:
    with contextlib.closing(connect(clickhouse_port, "writer", WRITER_TOKEN)) as client:
        yield client


@pytest.fixture
def reader(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> Iterator[Client]:
    with contextlib.closing(connect(clickhouse_port, "reader", READER_TOKEN, database="palisade")) as client:
        yield client


def ask(
    port: HttpPort, headers: dict[str, str], body: bytes | str | Iterator[bytes] = b"", **query: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One raw request: status, body, headers."""
    connection = http.client.HTTPConnection(str(urlsplit(port.url).hostname), urlsplit(port.url).port, timeout=30)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/?" + urlencode(query), body, headers, encode_chunked=not isinstance(body, bytes | str)
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


# ------------------------------------------------------------------------------------------ the client, as writer


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


# ------------------------------------------------------------------------------------------ the client, as reader


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
        (PortLimits(memory_bytes=10 << 20), "SELECT length(range(10000000))", 241),
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


# ------------------------------------------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    ("user", "token"),
    [
        ("reader", WRITER_TOKEN),
        ("writer", READER_TOKEN),
        ("reader", ""),
        ("", READER_TOKEN),
        ("default", ""),
        ("reader", "é"),
    ],
)
def test_a_wrong_user_or_token_is_refused(clickhouse_port: HttpPort, user: str, token: str) -> None:
    with pytest.raises(DatabaseError, match="wrong user or token") as refused:
        connect(clickhouse_port, user, token)

    assert refused.value.code == 516


@pytest.mark.parametrize(
    "headers",
    [
        READER,
        {"Authorization": f"Bearer {READER_TOKEN}"},
        {"Authorization": "Basic " + b64encode(f"reader:{READER_TOKEN}".encode()).decode()},
    ],
)
def test_a_token_is_taken_in_three_ways(clickhouse_port: HttpPort, headers: dict[str, str]) -> None:
    assert ask(clickhouse_port, headers, "SELECT 1")[:2] == (200, b"1\n")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic ????"}, {"Authorization": "Basic"}])
def test_without_a_token_nothing_runs_and_the_connection_stays_usable(
    clickhouse_port: HttpPort, headers: dict[str, str]
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(clickhouse_port.url).port)
    with contextlib.closing(connection):
        connection.request("POST", f"/?user=reader&password={READER_TOKEN}", "SELECT 1", headers)
        first = connection.getresponse()
        first.read()
        connection.request("POST", "/", "SELECT 2", READER)

        assert (first.status, connection.getresponse().read()) == (403, b"2\n")


def test_a_port_without_a_writer_token_has_no_writer(embedded_clickhouse: EmbeddedClickHouse) -> None:
    with HttpPort(embedded_clickhouse, reader_token=READER_TOKEN) as port:
        for token in ("", WRITER_TOKEN, READER_TOKEN):
            headers = {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": token}
            assert ask(port, headers, "SELECT 1")[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "10.0.0.1", "example.org"])
def test_the_port_refuses_to_leave_loopback(embedded_clickhouse: EmbeddedClickHouse, host: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|does not appear"):
        HttpPort(embedded_clickhouse, host, reader_token=READER_TOKEN)


@pytest.mark.parametrize(
    ("reader", "writer"), [("short", None), ("", None), (READER_TOKEN, READER_TOKEN), (READER_TOKEN, "x")]
)
def test_weak_or_shared_tokens_are_refused(
    embedded_clickhouse: EmbeddedClickHouse, reader: str, writer: str | None
) -> None:
    with pytest.raises(ValueError, match="token"):
        HttpPort(embedded_clickhouse, reader_token=reader, writer_token=writer)


# --------------------------------------------------------------------------------------------------- plain HTTP


def test_ping_needs_no_token_and_other_paths_do_not_exist(clickhouse_port: HttpPort) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(clickhouse_port.url).port)
    with contextlib.closing(connection):
        answers = []
        for path in ("/ping", "/play", "/metrics"):
            connection.request("GET", path)
            answer = connection.getresponse()
            answers.append((answer.status, answer.read()[:4]))

    assert answers == [(200, b"Ok.\n"), (404, b"Ther"), (404, b"Ther")]


def test_a_get_and_json_lines_work_as_from_curl(clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse) -> None:
    assert ask(clickhouse_port, WRITER, DDL)[0] == 200
    lines = (
        b'INSERT INTO palisade.rows (`id`, "name") FORMAT JSONEachRow {"id": 1, "name": "a"}\n{"id": 2, "name": "b"}'
    )
    status, _, headers = ask(clickhouse_port, WRITER, lines)
    assert (status, json.loads(headers["X-ClickHouse-Summary"])["written_rows"]) == (200, "2")
    values = ask(clickhouse_port, WRITER, "(3, 'c')", query="INSERT INTO palisade.rows VALUES")
    assert values[0] == 200, values

    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(clickhouse_port.url).port)
    with contextlib.closing(connection):
        connection.request(
            "GET", "/?query=" + quote("SELECT * FROM rows ORDER BY id FORMAT JSONEachRow"), headers=READER
        )
        answer = connection.getresponse()

        assert [json.loads(line)["name"] for line in answer.read().splitlines()] == ["a", "b", "c"]
        assert (answer.headers["X-ClickHouse-Format"], answer.headers["Content-Type"]) == (
            "JSONEachRow",
            "application/json",
        )


def test_a_chunked_and_packed_body_is_read(clickhouse_port: HttpPort) -> None:
    packed = gzip.compress(b"SELECT 'chunked'")
    pieces = (packed[i : i + 5] for i in range(0, len(packed), 5))

    headers = READER | {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}

    assert ask(clickhouse_port, headers, pieces)[:2] == (200, b"chunked\n")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"x" * (2 << 20), 413),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * (8 << 20)), 413),
        ({"Content-Encoding": "gzip"}, b"no gzip", 400),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"SELECT 1")[:-12], 400),
        ({"Content-Encoding": "br"}, b"x", 415),
        ({"Content-Length": "-1"}, b"", 400),
    ],
)
def test_a_body_that_is_too_long_or_broken_is_refused(
    clickhouse_port: HttpPort, headers: dict[str, str], body: bytes, status: int
) -> None:
    try:
        assert ask(clickhouse_port, READER | headers, body)[0] == status
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # cut off while the client was still sending

    assert ask(clickhouse_port, READER, "SELECT 1")[0] == 200


def test_garbage_does_not_stop_the_port(clickhouse_port: HttpPort) -> None:
    address = ("127.0.0.1", urlsplit(clickhouse_port.url).port)
    for garbage in (
        b"\x00\xff\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET " + b"/" * 70_000 + b"\r\n",
    ):
        with socket.create_connection(address) as raw:
            raw.settimeout(10)
            with contextlib.suppress(ConnectionError):
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass

    assert ask(clickhouse_port, READER, "SELECT 1")[0] == 200


def test_connections_are_bounded_and_a_free_place_is_given_again(embedded_clickhouse: EmbeddedClickHouse) -> None:
    with HttpPort(embedded_clickhouse, reader_token=READER_TOKEN, limits=PortLimits(connections=2)) as port:
        address = ("127.0.0.1", urlsplit(port.url).port or 0)

        def ping(connection: socket.socket) -> bytes:
            try:
                connection.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
                return connection.recv(1000)[9:12]
            except ConnectionError:
                return b"503"  # closed before it had read our request

        held = [socket.create_connection(address) for _ in range(2)]
        assert [ping(connection) for connection in held] == [b"200", b"200"]
        with socket.create_connection(address) as third:
            assert ping(third) in (b"503", b"")

        held[0].shutdown(socket.SHUT_RDWR)
        held[0].close()

        answers: list[bytes] = []
        while b"200" not in answers and len(answers) < 2000:
            with socket.create_connection(address) as another:
                answers.append(ping(another))
        assert b"200" in answers
        held[1].close()


def test_a_closed_port_cuts_its_connections_and_can_start_again(embedded_clickhouse: EmbeddedClickHouse) -> None:
    port = HttpPort(embedded_clickhouse, reader_token=READER_TOKEN)
    first = port.start()
    assert port.start() == first
    idle = socket.create_connection(("127.0.0.1", urlsplit(first).port or 0))
    idle.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
    assert idle.recv(1000).startswith(b"HTTP/1.1 200")

    port.close()
    port.close()

    assert idle.recv(1000) == b""
    idle.close()
    port.start()
    assert ask(port, READER, "SELECT 1")[0] == 200
    port.close()


def test_other_processes_read_while_this_one_writes(
    clickhouse_port: HttpPort, fresh_tables: EmbeddedClickHouse, tmp_path: Path
) -> None:
    fresh_tables.command(DDL)
    (tmp_path / "token").write_text(READER_TOKEN)
    code = (
        "import sys\n"
        "from streams.audit.engine import ServerClickHouse\n"
        "reader = ServerClickHouse(sys.argv[1], 'reader', sys.argv[2])\n"
        "for line in sys.stdin:\n"
        "    print(reader.query_arrow('SELECT count() AS n FROM rows').to_pydict()['n'][0], flush=True)\n"
    )
    command = [sys.executable, "-c", code, clickhouse_port.url, str(tmp_path / "token")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        seen = []
        for batch in range(3):
            fresh_tables.insert_arrow("rows", pa.table({"id": pa.array([batch] * 10, pa.uint64()), "name": ["x"] * 10}))
            other.stdin.write("\n")
            other.stdin.flush()
            seen.append(int(other.stdout.readline()))
        other.stdin.close()

    assert seen == [10, 20, 30]
