"""The Faust side: what is refused, how runs are handed over, what a worker's exit code says."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faust
import mode
import pytest
from faust.exceptions import ImproperlyConfigured

from streams.app import Handler, Hooks, KafkaConnection, TopicLimits, consumer_of, make_app, run_topic, run_worker
from streams.transport.consumer import ConsumerOptions, NoReadOffset
from streams.transport.refusals import refuse_settings, refuse_topics
from streams.transport.run import TP, Run, RunLost
from streams.transport.schema import RunSchema
from streams.transport.settings import kafka_settings
from streams.transport.transport import install
from tests.transport.fakes import FakeConsumer, records

NOWHERE = KafkaConnection(bootstrap="127.0.0.1:1")
QUIET = kafka_settings(NOWHERE, "producer", overrides={"log_level": 0, "message.timeout.ms": 100})
T = TP("t", 0)


async def ignore(run: Run) -> None:
    run.done()


def app_with(**settings: Any) -> faust.App:
    given = {"topic_allow_declare": False, "topic_disable_leader": True, **settings}
    return faust.App("refused", broker="kafka://127.0.0.1:1", **given)


def with_table() -> faust.App:
    app = app_with()
    app.Table("counts")
    return app


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_table, "start empty"),
        (lambda: app_with(processing_guarantee="exactly_once"), "exactly_once"),
        (lambda: app_with(broker_credentials=ssl.create_default_context()), "plaintext"),
        (lambda: app_with(ssl_context=ssl.create_default_context()), "plaintext"),
        (lambda: app_with(topic_disable_leader=False), "leader"),
        (lambda: app_with(topic_allow_declare=True), "admin command"),
    ],
)
def test_settings_that_would_silently_do_nothing_are_refused(make: Callable[[], faust.App], reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason):
        refuse_settings(make())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("topics", "reason"),
    [
        ([{"schema": RunSchema(), "acks": True}], "acks=False"),
        ([{"acks": False}], "RunSchema"),
        ([{"schema": RunSchema(), "acks": False}] * 2, "two agents"),
    ],
)
async def test_topics_that_are_not_made_of_runs_are_refused(topics: list[dict[str, Any]], reason: str) -> None:
    app = make_app("refused", connection=NOWHERE)
    for topic in topics:
        app.topics.add(app.topic("t", **topic))
    await app.topics._update_indices()
    with pytest.raises(ImproperlyConfigured, match=reason):
        refuse_topics(app)


def test_what_we_make_is_not_refused() -> None:
    refuse_settings(make_app("fine", connection=NOWHERE))


def test_a_refused_worker_ends_with_1_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app("refused", connection=NOWHERE)
    app.Table("counts")
    assert run_worker(app) == 1
    assert list(tmp_path.iterdir()) == []


def test_faust_is_set_as_decided() -> None:
    conf = make_app("g", connection=NOWHERE).conf
    assert (conf.topic_allow_declare, conf.topic_disable_leader, conf.stream_wait_empty) == (False, True, True)
    assert conf.processing_guarantee.value == "at_least_once"
    assert conf.agent_supervisor is mode.CrashingSupervisor
    assert conf.broker_commit_interval == 1.0
    assert conf.stream_buffer_maxsize > (64 << 20) / 256, "handing over would block before the byte bound"


@asynccontextmanager
async def running(handler: Handler, hooks: Hooks | None = None, **options: Any) -> AsyncIterator[FakeConsumer]:
    """An app on a fake consumer with 100 records in runs of 10, assigned and reading."""
    made: list[FakeConsumer] = []
    ready = threading.Event()

    def client(settings: dict[str, Any]) -> FakeConsumer:
        consumer = FakeConsumer(settings)
        consumer.log[T] = list(records(0, 100, T))
        consumer.join(T)
        made.append(consumer)
        ready.set()
        return consumer

    app = make_app("g", connection=NOWHERE)
    limits = {"t": TopicLimits(run_max=10)}
    install(app, ConsumerOptions({}, limits, hooks or Hooks(), drain_s=1.0, client=client), QUIET)
    run_topic(app, "t", handler, **options)
    starting = asyncio.create_task(app.start())
    await asyncio.to_thread(ready.wait, 60)
    made[0].app = app  # type: ignore[attr-defined]
    try:
        yield made[0]
    finally:
        await app.stop()
        starting.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.anyio
async def test_hooks_come_in_order_and_a_stop_commits_what_is_finished() -> None:
    told: list[str] = []

    async def on_assigned(tps: frozenset[TP]) -> None:
        told.append(f"assigned {sorted(tps)}")

    async def on_revoked(tps: frozenset[TP]) -> None:
        told.append("revoked")

    async def start_at(committed: Any) -> dict[TP, int]:
        told.append(f"start_at {dict(committed)}")
        return {}

    async def handler(run: Run) -> None:
        with run:
            told.append(f"run {run.first}")

    async with running(handler, Hooks(on_assigned, on_revoked, start_at)) as consumer:
        await until(lambda: "run 90" in told)
    runs = [f"run {first}" for first in range(0, 100, 10)]
    assert told == [f"assigned {[T]}", "start_at {}", *runs, "revoked"]
    assert consumer.stored == {T: 100}


@pytest.mark.anyio
async def test_what_a_handler_forgets_as_it_leaves_is_not_committed_over() -> None:
    kept: dict[TP, int] = {}
    seen: list[int] = []
    left = asyncio.Event()

    async def handler(run: Run) -> None:
        with run:
            seen.append(run.first)
            kept.setdefault(T, 35)

    async def on_revoked(_: frozenset[TP]) -> None:
        kept.clear()
        await consumer_of(consumer.app).commit()  # type: ignore[attr-defined]  # as the timer may, at any moment
        left.set()

    async with running(handler, Hooks(on_revoked=on_revoked, kept=lambda: kept)) as consumer:
        await until(lambda: len(seen) == 10)
        consumer.leave(T)
        await left.wait()
        assert consumer.stored == {T: 35}
    assert consumer.stored == {T: 35}


@pytest.mark.anyio
@pytest.mark.parametrize("own", [True, False])
async def test_lost_partitions_are_told_apart_from_revoked_ones_for_who_asks(own: bool) -> None:
    told: list[str] = []
    handed: list[Run] = []

    async def on_revoked(_: frozenset[TP]) -> None:
        told.append("revoked")

    async def on_lost(_: frozenset[TP]) -> None:
        told.append("lost")

    async def handler(run: Run) -> None:
        handed.append(run.open())
        run.done()

    async with running(handler, Hooks(on_revoked=on_revoked, on_lost=on_lost if own else None)) as consumer:
        await until(lambda: len(handed) == 10)
        consumer.lose(T)
        await until(lambda: told)
    assert told == ["lost" if own else "revoked"]


@pytest.mark.anyio
async def test_between_two_runs_of_a_flood_a_record_of_another_topic_gets_through_the_loop() -> None:
    through: list[int] = []
    seen: list[int] = []

    async def five_turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        through.append(1)

    tasks: list[asyncio.Task[None]] = []

    async def handler(run: Run) -> None:
        with run:
            seen.append(len(through))
            tasks.append(asyncio.create_task(five_turns()))

    async with running(handler):
        await until(lambda: len(seen) == 10)
    assert seen == list(range(10))


@pytest.mark.anyio
async def test_at_most_so_many_runs_wait_for_their_confirmations() -> None:
    handed: list[Run] = []

    async def handler(run: Run) -> None:
        handed.append(run.open())

    async with running(handler, in_flight=3) as consumer:
        await until(lambda: len(handed) == 3)
        await asyncio.sleep(0.02)
        assert len(handed) == 3
        handed[1].done()
        await until(lambda: len(handed) == 4)
        for run in handed:
            run.done()
        await until(lambda: len(handed) == 7)
    assert consumer.stored == {T: 40}


@pytest.mark.anyio
async def test_a_rewind_under_a_full_house_hands_everything_over_again() -> None:
    handed: list[Run] = []

    async def handler(run: Run) -> None:
        handed.append(run.open())

    async with running(handler, in_flight=2) as consumer:
        await until(lambda: len(handed) == 2)
        consumer.lose(T)
        consumer.join(T)
        await until(lambda: len(handed) == 4)
        assert [run.stale for run in handed] == [True, True, False, False]
        assert [run.first for run in handed] == [0, 10, 0, 10]
        for run in handed:
            run.done()
        await until(lambda: len(handed) == 6)
    assert consumer.stored == {T: 20}


@pytest.mark.anyio
async def test_a_resume_of_the_flow_clears_the_channels_and_what_was_in_them_is_read_again() -> None:
    handed: list[Run] = []

    async def handler(run: Run) -> None:
        handed.append(run.open())

    async with running(handler, in_flight=1) as consumer:
        app = consumer.app  # type: ignore[attr-defined]
        await until(lambda: handed)
        app.flow_control.resume()  # as Faust's recovery does it, the second line right behind the first
        app.consumer.resume_flow()
        await until(lambda: handed[0].stale)
        while len(handed) < 11:
            before = len(handed)
            handed[-1].done()
            await until(lambda before=before: len(handed) > before or handed[-1].next == 100)
        handed[-1].done()
    assert [run.first for run in handed] == [0, *range(0, 100, 10)]
    assert consumer.stored == {T: 100}


@pytest.mark.anyio
async def test_a_run_that_faust_drops_ends_the_worker_before_anything_behind_it_is_worked_on() -> None:
    handed: list[Run] = []

    async def handler(run: Run) -> None:
        handed.append(run.open())

    async with running(handler, in_flight=1) as consumer:
        app = consumer.app  # type: ignore[attr-defined]
        (channel,) = app.topics
        await until(lambda: handed and channel.queue.qsize() == 8)
        channel.queue._queue.popleft()  # the agent has the second run already
        handed[0].done()
        await until(lambda: len(handed) == 2)
        handed[1].done()
        await until(lambda: app.crashed)
    assert [run.first for run in handed] == [0, 10]
    assert isinstance(app.consumer.crash_reason, RunLost)
    assert consumer.stored == {T: 20}


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["forget", "raise", "fail"])
async def test_a_run_that_cannot_be_finished_crashes_the_app(how: str) -> None:
    async def handler(run: Run) -> None:
        if run.first < 20:
            run.open().done()
        elif how == "raise":
            with run:
                raise ValueError(how)
        elif how == "fail":
            run.open().fail(ValueError(how))

    async with running(handler) as consumer:
        app = consumer.app  # type: ignore[attr-defined]
        await until(lambda: app.crashed)
        assert app.crash_reason is not None or app.consumer.crash_reason is not None
    assert consumer.stored == {T: 20}


def test_faust_is_never_told_a_read_offset_so_that_it_drops_nothing_after_a_rewind() -> None:
    offsets = NoReadOffset()
    offsets[T] = 50  # type: ignore[index]
    offsets.update({T: 60})
    assert offsets[T] is None  # type: ignore[index]
