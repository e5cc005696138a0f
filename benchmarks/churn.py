"""A million callers and a hundred thousand endpoint names in a minute, and more for eleven minutes: `make bench-churn`.

Real processes on Apache Kafka: ingest, detect, respond and audit as `palisade dev` starts them, a service with Guard, and a
load that makes up every name it sends (`churn_load`): for a minute at the full rate, then at a quarter of it. One caller floods the service before the churn begins and goes on
knocking; another one begins within it. Judged is: no process holds more than 1.5 GB; after two minutes memory does not
grow by more than 1 % in ten; the first caller is limited all along, the second one is found. Growth is the slope of a line
through all samples after the warm-up, times what they span, over their mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from benchmarks.churn_load import FEATURES, PLAIN, VERSION, WATCHED, ordinary
from detectors.profile_build import build_profile
from palisade.demo.httpclient import HttpAnswer, Pool, post
from palisade.demo.stage import demo_policy
from palisade.dev import ROLES, DevStack, prepare, start_broker, start_roles
from palisade.operate import Operator, activate_profile
from palisade.supervisor import ChildFailed, ChildSpec, Supervisor, python_module
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.roles import group_of
from schemas.topics import PREDICTIONS, REQUESTS
from streams.admin import create_topics
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable

PARTITIONS = 2
PROFILE_ROWS = 5_000
BACKGROUND_CALLERS, BACKGROUND_PER_S = 40, 20.0
FLOOD_PER_S = 100.0
WARM_UP_S = 20.0
LIMITED_WITHIN_S = 30.0
MOST_MB = 1_500.0
MOST_GROWTH = 0.01
SAMPLE_S = 1.0
SHOWN_EVERY_S = 30.0
WATCHED_PROCESSES = (*ROLES, "service")


@dataclass(slots=True)
class Offender:
    """What became of one caller's calls, second by second since the start of the run."""

    name: str
    began: float = 0.0
    first_refused: float | None = None
    served: dict[int, int] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)

    def answered(self, answer: HttpAnswer) -> None:
        now = time.monotonic()
        if answer.status == 429:
            self.first_refused = self.first_refused or now
            self.refused[int(now)] = self.refused.get(int(now), 0) + 1
        elif answer.status == 200:
            self.served[int(now)] = self.served.get(int(now), 0) + 1

    def refused_share(self, since: float, until: float) -> float:
        """Of what was answered in [since, until)."""
        seconds = range(int(since), int(until))
        refused = sum(self.refused.get(second, 0) for second in seconds)
        return refused / max(1, refused + sum(self.served.get(second, 0) for second in seconds))


@dataclass(slots=True)
class Memory:
    """Resident megabytes of each process, one sample a second of the churn."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def take(self, at: float, supervisor: Supervisor) -> None:
        for name in WATCHED_PROCESSES:
            self.samples.setdefault(name, []).append((at, _rss_mb(supervisor.pid(name))))

    def figures(self, warm_up_s: float) -> dict[str, dict[str, float]]:
        """By process: highest, and what it grew after the warm-up."""
        return {name: _grown(rows, warm_up_s) for name, rows in self.samples.items()}

    def shown(self) -> dict[str, list[float]]:
        """By process: a sample each half minute."""
        return {
            name: [round(mb) for at, mb in rows[:: round(SHOWN_EVERY_S / SAMPLE_S)]]
            for name, rows in self.samples.items()
        }


def _grown(rows: list[tuple[float, float]], warm_up_s: float) -> dict[str, float]:
    late = np.array([row for row in rows if row[0] >= warm_up_s])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 1 else 0.0
    spanned = float(late[-1, 0] - late[0, 0]) if len(late) else 0.0
    mean = float(late[:, 1].mean()) if len(late) else 1.0
    return {
        "most_mb": round(max(mb for _, mb in rows), 1),
        "mb_per_min": round(slope * 60, 3),
        "growth": round(slope * spanned / mean, 4),
    }


class Run:
    """One run of `churn_s` seconds."""

    def __init__(
        self, stack: DevStack, supervisor: Supervisor, port: int, keys: dict[str, str], churn_s: float, then: float
    ) -> None:
        self._stack = stack
        self._supervisor = supervisor
        self._pool = Pool("127.0.0.1", port)
        self._host = f"127.0.0.1:{port}"
        self._keys = keys
        self._churn_s, self._then = churn_s, then
        self._tasks: list[asyncio.Task[None]] = []
        self.before, self.within = Offender("before"), Offender("within")
        self.memory = Memory()
        self.innocent_refusals = 0
        self.churned: dict[str, float] = {}
        self.ended: tuple[float, float] = (0.0, 0.0)

    async def run(self) -> None:
        """Raises ChildFailed if the flood was not limited before the churn."""
        self._tasks.append(asyncio.create_task(self._background()))
        await asyncio.sleep(WARM_UP_S)
        self._tasks.append(asyncio.create_task(self._flood(self.before)))
        deadline = time.monotonic() + LIMITED_WITHIN_S
        while self.before.first_refused is None:
            if time.monotonic() > deadline:
                raise ChildFailed("the caller who floods before the churn was not limited")
            await asyncio.sleep(0.1)
        await self._churn()
        for task in self._tasks:
            task.cancel()
        self._pool.close()

    async def _churn(self) -> None:
        command = python_module(
            "benchmarks.churn_load",
            self._stack.bootstrap,
            str(self._stack.keys.producer),
            str(self._churn_s),
            str(self._then),
        )
        load = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            began = time.monotonic()
            while load.returncode is None and time.monotonic() - began < self._churn_s + 60.0:
                passed = time.monotonic() - began
                self.memory.take(passed, self._supervisor)
                if not self.within.began and passed > min(30.0, self._churn_s / 3):
                    self._tasks.append(asyncio.create_task(self._flood(self.within)))
                await asyncio.sleep(SAMPLE_S)
            self.ended = (began, time.monotonic())
            out, _ = await load.communicate()
            self.churned = json.loads(out.splitlines()[-1])
        finally:
            if load.returncode is None:
                load.kill()

    async def _background(self) -> None:
        random = np.random.default_rng(1)
        names = [name for name in self._keys if name.startswith("usual")]
        weights = random.lognormal(0, 1, len(names))
        while True:
            await asyncio.sleep(random.exponential(1 / BACKGROUND_PER_S))
            self._ask(str(random.choice(names, p=weights / weights.sum())), self._innocent)

    async def _flood(self, offender: Offender) -> None:
        offender.began = time.monotonic()
        while True:
            self._ask(offender.name, offender.answered)
            await asyncio.sleep(1 / FLOOD_PER_S)

    def _ask(self, caller: str, done: object) -> None:
        self._pool.send(post("/predict", self._host, {"x-api-key": self._keys[caller]}, b"{}"), done)  # type: ignore[arg-type]

    def _innocent(self, answer: HttpAnswer) -> None:
        self.innocent_refusals += answer.status == 429


def measure(churn_s: float, warm_up_s: float, then: float, *, embedded: bool) -> dict[str, object]:
    """One run on a broker of its own. Raises ChildFailed or KafkaUnavailable."""
    with tempfile.TemporaryDirectory(prefix="palisade-churn-") as temporary, ExitStack() as exits:
        folder, ended = Path(temporary), list[str]()
        supervisor = exits.enter_context(
            Supervisor(folder / "logs", on_exit=lambda name, code: ended.append(f"{name}: {code}"))
        )
        stack = _stack(folder, supervisor, exits, embedded=embedded)
        start_roles(supervisor, stack)
        _activate(stack)
        usual = [f"usual-{number}" for number in range(BACKGROUND_CALLERS)]
        keys = {caller: secrets.token_hex(8) for caller in (*usual, "before", "within")}
        port = _serve(supervisor, stack, keys)
        run = Run(stack, supervisor, port, keys, churn_s, then)
        asyncio.run(run.run())
        return _figures(run, warm_up_s, ended) | {"behind": _behind(stack.bootstrap)}


def _stack(folder: Path, supervisor: Supervisor, exits: ExitStack, *, embedded: bool) -> DevStack:
    config = PalisadeConfig(
        kafka=KafkaConfig(partitions=PARTITIONS),
        endpoints=(EndpointConfig(name=WATCHED, events_per_day=2e6), EndpointConfig(name=PLAIN, guard=False)),
    )
    policy = folder / "policy-of-the-run.yaml"
    policy.write_text(demo_policy())
    if embedded:
        return prepare(folder, config, policy, start_broker(supervisor, PARTITIONS), embedded=True)
    kafka = exits.enter_context(ApacheKafka(lasts=True))
    create_topics(KafkaConnection(bootstrap=kafka.bootstrap), PARTITIONS, 1)
    return prepare(folder, config, policy, kafka.bootstrap, embedded=False)


def _activate(stack: DevStack) -> None:
    """Both endpoints have a profile from the start: what is learned of one that has none after ten minutes is no churn."""
    operator = Operator("churn", SigningKey.load(stack.keys.operator))
    for endpoint, table in ordinary(PROFILE_ROWS).items():
        profile = build_profile(table, prediction=("answer",)).to_bytes()
        activate_profile(KafkaConnection(bootstrap=stack.bootstrap), operator, profile, endpoint, VERSION)


def _serve(supervisor: Supervisor, stack: DevStack, keys: dict[str, str]) -> int:
    file = stack.folder / "keys.json"
    file.write_text(json.dumps({key: caller for caller, key in keys.items()}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = python_module("benchmarks.latency_serve", WATCHED, str(port), str(file), str(FEATURES))
    supervisor.spawn(ChildSpec("service", command, env=stack.client_env))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.05)
    raise ChildFailed(f"the service does not listen: {supervisor.tail('service')}")


def _figures(run: Run, warm_up_s: float, ended: list[str]) -> dict[str, object]:
    began, until = run.ended
    found = run.within.first_refused
    return {
        "churned": run.churned,
        "memory": run.memory.figures(warm_up_s),
        "rss_mb": run.memory.shown(),
        "offender_refused_share": round(run.before.refused_share(began, until), 3),
        "offender_refused_share_at_end": round(run.before.refused_share(until - 15, until), 3),
        "found_within_s": None if found is None else round(found - run.within.began, 2),
        "innocent_refusals": run.innocent_refusals,
        "ended": ended,
    }


def _behind(bootstrap: str) -> dict[str, int]:
    """Records that lie before each role and that it has not committed."""
    connection, found = KafkaConnection(bootstrap=bootstrap), dict[str, int]()
    for role, topic in (("ingest", REQUESTS), ("detect", PREDICTIONS), ("audit", PREDICTIONS)):
        consumer = Consumer(kafka_settings(connection, "consumer", group=group_of(role)))
        parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        ends = [consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts]
        done = [max(part.offset, 0) for part in consumer.committed(parts, timeout=10)]
        found[role] = sum(ends) - sum(done)
        consumer.close()
    return found


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def held(figures: dict[str, object]) -> bool:
    """Whether all bounds hold."""
    memory = figures["memory"]
    assert isinstance(memory, dict)
    flat = all(one["most_mb"] <= MOST_MB and one["growth"] <= MOST_GROWTH for one in memory.values())
    share = figures["offender_refused_share_at_end"]
    assert isinstance(share, float)
    return flat and share > 0.5 and figures["found_within_s"] is not None and not figures["ended"]


def main() -> int:
    """Exit status 0 if all bounds hold, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.churn")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--warm-up", type=float, default=120.0, help="seconds that are not judged by growth")
    parser.add_argument("--then", type=float, default=0.25, help="share of the rate after the first minute")
    parser.add_argument("--embedded", action="store_true", help="on the embedded broker, which keeps 5 MiB a partition")
    given = parser.parse_args()
    try:
        figures = measure(given.minutes * 60, given.warm_up, given.then, embedded=given.embedded)
    except (ChildFailed, KafkaUnavailable) as error:
        sys.stderr.write(f"bench-churn could not run: {error}\n")
        return 2
    passed = held(figures)
    sys.stdout.write(json.dumps(figures | {"ok": passed}) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
