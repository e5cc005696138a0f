"""Webhook receivers that misbehave, each in its own way, until they are told to be good."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

Manner = Literal["good", "slow", "failing", "redirecting", "closing", "dripping", "huge"]
MANNERS: tuple[Manner, ...] = ("slow", "failing", "redirecting", "closing", "dripping", "huge")
SLOW_S = 30.0
DRIP_S = 0.2
HUGE = b"x" * 65_536
_ANSWERS: Mapping[str, bytes] = {
    "good": b"HTTP/1.1 204 Done\r\n\r\n",
    "failing": b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n",
    "redirecting": b"HTTP/1.1 302 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


@dataclass(frozen=True, slots=True)
class Told:
    """One attempt: when it came (ms since the epoch), its id and what is wanted."""

    at_ms: float
    id: str
    data: dict[str, Any]


class Receiver:
    """A port on loopback that reads each request and then behaves in its manner. A thread a connection."""

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self.told: list[Told] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._halt = threading.Event()
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._server.close()

    def delays_ms(self) -> list[float]:
        """From the decision that it tells of to its first arrival, of each id."""
        first = {each.id: each for each in reversed(self.told)}
        return [each.at_ms - each.data["changed_ms"] for each in first.values()]

    def _accept(self) -> None:
        while not self._halt.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(SLOW_S)
            head, body = _request(connection)
            self.told.append(_told(head, body))
            self._behave(connection, self.manner)

    def _behave(self, connection: socket.socket, manner: Manner) -> None:
        if manner == "slow" and not self._halt.wait(SLOW_S):
            connection.sendall(_ANSWERS["good"])
        elif manner == "dripping":
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self._halt.wait(DRIP_S):
                connection.sendall(b"X: y\r\n")
        elif manner == "huge":
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Bomb: ")
            while not self._halt.is_set():
                connection.sendall(HUGE)
        else:
            connection.sendall(_ANSWERS.get(manner, b""))


def _request(connection: socket.socket) -> tuple[bytes, bytes]:
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(65_536) or _gone()
    head, _, body = read.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65_536) or _gone()
    return head, body


def _gone() -> bytes:
    raise ConnectionError("closed before the request was whole")


def _told(head: bytes, body: bytes) -> Told:
    at_ms = time.time() * 1000
    name = next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"webhook-id"))
    message = json.loads(body)
    changed = datetime.fromisoformat(message["timestamp"].replace("Z", "+00:00"))
    return Told(at_ms, name.strip().decode(), message["data"] | {"changed_ms": changed.timestamp() * 1000})
