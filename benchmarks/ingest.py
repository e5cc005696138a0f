"""Requests and responses paired a second on one core: `make bench-ingest`.

One ingest worker, as `palisade worker ingest` starts it, on one core of its own; Apache Kafka on the others; commits, reports
and metrics on. Both logs are written before the worker starts, 20 features a request, responses shuffled among the next 500.
An event is one prediction, made of a request *and* a response: two records, or two rows of arrays. Cost is CPU seconds of the worker, all threads, from the moment it
has its partitions until it has committed the end of both logs. Every request must be one prediction, else the figures are
void. `plain_loop`: what confluent-kafka and `json.loads`, a record at a time, take to read the same two logs and to put responses
to requests in a dictionary; nothing is redacted, written, counted or committed. `ratio` is that cost over the worker's, so that a
slow or busy machine does not tell. `flat`: requests alone, without end; memory must stay below the worker's bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from palisade.dev import prepare
from palisade.supervisor import python_module
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.admin import create_topics
from streams.ingest.predictions import INGEST_HEADER
from streams.ingest.written import ReadBack
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable

PARTITIONS = 1
FEATURES = 20
CALLERS = 200
SHUFFLED = 500
EXPECTED_PER_S = 50_000
DEADLINE_S = 300.0
FLAT_MB = 420
"""What a worker may weigh when responses never come: 64 MB that wait, 32 MB read and 16 MB prefetched, up to 64 MB on their
way out, and Python with its libraries. Measured: 366 MB after 300,000 requests and after 900,000."""
_TICKS = os.sysconf("SC_CLK_TCK")


class CouldNotRun(RuntimeError):
    """The benchmark could not be done, or its figures are void; the message says why."""


@dataclass(frozen=True)
class Result:
    """One load. cpu_s_per_million: of the worker, all threads. rss_mb: its highest."""

    events: int
    events_per_s: float
    cpu_s_per_million: float
    rss_mb: float


def write(connection: KafkaConnection, events: int, together: int, *, answered: bool = True) -> None:
    """Requests and responses, `together` in a record (1: single JSON events)."""
    producer = Producer(kafka_settings(connection, "producer") | {"linger.ms": 50})
    random = np.random.default_rng(1)
    order = np.argsort(np.arange(events) + random.uniform(0, SHUFFLED, events))
    for first in range(0, events, 10_000):
        rows = range(first, min(first + 10_000, events))
        values = random.normal(100, 15, (len(rows), FEATURES)).round(4)
        asked = [_request(number, row) for number, row in zip(rows, values.tolist(), strict=True)]
        _produce(producer, REQUESTS, asked, together)
        if answered:
            answers = [_response(int(number)) for number in order[first : first + len(rows)]]
            _produce(producer, RESPONSES, answers, together)
    if producer.flush(60):
        raise CouldNotRun("the broker did not take the log")


def _request(number: int, row: list[float]) -> bytes:
    return json.dumps({
        "endpoint": "credit", "request_id": f"svc-{number}", "producer": "svc", "caller": f"c{number % CALLERS}",
        "ts": int(time.time() * 1000), "features": {f"feature_{at}": value for at, value in enumerate(row)},
    }).encode()  # fmt: skip


def _response(number: int) -> bytes:
    return json.dumps({
        "request_id": f"svc-{number}", "endpoint": "credit", "producer": "svc", "prediction": number % 1000 / 1000,
        "latency_ms": 3.25, "model_version": "v1",
    }).encode()  # fmt: skip


def _produce(producer: Producer, topic: str, events: list[bytes], together: int) -> None:
    records = events if together == 1 else [
        b"[" + b",".join(events[at : at + together]) + b"]" for at in range(0, len(events), together)
    ]  # fmt: skip
    for record in records:
        while True:
            try:
                producer.produce(topic, record, b"svc")
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)


def plain_loop(connection: KafkaConnection, events: int) -> float:
    """CPU seconds a million events of the loop that everybody writes first, all threads. Raises CouldNotRun."""
    consumer = Consumer(kafka_settings(connection, "consumer", group="plain-loop"))
    waiting: dict[str, dict[str, Any]] = {}
    paired, began, deadline = 0, time.process_time(), time.monotonic() + DEADLINE_S
    for topic in (REQUESTS, RESPONSES):
        consumer.assign([TopicPartition(topic, 0, 0)])
        read = 0
        while read < events:
            message = consumer.poll(1.0)
            if time.monotonic() > deadline:
                raise CouldNotRun("the plain loop did not come to the end of its logs")
            if message is None or message.error() is not None:
                continue
            read += 1
            event = json.loads(message.value() or b"")
            if topic == REQUESTS:
                waiting[event["request_id"]] = event
            elif (request := waiting.pop(event["request_id"], None)) is not None:
                paired += len(request | event) > 0
    consumer.close()
    if paired != events:
        raise CouldNotRun(f"the plain loop paired {paired} of {events}")
    return round((time.process_time() - began) / events * 1e6, 2)


def measure(events: int, together: int, *, answered: bool = True) -> tuple[Result, float | None]:
    """One load on a broker of its own, and the plain loop's cost where records are single events. Raises CouldNotRun."""
    with ApacheKafka(lasts=True) as broker, tempfile.TemporaryDirectory() as folder:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        create_topics(connection, PARTITIONS, 1)
        config = PalisadeConfig(
            kafka=KafkaConfig(partitions=PARTITIONS), endpoints=(EndpointConfig(name="credit", guard=False),)
        )
        stack = prepare(Path(folder), config, None, broker.bootstrap, embedded=False)
        write(connection, events, together, answered=answered)
        result = _run(connection, stack.config_path, events, answered=answered)
        if answered:
            _check(connection, events)
        plain = plain_loop(connection, events) if answered and together == 1 else None
    return result, plain


def _run(connection: KafkaConnection, config: Path, events: int, *, answered: bool) -> Result:
    cores = sorted(os.sched_getaffinity(0))
    command = python_module("palisade.cli.main", "worker", "ingest", "--config", str(config))
    worker = subprocess.Popen(
        ["taskset", "-c", str(cores[-1]), *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert worker.stdout is not None
    try:
        worker.stdout.readline()
        began, spent = time.monotonic(), _cpu_s(worker.pid)
        rss = _until_committed(connection, worker, answered=answered)
        wall, cpu = time.monotonic() - began, _cpu_s(worker.pid) - spent
    finally:
        worker.terminate()
        worker.wait(40)
    return Result(events, round(events / wall), round(cpu / events * 1e6, 2), round(rss, 1))


def _until_committed(connection: KafkaConnection, worker: subprocess.Popen[bytes], *, answered: bool) -> float:
    """Waits until all is paired and committed, or (answered False) all is read and written; returns the highest RSS, MB."""
    consumer = Consumer(kafka_settings(connection, "consumer", group="palisade.ingest"))
    asked = TopicPartition(REQUESTS, 0)
    end = consumer.get_watermark_offsets(asked, timeout=10)[1]
    rss, steady, deadline = 0.0, 0, time.monotonic() + DEADLINE_S
    before = -1
    while True:
        if worker.poll() is not None or time.monotonic() > deadline:
            raise CouldNotRun("the worker ended, or did not come to the end of its logs")
        rss = max(rss, _rss_mb(worker.pid))
        done = consumer.committed([asked], timeout=10)[0].offset
        steady = steady + 1 if done == before else 0
        before = done
        if done >= end or (not answered and steady > 20 and done > 0):
            consumer.close()
            return rss
        time.sleep(0.1)


def _check(connection: KafkaConnection, events: int) -> None:
    found = ReadBack(connection, PARTITIONS).places(0, 0).places
    rows = sum(
        1 for m in read_to_end(connection, PREDICTIONS, 0) if header_of(headers_of(m), INGEST_HEADER) is not None
    )
    counts = {topic: len(places) for topic, places in found.items()}
    if not rows or counts != {REQUESTS: events, RESPONSES: events}:
        raise CouldNotRun(f"of {events} requests and responses {counts} became predictions, in {rows} records")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Prints one line of JSON; exit status 1 where an expectation is missed, 2 where it could not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    events = parser.parse_args().events
    try:
        single, plain = measure(events, 1)
        arrays, _ = measure(events, 100)
        flat, _ = measure(events, 100, answered=False)
    except (CouldNotRun, KafkaUnavailable) as error:
        sys.stderr.write(f"bench-ingest could not run: {error}\n")
        raise SystemExit(2) from None
    slowest = min(single.events_per_s, arrays.events_per_s)
    dearest = max(single.cpu_s_per_million, arrays.cpu_s_per_million)
    passed = slowest >= EXPECTED_PER_S and flat.rss_mb <= FLAT_MB
    line = {
        "event": "one prediction, made of a request and a response", "json": asdict(single), "json-arrays": asdict(arrays),
        "flat": asdict(flat), "events_per_s": slowest, "cpu_s_per_million": dearest, "plain_loop_cpu_s_per_million": plain,
        "ratio": round((plain or 0.0) / single.cpu_s_per_million, 2), "unanswered_rss_mb": flat.rss_mb,
        "expected": EXPECTED_PER_S, "passed": passed,
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
