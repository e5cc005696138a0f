"""Predictions a second on one core, beside stock Faust with the same detections: `make bench-throughput`.

One detect worker, as `palisade worker detect` starts it, on one core of its own; Apache Kafka on the others; commits,
verdicts, snapshots and metrics on. Each log is written before the worker starts. Its predictions topic takes the
producer's time (production: the broker's), so that ticks close the blocks that they would close at the stated rate;
written in a burst, the broker's times would put the whole log into a few seconds.

Cost is CPU seconds of the worker, all threads, from the moment it has its partitions until it has committed the end of
the log. A change planted in one endpoint must be signalled by both, else the figures are void.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import stock_faust
from benchmarks.throughput_load import (
    ANSWER,
    ORDER,
    PLANTED,
    RATE_PER_S,
    VERSION,
    Load,
    NotWritten,
    draw,
    produce,
    real_rows,
    records,
)
from detectors.profile_build import build_profile
from detectors.registry import DETECTORS_OF_PREDICTIONS
from palisade.operate import send
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.events import ProfileActivated
from schemas.signals import Signal
from schemas.topics import PREDICTIONS, SIGNALS, TOPICS, VERDICTS
from schemas.verdicts import VERDICT_ROWS_KIND
from schemas.wire import KIND_HEADER
from streams.admin import create_topics
from streams.profiles import profile_record
from streams.reading import read_to_end
from streams.records import Outgoing, header_of, listed
from streams.transport.settings import KafkaConnection
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable
from tests.support.kafka import BROKER
from tests.support.ports import free_port

LOADS = {
    "json-1": Load(1, 1_200_000),
    "json-100": Load(100, 600_000),
    "json-1000": Load(1_000, 1_000_000),
    "arrow-1": Load(1, 2_000_000, arrow=True),
    "arrow-100": Load(100, 400_000, arrow=True),
}
STOCK = Load(1, 150_000, partitions=1)
STOCK_TOPIC = "stock.predictions"
EXPECTED = {"ratio": 6.0, "events_per_s": 50_000.0, "cost_at_1000_endpoints": 2.5}
FOUND_WITHIN_MS = 10_000
"""The planted change counts as found by a signal up to so long after its last row, by the log's clock."""
DEADLINE_S = 180.0
_TICKS = os.sysconf("SC_CLK_TCK")


class CouldNotRun(RuntimeError):
    """The benchmark could not be done; the message says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A worker process to measure: its command, its group, where it writes signals."""

    name: str
    command: list[str]
    group: str
    topic: str
    signals: str
    metrics_port: int | None = None


@dataclass(slots=True)
class Figures:
    """Of one contender on one log. `cpu_s`, `wall_s`: having its partitions to having committed the end."""

    events: int
    events_per_s: float
    cpu_s_per_million: float
    planted_change_found: bool
    wall_s: float
    cpu_s: float
    start_cpu_s: float
    scored: int
    other_alarms: int
    rss_mb: tuple[float, ...] = ()
    """First, largest and last of about one a second."""


class Broker:
    """Apache Kafka for one log after the other: topics are made anew for each."""

    def __init__(self, bootstrap: str) -> None:
        self.connection = KafkaConnection(bootstrap=bootstrap)
        self.bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})

    @contextmanager
    def topics(self, partitions: int) -> Iterator[None]:
        """All topics, empty; gone afterwards. Raises CouldNotRun if the broker holds them already: they may be in use."""
        held = set(self._admin.list_topics(timeout=15).topics) & self._names()
        if held:
            raise CouldNotRun(f"the broker already holds {', '.join(sorted(held))}; the benchmark needs one without")
        config = {"message.timestamp.type": "CreateTime"}
        made = [NewTopic(PREDICTIONS, partitions, 1, config=config), NewTopic(STOCK_TOPIC, 1, 1, config=config)]
        made += [NewTopic(name, 1, 1) for name in (stock_faust.VERDICTS, stock_faust.SIGNALS)]
        for future in self._admin.create_topics(made, request_timeout=15).values():
            future.result(20)
        create_topics(self.connection, partitions, 1)
        try:
            yield
        finally:
            self._remove()

    def ends(self, topic: str, partitions: int) -> list[int]:
        """The offset behind the last record of each partition."""
        consumer = self.reader("palisade.bench.reader")
        try:
            return [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=15)[1] for n in range(partitions)]
        finally:
            consumer.close()

    def reader(self, group: str) -> Consumer:
        """A consumer that never joins: it only asks for offsets."""
        return Consumer(
            {"bootstrap.servers": self.bootstrap, "log_level": 2, "group.id": group, "enable.auto.commit": False}
        )

    def _remove(self) -> None:
        there = set(self._admin.list_topics(timeout=15).topics)
        for future in self._admin.delete_topics(sorted(self._names() & there), operation_timeout=15).values():
            future.result(20)
        for group, future in self._admin.delete_consumer_groups(["palisade.detect", stock_faust.GROUP]).items():
            try:
                future.result(20)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise CouldNotRun(f"group {group} is still in use: {error}") from error

    @staticmethod
    def _names() -> set[str]:
        return {spec.name for spec in TOPICS} | {STOCK_TOPIC, stock_faust.VERDICTS, stock_faust.SIGNALS}


class Bench:
    """The parts that all measurements share: broker, cores, folder, profile, progress."""

    def __init__(self, broker: Broker, folder: Path, progress: Progress, *, profile_calls: bool) -> None:
        self.broker, self.folder, self._progress = broker, folder, progress
        self._profile_calls = profile_calls
        self._operator = SigningKey.generate()
        self._content = build_profile(real_rows()[0].table(), order_by=ORDER, prediction=(ANSWER,), seed=1).to_bytes()
        self.cores = sorted(os.sched_getaffinity(0))

    def palisade(self, name: str, load: Load) -> Figures:
        """Palisade's detect worker on `load`."""
        with self.broker.topics(load.partitions):
            self._activate(load)
            begin_ms = self._write(name, load, PREDICTIONS, "lz4")
            config = self._config(load)
            port = free_port()
            command = ["-m", "palisade.cli.main", "worker", "detect", "--config", str(config)]
            command += ["--metrics-port", str(port)]
            if self._profile_calls:
                command = [
                    "-m",
                    "cProfile",
                    "-o",
                    str(Path(tempfile.gettempdir()) / f"throughput-{name}.prof"),
                    *command,
                ]
            contender = Contender("palisade", command, "palisade.detect", PREDICTIONS, SIGNALS, port)
            return self._measure(name, contender, load, begin_ms)

    def stock(self, load: Load) -> Figures:
        """Stock Faust on `load`; its log is not compressed, because aiokafka reads lz4 only with a further package."""
        profile = self.folder / "profile.json"
        profile.write_bytes(self._content)
        with self.broker.topics(load.partitions):
            begin_ms = self._write("stock", load, STOCK_TOPIC, "none")
            command = ["-m", "benchmarks.stock_faust", "--bootstrap", self.broker.bootstrap, "--topic", STOCK_TOPIC]
            command += ["--profile", str(profile), "--endpoints", ",".join(load.names)]
            command += ["--events-per-day", str(_events_per_day(load))]
            contender = Contender("stock Faust", command, stock_faust.GROUP, STOCK_TOPIC, stock_faust.SIGNALS)
            return self._measure("stock", contender, load, begin_ms)

    def _activate(self, load: Load) -> None:
        """Publishes the profile and switches it on for each endpoint by a signed record, as `palisade profile` does."""
        name, profile = profile_record(self._content)
        send(self.broker.connection, [profile])
        kind, activations = ProfileActivated.KIND, []
        for endpoint in load.names:
            value = ProfileActivated(endpoint=endpoint, version=VERSION, profile_hash=name, actor="bench").to_bytes()
            headers = ((KIND_HEADER, kind.encode()), *self._operator.headers(kind, value))
            activations.append(Outgoing(PREDICTIONS, endpoint.encode(), value, headers))
        send(self.broker.connection, activations)

    def _write(self, name: str, load: Load, topic: str, compression: str) -> int:
        """Writes the log, which ends about now; returns when it begins, milliseconds."""
        begin_ms = int(time.time() * 1000) - load.events * 1000 // RATE_PER_S
        task = self._progress.add_task(f"{name}: writing the log", total=load.events)
        os.sched_setaffinity(0, self.cores)
        produce(
            records(load, begin_ms),
            self.broker.bootstrap,
            topic=topic,
            compression=compression,
            progress=partial(self._progress.advance, task),
        )
        return begin_ms

    def _config(self, load: Load) -> Path:
        endpoints = tuple(EndpointConfig(name=name, events_per_day=_events_per_day(load)) for name in load.names)
        config = PalisadeConfig(
            kafka=KafkaConfig(bootstrap=self.broker.bootstrap, partitions=load.partitions),
            operator_keys=(self._operator.public_base64,),
            endpoints=endpoints,
        )
        path = self.folder / "palisade.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
        return path

    def _measure(self, name: str, contender: Contender, load: Load, begin_ms: int) -> Figures:
        ends = self.broker.ends(contender.topic, load.partitions)
        with (self.folder / f"{name}.log").open("wb") as log, _process(contender.command, log, self.cores) as worker:
            start_cpu = _cpu_s(worker.pid)
            started = time.monotonic()
            rss = self._watch(name, contender, worker, ends, load)
            wall, cpu = time.monotonic() - started, _cpu_s(worker.pid) - start_cpu
        found, others = self._signals(contender, load, begin_ms)
        scored = self._scored(load) if contender.signals == SIGNALS else load.events
        return Figures(
            events=load.events,
            events_per_s=round(load.events / wall, 1),
            cpu_s_per_million=round(cpu / load.events * 1e6, 3),
            planted_change_found=found,
            wall_s=round(wall, 2),
            cpu_s=round(cpu, 2),
            start_cpu_s=round(start_cpu, 2),
            scored=scored,
            other_alarms=others,
            rss_mb=(rss[0], max(rss), rss[-1]) if rss else (),
        )

    def _watch(
        self, name: str, contender: Contender, worker: subprocess.Popen[bytes], ends: list[int], load: Load
    ) -> list[float]:
        """Returns when the worker has committed `ends`: its memory (MB) about each second until then."""
        task = self._progress.add_task(f"{name}: {contender.name}", total=load.events)
        wanted = [TopicPartition(contender.topic, number) for number in range(len(ends))]
        consumer = self.broker.reader(contender.group)
        rss: list[float] = []
        looked, deadline = time.monotonic(), time.monotonic() + DEADLINE_S
        try:
            while True:
                committed = [max(place.offset, 0) for place in consumer.committed(wanted, timeout=15)]
                self._progress.update(task, completed=int(load.events * sum(committed) / sum(ends)))
                if all(done >= end for done, end in zip(committed, ends, strict=True)):
                    return rss
                if worker.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")
                    raise CouldNotRun(f"{contender.name} did not read its log:\n{log[-3000:]}")
                if time.monotonic() - looked > 1.0:
                    looked = time.monotonic()
                    rss.append(_rss_mb(worker.pid))
                    if contender.metrics_port is not None:
                        urlopen(f"http://127.0.0.1:{contender.metrics_port}/metrics", timeout=5).read()
                time.sleep(0.03)
        finally:
            consumer.close()

    def _signals(self, contender: Contender, load: Load, begin_ms: int) -> tuple[bool, int]:
        """Whether the planted change was signalled in its time and by its name; how many incidents other endpoints had.

        Cold weeks are out of the profile too: an incident that is open already is updated, not opened.
        """
        planted = np.flatnonzero(draw(load, real_rows()[1]).planted)
        first, last = (begin_ms + int(at) * 1000 // RATE_PER_S for at in planted[[0, -1]])
        signals: list[Signal] = [
            Signal.from_bytes(message.value() or b"")
            for message in read_to_end(self.broker.connection, contender.signals, 0)
        ]
        ours = [signal for signal in signals if signal.endpoint == load.planted and signal.kind == "feature_drift"]
        found = any(
            first <= signal.at_ms <= last + FOUND_WITHIN_MS and _names_first(signal, PLANTED)
            for signal in ours
            if signal.state in ("opened", "updated")
        )
        return found, sum(signal.state == "opened" and signal.endpoint != load.planted for signal in signals)

    def _scored(self, load: Load) -> int:
        """Rows whose outcome lies on the verdicts topic."""
        rows = 0
        for partition in range(load.partitions):
            for message in read_to_end(self.broker.connection, VERDICTS, partition):
                if header_of(listed(message.headers()), KIND_HEADER) == VERDICT_ROWS_KIND.encode():
                    rows += pa.ipc.open_stream(message.value()).read_all().num_rows
        return rows


@contextmanager
def _process(command: list[str], log: object, cores: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on the first core from its first instruction on, ready; ended afterwards. We move to the other cores."""
    mine, others = {cores[0]}, set(cores[1:] or cores)
    os.sched_setaffinity(0, mine)
    worker = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=log)  # type: ignore[call-overload]
    os.sched_setaffinity(0, others)
    try:
        for line in worker.stdout:
            if b'"ready"' in line:
                break
        else:
            raise CouldNotRun(f"the worker ended with {worker.wait()} before it was ready: {' '.join(command)}")
        drain = threading.Thread(target=worker.stdout.read, daemon=True)
        drain.start()
        yield worker
    finally:
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _names_first(signal: Signal, feature: str) -> bool:
    """Whether the evidence puts `feature` before all others."""
    features = signal.evidence.get("features")
    return isinstance(features, list) and features[:1] == [feature]


def _events_per_day(load: Load) -> float:
    return RATE_PER_S * 86_400 / load.endpoints


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


@contextmanager
def _broker() -> Iterator[Broker]:
    """The broker of the environment, or Apache Kafka on all cores but the first."""
    if given := os.environ.get(BROKER):
        yield Broker(given)
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:] or cores))
    with ApacheKafka(lasts=True) as kafka:
        os.sched_setaffinity(0, cores)
        yield Broker(kafka.bootstrap)


def main() -> int:
    """Exit status 0 if the expected bounds hold, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput")
    parser.add_argument("--only", help=f"comma-separated, of stock, {', '.join(LOADS)}; prints their figures")
    parser.add_argument("--profile-calls", action="store_true", help="under cProfile, into the temporary folder")
    given = parser.parse_args()
    console = Console(stderr=True)
    wanted = given.only.split(",") if given.only else ["stock", *LOADS]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    figures: dict[str, Figures] = {}
    try:
        with ExitStack() as exits:
            progress = exits.enter_context(Progress(*columns, console=console))
            broker = exits.enter_context(_broker())
            folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="palisade-throughput-")))
            bench = Bench(broker, folder, progress, profile_calls=given.profile_calls)
            for name in wanted:
                figures[name] = bench.stock(STOCK) if name == "stock" else bench.palisade(name, LOADS[name])
                progress.console.print(name, asdict(figures[name]))
    except (CouldNotRun, NotWritten, KafkaUnavailable, KafkaException) as error:
        console.print(f"could not run: {error}")
        return 2
    if given.only:
        print(json.dumps({name: asdict(of) for name, of in figures.items()}))
        return 0
    line = summary(figures)
    print(json.dumps(line))
    return 0 if line["ok"] else 1


def summary(figures: dict[str, Figures]) -> dict[str, object]:
    """The last line, with the faults in words; `ok` if there are none."""
    stock, one = figures["stock"], figures["json-1"]
    ratio = stock.cpu_s_per_million / one.cpu_s_per_million
    grown = figures["json-1000"].cpu_s_per_million / one.cpu_s_per_million
    faults = [
        f"{name}: the planted change was not found" for name, of in figures.items() if not of.planted_change_found
    ]
    faults += [f"{name}: {of.scored} of {of.events} scored" for name, of in figures.items() if of.scored != of.events]
    if ratio < EXPECTED["ratio"]:
        faults.append(f"{ratio:.1f} times stock, expected {EXPECTED['ratio']}")
    if one.events_per_s < EXPECTED["events_per_s"]:
        faults.append(f"{one.events_per_s:.0f} events/s at one endpoint, expected {EXPECTED['events_per_s']:.0f}")
    if grown > EXPECTED["cost_at_1000_endpoints"]:
        faults.append(f"{grown:.2f} times the cost at 1,000 endpoints, expected {EXPECTED['cost_at_1000_endpoints']}")
    short = ("events_per_s", "cpu_s_per_million", "planted_change_found")
    return {
        "bank": list(DETECTORS_OF_PREDICTIONS),
        "palisade": {name: getattr(one, name) for name in short},
        "stock_faust": {name: getattr(stock, name) for name in short},
        "ratio": round(ratio, 2),
        "arrow_events_per_s": figures["arrow-1"].events_per_s,
        "endpoints": [
            {
                "endpoints": load.endpoints,
                "events_per_s": figures[name].events_per_s,
                "cpu_s_per_million": figures[name].cpu_s_per_million,
            }
            for name, load in LOADS.items()
            if not load.arrow
        ],
        "flatness": round(grown, 2),
        "arrow_cpu_s_per_million": figures["arrow-1"].cpu_s_per_million,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "runs": {name: asdict(of) for name, of in figures.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("faust-streaming", "confluent-kafka", "aiokafka", "numpy", "pyarrow")},
        },
        "faults": faults,
        "ok": not faults,
    }


if __name__ == "__main__":
    sys.exit(main())
