"""The two clocks that the client reads, as one value that tests replace."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """`monotonic`: seconds that never go back. `wall_ms`: milliseconds since the epoch, UTC."""

    def monotonic(self) -> float: ...

    def wall_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def wall_ms() -> int:
        return time.time_ns() // 1_000_000
