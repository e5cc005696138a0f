"""Two upstreams, the example receiver with its nginx as a process, and somebody who asks."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@contextmanager
def upstream(name: str) -> Iterator[int]:
    """Answers its name to every GET; gives its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def _get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


class Scene:
    """A running receiver. `ready`: its first line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the receiver ended before it was ready"
        self.ready: dict[str, Any] = json.loads(line)

    def asked(self) -> str:
        """What a new connection through nginx is answered."""
        return _get(self.ready["nginx_port"])

    def held(self) -> dict[str, Any]:
        """What the receiver says that holds."""
        held: dict[str, Any] = json.loads(_get(self.ready["port"]))
        return held

    def stop(self) -> list[dict[str, Any]]:
        """Ends its standard input; gives the lines that it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        return [json.loads(line) for line in self.process.stdout.read().splitlines()]


@contextmanager
def receiving(folder: Path, primary: int, fallback: int, *, port: int = 0, endpoint: str = "credit") -> Iterator[Scene]:
    """The receiver of `endpoint`; nothing of it is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "hook.secret"
    secret.write_text(SECRET)
    command = [
        sys.executable, "-m", "palisade.demo.receiver", "--endpoint", endpoint, "--secret-file", str(secret),
        "--folder", str(folder / "nginx"), "--primary", f"127.0.0.1:{primary}", "--fallback", f"127.0.0.1:{fallback}",
        "--port", str(port), "--ends-with-stdin",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Scene(process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
