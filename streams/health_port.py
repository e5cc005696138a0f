"""`/live`, `/ready` and `/metrics` over HTTP, for whoever runs a worker. Threads of its own, and a bound on everything.

It reads nothing but the first line of a request, has no other paths, and answers once a connection.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import socketserver
import threading
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from streams.health import Health

log = logging.getLogger(__name__)

CONNECTIONS = 16
"""Open at once; another one ends the oldest, so that who opens many and says nothing keeps nobody from an answer."""
HEAD_BYTES = 8_192
REQUEST_S = 5.0
"""For the whole request, however slowly it comes, and again for taking the answer."""
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class HealthPort:
    """One port. `registry`: also serves /metrics. Answers from `start` until `close`, or the end of the process."""

    def __init__(self, health: Health, registry: CollectorRegistry | None = None) -> None:
        self._health = health
        self._registry = registry
        self._server: _Server | None = None

    def start(self, port: int, host: str = "127.0.0.1") -> int:
        """Binds (0: any free port) and answers in threads; returns the port. OSError where it is taken."""
        self._server = server = _Server(host, port, self)
        threading.Thread(target=server.serve_forever, args=(0.2,), name="health-port", daemon=True).start()
        return int(server.server_address[1])

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.cut()

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"GET or HEAD\n"
        path = path.partition("?")[0]
        if path in ("/live", "/ready"):
            state = self._health.state()
            good = state.live if path == "/live" else state.ready
            return 200 if good else 503, "application/json", json.dumps(state.body()).encode() + b"\n"
        if path == "/metrics" and self._registry is not None:
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        metrics = ", /metrics" if self._registry is not None else ""
        return 404, "text/plain", f"there are /live, /ready{metrics}\n".encode()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, answers: HealthPort) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answers = answers
        self._open: dict[Any, None] = {}
        self._guard = threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open[request] = None
            surplus = list(self._open)[:-CONNECTIONS]
        for oldest in surplus:
            _end(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Ends what is open."""
        with self._guard:
            still_open = list(self._open)
        for connection in still_open:
            _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection %s of %s ended", request, client_address, exc_info=True)


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        line = self._first_line()
        if line is None:
            return
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            self._send(400, "text/plain", b"this is HTTP: GET /live, GET /ready\n")
            return
        method, path, _ = words
        status, kind, body = self.server.answers.answer(method, path)
        self._send(status, kind, body, only_head=method == "HEAD")

    def _first_line(self) -> str | None:
        """Of a head that came whole and in time."""
        head, deadline = b"", monotonic() + REQUEST_S
        while b"\r\n\r\n" not in head:
            left = deadline - monotonic()
            if left <= 0 or len(head) > HEAD_BYTES:
                return None
            self.request.settimeout(left)
            more = self.request.recv(4_096)
            if not more:
                return None
            head += more
        return head.partition(b"\r\n")[0].decode("latin-1")

    def _send(self, status: int, kind: str, body: bytes, *, only_head: bool = False) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self.request.settimeout(REQUEST_S)
        self.request.sendall(head.encode() + (b"" if only_head else body))


def _end(connection: Any) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
