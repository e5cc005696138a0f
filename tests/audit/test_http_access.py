"""Who may ask the HTTP port, and from where."""

from __future__ import annotations

import contextlib
import http.client
from base64 import b64encode
from urllib.parse import urlsplit

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from streams.audit.engine import EmbeddedClickHouse
from streams.audit.http_port import HttpPort
from tests.audit.http_asking import READER, READER_TOKEN, WRITER_TOKEN, ask, connect


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
