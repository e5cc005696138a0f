"""Apache Kafka (one KRaft broker on loopback) from its Maven artifacts and the local Java: no Docker.

The jars are fetched once into `.cache/kafka-libs` of the checkout. Nothing is fetched when Maven is missing.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.ports import free_ports

VERSION = "4.1.0"
LIBRARIES = Path(__file__).resolve().parents[2] / ".cache" / "kafka-libs" / VERSION
READY_S = 180.0  # 4 s on an empty directory, 13 s after kill -9 with a gigabyte of log, more on a loaded machine

BRIEF = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""For a broker of a minute or two: half the processor time of its start, which compiling takes otherwise."""

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>palisade.tests</groupId><artifactId>kafka-libs</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
  </dependencies>
</project>
"""


class KafkaUnavailable(RuntimeError):
    """Apache Kafka cannot be started here; the message says what to install."""


class ApacheKafka:
    """One broker. A context manager; its folder goes with it unless one was given. `lasts`: for longer than some minutes, or
    to measure with."""

    def __init__(
        self, folder: Path | None = None, *, heap: str = "-Xmx512m", ports: int = 2, lasts: bool = False
    ) -> None:
        self._own = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="apache-kafka-"))
        self._heap = heap
        self._brief = () if lasts else BRIEF
        self._ports = free_ports(ports)
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: AdminClient | None = None
        self.bootstrap = f"127.0.0.1:{self._ports[0]}"

    def segment(self, topic: str, partition: int) -> Path:
        """The first log file of a partition."""
        return self._folder / "data" / f"{topic}-{partition}" / f"{0:020d}.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start, or start again with the same data. Returns when the broker answers. Raises KafkaUnavailable."""
        # what the JVM unpacks and measures goes with the folder, also after a kill -9
        own = ["-XX:-UsePerfData", *self._brief, f"-Djava.io.tmpdir={self._folder}"]
        java = [find_java(), *own, "-cp", f"{fetch_libraries()}/*"]
        properties = self._folder / "server.properties"
        if not properties.exists():
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
            identity = (
                "P" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
            )  # "-" in front: an option
            form = [
                *java,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                identity,
                "-c",
                str(properties),
                *self._format_options(),
            ]
            subprocess.run(form, check=True, capture_output=True, timeout=READY_S)
        with (self._folder / "broker.log").open("ab") as log:
            command = [*java, self._heap, "kafka.Kafka", str(properties)]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._wait_until_ready()
        return self

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 15 s. Keeps the data, so that `start` may follow."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop, and remove the folder if it is ours."""
        self._admin = None
        self.stop()
        if self._own:
            shutil.rmtree(self._folder, ignore_errors=True)

    def create_topics(self, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
        """Make topics (name to partitions), all with the same config; returns when the broker knows them."""
        if self._admin is None:  # held: a client that is collected takes its open requests with it
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
        wanted = [NewTopic(name, partitions, 1, config=dict(config or {})) for name, partitions in topics.items()]
        for future in self._admin.create_topics(wanted, request_timeout=60).values():
            future.result(60)
        deadline = time.monotonic() + 60
        while not topics.keys() <= self._admin.list_topics(timeout=60).topics.keys():
            if time.monotonic() > deadline:
                raise KafkaUnavailable(f"topics did not appear: {', '.join(topics)}")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self._ports[0])) == 0:
                    return
            time.sleep(0.02)
        tail = (self._folder / "broker.log").read_text(errors="replace")[-2000:]
        self.kill()
        raise KafkaUnavailable(f"Apache Kafka did not start within {READY_S:.0f} s:\n{tail}")

    def _format_options(self) -> list[str]:
        """Further words for `kafka-storage format`."""
        return []

    def _settings(self) -> dict[str, str]:
        """The broker's properties."""
        port, controller = self._ports[:2]
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self._folder / "data"),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            # The last three make tests fast: 3 s, 50 partitions and 50 partitions by default.
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "auto.create.topics.enable": "false",
        }


def find_java() -> str:
    java = shutil.which("java")
    if java is None:
        raise KafkaUnavailable(
            "Apache Kafka needs Java 17 or newer: install a JRE, or set PALISADE_TEST_KAFKA=host:port"
        )
    return java


def fetch_libraries(target: Path = LIBRARIES) -> Path:
    """The folder with Kafka's jars; fetched by Maven when it is not there. Safe when several processes ask."""
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("Apache Kafka's jars need Maven once: install mvn, or set PALISADE_TEST_KAFKA=host:port")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kafka-libs-", dir=target.parent) as folder:
        (Path(folder) / "pom.xml").write_text(POM)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"]
        done = subprocess.run([maven, "-q", "-B", *goal], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise KafkaUnavailable(f"Maven could not fetch Kafka {VERSION}:\n{(done.stdout + done.stderr)[-2000:]}")
        try:
            os.rename(Path(folder) / "libs", target)
        except OSError:
            if not target.is_dir():  # somebody else was first: that is fine
                raise
    return target
