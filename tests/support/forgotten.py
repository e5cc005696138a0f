"""A front of a broker that first says that the cluster has no broker, as one may that shuts down, and later lets everybody
through: what makes librdkafka 2.12 to 2.16 ask nobody ever again (its issue 5301). It always does where it was told not to
fetch its brokers from the bootstrap servers again (`FORGETS`), else in a race of a microsecond."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.ports import free_port

FORGETS = {"metadata.recovery.strategy": "none"}

_METADATA, _FIND_COORDINATOR, _API_VERSIONS = 3, 10, 18
_SPOKEN = {0: 7, 1: 4, 2: 1, 3: 1, 8: 2, 9: 1, 10: 0, 11: 2, 12: 1, 13: 1, 14: 1, 18: 0, 22: 1}
"""Which requests, up to which version."""
_UNKNOWN_VERSION, _NO_COORDINATOR = 35, 15


class Front:
    """A context manager. `told`: how often somebody was told that there is no broker."""

    def __init__(self, broker: str) -> None:
        host, _, port = broker.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self._open: list[socket.socket] = []
        self._lets_through = False
        self.told = 0
        self.bootstrap = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def let_through(self) -> None:
        """Whoever connects from now on reaches the broker."""
        self._lets_through = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                if self._lets_through:
                    broker = socket.create_connection(self._target)
                    self._open.append(broker)
                    for ends in ((client, broker), (broker, client)):
                        threading.Thread(target=_pass_on, args=ends, daemon=True).start()
                else:
                    threading.Thread(target=self._say_nobody, args=(client,), daemon=True).start()

    def _say_nobody(self, client: socket.socket) -> None:
        with suppress(OSError, struct.error), client.makefile("rb") as asked:
            while True:
                (size,) = struct.unpack(">i", asked.read(4))
                key, version, correlation = struct.unpack(">hhi", asked.read(size)[:8])
                answer = struct.pack(">i", correlation) + self._answer(key, version)
                client.sendall(struct.pack(">i", len(answer)) + answer)

    def _answer(self, key: int, version: int) -> bytes:
        if key == _API_VERSIONS and version:
            return struct.pack(">hihhh", _UNKNOWN_VERSION, 1, _API_VERSIONS, 0, 0)
        if key == _API_VERSIONS:
            most = b"".join(struct.pack(">hhh", api, 0, top) for api, top in _SPOKEN.items())
            return struct.pack(">hi", 0, len(_SPOKEN)) + most
        if key == _FIND_COORDINATOR:
            return struct.pack(">hihi", _NO_COORDINATOR, -1, 0, -1)
        self.told += key == _METADATA
        return struct.pack(">iii", 0, -1, 0)  # no brokers, no controller, no topics


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while sent := source.recv(1 << 16):
            sink.sendall(sent)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
