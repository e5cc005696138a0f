"""How tests ask the HTTP port: as clickhouse-connect does, or with one raw request."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from streams.audit.http_port import HttpPort

READER_TOKEN = "reader-token-0123456789"
WRITER_TOKEN = "writer-token-0123456789"
READER = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER_TOKEN}
WRITER = {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": WRITER_TOKEN}
DDL = "CREATE TABLE palisade.rows (id UInt64, name String) ENGINE = MergeTree ORDER BY id"


def connect(port: HttpPort, user: str, token: str, **options: Any) -> Client:
    parts = urlsplit(port.url)
    return clickhouse_connect.get_client(host=parts.hostname, port=parts.port, username=user, password=token, **options)


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
