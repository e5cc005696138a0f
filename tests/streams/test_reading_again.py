"""How often a worker reads again for records that raise has a bound, and before it the saved state itself is doubted."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from schemas.deadletter import DeadLetter
from schemas.errors import StateRefused
from schemas.topics import DEAD_LETTERS, PREDICTIONS
from streams.detect import DetectRole
from streams.metrics import Metrics
from streams.outgoing import dead_record
from streams.poison import MAX_ALONE, MAX_IN_VAIN, SOON, Poison, TooManyFailures
from streams.records import Outgoing, Records
from streams.transport.run import TP
from streams.turns import Pause
from tests.streams.fakes import FakeOutbox, FakeStore, run_of, settled

TP0 = TP(PREDICTIONS, 0)
PLACE = ("predictions", 0)
RUN = 200
pytestmark = pytest.mark.anyio


class RaisingLog:
    """Takes records, and raises on those that `poisonous` names; once it was restored from `bad` bytes, on each."""

    def __init__(self, poisonous: Callable[[int], bool]) -> None:
        self.pending, self.restart = False, 0
        self.poisonous = poisonous
        self.taken: list[int] = []
        self.state = b""

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        for offset in records.offsets:
            if self.state == b"bad" or self.poisonous(offset):
                raise ZeroDivisionError(f"on {offset}")
            self.taken.append(offset)
        self.restart = records.offsets[-1] + 1
        return []

    def pass_over(self, record: Records, reason: str, quiet_below: int) -> list[Outgoing]:
        letter = dead_record(*TP0, record, 0, "handler_failed", reason)
        return [letter] if record.offsets[0] >= quiet_below else []

    def restore(self, part: str, state: bytes) -> list[str]:
        if state == b"odd":
            self.state = state
            raise ZeroDivisionError("on restoring")
        self.state = self.state or state
        return ["a"] if state == b"half" else []

    def forget(self, part: str) -> None:
        self.state = b""


class Worker:
    """A role on a log of `end` records that is read in runs of `RUN`, again from the start that the role wants."""

    def __init__(self, end: int, poisonous: Callable[[int], bool], store: FakeStore | None = None) -> None:
        self.end, self.committed = end, 0
        self.outbox, self.store = FakeOutbox(), store or FakeStore()
        self.metrics = Metrics("detect")
        self.logs: list[RaisingLog] = []
        self.again = 0

        async def open_log(_: TP) -> RaisingLog:
            self.logs.append(RaisingLog(poisonous))
            return self.logs[-1]

        async def read_again() -> None:
            self.again += 1
            await self.start()

        self.role = DetectRole("w", open_log, self.store, lambda: self.outbox, self.metrics, read_again)  # type: ignore[arg-type, return-value]

    async def start(self) -> None:
        starts = await self.role.start_at({TP0: self.committed}, frozenset({TP0}))
        self.next = starts.get(TP0, self.committed)

    async def run(self) -> None:
        """Until the log is read."""
        await self.start()
        while self.next < self.end:
            first = self.next
            self.next = min(first - first % RUN + RUN, self.end)
            run = run_of(TP0, first, self.next - first)
            await self.role.handle(run)
            await settled()
            if run.finished:
                self.committed = max(self.committed, run.next)

    def letters(self) -> list[int]:
        return [DeadLetter.from_bytes(sent.value or b"").log_offset for sent in self.outbox.of(DEAD_LETTERS)]

    def cold_parts(self) -> float:
        return self.metrics.registry.get_sample_value("palisade_state_parts_cold_total") or 0.0


def among(*offsets: int) -> Callable[[int], bool]:
    return frozenset(offsets).__contains__


async def test_a_worker_reads_again_three_times_for_a_record_that_raises_and_twice_for_each_other_of_its_run() -> None:
    worker = Worker(1_000, among(410, 420, 430, 900))
    await worker.run()

    assert worker.letters() == [410, 420, 430, 900]
    assert worker.again == 3 + 2 + 2 + 3
    assert worker.logs[-1].taken[-1] == 999


async def test_a_flood_of_records_that_raise_ends_in_dead_letters_and_never_in_a_loop() -> None:
    worker = Worker(1_000, lambda offset: 430 <= offset < 480)
    await worker.run()

    assert worker.letters() == list(range(430, 480))
    assert worker.again == 1 + 2 * 50
    assert worker.committed == 1_000


async def test_an_error_that_comes_and_goes_ends_the_process_after_a_stated_number_of_times() -> None:
    rng = Random(5)

    def flickers(offset: int) -> bool:
        return rng.random() < 0.02

    worker = Worker(20_000, flickers)
    with pytest.raises(TooManyFailures, match=rf"palisade.predictions\[0\] has raised {MAX_IN_VAIN} times"):
        await worker.run()

    assert worker.again == MAX_IN_VAIN - 1
    assert worker.letters() == []
    assert worker.role._owned[TP0].lost  # nothing of it is saved any more


async def test_failures_far_apart_never_end_it() -> None:
    poison = Poison()
    offsets = [number * (SOON + 2) for number in range(3 * MAX_IN_VAIN)]
    assert {poison.failed(TP0, of(offset), ValueError("x"), "step") for offset in offsets} == {"read_again"}


def of(offset: int) -> Records:
    return Records([b"v"], [None], [None], [offset], [0])


async def test_state_of_an_earlier_process_from_which_every_record_raises_is_left_and_cleared() -> None:
    store = FakeStore({PLACE: {"p": b"bad", "q": b"fine"}}, {PLACE: 400})
    worker = Worker(1_000, among(), store)
    worker.committed = 400
    await worker.run()

    assert worker.letters() == list(range(400, 400 + MAX_ALONE))
    assert worker.cold_parts() == 2
    assert store.parts[PLACE] == {"p": b"", "q": b""}
    assert worker.logs[-1].taken == list(range(400 + MAX_ALONE, 1_000))


async def test_state_that_has_proved_itself_is_not_given_up_for_a_flood_of_records_that_raise() -> None:
    end = 400 + SOON + 2 * RUN
    store = FakeStore({PLACE: {"p": b"fine"}}, {PLACE: 400})
    worker = Worker(end + 1_000, lambda offset: offset >= end + 980, store)
    worker.committed = 400
    await worker.run()

    assert len(worker.letters()) == 20
    assert worker.cold_parts() == 0
    assert store.parts[PLACE] == {"p": b"fine"}


@pytest.mark.parametrize(("state", "taken_back"), [(b"odd", b""), (b"half", b"half")])
async def test_a_part_on_which_restoring_raises_starts_cold_and_that_is_counted(
    state: bytes, taken_back: bytes
) -> None:
    worker = Worker(10, among(), FakeStore({PLACE: {"p": state}}, {PLACE: 0}))
    await worker.run()

    assert worker.cold_parts() == 1
    assert worker.logs[-1].state == taken_back


@pytest.mark.parametrize("error", [MemoryError, OSError, StateRefused])
async def test_a_machine_that_is_exhausted_while_restoring_ends_the_process(error: type[Exception]) -> None:
    worker = Worker(10, among(), FakeStore({PLACE: {"p": b"fine"}}, {PLACE: 0}))

    def restore(self: Any, part: str, state: bytes) -> list[str]:
        raise error("planted")

    RaisingLog.restore, before = restore, RaisingLog.restore  # type: ignore[method-assign]
    try:
        if error is StateRefused:
            await worker.run()
        else:
            with pytest.raises(error):
                await worker.run()
    finally:
        RaisingLog.restore = before  # type: ignore[method-assign]
