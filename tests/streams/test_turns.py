"""Long work lets others have the loop, and no look at the clock costs a turn."""

from __future__ import annotations

import asyncio

import pytest

from streams import turns as turns_module
from streams.turns import PAUSE_S, TURNS, Turns, attended

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


async def test_what_is_done_elsewhere_is_seen_to_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "LOOK_S", 0.001)
    signs: list[int] = []
    done = asyncio.Event()

    def sign() -> None:
        signs.append(1)
        if len(signs) == 5:
            done.set()

    async def work() -> str:
        await done.wait()
        return "done"

    assert await attended(work(), Turns(sign=sign)) == "done"
    assert len(signs) >= 5


async def test_what_is_done_elsewhere_raises_here_and_ends_with_who_waits_for_it() -> None:
    async def fails() -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        await attended(fails(), Turns())

    work = asyncio.ensure_future(asyncio.Event().wait())
    waiting = asyncio.ensure_future(attended(work, Turns()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert work.cancelled()
