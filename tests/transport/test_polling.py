"""The polling thread against a fake consumer: rebalances, rewinds, commits, backpressure, and the ways to die."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.transport.ledger import Ledger, TopicLimits
from streams.transport.polling import Poller
from streams.transport.run import TP, Run
from streams.transport.seams import Halted, LoopStuck, PollingBounds
from tests.transport.fakes import FakeConsumer, FakeRecord, records

pytestmark = pytest.mark.anyio
A, B = TP("t", 0), TP("u", 0)
Hook = Callable[["Host"], Awaitable[None]]


class Host:
    """The loop side, as small as it can be. What happens inside `assigned` and `revoked` is the test's."""

    def __init__(self, limits: Mapping[str, TopicLimits] | None = None, **hooks: Hook) -> None:
        self.limits, self.hooks = limits or {}, hooks
        self.loop = asyncio.get_running_loop()
        self.told: list[tuple[str, Any]] = []
        self.starts: dict[TP, int] = {}
        self.error: asyncio.Future[BaseException] = self.loop.create_future()
        self.poller: Poller
        self.consumer: FakeConsumer

    async def assigned(self, tps: frozenset[TP]) -> None:
        self.told.append(("assigned", tps))
        if "assigned" in self.hooks:
            await self.hooks["assigned"](self)
        self.poller.rewind()

    async def revoked(self, tps: frozenset[TP]) -> None:
        self.told.append(("revoked", tps))
        if "revoked" in self.hooks:
            await self.hooks["revoked"](self)

    async def lost(self, tps: frozenset[TP]) -> None:
        self.told.append(("lost", tps))
        if "lost" in self.hooks:
            await self.hooks["lost"](self)

    async def start_at(self, committed: Mapping[TP, int]) -> Mapping[TP, int]:
        self.told.append(("start_at", dict(committed)))
        return self.starts

    def new_ledger(self, generation: int) -> Ledger:
        return Ledger(generation, self.limits)

    def fed(self) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.loop.call_soon_threadsafe(self.error.set_result, error)

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        async with asyncio.timeout(60):
            while not condition():
                assert not self.error.done(), self.error.result()
                await asyncio.sleep(0.001)

    async def runs(self, count: int, *tps: TP) -> list[Run]:
        """Take until `count` records are there."""
        taken: list[Run] = []
        await self.until(lambda: taken.extend(self._take(tps)) or sum(map(len, taken)) >= count)
        return taken

    def _take(self, tps: tuple[TP, ...]) -> list[Run]:
        return [run for runs in self.poller.ledger.take(tps or (A, B)).values() for run in runs]

    async def commit(self) -> None:
        ledger = self.poller.ledger
        due = ledger.due()
        await asyncio.wrap_future(self.poller.commit(due))
        ledger.committed(due)


@asynccontextmanager
async def polling(
    host: Host, consumer: FakeConsumer, *, restarts: bool = False, loop_s: float = 60.0, full_s: float = 0.02
) -> AsyncIterator[None]:
    bounds = PollingBounds(poll_s=0.002, full_s=full_s, loop_s=loop_s, watermarks_s=0.01, again_s=0.01, not_there_s=0.5)
    host.consumer = consumer
    host.poller = Poller(consumer.made_with, {}, host, host.loop, restarts=restarts, bounds=bounds)
    host.poller.start()
    host.poller.subscribe(["t", "u"])
    try:
        yield
    finally:
        host.poller.halt()
        assert await asyncio.to_thread(host.poller.join, 60), "the polling thread did not end"
    assert consumer.named("close") == [None]
    assert {thread for _, thread, _ in consumer.calls} == {"rdkafka"}, "only the polling thread may call the consumer"


async def joined(host: Host, *tps: TP) -> None:
    generation = host.poller.ledger.generation
    host.consumer.join(*tps)
    await host.until(lambda: host.poller.ledger.generation > generation)


def consumer_with(**logs: int) -> FakeConsumer:
    consumer = FakeConsumer({})
    consumer.log = {TP(topic, 0): list(records(0, count, TP(topic, 0))) for topic, count in logs.items()}
    return consumer


async def test_what_is_assigned_is_read_finished_and_committed() -> None:
    host, consumer = Host(), consumer_with(t=5, u=3)
    async with polling(host, consumer):
        await joined(host, A, B)
        for run in await host.runs(8):
            run.open().done()
        await host.commit()
    assert consumer.stored == {A: 5, B: 3}


async def test_a_revocation_waits_for_open_runs_and_commits_from_inside_the_callback() -> None:
    finishing: list[Run] = []

    async def drain(host: Host) -> None:
        finishing.pop().done()
        await host.commit()

    host, consumer = Host(revoked=drain), consumer_with(t=5)
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(5)
        finishing.append(run.open())
        consumer.leave(A)
        await host.until(lambda: consumer.named("unassign"))
        assert host.poller.partitions == frozenset()
    assert consumer.stored == {A: 5}
    assert [name for name, _, _ in consumer.calls if name in ("commit", "unassign")][:2] == ["commit", "unassign"]


async def test_nothing_of_a_lost_partition_is_committed() -> None:
    async def drain(host: Host) -> None:
        assert host.poller.ledger.due() == {}

    host, consumer = Host(lost=drain), consumer_with(t=5)
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(5)
        run.open().done()
        consumer.lose(A)
        await host.until(lambda: consumer.named("unassign"))
    assert consumer.named("commit") == []
    assert run.stale
    assert [what for what, _ in host.told] == ["assigned", "lost"]


@pytest.mark.parametrize("gap", ["before", "after", "both"])
async def test_a_rewind_in_any_gap_of_an_assignment_loses_nothing(gap: str) -> None:
    async def assigned(host: Host) -> None:
        if gap != "after":
            host.poller.rewind()

    host, consumer = Host(assigned=assigned), consumer_with(t=5)
    async with polling(host, consumer):
        await joined(host, A)
        first = (await host.runs(5))[0].open()
        if gap != "before":
            before = host.poller.ledger.generation
            host.poller.rewind()
            await host.until(lambda: host.poller.ledger.generation > before)
            assert first.stale
            first.done()
            first = (await host.runs(5))[0].open()
        assert (first.first, first.next) == (0, 5)
        first.done()
        await host.commit()
    assert consumer.stored == {A: 5}


async def test_a_rewind_without_partitions_is_harmless() -> None:
    host, consumer = Host(), consumer_with(t=2)
    async with polling(host, consumer):
        host.poller.rewind()
        await host.until(lambda: host.poller.ledger.generation == 1)
        await joined(host, A)
        assert len((await host.runs(2))[0]) == 2


async def test_start_at_moves_reading_back_and_never_past_what_is_committed() -> None:
    host, consumer = Host(), consumer_with(t=10, u=10)
    consumer.stored = {A: 6}
    host.starts = {A: 8, B: 4, TP("other", 0): 1}
    async with polling(host, consumer, restarts=True):
        await joined(host, A, B)
        runs = {run.tp: run for run in await host.runs(10)}
        host.starts = {A: 2}
        consumer.leave(A, B)
        await joined(host, A)
        again = (await host.runs(8, A))[0]
    assert ("start_at", {A: 6}) in host.told
    assert (runs[A].first, runs[B].first) == (6, 4)
    assert again.first == 2


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART])
async def test_what_does_not_pass_ends_the_worker_that_asks_where_to_read_from(code: int) -> None:
    class Refused(Host):
        async def start_at(self, committed: Mapping[TP, int]) -> Mapping[TP, int]:
            raise KafkaException(KafkaError(code))

    host, consumer = Refused(), consumer_with(t=3)
    async with polling(host, consumer, restarts=True):
        consumer.join(A)
        error = await asyncio.wait_for(host.error, 60)
    assert isinstance(error, KafkaException)


@pytest.mark.parametrize(
    "error",
    [
        KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)),
        KafkaException(KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)),
        KafkaException(KafkaError(KafkaError._DESTROY_BROKER)),
        KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION)),
        TimeoutError("no answer in 30 s"),
    ],
)
async def test_where_to_read_from_is_asked_again_when_the_broker_goes_away_meanwhile(error: Exception) -> None:
    class Interrupted(Host):
        async def start_at(self, committed: Mapping[TP, int]) -> Mapping[TP, int]:
            if await super().start_at(committed) is not None and len(self.told) < 4:
                raise error
            return {A: 1}

    host, consumer = Interrupted(), consumer_with(t=3)
    consumer.stored = {A: 2}
    async with polling(host, consumer, restarts=True):
        await joined(host, A)
        runs = await host.runs(2, A)
    assert runs[0].first == 1


async def test_a_committed_offset_above_the_end_of_the_log_is_none() -> None:
    host, consumer = Host(), consumer_with(t=10, u=10)
    consumer.stored, consumer.ends = {A: 6, B: 6}, {A: 5, B: 6}
    async with polling(host, consumer, restarts=True):
        await joined(host, A, B)
    assert ("start_at", {B: 6}) in host.told


async def test_a_coordinator_that_is_away_is_asked_for_committed_offsets_again() -> None:
    host, consumer = Host(), consumer_with(t=3)
    consumer.committed_error = KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)
    async with polling(host, consumer, restarts=True):
        consumer.join(A)
        await host.until(lambda: len(consumer.named("committed")) > 3)
        consumer.committed_error = None
        assert (await host.runs(3))[0].first == 0


async def test_a_refused_commit_is_told_and_due_again() -> None:
    host, consumer = Host(), consumer_with(t=2)
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(2)
        run.open().done()
        consumer.commit_error = KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
        with pytest.raises(KafkaException):
            await host.commit()
        consumer.commit_error = None
        assert host.poller.ledger.due() == {A: 2}
        await host.commit()
    assert consumer.stored == {A: 2}


async def test_a_commit_that_is_still_queued_when_its_partition_is_given_up_is_never_made() -> None:
    host, consumer = Host(), consumer_with(t=2)
    late: list[concurrent.futures.Future[None]] = []

    async def revoked(host: Host) -> None:  # nothing is served any more between the end of this and of the ledger
        host.poller.ledger._on_idle = lambda: late.append(host.poller.commit({A: 2}))

    host.hooks["revoked"] = revoked
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(2)
        run.open().done()
        consumer.leave(A)
        await host.until(lambda: late)
        with pytest.raises(KafkaException, match="given up"):
            await asyncio.wrap_future(late[0])
    assert consumer.stored == {}


async def test_a_commit_that_nobody_confirms_is_due_again_and_reading_goes_on() -> None:
    host, consumer = Host(), consumer_with(t=2)
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(2)
        run.open().done()
        consumer.committed_error = KafkaError(KafkaError._TIMED_OUT)
        with pytest.raises(KafkaException):
            await host.commit()
        consumer.log[A] += records(2, 1)
        (more,) = await host.runs(1)
        more.open().done()
        consumer.committed_error = None
        assert host.poller.ledger.due() == {A: 3}
        await host.commit()
    assert consumer.stored == {A: 3}


async def test_a_worker_that_may_not_commit_ends() -> None:
    host, consumer = Host(), consumer_with(t=2)
    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(2)
        run.open().done()
        consumer.commit_error = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
        with pytest.raises(KafkaException, match="committed up to -1001, not 2"):
            await host.commit()
        ended = await host.error
    assert isinstance(ended, KafkaException)
    assert ended.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED


@pytest.mark.parametrize("late", [False, True], ids=["before it is made", "while the broker holds it"])
async def test_who_no_longer_waits_for_a_commit_ends_nothing(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    host, consumer = Host(), consumer_with(t=2)
    begun, answer, commit = threading.Event(), threading.Event(), consumer.commit

    def held(**given: Any) -> Any:
        begun.set()
        answer.wait(60)
        return commit(**given)

    async with polling(host, consumer):
        await joined(host, A)
        (run,) = await host.runs(2)
        run.open().done()
        monkeypatch.setattr(consumer, "commit", held)
        first = host.poller.commit({A: 1})
        await asyncio.to_thread(begun.wait, 60)
        given_up = first if late else host.poller.commit({A: 1})
        asyncio.wrap_future(given_up).cancel()
        await asyncio.sleep(0)
        answer.set()
        await host.commit()
    assert consumer.stored == {A: 2}


async def test_a_flooded_topic_is_paused_alone_and_resumed_at_half() -> None:
    limits = {"t": TopicLimits(max_bytes=10 * 257, run_max=1)}
    host, consumer = Host(limits), consumer_with(t=40)
    async with polling(host, consumer):
        await joined(host, A, B)
        await host.until(lambda: {"t"} in consumer.named("pause"))
        consumer.log[B] = list(records(0, 3, B))
        assert len((await host.runs(3, B))[0]) in (1, 2, 3)
        resumed = len(consumer.named("resume"))
        while host.poller.ledger.bytes("t") > 5 * 257:
            assert len(consumer.named("resume")) == resumed, "resumed above half"
            for run in await host.runs(1, A):
                run.done()
        await host.until(
            lambda: len(consumer.named("ends")) > 0
        )  # else librdkafka may sleep a second before it fetches
        assert len(consumer.named("resume")) > resumed
        assert consumer.named("ends")[0] == {"t"}
        assert {"u"} not in consumer.named("pause")


async def test_a_single_full_topic_gets_a_moment_before_its_prefetch_is_thrown_away() -> None:
    host, consumer = Host({"t": TopicLimits(max_bytes=257, run_max=1)}), consumer_with(t=1)
    async with polling(host, consumer, full_s=60.0):
        await joined(host, A)
        (run,) = await host.runs(1)
        run.done()
        polls = len(consumer.named("poll"))
        await host.until(lambda: len(consumer.named("poll")) > polls + 2)
        assert consumer.named("pause") == [{"t"}], "paused beside the pause of every assignment"


@pytest.mark.parametrize(
    "code", [KafkaError._BAD_MSG, KafkaError._AUTO_OFFSET_RESET, KafkaError.TOPIC_AUTHORIZATION_FAILED]
)
async def test_an_error_that_cannot_get_better_ends_the_worker(code: int) -> None:
    host, consumer = Host(), consumer_with(t=1)
    async with polling(host, consumer):
        await joined(host, A)
        consumer.log[A].append(FakeRecord(1, error=KafkaError(code)))
        error = await asyncio.wait_for(host.error, 60)
    assert isinstance(error, KafkaException)


async def test_an_error_that_gets_better_is_only_logged_and_once(caplog: pytest.LogCaptureFixture) -> None:
    host, consumer = Host(), consumer_with(t=1)
    consumer.log[A] += [FakeRecord(n, error=KafkaError(KafkaError._TRANSPORT)) for n in range(1, 4)]
    consumer.log[A] += records(4, 1)
    async with polling(host, consumer):
        await joined(host, A)
        assert sum(map(len, await host.runs(2))) == 2
    assert sum("_TRANSPORT" in message for message in caplog.messages) == 1


async def test_a_hook_that_raises_a_timeout_ends_the_worker_at_once() -> None:
    async def assigned(_: Host) -> None:
        raise TimeoutError("the hook's own")

    host, consumer = Host(assigned=assigned), consumer_with(t=1)
    async with polling(host, consumer):
        consumer.join(A)
        error = await asyncio.wait_for(host.error, 30)
    assert str(error) == "the hook's own"


async def test_a_loop_that_never_answers_ends_the_worker() -> None:
    async def assigned(_: Host) -> None:
        await asyncio.Event().wait()

    host, consumer = Host(assigned=assigned), consumer_with(t=1)
    async with polling(host, consumer, loop_s=0.05):
        consumer.join(A)
        error = await asyncio.wait_for(host.error, 60)
    assert isinstance(error, LoopStuck)


async def test_partitions_that_nobody_asks_to_read_end_the_worker() -> None:
    class Mute(Host):
        async def assigned(self, tps: frozenset[TP]) -> None: ...

    host, consumer = Mute(), consumer_with(t=1)
    async with polling(host, consumer, loop_s=0.05):
        consumer.join(A)
        error = await asyncio.wait_for(host.error, 60)
    assert isinstance(error, LoopStuck)


async def test_a_consumer_that_no_group_knows_for_long_is_made_anew() -> None:
    host, first, second = Host(), consumer_with(t=1), consumer_with(t=1)
    made = [first, second]
    bounds = PollingBounds(poll_s=0.002, watermarks_s=0.01, renew_s=0.05)
    host.poller = Poller(lambda _: made.pop(0), {}, host, host.loop, bounds=bounds)
    host.consumer = first
    host.poller.subscribe(["t"])
    host.poller.start()
    await joined(host, A)
    first.lose(A)
    first.member = ""
    await host.until(lambda: not made and second.callbacks)
    await host.until(lambda: first.named("close"))
    host.consumer = second
    await joined(host, A)
    runs = await host.runs(1, A)
    host.poller.halt()
    await asyncio.to_thread(host.poller.join, 60)

    assert [len(run) for run in runs] == [1]
    assert second.named("close") == [None]


@pytest.mark.parametrize(("rejoin_s", "made_at_least"), [(1e9, 1), (0.05, 2)])
async def test_a_member_that_waits_for_partitions_is_made_anew_much_later(rejoin_s: float, made_at_least: int) -> None:
    host, consumer, made = Host(), consumer_with(t=1), 0

    def make(_: object) -> FakeConsumer:
        nonlocal made
        made += 1
        return consumer

    bounds = PollingBounds(poll_s=0.002, watermarks_s=0.001, renew_s=0.0, rejoin_s=rejoin_s)
    host.poller = Poller(make, {}, host, host.loop, bounds=bounds)
    host.poller.subscribe(["t"])
    host.poller.start()
    await host.until(lambda: len(consumer.named("memberid")) > 20 and made >= made_at_least)
    host.poller.halt()
    await asyncio.to_thread(host.poller.join, 60)

    assert made_at_least > 1 or made == 1


async def test_no_commit_is_left_waiting_after_the_end() -> None:
    async def assigned(_: Host) -> None:
        await asyncio.Event().wait()

    host, consumer = Host(assigned=assigned), consumer_with(t=1)
    async with polling(host, consumer):
        consumer.join(A)
        await host.until(lambda: host.told)
        host.poller.halt()
        late = [host.poller.commit({A: 1}) for _ in range(3)]
        await asyncio.to_thread(host.poller.join, 60)
        late.append(host.poller.commit({A: 1}))
        assert all(future.done() for future in late)
        with pytest.raises(Halted):
            late[-1].result()


async def test_a_stop_only_unassigns() -> None:
    host, consumer = Host(), consumer_with(t=1)
    async with polling(host, consumer):
        await joined(host, A)
    assert [what for what, _ in host.told] == ["assigned"]
    assert len(consumer.named("unassign")) == 1


async def test_figures_tell_what_is_held_uncommitted_and_behind() -> None:
    host, consumer = Host({"t": TopicLimits(run_max=4)}), consumer_with(t=10)
    async with polling(host, consumer):
        await joined(host, A)
        first, second, third = await host.runs(10)
        first.open().done()
        second.open()
        await host.until(lambda: host.poller.watermarks)
        figures = host.poller.figures(monotonic())
        assert (figures.read, figures.busy, figures.uncommitted) == ({"t": 10}, 1, {A: 4})
        assert figures.lag == {A: 96}  # the fake's log ends at 100
        assert figures.held == {"t": second.size + third.size}
        await host.commit()
        assert host.poller.figures(monotonic()).uncommitted == {}


async def test_signs_of_life_stop_with_the_thread() -> None:
    host, consumer = Host(), consumer_with(t=1)
    async with polling(host, consumer):
        await joined(host, A)
        first = host.poller.beat
        await host.until(lambda: host.poller.beat > first)
        assert (host.poller.silent_s(monotonic()) or 0) < 60
        await host.until(lambda: host.poller.watermarks == {A: (0, 100)})
    assert host.poller.silent_s(monotonic()) is None


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_retention_removed_before_it_was_read_is_told_by_the_run_that_follows(restarts: bool) -> None:
    host, consumer = Host(), consumer_with()
    consumer.log = {A: list(records(30, 3, A))}
    consumer.stored, consumer.lows = {A: 5}, {A: 30}
    async with polling(host, consumer, restarts=restarts):
        await joined(host, A)
        (run,) = await host.runs(3)
    assert (run.first, run.lost) == (30, (5, 30))


async def test_a_reader_that_is_overtaken_in_the_middle_of_what_it_reads_loses_exactly_what_lies_between() -> None:
    host, consumer = Host(), consumer_with()
    consumer.log = {A: [*records(0, 10, A), *records(50, 5, A)]}
    consumer.stored, consumer.lows = {A: 0}, {A: 50}
    async with polling(host, consumer):
        await joined(host, A)
        runs = await host.runs(15)
    assert [run.lost for run in runs if run.lost] == [(10, 50)]
    assert next(run for run in runs if run.lost).first == 50


async def test_what_cannot_be_unpacked_is_told_by_the_run_behind_it_and_ends_nobody() -> None:
    host, consumer = Host(), consumer_with()
    bad = FakeRecord(2, None, error=KafkaError(KafkaError._BAD_COMPRESSION))
    consumer.log = {A: [*records(0, 2, A), bad, *records(3, 3, A)]}
    consumer.ends = {A: 6}
    async with polling(host, consumer):
        await joined(host, A)
        runs = await host.runs(5)
    assert [offset for run in runs for offset in run.offsets] == [0, 1, 3, 4, 5]
    assert [(run.first, run.lost) for run in runs if run.lost] == [(3, (2, 3))]


async def test_a_gap_that_is_no_loss_is_read_over() -> None:
    host, consumer = Host(), consumer_with()
    consumer.log = {A: [*records(0, 3, A), *records(5, 3, A)]}
    consumer.stored = {A: 0}
    async with polling(host, consumer):
        await joined(host, A)
        runs = await host.runs(6)
    assert [run.lost for run in runs] == [None] * len(runs)
