"""The HTTP port as plain HTTP: paths, bodies, garbage, connections, other processes."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pytest

from streams.audit.engine import EmbeddedClickHouse
from streams.audit.http_port import HttpPort, PortLimits
from tests.audit.http_asking import DDL, READER, READER_TOKEN, WRITER, ask


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
        ({"Content-Encoding": "gzip"}, gzip.compress(b"SELECT 1", mtime=0)[:-12], 400),
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
