"""A worker process for tests.

It appends what it did to `<out>/<pid>.jsonl` before it leaves a run, so that a commit without a line is proof of a loss.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streams.app import Hooks, KafkaConnection, TopicLimits, WorkerSettings, make_app, outbox_of, run_topic, run_worker
from streams.transport.run import TP, Run


@dataclass(frozen=True)
class Topic:
    """What the worker does with a topic. sleep_s, cpu_s: in the handler, for each run. late_s: at most, after it."""

    run_max: int = 500
    linger_s: float = 0.0
    max_bytes: int = 64 << 20
    sleep_s: float = 0.0
    cpu_s: float = 0.0
    late_s: float = 0.0
    fail_at: int | None = None  # offset of the poison record
    sink: str | None = None  # send one record a run there, done when confirmed


@dataclass(frozen=True)
class Spec:
    bootstrap: str
    group: str
    out: str
    topics: dict[str, Topic]
    session_s: float = 6.0  # Apache Kafka refuses less, the embedded broker does not
    heartbeat_s: float | None = None  # else a sixth of the session
    drain_s: float = 20.0
    commit_every_s: float = 0.3
    fetch_wait_ms: int = 10
    back: int | None = None  # start_at: this many offsets before the committed one


@dataclass
class Recorder:
    """Lines of what happened, on disk when `write` returns."""

    spec: Spec
    file: int = field(init=False)

    def __post_init__(self) -> None:
        path = Path(self.spec.out) / f"{os.getpid()}.jsonl"
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **line: object) -> None:
        os.write(self.file, json.dumps(line).encode() + b"\n")

    def run(self, run: Run) -> None:
        offsets, now = run.offsets, time.time() * 1000
        self.write(
            event="run", topic=run.tp.topic, partition=run.tp.partition, offsets=offsets, delay=now - run.timestamps[0]
        )


def main(spec: Spec) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    recorder = Recorder(spec)

    async def assigned(tps: frozenset[TP]) -> None:
        recorder.write(event="assigned", tps=sorted(tps))

    async def revoked(tps: frozenset[TP]) -> None:
        recorder.write(event="revoked", tps=sorted(tps))

    async def start_at(committed: Mapping[TP, int]) -> Mapping[TP, int]:
        recorder.write(event="start_at", committed=sorted([*tp, offset] for tp, offset in committed.items()))
        return {tp: max(0, offset - (spec.back or 0)) for tp, offset in committed.items()}

    app = make_app(
        spec.group,
        connection=KafkaConnection(bootstrap=spec.bootstrap, fetch_wait_ms=spec.fetch_wait_ms),
        topics={
            name: TopicLimits(run_max=topic.run_max, linger_s=topic.linger_s, max_bytes=topic.max_bytes)
            for name, topic in spec.topics.items()
        },
        hooks=Hooks(assigned, revoked, None if spec.back is None else start_at),
        settings=WorkerSettings(
            session_s=spec.session_s,
            heartbeat_s=spec.heartbeat_s or spec.session_s / 6,
            drain_s=spec.drain_s,
            commit_every_s=spec.commit_every_s,
        ),
    )

    def handler_of(topic: Topic):  # type: ignore[no-untyped-def]
        async def finish_later(run: Run) -> None:
            await asyncio.sleep(random.uniform(0, topic.late_s))
            recorder.run(run)
            run.done()

        async def handler(run: Run) -> None:
            if topic.late_s:
                tasks.add(task := asyncio.create_task(finish_later(run.open())))
                task.add_done_callback(tasks.discard)
                return
            with run:
                if topic.sleep_s >= 1:
                    recorder.write(event="begin")
                if topic.cpu_s:
                    end = time.perf_counter() + topic.cpu_s
                    while time.perf_counter() < end:
                        pass
                await asyncio.sleep(topic.sleep_s)
                if topic.fail_at in run.offsets:
                    raise ValueError(f"poison at {topic.fail_at}")
                if topic.sink:
                    await outbox_of(app).send(topic.sink, b"k", json.dumps([*run.tp, run.first, run.next]).encode())
                recorder.run(run)

        return handler

    tasks: set[asyncio.Task[None]] = set()
    for name, topic in spec.topics.items():
        run_topic(app, name, handler_of(topic))
    code = run_worker(app)
    recorder.write(event="end", code=code)
    return code
