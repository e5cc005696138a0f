"""Predictions flood the detect worker for seconds, and its reports are handled within 100 ms all the while."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
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

MEGABYTES = 60
"""Two to three seconds of work on a core to itself; the sender needs less than one."""
ROUNDS = 4
EVERY_S = 0.02
DEADLINE_S = 120.0
ELSEWHERE = "flooded.elsewhere"


@dataclass(frozen=True)
class Delays:
    """Runs of reports in a stretch of time, and those that were handled within 100 ms."""

    runs: float
    in_time: float

    @property
    def share(self) -> float:
        return self.in_time / self.runs


class Worker:
    """One detect worker on Apache Kafka, a profile in force; one serving process reports to it."""

    def __init__(self, kafka: ApacheKafka, folder: Path, supervisor: Supervisor) -> None:
        self.connection = KafkaConnection(bootstrap=kafka.bootstrap)
        create_topics(self.connection, 1, 1)
        kafka.create_topics({ELSEWHERE: 1})
        config = PalisadeConfig(kafka=KafkaConfig(partitions=1), endpoints=(EndpointConfig(name=ENDPOINT),))
        stack = prepare(folder, config, None, kafka.bootstrap, embedded=False)
        self._port = free_port()
        command = python_module("palisade.cli.main", "worker", "detect", "--config", str(stack.config_path),
                                "--metrics-port", str(self._port))  # fmt: skip
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

    def delays(self) -> Delays:
        """Since the worker began."""
        now = self.metrics()
        name = "palisade_delay_seconds"
        return Delays(now.get((f"{name}_count", REPORTS, ""), 0.0), now.get((f"{name}_bucket", REPORTS, "0.1"), 0.0))

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

    def flooded(self, topic: str) -> tuple[Delays, float]:
        """Reports while a flood is sent to `topic` and, if it is predictions, read; and the share that was still unread
        when all was sent."""
        before, already, behind = self.delays(), self.read(), 0.0
        sender = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.flooding", self.connection.bootstrap, topic, str(MEGABYTES)],
            stdout=subprocess.PIPE,
        )
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
            if sent and (topic != PREDICTIONS or self.read() - already >= sent):
                break
        self._producer.flush(10)
        after = self.delays()
        return Delays(after.runs - before.runs, after.in_time - before.in_time), behind

    def signals(self) -> list[Signal]:
        return [
            Signal.from_bytes(message.value() or b"")
            for message in read_to_end(self.connection, SIGNALS, 0)
            if header_of(listed(message.headers()), KIND_HEADER) == Signal.KIND.encode()
        ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _every(seconds: float) -> Iterator[float]:
    """The moments of an even beat; late ones are not made up for."""
    due = time.monotonic()
    while True:
        now = time.monotonic()
        yield now
        due = max(due + seconds, now)
        time.sleep(max(0.0, due - time.monotonic()))


@pytest.mark.kafka
@pytest.mark.slow
def test_reports_are_handled_within_100_ms_while_predictions_flood_the_worker(tmp_path: Path) -> None:
    """p99, by the best of some rounds: other work on the machine may spoil one, a long piece of our own spoils all. On
    a machine that is not in time even where the same flood goes past the worker, as good as there is enough."""
    with ApacheKafka() as kafka, Supervisor(tmp_path / "logs") as supervisor:
        worker = Worker(kafka, tmp_path / "palisade", supervisor)
        for _ in range(100):
            worker.report()
            time.sleep(EVERY_S)
        rounds: list[Delays] = []
        while len(rounds) < ROUNDS and not any(each.share >= 0.99 for each in rounds):
            delays, behind = worker.flooded(PREDICTIONS)
            assert delays.runs > 100, "the flood was over too soon to prove anything"
            assert behind > 0.2, "the worker kept up with the flood"
            rounds.append(delays)
        best = max(each.share for each in rounds)
        enough = 0.99 if best >= 0.99 else min(0.99, worker.flooded(ELSEWHERE)[0].share)
        assert best >= enough, f"{rounds} (in time past the worker: {enough:.3f})\n{supervisor.tail('detect')}"
        kinds = {signal.kind for signal in worker.signals()}
        assert {"feature_drift", "odd_input"} <= kinds, "the detectors were not at work"
