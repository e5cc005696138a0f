"""Sharing the event loop: long work on one topic lets the others have their turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

HOLD_S = 0.010
"""How long work may hold the loop before it pauses; one indivisible piece, 10 to 15 ms at most, may come on top."""
TURNS = 8
"""Rounds of the loop in a pause: a record of another topic takes about five from the polling thread to its handler."""

Pause = Callable[[], Awaitable[float]]
"""Called between pieces of work: lets the loop turn if the work has held it for long. Says for how many seconds it has."""


class Turns:
    """A `Pause` that counts from its making. Costs a look at the clock where no pause is due."""

    def __init__(self, hold_s: float = HOLD_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._since = clock()

    async def __call__(self) -> float:
        held = self._clock() - self._since
        if held >= self._hold_s:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            self._since = self._clock()
        return held
