"""A small HTTP/1.1 client for loopback: keep-alive, one request in flight a connection.

Some 40 us of processor time a call, so that the load generator does not slow down what it measures.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

MAX_CONNECTIONS = 64
MAX_WAITING = 2_000
"""Requests that wait for a connection; one more fails at once."""
MAX_HEAD_BYTES = 16_384
UNANSWERED = 0
"""The status of a request that got no answer."""


class HttpAnswer(NamedTuple):
    """Status (`UNANSWERED`: none came), headers in lower case, body."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


NO_ANSWER = HttpAnswer(UNANSWERED, {}, b"")
Done = Callable[[HttpAnswer], None]


def post(path: str, host: str, headers: dict[str, str], body: bytes) -> bytes:
    """The bytes of a POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Pool:
    """Connections to one server; `send` never blocks and calls `done` exactly once."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[tuple[bytes, Done]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, request: bytes, done: Done) -> None:
        if self._idle:
            self._idle.pop().send(request, done)
        elif len(self._waiting) >= MAX_WAITING:
            done(NO_ANSWER)
        else:
            self._waiting.append((request, done))
            if len(self._open) + self._opening < MAX_CONNECTIONS:
                self._opening += 1
                task = asyncio.get_running_loop().create_task(self._connect())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._free, self._lost), *self._address
            )
        except OSError:
            if not self._open and self._waiting:
                self._waiting.popleft()[1](NO_ANSWER)
            return
        finally:
            self._opening -= 1
        self._open.add(connection)
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if connection not in self._open:
            return
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        while self._waiting and not self._open and not self._opening:
            self._waiting.popleft()[1](NO_ANSWER)

    def close(self) -> None:
        """Ends all connections; requests in flight get no answer."""
        while self._waiting:
            self._waiting.popleft()[1](NO_ANSWER)
        for connection in list(self._open):
            connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self, free: Callable[[_Connection], None], lost: Callable[[_Connection], None]) -> None:
        self._free = free
        self._on_lost = lost
        self._buffer = bytearray()
        self._done: Done | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # of a stream socket
        self._transport = transport

    def send(self, request: bytes, done: Done) -> None:
        assert self._transport is not None  # connected
        self._done = done
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            parsed = parse_answer(self._buffer)
        except ValueError:
            self.close()
            return
        if parsed is None or self._done is None:
            return
        answer, size = parsed
        del self._buffer[:size]
        done, self._done = self._done, None
        done(answer)
        if answer.headers.get(b"connection", b"").lower() == b"close":
            self.close()
        else:
            self._free(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        done, self._done = self._done, None
        self._on_lost(self)
        if done is not None:
            done(NO_ANSWER)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def parse_answer(data: bytes | bytearray) -> tuple[HttpAnswer, int] | None:
    """The first answer in `data` and the bytes it takes; None while it is incomplete. Raises ValueError if it is none."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ValueError("no end of the headers")
        return None
    head = bytes(data[:end]).split(b"\r\n")
    status = int(head[0].split(b" ", 2)[1]) if head[0].startswith(b"HTTP/1.") else -1
    if not 100 <= status <= 599:
        raise ValueError("no status line")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    start = end + 4
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        chunked = _chunks(data, start)
        if chunked is None:
            return None
        body, stop = chunked
    else:
        stop = start + int(headers.get(b"content-length", b"0"))
        if len(data) < stop:
            return None
        body = bytes(data[start:stop])
    return HttpAnswer(status, headers, body), stop


def _chunks(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    """The body in chunks that starts at `at`, and where it ends (no trailers). None while it is incomplete."""
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(bytes(data[at:line]).split(b";")[0], 16)
        at = line + 2
        if len(data) < at + size + 2:
            return None
        if size == 0:
            return b"".join(parts), at + 2
        parts.append(bytes(data[at : at + size]))
        at += size + 2
