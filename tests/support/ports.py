"""Ports for servers that begin after their port was chosen."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

NEVER_OUTGOING = range(15_000, 30_000)
"""Below what Linux gives to outgoing connections: a connection that somebody opens meanwhile cannot take one of them."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", random.choice(NEVER_OUTGOING)))
            except OSError:
                continue
            found.append(int(probe.getsockname()[1]))
        return found


def free_port() -> int:
    (port,) = free_ports(1)
    return port
