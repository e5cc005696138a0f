"""Role detect: nothing is done before it is confirmed, nothing is saved that was not said, nothing is said twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from detectors.base import LogPoint
from schemas.errors import StateRefused
from schemas.topics import PREDICTIONS, REPORTS, SIGNALS, VERDICTS
from schemas.verdicts import Lost
from streams import detect
from streams.detect import DetectRole
from streams.metrics import Metrics
from streams.records import Outgoing, Records
from streams.transport.run import TP
from streams.turns import Pause
from tests.streams.fakes import FakeOutbox, FakeStore, run_of, settled

TP0 = TP(PREDICTIONS, 0)
PLACE = ("predictions", 0)
pytestmark = pytest.mark.anyio


class CountingLog:
    """Counts records of one part a record modulo `parts`; says a signal for each record at or above `quiet_below`."""

    def __init__(self, parts: int = 1) -> None:
        self.pending = False
        self.restart = 0
        self.counts: dict[str, int] = {}
        self.parts = parts
        self.quiet: list[int] = []
        self.gate: asyncio.Event | None = None
        self._dirty: dict[str, None] = {}

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        self.quiet.append(quiet_below)
        for offset in records.offsets:
            part = f"p{offset % self.parts}"
            self.counts[part] = self.counts.get(part, 0) + 1
            self._dirty.setdefault(part)
        if self.gate is not None:
            await self.gate.wait()
        self.restart = records.offsets[-1] + 1
        return [Outgoing(SIGNALS, b"k", str(offset).encode(), (("palisade-kind", b"signal"),))
                for offset in records.offsets if offset >= quiet_below]  # fmt: skip

    def lost(self, first: int, last: int, at: LogPoint) -> list[Outgoing]:
        return [Outgoing(SIGNALS, b"k", f"lost {first} to {last}".encode(), (("palisade-kind", b"signal"),))]

    def dirty(self) -> list[str]:
        return list(self._dirty)

    def snapshot(self, part: str) -> bytes:
        self._dirty.pop(part)
        return str(self.counts[part]).encode()

    def unsaved(self, part: str) -> None:
        self._dirty = {part: None} | self._dirty

    def restore(self, part: str, state: bytes) -> list[str]:
        if not state.isdigit():
            raise StateRefused("no number")
        self.counts[part] = int(state)
        return []

    def forget(self, part: str) -> None:
        self.counts.pop(part, None)


class Outbox(FakeOutbox):
    """Has room for `places` records that are not confirmed."""

    places = 1_000_000

    async def room(self, size: int) -> None:
        while sum(not sent.future.done() for sent in self.sent) >= self.places:
            await asyncio.sleep(0)


class SlowStore(FakeStore):
    """Loads and saves when the test lets it."""

    def __init__(self, **held: Any) -> None:
        super().__init__(**held)
        self.may_load, self.may_save = asyncio.Event(), asyncio.Event()

    async def load(self, log: str, partition: int) -> Any:
        await self.may_load.wait()
        return await super().load(log, partition)

    async def save(self, log: str, partition: int, parts: Any, start: int) -> None:
        self.parts.setdefault((log, partition), {}).update(parts)
        await self.may_save.wait()
        await super().save(log, partition, parts, start)


class Bench:
    """A role that owns one partition, with its log, store and outbox."""

    def __init__(self, parts: int = 1, *, confirms: bool = True, store: FakeStore | None = None) -> None:
        self.outbox = Outbox(confirms=confirms)
        self.store = store or FakeStore()
        self.logs: list[CountingLog] = []
        self.metrics = Metrics("detect")

        async def open_log(_: TP) -> CountingLog:
            self.logs.append(CountingLog(parts))
            return self.logs[-1]

        self.role = DetectRole("w 1", open_log, self.store, lambda: self.outbox, self.metrics)  # type: ignore[arg-type, return-value]

    @property
    def log(self) -> CountingLog:
        return self.logs[-1]

    async def start(self, committed: int | None = None) -> dict[TP, int]:
        return await self.role.start_at({} if committed is None else {TP0: committed}, frozenset({TP0}))


@contextlib.asynccontextmanager
async def running(job: Callable[[], Awaitable[None]]) -> Any:
    task = asyncio.ensure_future(job())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def rounds(monkeypatch: pytest.MonkeyPatch, every_s: float = 0.0) -> None:
    monkeypatch.setattr(detect, "SNAPSHOT_EVERY_S", every_s)


async def test_a_run_is_done_only_when_all_that_it_led_to_is_confirmed() -> None:
    bench = Bench(confirms=False)
    await bench.start()
    run = run_of(TP0, 0, 3)

    await bench.role.handle(run)
    await settled()
    assert (run.opened, run.finished, len(bench.outbox.sent)) == (True, False, 3)

    bench.outbox.confirm()
    await settled()
    assert run.finished


async def test_a_run_that_is_cancelled_between_two_pieces_leaves_state_that_is_not_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(monkeypatch)
    bench = Bench()
    await bench.start(committed=0)
    bench.store.saves.clear()
    bench.log.gate = asyncio.Event()

    async with running(lambda: bench.role.handle(run_of(TP0, 0, 5))):
        await settled()
    await bench.role.leave(frozenset({TP0}))

    assert bench.store.saves == []


async def test_the_next_run_is_taken_while_the_outcomes_of_the_last_are_on_their_way() -> None:
    bench = Bench(confirms=False)
    await bench.start()

    await bench.role.handle(run_of(TP0, 0, 3))
    await bench.role.handle(run_of(TP0, 3, 3))

    assert bench.log.counts == {"p0": 6}


async def test_an_outcome_that_the_broker_refuses_ends_the_run_and_saves_no_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(monkeypatch)
    bench = Bench(confirms=False)
    await bench.start(committed=0)
    bench.store.saves.clear()
    failures: list[BaseException] = []
    await bench.role.handle(run_of(TP0, 0, 3, failures))

    bench.outbox.lose(OSError("gone"))
    await settled()
    async with running(bench.role.save_rounds):
        await settled()

    assert [str(error) for error in failures] == ["gone"]
    assert bench.store.saves == []


async def test_state_is_saved_only_after_everything_that_it_has_said_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(monkeypatch)
    bench = Bench(confirms=False)
    await bench.start(committed=0)
    bench.store.saves.clear()
    await bench.role.handle(run_of(TP0, 0, 5))

    async with running(bench.role.save_rounds):
        await settled()
        assert bench.store.saves == []
        bench.outbox.confirm()
        await settled()
        assert bench.store.saves[0] == ({"p0": b"5"}, 5)


async def test_state_is_never_taken_in_the_middle_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds(monkeypatch)
    bench = Bench()
    await bench.start(committed=0)
    bench.store.saves.clear()
    bench.log.gate = asyncio.Event()

    async with running(bench.role.save_rounds), running(lambda: bench.role.handle(run_of(TP0, 0, 5))):
        await settled()
        assert [parts for parts, _ in bench.store.saves if parts] == []
        bench.log.gate.set()
        await settled()
        assert ({"p0": b"5"}, 5) in bench.store.saves


async def test_a_round_that_fails_leaves_the_manifest_and_saves_the_parts_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(monkeypatch)
    bench = Bench(parts=2)
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 4))

    bench.store.away = True
    async with running(bench.role.save_rounds):
        await settled()
        assert (bench.store.starts[PLACE], bench.log.dirty()) == (0, ["p0", "p1"])
        bench.store.away = False
        await settled()

    assert bench.store.starts[PLACE] == 4
    assert bench.store.parts[PLACE] == {"p0": b"2", "p1": b"2"}
    assert bench.metrics.snapshot_failures._value.get() >= 1


async def test_parts_beyond_the_budget_of_a_round_hold_the_restart_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "SNAPSHOT_BYTES_A_ROUND", 1)
    bench = Bench(parts=3)
    await bench.start(committed=0)
    bench.store.saves.clear()
    owned = bench.role._owned[TP0]

    await bench.role.handle(run_of(TP0, 0, 9))
    for _ in range(3):
        await bench.role._save(TP0, owned, 1)
    await bench.role.handle(run_of(TP0, 9, 3))
    await bench.role._save(TP0, owned, 1)

    assert [(sorted(parts), start) for parts, start in bench.store.saves] == [
        (["p0"], 0),  # p1 and p2 are saved from where this process began
        (["p1"], 0),
        (["p2"], 9),
        (["p0"], 9),  # p1 and p2 changed after they were saved at 9
    ]


async def test_a_partition_without_records_keeps_its_restart() -> None:
    store = FakeStore(starts={PLACE: 40})
    bench = Bench(store=store)

    assert await bench.start(committed=50) == {TP0: 40}
    await bench.role.leave(frozenset({TP0}))

    assert store.starts[PLACE] == 40


async def test_a_restart_reads_from_the_saved_place_and_is_quiet_below_what_was_committed() -> None:
    store = FakeStore(starts={PLACE: 40}, parts={PLACE: {"p0": b"40"}})
    bench = Bench(store=store)

    assert await bench.start(committed=45) == {TP0: 40}
    await bench.role.handle(run_of(TP0, 40, 10))

    assert bench.log.counts == {"p0": 50}
    assert [sent.value for sent in bench.outbox.sent] == [b"45", b"46", b"47", b"48", b"49"]


async def test_a_saved_place_ahead_of_what_was_committed_is_read_from_the_committed_offset() -> None:
    bench = Bench(store=FakeStore(starts={PLACE: 60}))

    assert await bench.start(committed=45) == {TP0: 45}


async def test_a_round_while_the_state_is_loaded_leaves_the_manifest_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(monkeypatch)
    store = SlowStore(starts={PLACE: 40}, parts={PLACE: {"p0": b"40"}})
    store.may_save.set()
    bench = Bench(store=store)

    async with running(bench.role.save_rounds):
        starting = asyncio.ensure_future(bench.start(committed=50))
        await settled()
        assert (store.saves, store.starts[PLACE]) == ([], 40)
        store.may_load.set()
        assert await starting == {TP0: 40}
        await settled()
    assert store.starts[PLACE] == 40


async def test_a_rewind_loads_only_after_the_save_that_is_under_way() -> None:
    store = SlowStore(starts={PLACE: 0})
    store.may_load.set()
    bench = Bench(store=store)
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 5))
    saving = asyncio.ensure_future(bench.role._save(TP0, bench.role._owned[TP0], 100))
    await settled()

    starting = asyncio.ensure_future(bench.start(committed=5))
    await settled()
    assert not starting.done()
    store.may_save.set()
    await saving

    assert await starting == {TP0: 5}
    assert bench.log.counts == {"p0": 5}


@pytest.mark.parametrize("start", [60, 3])
async def test_state_of_a_log_of_which_nothing_is_committed_is_dropped_for_good(start: int) -> None:
    store = FakeStore(starts={PLACE: start}, parts={PLACE: {"p0": b"60"}})
    bench = Bench(store=store)

    assert await bench.start() == {}
    assert (bench.log.counts, bench.metrics.cold_parts._value.get()) == ({}, 1)
    await bench.role.handle(run_of(TP0, 0, 2))
    assert [sent.value for sent in bench.outbox.sent] == [b"0", b"1"]

    assert store.starts[PLACE] == 0
    again = Bench(store=store)
    assert await again.start(committed=2) == {TP0: 0}
    assert again.log.counts == {}


async def test_what_is_lost_is_forgotten_and_not_saved() -> None:
    bench = Bench()
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 5))
    bench.store.saves.clear()

    await bench.role.lose(frozenset({TP0, TP(REPORTS, 9)}))

    assert (bench.store.saves, bench.role._owned) == ([], {})


async def test_a_save_that_waits_for_confirmations_stops_at_the_loss_of_the_partition() -> None:
    bench = Bench(confirms=False)
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 5))
    bench.store.saves.clear()
    saving = asyncio.ensure_future(bench.role._save(TP0, bench.role._owned[TP0], 100))
    await settled()

    await bench.role.lose(frozenset({TP0}))
    bench.outbox.confirm()

    assert await saving == 0
    assert bench.store.saves == []


async def test_outcomes_wait_for_room_and_the_run_counts_as_being_worked_on_meanwhile() -> None:
    bench = Bench(confirms=False)
    bench.outbox.places = 2
    await bench.start()
    run = run_of(TP0, 0, 5)

    async with running(lambda: bench.role.handle(run)) as handling:
        await settled()
        assert (len(bench.outbox.sent), run.opened, run.finished) == (2, True, False)
        while not handling.done():
            bench.outbox.confirm()
            await settled()
    bench.outbox.confirm()
    await settled()
    assert run.finished
    assert [sent.value for sent in bench.outbox.sent] == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_first_start_notes_where_it_began_before_any_part_is_saved() -> None:
    bench = Bench()

    assert await bench.start(committed=7) == {}
    assert bench.store.saves == [({}, 7)]


async def test_a_part_that_cannot_be_read_starts_cold_and_the_others_do_not() -> None:
    bench = Bench(parts=2, store=FakeStore(starts={PLACE: 4}, parts={PLACE: {"p0": b"rubbish", "p1": b"2"}}))

    await bench.start(committed=4)

    assert bench.log.counts == {"p1": 2}
    assert bench.metrics.cold_parts._value.get() == 1


async def test_what_is_revoked_is_saved_and_then_forgotten() -> None:
    bench = Bench()
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 5))

    await bench.role.leave(frozenset({TP0, TP(REPORTS, 9)}))

    assert bench.store.saves[-1] == ({"p0": b"5"}, 5)
    assert bench.role._owned == {}


async def test_leaving_goes_on_when_the_store_is_away() -> None:
    bench = Bench()
    await bench.start(committed=0)
    await bench.role.handle(run_of(TP0, 0, 5))
    bench.store.away = True

    await bench.role.leave(frozenset({TP0}))

    assert bench.role._owned == {}


async def test_ticks_come_four_times_a_second_while_rows_wait_and_once_a_second_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.start()
    now = 0.0
    naps: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += seconds
        bench.log.pending = now <= 4
        await real_sleep(0)

    monkeypatch.setattr(detect.asyncio, "sleep", sleep)
    monkeypatch.setattr(detect.time, "monotonic", lambda: now)
    task = asyncio.ensure_future(bench.role.ticks())
    while now < 8:
        await real_sleep(0)
    task.cancel()

    ticks = bench.outbox.of(PREDICTIONS)
    assert {(sent.partition, sent.headers["palisade-kind"]) for sent in ticks} == {(0, b"tick")}
    assert 16 + 3 <= len(ticks) <= 16 + 5
    assert set(naps) == {0.25}


async def test_a_tick_that_is_lost_is_counted_and_nothing_else() -> None:
    bench = Bench(confirms=False)
    await bench.start()
    bench.role._tick(TP0, bench.role._owned[TP0])

    bench.outbox.lose(OSError("gone"))
    await settled()

    assert bench.metrics.ticks_lost._value.get() == 1


@pytest.mark.parametrize(
    ("committed", "counted"), [(None, (5, 29)), (5, (5, 29)), (12, (12, 29)), (30, None), (40, None)]
)
async def test_what_retention_removed_is_an_outcome_of_what_had_none_and_detectors_are_told_of_all(
    committed: int | None, counted: tuple[int, int] | None
) -> None:
    bench = Bench()
    await bench.start(committed)
    run = run_of(TP0, 30, 3)
    run.lost = (5, 30)

    await bench.role.handle(run)
    await settled()

    assert bench.outbox.of(SIGNALS)[0].value == b"lost 5 to 29"
    told = [Lost.from_bytes(sent.value or b"") for sent in bench.outbox.of(VERDICTS)]
    assert [(lost.log_topic, lost.first, lost.last) for lost in told] == ([(PREDICTIONS, *counted)] if counted else [])
    assert run.finished
