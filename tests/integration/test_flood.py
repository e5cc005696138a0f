"""Predictions flood the detect worker for seconds, and its reports are handled within 100 ms all the while."""

from __future__ import annotations

import json
import os
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
OWN_CORE = 0.75
"""A worker that got so much of a core counts as having had one to itself."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Delays:
    """Runs of reports in a stretch of time: how many were handled within each bound (seconds), and the share of a core
    that the flooded worker got."""

    runs: float
    within: dict[float, float]
    core: float

    def share(self, seconds: float) -> float:
        """Of those handled within the smallest bound of the histogram that is not below `seconds`."""
        return self.within[min(bound for bound in self.within if bound >= seconds)] / self.runs

    @property
    def in_time(self) -> float:
        """As the promise says."""
        return self.share(0.1)

    @property
    def in_own_time(self) -> float:
        """On a core of its own: where others take most of the machine, 100 ms of work take longer."""
        return self.share(0.1 if self.core >= OWN_CORE else 0.1 / self.core)


class Worker:
    """One detect worker on Apache Kafka, a profile in force; one serving process reports to it."""

    def __init__(self, kafka: ApacheKafka, folder: Path, supervisor: Supervisor) -> None:
        self.connection = KafkaConnection(bootstrap=kafka.bootstrap)
        create_topics(self.connection, 1, 1)
        config = PalisadeConfig(kafka=KafkaConfig(partitions=1), endpoints=(EndpointConfig(name=ENDPOINT),))
        stack = prepare(folder, config, None, kafka.bootstrap, embedded=False)
        self._port = free_port()
        command = python_module("palisade.cli.main", "worker", "detect", "--config", str(stack.config_path),
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

    def cpu_s(self) -> float:
        """Seconds of processor that the worker has used."""
        fields = Path(f"/proc/{self._supervisor.pid('detect')}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

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

    def flooded(self) -> tuple[Delays, float]:
        """Reports while a flood of predictions is sent and read; and the share that was still unread when all was sent."""
        before, already, behind = self.within(), self.read(), 0.0
        began, used = time.monotonic(), self.cpu_s()
        sender = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.integration.flooding",
                self.connection.bootstrap,
                PREDICTIONS,
                str(MEGABYTES),
            ],
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
            if sent and self.read() - already >= sent:
                break
        core = (self.cpu_s() - used) / (time.monotonic() - began)
        self._producer.flush(10)
        after = self.within()
        counts = {bound: after[bound] - before[bound] for bound in after}
        return Delays(counts[float("inf")], counts, core), behind

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
    """p99, by the best of some rounds: other work on the machine may spoil one, a long piece of our own spoils all. Where
    the worker never had a core to itself, its 100 ms are counted as its share of one lets them pass."""
    with ApacheKafka() as kafka, Supervisor(tmp_path / "logs") as supervisor:
        worker = Worker(kafka, tmp_path / "palisade", supervisor)
        for _ in range(100):
            worker.report()
            time.sleep(EVERY_S)
        rounds: list[Delays] = []
        while len(rounds) < ROUNDS and not any(each.in_time >= 0.99 for each in rounds):
            delays, behind = worker.flooded()
            assert delays.runs > 100, "the flood was over too soon to prove anything"
            assert behind > 0.2, "the worker kept up with the flood"
            rounds.append(delays)
        best = max(each.in_own_time for each in rounds)
        assert best >= 0.99, f"{rounds}\n{supervisor.tail('detect')}"
        kinds = {signal.kind for signal in worker.signals()}
        assert {"feature_drift", "odd_input"} <= kinds, "the detectors were not at work"
