"""ClickHouse's HTTP protocol on loopback, over the engine in this process, so that other processes can read the audit.

It speaks what clickhouse-connect, curl and notebooks need: ping, queries with parameters, every format, Native and Arrow
inserts, sessions, compression both ways, and errors with ClickHouse's numbers. Two users, told apart by their tokens:
`reader` may send one SELECT, which passes `sql_gate.admit` and then runs under `readonly=1` and the limits below;
`writer` may send anything that the engine runs, so its token is as good as a shell on this machine. A port without a
writer token has no writer. ClickHouse's users, quotas, replication and server limits do not exist here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import re
import socket
import socketserver
import threading
import time
import uuid
from base64 import b64decode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from streams.audit.engine import Answer, ClickHouseError, EmbeddedClickHouse
from streams.audit.http_body import BodyError, compress, form_fields, read_body
from streams.audit.http_desk import Desk, Insert, PortLimits, Refused, Request, Role, split_insert
from streams.audit.sql_gate import SqlRefused

__all__ = ["HttpPort", "PortLimits"]

log = logging.getLogger(__name__)

MIN_TOKEN_BYTES = 16


class HttpPort:
    """The port. `start()` binds and answers in threads; `close()` before closing the engine. ValueError off loopback."""

    def __init__(
        self,
        engine: EmbeddedClickHouse,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        reader_token: str,
        writer_token: str | None = None,
        limits: PortLimits | None = None,
    ) -> None:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not address.is_loopback:
            raise ValueError(
                f"{host} is not loopback: this port has no encryption and no users, so it stays on this machine"
            )
        for token in filter(None, (reader_token, writer_token)):
            if len(token.encode()) < MIN_TOKEN_BYTES:
                raise ValueError(f"a token needs at least {MIN_TOKEN_BYTES} bytes, e.g. secrets.token_urlsafe()")
        if not reader_token or reader_token == writer_token:
            raise ValueError("reader and writer need tokens of their own")
        self._engine, self._address, self._port = engine, address, port
        self._tokens: dict[Role, str] = {"reader": reader_token}
        if writer_token:
            self._tokens["writer"] = writer_token
        self._limits = limits or PortLimits()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, once started."""
        if self._server is None:
            raise RuntimeError("the port is not started")
        host = f"[{self._address}]" if self._address.version == 6 else str(self._address)
        return f"http://{host}:{self._server.server_address[1]}"

    def start(self) -> str:
        """Bind and answer from now on; the URL. OSError where the port is taken."""
        if self._server is not None:
            return self.url
        desk = Desk(self._engine, self._tokens, self._limits)
        try:
            self._server = _Server((str(self._address), self._port), desk, self._limits)
        except OSError:
            desk.close()
            raise
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="clickhouse-port", daemon=True).start()
        return self.url

    def close(self) -> None:
        """Stop answering: open connections are cut, running queries finish."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def __enter__(self) -> HttpPort:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------- protocol


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], desk: Desk, limits: PortLimits) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.desk, self.limits = desk, limits
        self._open: set[Any] = set()
        self._guard = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            admitted = len(self._open) < self.limits.connections
            if admitted:
                self._open.add(request)
        if admitted:
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        super().shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection %s of %s ended", request, client_address, exc_info=True)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self._guard:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.desk.close()


# Parts of the query string that are about the transport; what is left over are settings.
_TRANSPORT = frozenset(
    """
    query database default_format query_id session_id session_timeout session_check wait_end_of_query buffer_size
    send_progress_in_http_headers http_headers_progress_interval_ms enable_http_compression client_protocol_version
    compress decompress quota_key user password role
    """.split()  # noqa: SIM905 - words read better than a list of strings
)
_CONTENT_TYPES = {"TabSeparated": "text/tab-separated-values", "TSV": "text/tab-separated-values", "CSV": "text/csv"}
# HTTP statuses that ClickHouse gives its errors; the others are 500. 503 is repeated by clients, so it has to be true.
_STATUSES = {
    62: 400,
    43: 400,
    53: 400,
    6: 400,
    60: 404,
    46: 404,
    47: 404,
    81: 404,
    115: 404,
    164: 403,
    497: 403,
    159: 408,
}
_GATE = {
    "settings": (403, 164, "READONLY"),
    "not_a_select": (403, 164, "READONLY"),
    "output_file": (403, 164, "READONLY"),
} | dict.fromkeys(
    ("empty", "syntax", "several_statements", "too_long", "too_deep", "too_complex"), (400, 62, "SYNTAX_ERROR")
)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Palisade", ""
    # Without these two a request takes 48 ms instead of 6: headers and body leave as two small packets.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle_seconds)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/ping":
            self._send(200, b"Ok.\n", {"Content-Type": "text/html; charset=UTF-8"})
        elif path in ("/", "/query"):
            self._answer()
        else:
            self._send(404, b"There is no handle for this path: /, /ping\n")

    do_POST = do_GET

    def _answer(self) -> None:
        started, query_id, self._body_is_read = time.monotonic_ns(), "", False
        try:
            role = self.server.desk.role(*self._credentials())
            request = self._request(role)
            query_id = request.query_id
            answer = self.server.desk.run(role, request)
        except Refused as refused:
            log.info("refused: %s", refused.code)
            self._fail(refused.status, refused.code, str(refused), query_id)
        except SqlRefused as refused:
            log.info("a reader's SQL was refused: %s", refused.reason)
            status, code, name = _GATE.get(refused.reason, (403, 497, "ACCESS_DENIED"))
            self._fail(
                status,
                code,
                f"Code: {code}. DB::Exception: refused ({refused.reason}): {refused.explanation} ({name})",
                query_id,
            )
        except BodyError as unreadable:
            self.close_connection = True
            self._fail(unreadable.status, 0, f"Code: 33. DB::Exception: {unreadable} (CANNOT_READ_ALL_DATA)", query_id)
        except ClickHouseError as failure:
            code = failure.code or 0
            self._fail(_STATUSES.get(code, 500), code, str(failure), query_id)
        else:
            self._succeed(request, answer, started)

    def _credentials(self) -> tuple[str | None, str]:
        """User (None: not said) and token: Basic, Bearer or ClickHouse's own headers; never from the URL, which is logged."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            with contextlib.suppress(ValueError):
                user, _, token = b64decode(value.strip(), validate=True).decode().partition(":")
                return user, token
        if kind.lower() == "bearer":
            return None, value.strip()
        return self.headers.get("X-ClickHouse-User", ""), self.headers.get("X-ClickHouse-Key", "")

    def _request(self, role: Role) -> Request:
        try:
            query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True, max_num_fields=1000))
        except ValueError as failure:
            raise BodyError(400, f"the query string cannot be read: {failure}") from failure
        self._body_is_read = True
        body = read_body(
            self.rfile,  # type: ignore[arg-type]
            self.headers.get("Content-Length"),
            "chunked" in self.headers.get("Transfer-Encoding", "").lower(),
            self.headers.get("Content-Encoding", "").strip().lower(),
            self.server.desk.body_bytes(role),
        )
        content_type = self.headers.get("Content-Type", "")
        if content_type.lower().startswith("multipart/form-data"):
            query, body = query | form_fields(body, content_type), b""
        sql, insert, data = _statement(query.get("query", ""), body, role)
        return Request(
            sql=sql,
            insert=insert,
            data=data,
            parameters={key[6:]: value for key, value in query.items() if key.startswith("param_")},
            settings={k: v for k, v in query.items() if k not in _TRANSPORT and not k.startswith("param_")},
            database=query.get("database", self.headers.get("X-ClickHouse-Database", "")),
            session_id=query.get("session_id", ""),
            query_id=query.get("query_id") or str(uuid.uuid4()),
            fmt=query.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated",
        )

    def _succeed(self, request: Request, answer: Answer, started: int) -> None:
        named = re.search(r"\bFORMAT\s+(\w+)\s*;?\s*$", request.sql[-200:], re.IGNORECASE)
        fmt = named.group(1) if named else request.fmt
        rows, size = ("written_rows", "written_bytes") if request.insert else ("read_rows", "read_bytes")
        summary = {
            rows: str(answer.rows_read),
            size: str(answer.bytes_read),
            "elapsed_ns": str(time.monotonic_ns() - started),
        }
        kind = next((kind for start, kind in _CONTENT_TYPES.items() if fmt.startswith(start)), None)
        kind = kind or ("application/json" if fmt.startswith("JSON") else "application/octet-stream")
        data, encoding = answer.data, None
        if dict(parse_qsl(urlsplit(self.path).query)).get("enable_http_compression") == "1":
            data, encoding = compress(data, self.headers.get("Accept-Encoding", ""))
        headers = {
            "Content-Type": f"{kind}; charset=UTF-8" if kind.startswith("text") else kind,
            "X-ClickHouse-Summary": json.dumps(summary),
            "X-ClickHouse-Format": fmt,
        }
        self._send(200, data, headers | ({"Content-Encoding": encoding} if encoding else {}), request.query_id)

    def _fail(self, status: int, code: int, message: str, query_id: str) -> None:
        self._drain()
        headers = {"Content-Type": "text/plain; charset=UTF-8"} | (
            {"X-ClickHouse-Exception-Code": str(code)} if code else {}
        )
        self._send(status, (message + "\n").encode("utf-8", "replace"), headers, query_id)

    def _drain(self) -> None:
        """Read what the client is still sending, or it never sees the answer; a long body is cut off instead."""
        if self._body_is_read:
            return
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > 1 << 20:
            self.close_connection = True
        else:
            self.rfile.read(int(length))

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None, query_id: str = "") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if query_id.isascii() and query_id.isprintable():
            self.send_header("X-ClickHouse-Query-Id", query_id[:128])
        self.send_header("X-ClickHouse-Timezone", self.server.desk.timezone)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _statement(query: str, body: bytes, role: Role) -> tuple[str, Insert | None, bytes]:
    """SQL, the INSERT in it if its rows come separately, and those rows. A reader's text is not looked into here."""
    if role == "writer":
        if query and (split := split_insert(query.encode())) and not split[1]:
            return query, split[0], body
        if not query and (split := split_insert(body)):
            return "", *split
    text = body.decode("utf-8", "surrogateescape")
    return (f"{query}\n{text}" if query and text else query or text), None, b""
