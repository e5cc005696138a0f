"""Drives worker processes, and checks from outside what they did."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.transport.worker import Spec, main

# A server that has imported everything forks the workers: a second of CPU less for each of them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.transport.worker"])


class Worker:
    """A worker process; what it says goes to a file."""

    def __init__(self, spec: Spec, said: Path) -> None:
        self._process = PROCESSES.Process(target=_work, args=(spec, str(said)))
        self._process.start()

    def kill(self) -> None:
        """kill -9, and wait."""
        self._process.kill()
        self._process.join()

    def stop(self, timeout: float = 120) -> int:
        """SIGTERM, and the exit code."""
        self._process.terminate()
        return self.wait(timeout)

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"did not end within {timeout} s"
        return self._process.exitcode


def _work(spec: Spec, said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(main(spec))


Seen = Mapping[TP, Counter[int]]


def fill(bootstrap: str, topic: str, partitions: int, each: int, size: int = 20) -> None:
    """Write `each` records to every partition; returns when all are confirmed."""
    failed: list[object] = []
    rest = random.Random(each).randbytes(max(0, size - 20))  # nothing that compresses to nothing
    producer = Producer(kafka_settings(KafkaConnection(bootstrap=bootstrap), "producer"))
    for number in range(each):
        for partition in range(partitions):
            while len(producer) > 50_000:
                producer.poll(0.05)
            value = f"{number:020d}".encode() + rest
            producer.produce(
                topic, value, partition=partition, on_delivery=lambda error, _: error and failed.append(error)
            )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert failed == []


def passed_over(committed: Mapping[TP, int], seen: Seen) -> dict[TP, list[int]]:
    """Offsets below a committed one that nobody has finished. Anything here is a violation of I2."""
    lost = {tp: [offset for offset in range(end) if not seen.get(tp, {}).get(offset)] for tp, end in committed.items()}
    return {tp: offsets for tp, offsets in lost.items() if offsets}


class Bench:
    """Workers on one group, with a sampler that looks for commits past unfinished offsets every 100 ms."""

    def __init__(self, spec: Spec, partitions: int) -> None:
        self.spec = spec
        self.tps = [TP(topic, partition) for topic in spec.topics for partition in range(partitions)]
        self.workers: list[Worker] = []
        self.violations: list[dict[TP, list[int]]] = []
        self.samples = 0
        self.moved_back: list[tuple[TP, int, int]] = []
        self._halt = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._probe = Consumer(kafka_settings(KafkaConnection(bootstrap=spec.bootstrap), "consumer", group=spec.group))
        self._reading = threading.Lock()
        self._seen: dict[TP, Counter[int]] = {}
        self._read: dict[Path, tuple[int, list[dict[str, Any]]]] = {}

    def start(self) -> Worker:
        self.workers.append(Worker(self.spec, Path(self.spec.out) / f"said-{len(self.workers)}"))
        return self.workers[-1]

    def events(self) -> list[dict[str, Any]]:
        """Every complete line so far."""
        self._read_on()
        return [line for _, lines in self._read.values() for line in lines]

    def seen(self) -> dict[TP, Counter[int]]:
        """How often each offset was finished, by all workers together."""
        self._read_on()
        return self._seen

    def _read_on(self) -> None:
        with self._reading:
            for path in Path(self.spec.out).glob("*.jsonl"):
                position, lines = self._read.setdefault(path, (0, []))
                with path.open("rb") as file:
                    file.seek(position)
                    whole = file.read().rpartition(b"\n")[0]
                for line in map(json.loads, whole.split(b"\n") if whole else ()):
                    lines.append(line)
                    if line["event"] == "run":
                        self._seen.setdefault(TP(line["topic"], line["partition"]), Counter()).update(line["offsets"])
                if whole:
                    self._read[path] = (position + len(whole) + 1, lines)

    def committed(self) -> dict[TP, int]:
        answers = self._probe.committed([TopicPartition(*tp) for tp in self.tps], timeout=10)
        return {TP(part.topic, part.partition): part.offset for part in answers if part.offset >= 0}

    def total(self) -> int:
        """Different offsets finished."""
        return sum(map(len, self.seen().values()))

    def until(self, condition: Callable[[], object], what: str, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s\n{self.errors()}"
            time.sleep(0.03)

    def told(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events() if line["event"] == event]

    def shares(self) -> list[int]:
        """How many partitions each worker has now, the fewest first. A group may move twice until it has settled."""
        self._read_on()
        told = (
            [line for line in lines if line["event"] in ("assigned", "revoked")] for _, lines in self._read.values()
        )
        return sorted(len(last[-1]["tps"]) if last and last[-1]["event"] == "assigned" else 0 for last in told)

    def one_round_within(self, tp: TP, reports: int, bound_ms: float) -> bool:
        """Sends reports, 100 a second, and waits for them: whether 99 of 100 were worked on within the bound.

        A machine that is busy with something else makes a round slower than the product is, never faster.
        """
        begin = len(self.seen().get(tp, ()))
        settings = kafka_settings(
            KafkaConnection(bootstrap=self.spec.bootstrap), "producer", overrides={"linger.ms": 0}
        )
        producer = Producer(settings)
        for _ in range(reports + 1):
            producer.produce(tp.topic, b"r", partition=tp.partition)
            assert producer.flush(60) == 0
            time.sleep(0.01)
        self.until(lambda: len(self.seen().get(tp, ())) == begin + reports + 1, "reports read")
        runs = [line for line in self.told("run") if line["topic"] == tp.topic and line["offsets"][0] >= begin]
        delays = sorted(line["delay"] for line in runs)[:-1]  # without the producer's first
        return bool(delays[int(len(delays) * 0.99)] < bound_ms)

    def all_seen(self, each: int) -> Callable[[], bool]:
        return lambda: self.total() >= each * len(self.tps)

    def errors(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in Path(self.spec.out).glob("said-*"))

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self.workers:
            worker.kill()
        self._halt.set()
        self._sampler.join()
        self._probe.close()

    def _sample(self) -> None:
        last: dict[TP, int] = {}
        while not self._halt.wait(0.1):
            try:
                committed = self.committed()  # first the commits, then the files: a violation is proof
            except KafkaException:
                continue
            self.samples += 1
            self.moved_back += [(tp, last[tp], end) for tp, end in committed.items() if end < last.get(tp, 0)]
            last = committed
            if lost := passed_over(committed, self.seen()):
                self.violations.append(lost)


def exactly(tps: Iterable[TP], each: int) -> dict[TP, int]:
    """The committed offsets of a log that was read to its end."""
    return dict.fromkeys(tps, each)
