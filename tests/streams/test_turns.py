"""Long work lets others have the loop, and no look at the clock costs a turn."""

from __future__ import annotations

import asyncio

import pytest

from streams.turns import PAUSE_S, TURNS, Turns

pytestmark = pytest.mark.anyio


async def test_nobody_has_a_turn_before_the_hold_is_over_and_everybody_has_after_it() -> None:
    clock = [0.0]
    turns = Turns(hold_s=0.01, clock=lambda: clock[0])
    seen: list[float] = []

    async def other() -> None:
        while True:
            seen.append(clock[0])
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    for now in (0.004, 0.008, 0.012, 0.016, 0.023):
        clock[0] = now
        await turns()
    task.cancel()

    assert seen == [0.012] * TURNS + [0.023] * TURNS


async def test_what_a_piece_costs_is_the_threads_own_time_without_what_others_took_in_a_pause() -> None:
    clock, spent = [0.0], [0.0]
    turns = Turns(hold_s=0.01, clock=lambda: clock[0], spent=lambda: spent[0])
    costs: list[float] = []

    async def other() -> None:
        while True:
            spent[0] += 5.0
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    for wall, own in ((0.004, 0.001), (0.5, 0.002), (0.004, 0.003)):
        clock[0] += wall
        spent[0] += own
        costs.append(await turns())
    task.cancel()

    assert costs == pytest.approx([0.001, 0.002, 0.003])


@pytest.mark.parametrize(("each_s", "expected"), [(0.001, 30), (PAUSE_S / 3, 3)])
async def test_a_pause_goes_on_while_others_have_something_to_do_but_not_for_ever(each_s: float, expected: int) -> None:
    clock, done = [0.0], [0]
    turns = Turns(lambda: done[0], 0.0, lambda: clock[0])

    async def other() -> None:
        """Thirty records, each of which takes some turns of the loop."""
        for _ in range(30):
            for _ in range(TURNS - 2):
                await asyncio.sleep(0)
            done[0] += 1
            clock[0] += each_s

    task = asyncio.ensure_future(other())
    await turns()
    task.cancel()

    assert done[0] == expected
