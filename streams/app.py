"""Faust apps as this product runs them: at least once, state of our own, topics made by the admin command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import faust
import mode
from faust.tables import TableManager
from faust.types import AgentT

from streams.failpoints import reach_waiting
from streams.health import Health
from streams.transport.consumer import Consumer, ConsumerOptions, Hooks
from streams.transport.ledger import TopicLimits
from streams.transport.outbox import Outbox
from streams.transport.polling import Poller
from streams.transport.run import Run
from streams.transport.schema import RunSchema
from streams.transport.settings import KafkaConnection, Setting, kafka_settings
from streams.transport.transport import install
from streams.watchdog import Probe, Watchdog, WatchdogLimits, transport_probes

Handler = Callable[[Run], Awaitable[None]]

# Above what a topic's byte bound can hold in runs (64 MiB / 256 B), so handing a run over never blocks.
CHANNEL_RUNS = 1_000_000
# Turns that the loop gets after each run: a record of another topic takes about five from the polling thread to its
# handler, and each would cost a run of a flood.
TURNS_A_RUN = 8


class RunForgotten(RuntimeError):
    """A handler returned without opening or finishing its run: its partition would never be committed again."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Times of one worker, in seconds.

    session_s: a dead worker's partitions move after this long; brokers refuse less than 6. drain_s: what a rebalance or
    a stop waits for open runs; the supervisor's grace must be longer (30 s). commit_every_s bounds what is read twice
    after a kill. instance_id: static membership, only with a session of 30 s.
    """

    session_s: float = 10.0
    heartbeat_s: float = 2.0
    drain_s: float = 20.0
    commit_every_s: float = 1.0
    instance_id: str | None = None
    consumer: Mapping[str, Setting] = field(default_factory=dict)  # librdkafka overrides
    producer: Mapping[str, Setting] = field(default_factory=dict)


class _NoTables(TableManager):
    """Starts at once: Faust waits a second for tables to be declared, and there are none."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class _App(faust.App):
    """Leaves no folder behind: Faust makes one for tables in the working directory, and there are none."""

    def _create_directories(self) -> None:
        return None


class _Worker(mode.Worker):
    """Ends at once: mode sleeps a second after everything has stopped."""

    async def _sentinel_task(self) -> None:
        await asyncio.sleep(0)


def make_app(
    name: str,
    *,
    connection: KafkaConnection,
    topics: Mapping[str, TopicLimits] | None = None,
    hooks: Hooks | None = None,
    settings: WorkerSettings | None = None,
) -> faust.App:
    """A Faust app that reads runs. name: the consumer group. topics: limits of each topic, where not the default.

    Group membership, commits and outputs go through librdkafka; Faust opens no connection of its own.
    """
    times = settings or WorkerSettings()
    app = _App(
        name,
        broker=f"kafka://{connection.bootstrap.split(',')[0]}",
        autodiscover=False,
        processing_guarantee="at_least_once",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        store="memory://",
        TableManager=_NoTables,
        key_serializer="raw",
        value_serializer="raw",
        broker_session_timeout=times.session_s,
        broker_heartbeat_interval=times.heartbeat_s,
        broker_request_timeout=40.0,
        broker_rebalance_timeout=60.0,
        broker_commit_interval=times.commit_every_s,
        consumer_auto_offset_reset="earliest",
        producer_request_timeout=30.0,
        producer_acks=-1,
        stream_wait_empty=True,
        stream_buffer_maxsize=CHANNEL_RUNS,
        stream_recovery_delay=0.0,
        agent_supervisor=mode.CrashingSupervisor,
    )
    consumer: dict[str, Setting] = {
        "session.timeout.ms": int(times.session_s * 1000),
        "heartbeat.interval.ms": int(times.heartbeat_s * 1000),
        **times.consumer,
    }
    if times.instance_id is not None:
        consumer["group.instance.id"] = times.instance_id
    options = ConsumerOptions(
        settings=kafka_settings(connection, "consumer", group=name, client_id=name, overrides=consumer),
        limits=dict(topics or {}),
        hooks=hooks or Hooks(),
        drain_s=times.drain_s,
    )
    install(app, options, kafka_settings(connection, "producer", client_id=name, overrides=times.producer))
    return app


def run_topic(app: faust.App, topic_name: str, handler: Handler, *, in_flight: int = 8) -> AgentT[Any]:
    """Hand each run of a topic to `handler`, one call at a time, partitions interleaved, each in offset order.

    The handler finishes its run inside (`with run:`), or opens it and lets it finish later (`run.done_when(futures)`,
    `run.done()`); at most `in_flight` runs of the topic wait for that, then the next call waits. Runs that went stale
    are not handed over. An exception that leaves the handler ends the process, and its run is read again elsewhere. So
    does a handler that gives no sign (`run.sign()`) for twelve seconds while nothing waits for the broker: it is stuck.
    """
    topic = app.topic(topic_name, schema=RunSchema(), acks=False, value_serializer="raw", key_serializer="raw")
    places = asyncio.Semaphore(in_flight)

    async def agent(runs: faust.StreamT[Run]) -> None:
        loop = asyncio.get_running_loop()

        def release() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits for a place any more
                loop.call_soon_threadsafe(places.release)

        async for run in runs:
            await places.acquire()
            run.on_over = release  # before the look: the ledger may close between the two lines
            if run.stale:
                run.end()
                continue
            try:
                run.begin()
                await reach_waiting("begun")
                await handler(run)
            except asyncio.CancelledError:
                run.abandon()
                raise
            except Exception as error:
                run.fail(error)
                raise
            finally:
                run.leave()
            if not (run.opened or run.finished or run.failed or run.stale):
                forgotten = RunForgotten(f"the handler of {topic_name} returned without opening {run!r}")
                run.fail(forgotten)
                raise forgotten
            for _ in range(TURNS_A_RUN):
                await asyncio.sleep(0)

    agent.__name__ = agent.__qualname__ = f"runs_of_{topic_name.replace('.', '_').replace('-', '_')}"
    return app.agent(topic, name=agent.__name__)(agent)


def outbox_of(app: faust.App) -> Outbox:
    """The app's own Outbox: started before the agents, flushed before each commit, closed after the consumer."""
    return app.producer.outbox  # type: ignore[attr-defined,no-any-return]


def consumer_of(app: faust.App) -> Consumer:
    """The app's consumer, for the watchdog and the metrics."""
    return app.consumer  # type: ignore[return-value]


def run_worker(
    app: faust.App,
    *,
    watchdog: WatchdogLimits | None = None,
    probes: Sequence[Probe] = (),
    health: Health | None = None,
) -> int:
    """Run the app in this process until SIGTERM or SIGINT: 0 after a clean stop, 1 after a crash.

    A clean stop finishes the runs that are being worked on (drain bound), commits, and leaves the group. A worker that
    makes no progress is ended with 70 by the watchdog. probes: further ones, of the role. health: is told what to look at.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def poller() -> Poller | None:
        return getattr(app._consumer, "poller", None)

    def held_s(now: float) -> float | None:
        return app._producer.outbox.held_s(now) if app._producer is not None else None  # type: ignore[attr-defined]

    looked_at = [*transport_probes(poller, loop, watchdog, held_s), *probes]
    watch = Watchdog(looked_at)
    if health is not None:
        health.follow(looked_at, poller, held_s)
    worker = _Worker(app, loop=loop, override_logging=False, redirect_stdouts=False)
    watch.start()
    try:
        worker.execute_from_commandline()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    finally:
        watch.stop()
        asyncio.set_event_loop(None)


__all__ = [
    "Hooks",
    "KafkaConnection",
    "Probe",
    "RunForgotten",
    "TopicLimits",
    "WatchdogLimits",
    "WorkerSettings",
    "consumer_of",
    "make_app",
    "outbox_of",
    "run_topic",
    "run_worker",
]
