"""Whether a process may act: only while it has not stood still for so long that another one may be in its place."""

from __future__ import annotations

import time

LEASE_S = 3.0
"""A process that stood still for longer may have been replaced: it proves at the journal that it was not, before anything
goes out. Half of the session, for the session began to run before the standstill."""


class Lease:
    """Runs out by time, and is not renewed once it has: whoever proves that nobody took over begins it anew.

    Monotonic clock; it does not hold before it is begun.
    """

    def __init__(self) -> None:
        self._until = 0.0

    def holds(self) -> bool:
        return time.monotonic() <= self._until

    def begin(self, proven_s: float) -> None:
        """Nobody had taken over at this moment."""
        self._until = max(self._until, proven_s + LEASE_S)

    def renew(self) -> None:
        """To be called more often than it runs out."""
        if self.holds():
            self._until = time.monotonic() + LEASE_S

    def end(self) -> None:
        self._until = 0.0
