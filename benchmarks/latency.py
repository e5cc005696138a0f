"""From a caller's first call over its pattern to its first refused answer: `make bench-latency`.

Each trial is a fresh caller that asks 200 times a second beside 60 background callers of its endpoint, until it is
refused; it ends with its release. No signal is injected. Trials run on several endpoints side by side. The time splits at
the report that carried the evidence: up to its writing the evidence had to come together, after it the pipeline worked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from palisade.demo.httpclient import HttpAnswer, Pool, post
from palisade.demo.stage import demo_policy
from palisade.demo.tap import Record, Tap
from palisade.dev import DevStack, prepare, start_broker, start_roles
from palisade.supervisor import ChildSpec, Supervisor, python_module
from schemas.actions import JournalEntry
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.events import Report
from schemas.signals import Signal
from schemas.topics import ACTIONS, REPORTS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.admin import create_topics
from streams.transport.settings import KafkaConnection
from tests.support.apache_kafka import ApacheKafka

LANES = 4
BACKGROUND_CALLERS = 60
BACKGROUND_PER_S = 25.0
"""Of all 60 together, heavy-tailed as real callers are."""
ASKS_PER_S = 200.0
WARM_UP_S = 20.0
REFUSED_WITHIN_S = 8.0
RELEASED_WITHIN_S = 40.0
EXPECTED = {"p50_s": 1.0, "p99_s": 2.0}


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds since the epoch; `evidence_s`: when the report that carried the evidence was written."""

    caller: str
    first_s: float
    refused_s: float | None
    evidence_s: float | None = None


@dataclass(slots=True)
class Heard:
    """What lies on Kafka, by the tap's thread."""

    reports: dict[tuple[int, int], float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, record: Record) -> None:
        kind, value = record.headers.get(KIND_HEADER), record.value or b""
        with self.changed:
            if kind == b"report":
                self.reports[record.partition, record.offset] = Report.from_bytes(value).to_ms / 1000
            elif kind == b"signal":
                self._signal(Signal.from_bytes(value))
            elif kind == b"action":
                entry: JournalEntry = JournalEntry.from_bytes(value)
                self.released |= {
                    each.caller for each in entry.decisions if each.kind == "unlimit" and each.caller is not None
                }
                self.changed.notify_all()

    def _signal(self, signal: Signal) -> None:
        if signal.state == "opened" and signal.kind == "caller_rate":
            written = self.reports.get((signal.log_partition, signal.log_offset))
            if written is not None:
                self.evidence.setdefault(signal.subject, written)


class Lane:
    """One endpoint: its background and its trials, on the running loop."""

    def __init__(
        self, endpoint: str, port: int, keys: dict[str, str], fresh: list[str], heard: Heard, seed: int
    ) -> None:
        self._pool = Pool("127.0.0.1", port)
        self._host = f"127.0.0.1:{port}"
        self._keys = keys
        self._fresh = fresh
        self._heard = heard
        self._rng = np.random.default_rng(seed)
        self._background = [name for name in keys if name.startswith(f"{endpoint}-b")]
        self.innocents = 0
        self.trials: list[Trial] = []

    async def run(self, done: Callable[..., None]) -> None:
        background = asyncio.create_task(self._ordinary())
        await asyncio.sleep(WARM_UP_S)
        for caller in self._fresh:
            self.trials.append(await self._trial(caller))
            done()
        background.cancel()
        self._pool.close()

    async def _ordinary(self) -> None:
        weights = self._rng.lognormal(0, 1, len(self._background))
        weights /= weights.sum()
        while True:
            await asyncio.sleep(self._rng.exponential(1 / BACKGROUND_PER_S))
            self._ask(str(self._rng.choice(self._background, p=weights)), self._count_innocent)

    async def _trial(self, caller: str) -> Trial:
        refused = asyncio.Event()
        moment: list[float] = []

        def answered(answer: HttpAnswer) -> None:
            if answer.status == 429 and not moment:
                moment.append(time.time())
                refused.set()

        first = time.time()
        while not refused.is_set() and time.time() - first < REFUSED_WITHIN_S:
            self._ask(caller, answered)
            await asyncio.sleep(1 / ASKS_PER_S)
        if moment:
            await asyncio.to_thread(self._wait_released, caller)
        return Trial(caller, first, moment[0] if moment else None, self._heard.evidence.get(caller))

    def _wait_released(self, caller: str) -> None:
        with self._heard.changed:
            self._heard.changed.wait_for(lambda: caller in self._heard.released, RELEASED_WITHIN_S)

    def _ask(self, caller: str, done: Callable[..., None]) -> None:
        self._pool.send(post("/predict", self._host, {"x-api-key": self._keys[caller]}, b"{}"), done)

    def _count_innocent(self, answer: HttpAnswer) -> None:
        self.innocents += answer.status == 429


def main() -> int:
    """Exit status 0 if the expected bounds hold on each broker, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.latency")
    parser.add_argument("--trials", type=int, default=100, help="on each broker")
    parser.add_argument("--brokers", default="embedded,kafka")
    given = parser.parse_args()
    console = Console(stderr=True)
    measured: dict[str, dict[str, float]] = {}
    for broker in given.brokers.split(","):
        measured[broker] = measure(broker, given.trials, console)
    held = all(
        figures["trials"] == given.trials
        and figures["p50_s"] <= EXPECTED["p50_s"]
        and figures["p99_s"] <= EXPECTED["p99_s"]
        for figures in measured.values()
    )
    sys.stdout.write(json.dumps(measured | {"ok": held}) + "\n")
    return 0 if held else 1


def measure(broker: str, trials: int, console: Console) -> dict[str, float]:
    """All trials on one broker."""
    endpoints = [f"bench-{lane}" for lane in range(LANES)]
    with tempfile.TemporaryDirectory(prefix="palisade-latency-") as temporary, ExitStack() as exits:
        folder = Path(temporary)
        supervisor = exits.enter_context(
            Supervisor(folder / "logs", on_exit=lambda name, code: console.print(name, "ended with", code))
        )
        stack = _stack(broker, folder, endpoints, supervisor, exits)
        heard = Heard()
        exits.enter_context(Tap({"bootstrap.servers": stack.bootstrap}, (REPORTS, SIGNALS, ACTIONS), heard.take))
        start_roles(supervisor, stack)
        counts = [trials // LANES + (lane < trials % LANES) for lane in range(LANES)]
        fresh = [
            [f"{name}-f{number}" for number in range(count)] for name, count in zip(endpoints, counts, strict=True)
        ]
        keys = {
            caller: secrets.token_hex(8)
            for name in endpoints
            for caller in (f"{name}-b{n}" for n in range(BACKGROUND_CALLERS))
        }
        keys |= {caller: secrets.token_hex(8) for names in fresh for caller in names}
        (folder / "keys.json").write_text(json.dumps({key: caller for caller, key in keys.items()}))
        ports = [_serve(supervisor, stack, name, folder / "keys.json") for name in endpoints]
        lanes = [
            Lane(*parts, heard, seed)
            for seed, parts in enumerate(zip(endpoints, ports, [keys] * LANES, fresh, strict=True))
        ]
        with _progress(console, f"trials on {broker}", trials) as done:
            asyncio.run(_run(lanes, done))
        return figures_of(
            [trial for lane in lanes for trial in lane.trials], sum(lane.innocents for lane in lanes), heard
        )


def figures_of(trials: list[Trial], innocents: int, heard: Heard) -> dict[str, float]:
    """Quantiles over the trials that were refused; `trials` counts those alone."""
    met = [trial for trial in trials if trial.refused_s is not None]
    whole = np.array([trial.refused_s - trial.first_s for trial in met if trial.refused_s is not None])
    split = [(trial.evidence_s, trial) for trial in met if trial.evidence_s is not None]
    evidence = np.array([at - trial.first_s for at, trial in split])
    pipeline = np.array([trial.refused_s - at for at, trial in split if trial.refused_s is not None])
    shown = {"": whole, "evidence_": evidence, "pipeline_": pipeline}
    figures = {
        f"{name}p{q}_s": round(float(np.percentile(values, q)), 3) if len(values) else float("nan")
        for name, values in shown.items()
        for q in (50, 99)
    }
    released = sum(trial.caller in heard.released for trial in met)
    return figures | {"trials": len(met), "tried": len(trials), "released": released, "innocent_refusals": innocents}


def _stack(broker: str, folder: Path, endpoints: list[str], supervisor: Supervisor, exits: ExitStack) -> DevStack:
    config = PalisadeConfig(
        kafka=KafkaConfig(partitions=LANES),
        endpoints=tuple(EndpointConfig(name=name, events_per_day=2e6) for name in endpoints),
    )
    policy = folder / "policy.yaml"
    policy.write_text(yaml.safe_dump(yaml.safe_load(demo_policy())))
    if broker == "embedded":
        return prepare(folder, config, policy, start_broker(supervisor, LANES), embedded=True)
    kafka = exits.enter_context(ApacheKafka(lasts=True))
    create_topics(KafkaConnection(bootstrap=kafka.bootstrap), LANES, 1)
    return prepare(folder, config, policy, kafka.bootstrap, embedded=False)


def _serve(supervisor: Supervisor, stack: DevStack, endpoint: str, keys: Path) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = python_module("benchmarks.latency_serve", endpoint, str(port), str(keys))
    supervisor.spawn(ChildSpec(endpoint, command, env=stack.client_env))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.05)
    raise RuntimeError(f"{endpoint} does not listen: {supervisor.tail(endpoint)}")


async def _run(lanes: list[Lane], done: Callable[..., None]) -> None:
    await asyncio.gather(*(lane.run(done) for lane in lanes))


@contextmanager
def _progress(console: Console, title: str, total: int) -> Iterator[Callable[[], None]]:
    with Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


if __name__ == "__main__":
    raise SystemExit(main())
