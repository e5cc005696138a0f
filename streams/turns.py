"""Sharing the event loop: long work on one topic lets the others have their turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

HOLD_S = 0.010
"""How long work may hold the loop before it pauses; one indivisible piece, 10 to 15 ms at most, may come on top."""
TURNS = 16
"""Rounds of the loop without news that end a pause. A record of another topic takes about five from the polling thread to
its handler, and its agent eight more before the next one."""
PAUSE_S = 0.1
"""A pause is at most so long: who has much to do himself comes on in the end."""

Pause = Callable[[], Awaitable[float]]
"""Called between pieces of work: lets the loop turn if the work has held it for long. Returns the seconds of processor time
that the thread has spent since the call before: what a piece costs, however many others share the machine."""
LOOK_S = 1.0
T = TypeVar("T")


class Turns:
    """A `Pause` that counts from its making. Costs a look at two clocks where no pause is due.

    `sign` is called each time: work goes on. `news` counts what others have done: while they do something the pause goes on, so that all that waits for its turn
    gets it, not one record a pause. `clock` says when a pause is due, for the others wait by the clock on the wall;
    `spent` is the thread's own time.
    """

    def __init__(
        self,
        news: Callable[[], int] = lambda: 0,
        hold_s: float = HOLD_S,
        clock: Callable[[], float] = time.perf_counter,
        spent: Callable[[], float] = time.thread_time,
        *,
        sign: Callable[[], None] = lambda: None,
    ) -> None:
        self._news = news
        self._hold_s = hold_s
        self._sign = sign
        self._clock = clock
        self._spent = spent
        self._since = clock()
        self._spent_before = spent()

    async def __call__(self) -> float:
        self._sign()
        piece_s = self._spent() - self._spent_before
        now = self._clock()
        if now - self._since >= self._hold_s:
            await self._turn(now + PAUSE_S)
            self._since = self._clock()
        self._spent_before = self._spent()
        return piece_s

    async def _turn(self, until: float) -> None:
        seen, left = self._news(), TURNS
        while left:
            await asyncio.sleep(0)
            left -= 1
            if self._news() != seen and self._clock() < until:
                seen, left = self._news(), TURNS


async def attended(work: Awaitable[T], pause: Pause) -> T:
    """Awaits what is done elsewhere, in a thread or by a broker, and has a bound of its own; pauses each second meanwhile, so
    that it is seen to be waited for."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await pause()
            await asyncio.wait({task}, timeout=LOOK_S)
        return task.result()
    finally:
        task.cancel()
