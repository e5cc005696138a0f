"""Predictions flood the detect worker for seconds, and its reports are handled within 100 ms all the while."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from detectors.profile_build import build_profile
from palisade.dev import prepare
from palisade.operate import Operator, activate_profile
from palisade.supervisor import ChildSpec, Supervisor, python_module
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.events import Report, RouteCounts
from schemas.signals import Signal
from schemas.topics import PREDICTIONS, REPORTS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.admin import create_topics
from streams.reading import read_to_end
from streams.records import header_of, listed
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.integration.flooding import ENDPOINT, VERSION, features
from tests.support.apache_kafka import ApacheKafka
from tests.support.ports import free_port

MEGABYTES = 60
"""Two to three seconds of work on a core to itself; the sender needs less than one."""
ROUNDS = 6
PLANTED_MEGABYTES = 2
"""Some thirty updates of the bank: seven seconds, where each takes 200 ms more."""
EVERY_S = 0.02
DEADLINE_S = 120.0
PROMISED_S = 0.1
PALISADE, PLANTED = "palisade.cli.main", "tests.integration.planted"


@dataclass(frozen=True)
class Delays:
    """Runs of reports in a stretch of time: how many were handled within each bound (seconds). `slowdown`: how many times
    as long as on a core of its own the worker's work took, for others had the cores while it was ready to run."""

    runs: float
    within: dict[float, float]
    slowdown: float

    def share(self, seconds: float) -> float:
        """Of those handled within `seconds`; between two bounds of the histogram they are taken to lie evenly."""
        bounds = sorted(bound for bound in self.within if bound < float("inf"))
        return float(np.interp(seconds, bounds, [self.within[bound] for bound in bounds])) / self.runs

    @property
    def in_time(self) -> float:
        """As the promise says: what is stolen from the worker is no time of its own."""
        return self.share(PROMISED_S * self.slowdown)


@dataclass(frozen=True)
class Scheduled:
    """Nanoseconds that a thread ran, and that it was ready to run and waited for a core."""

    ran: int
    waited: int

    @classmethod
    def main_thread(cls, pid: int) -> Scheduled | None:
        """None where the kernel does not say."""
        path = Path(f"/proc/{pid}/task/{pid}/schedstat")
        if not path.exists():
            return None
        ran, waited, _ = map(int, path.read_text().split())
        return cls(ran, waited)

    @staticmethod
    def slowdown(before: Scheduled | None, after: Scheduled | None) -> float:
        """1 where the kernel does not say: all time counts as the thread's own."""
        if before is None or after is None or after.ran == before.ran:
            return 1.0
        return 1 + (after.waited - before.waited) / (after.ran - before.ran)


class Worker:
    """One detect worker on Apache Kafka, a profile in force; one serving process reports to it."""

    def __init__(self, kafka: ApacheKafka, folder: Path, supervisor: Supervisor, program: str = PALISADE) -> None:
        self.connection = KafkaConnection(bootstrap=kafka.bootstrap)
        create_topics(self.connection, 1, 1)
        config = PalisadeConfig(kafka=KafkaConfig(partitions=1), endpoints=(EndpointConfig(name=ENDPOINT),))
        stack = prepare(folder, config, None, kafka.bootstrap, embedded=False)
        self._port = free_port()
        command = python_module(program, "worker", "detect", "--config", str(stack.config_path),
                                "--metrics-port", str(self._port))  # fmt: skip
        self._supervisor = supervisor
        supervisor.start(ChildSpec("detect", command, ready='"ready"', restart=False), timeout_s=DEADLINE_S)
        profile = build_profile(pa.table(features(np.random.default_rng(7), 6_000)), seed=1)
        operator = Operator("person:test", SigningKey.load(stack.keys.operator))
        activate_profile(self.connection, operator, profile.to_bytes(), ENDPOINT, VERSION)
        self._producer = Producer(kafka_settings(self.connection, "producer") | {"linger.ms": 0})
        self._seq = 0

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """(sample, topic, upper bound) -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, sample.labels.get("topic", ""), sample.labels.get("le", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def read(self) -> float:
        return self.metrics().get(("palisade_records_consumed_total", PREDICTIONS, ""), 0.0)

    def within(self) -> dict[float, float]:
        """Runs of reports handled within each bound since the worker began; the last bound is infinity."""
        found = self.metrics().items()
        return {
            float(bound): value
            for (sample, topic, bound), value in found
            if sample == "palisade_delay_seconds_bucket" and topic == REPORTS
        }

    def scheduled(self) -> Scheduled | None:
        return Scheduled.main_thread(self._supervisor.pid("detect"))

    def report(self) -> None:
        """One report of a serving process that works as usual."""
        self._seq += 1
        at = int(time.time() * 1000)
        report = Report(
            endpoint=ENDPOINT, guard_id="g", boot_id="b", seq=self._seq, from_ms=at - 20, to_ms=at, asked=5,
            routes=[RouteCounts(route="primary", version=VERSION, served=5)], fallback_ok=True,
        )  # fmt: skip
        headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, b"report")]
        self._producer.produce(REPORTS, report.to_bytes(), ENDPOINT, partition=0, headers=headers)
        self._producer.poll(0)

    def warm_up(self) -> None:
        for _ in range(100):
            self.report()
            time.sleep(EVERY_S)

    def flooded(self, megabytes: int = MEGABYTES) -> tuple[Delays, float]:
        """Reports while a flood of predictions is sent and read; and the share that was still unread when all was sent."""
        before, already, behind = self.within(), self.read(), 0.0
        began = self.scheduled()
        flood = python_module("tests.integration.flooding", self.connection.bootstrap, PREDICTIONS, str(megabytes))
        sender = subprocess.Popen(flood, stdout=subprocess.PIPE)
        sent = 0
        deadline = time.monotonic() + DEADLINE_S
        for moment in _every(EVERY_S):
            assert moment < deadline, f"{self.read() - already:.0f} of {sent} records were read in {DEADLINE_S} s"
            self.report()
            if self._seq % 10:
                continue
            if not sent and sender.poll() is not None:
                assert sender.returncode == 0
                assert sender.stdout is not None
                sent = json.loads(sender.stdout.read())["sent"]
                behind = 1 - (self.read() - already) / sent
            if sent and self.read() - already >= sent:
                break
        slowdown = Scheduled.slowdown(began, self.scheduled())
        self._producer.flush(10)
        after = self.within()
        counts = {bound: after[bound] - before[bound] for bound in after}
        return Delays(counts[float("inf")], counts, slowdown), behind

    def signals(self) -> list[Signal]:
        return [
            Signal.from_bytes(message.value() or b"")
            for message in read_to_end(self.connection, SIGNALS, 0)
            if header_of(listed(message.headers()), KIND_HEADER) == Signal.KIND.encode()
        ]


def _every(seconds: float) -> Iterator[float]:
    """The moments of an even beat; late ones are not made up for."""
    due = time.monotonic()
    while True:
        now = time.monotonic()
        yield now
        due = max(due + seconds, now)
        time.sleep(max(0.0, due - time.monotonic()))


@pytest.fixture(scope="module")
def kafka() -> Iterator[ApacheKafka]:
    with ApacheKafka() as broker:
        yield broker


@pytest.mark.kafka
@pytest.mark.slow
def test_reports_are_handled_within_100_ms_while_predictions_flood_the_worker(
    kafka: ApacheKafka, tmp_path: Path
) -> None:
    """p99, by the first round that has it: other work on the machine may spoil one, a long piece of our own spoils all."""
    with Supervisor(tmp_path / "logs") as supervisor:
        worker = Worker(kafka, tmp_path / "palisade", supervisor)
        worker.warm_up()
        rounds: list[Delays] = []
        while len(rounds) < ROUNDS and not any(each.in_time >= 0.99 for each in rounds):
            delays, behind = worker.flooded()
            assert delays.runs > 100, "the flood was over too soon to prove anything"
            assert behind > 0.2, "the worker kept up with the flood"
            rounds.append(delays)
        best = max(each.in_time for each in rounds)
        assert best >= 0.99, f"{rounds}\n{supervisor.tail('detect')}"
        kinds = {signal.kind for signal in worker.signals()}
        assert {"feature_drift", "odd_input"} <= kinds, "the detectors were not at work"


@pytest.mark.kafka
@pytest.mark.slow
def test_work_of_200_ms_planted_in_each_update_of_the_bank_is_found(kafka: ApacheKafka, tmp_path: Path) -> None:
    """The same check finds it in any round, however little of the machine the worker gets."""
    with Supervisor(tmp_path / "logs") as supervisor:
        worker = Worker(kafka, tmp_path / "palisade", supervisor, PLANTED)
        delays, _ = worker.flooded(PLANTED_MEGABYTES)
        assert delays.in_time < 0.9, f"{delays}\n{supervisor.tail('detect')}"
