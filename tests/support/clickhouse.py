"""ClickHouse for fault tests: the engine behind its HTTP port in a process of its own, and a proxy before it that breaks things.

chdb opens one directory a process, so a test process that has an engine already cannot have this one as well.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

USER, TOKEN = "writer", "writer-token-of-fault-tests"
READER_TOKEN = "reader-token-of-fault-tests"
Fault = Literal["none", "away", "silent", "slow", "answer_lost", "readonly", "full", "too_many_parts", "denied"]
_CODES: Mapping[Fault, tuple[int, int, str]] = {
    "readonly": (500, 242, "Table is in readonly mode (TABLE_IS_READ_ONLY)"),
    "full": (500, 243, "Cannot reserve 1.00 MiB, not enough space (NOT_ENOUGH_SPACE)"),
    "too_many_parts": (500, 252, "Too many parts (TOO_MANY_PARTS)"),
    "denied": (403, 497, "writer: Not enough privileges (ACCESS_DENIED)"),
}
"""What ClickHouse says of each: status, number, text (src/Common/ErrorCodes.cpp)."""


class FaultyClickHouse:
    """A proxy on loopback. `fault` holds from the next request on; `refused` counts requests that it broke.

    away: connections end at once · silent: no answer until the fault is over, then none · slow: answers after `slow_s` ·
    answer_lost: the request is carried out, and nobody hears of it · the others refuse inserts as ClickHouse does.
    """

    def __init__(self, upstream: str, slow_s: float = 2.0) -> None:
        self._upstream = urlsplit(upstream)
        self.slow_s = slow_s
        self.refused = 0
        self._fault: Fault = "none"
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty-clickhouse", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.fault = "none"
        self._server.shutdown()
        self._server.server_close()

    def _wait_while(self, fault: Fault, at_most_s: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._fault != fault, at_most_s)

    def _forward(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any, bytes]:
        upstream = http.client.HTTPConnection(str(self._upstream.hostname), self._upstream.port, timeout=120)
        try:
            upstream.request(method, path, body, dict(headers))
            answer = upstream.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            upstream.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body, fault = self._body(), proxy.fault
                if fault in _CODES and not _is_insert(self.path, body):
                    fault = "none"
                if fault == "slow":
                    proxy._wait_while("slow", proxy.slow_s)
                elif fault != "none":
                    proxy.refused += 1
                if fault == "silent":
                    proxy._wait_while("silent")
                if fault in ("away", "silent"):
                    self.close_connection = True
                elif fault in _CODES:
                    status, code, text = _CODES[fault]
                    said = f"Code: {code}. DB::Exception: {text}\n".encode()
                    self._answer(status, {"X-ClickHouse-Exception-Code": str(code)}, said)
                else:
                    headers = {name: self.headers[name] for name in self.headers if name.lower() not in _HOPS}
                    status, told, content = proxy._forward(str(self.command), self.path, body, headers)
                    if fault == "answer_lost":
                        self.close_connection = True
                        return
                    kept = {name: value for name, value in told.items() if name.lower() not in _HOPS}
                    self._answer(status, kept, content)

            do_POST = do_GET

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                    return self.rfile.read(int(self.headers.get("Content-Length", "0")))
                whole = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                with contextlib.suppress(OSError):  # who asked has given up
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: a test says what went wrong."""

        return Handler


_HOPS = frozenset({"host", "connection", "content-length", "transfer-encoding", "expect"})


def _is_insert(path: str, body: bytes) -> bool:
    return b"INSERT" in path.upper().encode() or body[:200].lstrip().upper().startswith(b"INSERT")


class ClickHouseProcess:
    """The engine and its port in a process of its own. `url`, once started; log in as `USER` with `TOKEN`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.clickhouse", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def main() -> int:
    from streams.audit.engine import EmbeddedClickHouse
    from streams.audit.http_port import HttpPort

    parser = argparse.ArgumentParser(prog="python -m tests.support.clickhouse")
    parser.add_argument("folder", type=Path)
    engine = EmbeddedClickHouse(parser.parse_args().folder)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with HttpPort(engine, reader_token=READER_TOKEN, writer_token=TOKEN) as port:
        sys.stdout.write(json.dumps({"url": port.url}) + "\n")
        sys.stdout.flush()
        ending.wait()
    engine.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
