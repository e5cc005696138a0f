"""A flood of real predictions, sent by a process of its own: `python -m tests.integration.flooding BOOTSTRAP TOPIC MEGABYTES`.

Small JSON events, arrays and Arrow batches up to the size limit, plain and compressed; among them shifted features, odd
values and rows that are refused. Prints {"sent": records} when the broker has all.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from schemas.events import MAX_RECORD_BYTES
from streams.transport.settings import KafkaConnection, kafka_settings

ENDPOINT, VERSION = "credit", "v1"
NUMERIC = 19
PLANS = ["free", "basic", "pro"]
SHIFT = 2.5


def features(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Columns of the training table and of what is sent."""
    columns: dict[str, Any] = {f"f{n}": rng.normal(100, 15, rows).round(3) for n in range(NUMERIC)}
    return columns | {"plan": rng.choice(PLANS, rows, p=[0.6, 0.3, 0.1])}


def events(rng: np.random.Generator, rows: int, odd: float = 0.0) -> list[dict[str, Any]]:
    """`odd`: the share of rows, all of one caller, that lack a feature and bring one that nobody knows."""
    columns = features(rng, rows)
    made = []
    for row, caller in enumerate(rng.integers(0, 200, rows).tolist()):
        values = {name: column[row].item() for name, column in columns.items()}
        is_odd = rng.random() < odd
        if is_odd:
            values["never_seen"] = values.pop("f0")
        name = "odd-one" if is_odd else f"c{caller}"
        made.append({"endpoint": ENDPOINT, "model_version": VERSION, "caller": name, "caller_auth": "verified",
                     "features": values, "prediction": 0.5, "latency_ms": 3.0, "request_id": f"r{row}"})  # fmt: skip
    return made


def arrow(rng: np.random.Generator, rows: int, compression: str | None = None, shift: float = 1.0) -> bytes:
    columns = features(rng, rows)
    columns["f1"] = columns["f1"] * shift
    callers = pa.array([f"c{n}" for n in rng.integers(0, 200, rows).tolist()])
    ids = {"endpoint": pa.array([ENDPOINT] * rows), "model_version": pa.array([VERSION] * rows), "caller": callers}
    table = pa.table(ids | {f"features.{name}": column for name, column in columns.items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def array(made: list[dict[str, Any]]) -> bytes:
    return b"[" + b",".join(json.dumps(event).encode() for event in made) + b"]"


def records(rng: np.random.Generator) -> Iterator[bytes]:
    """Without end. A round of it is some 10 MB: singles, large records, then hostile ones."""
    single = [json.dumps(event).encode() for event in events(rng, 2_000)]
    large = [
        array(events(rng, 1_900)),
        arrow(rng, 5_500),
        arrow(rng, 10_000, "zstd"),
        arrow(rng, 5_000, "lz4", SHIFT),
        arrow(rng, 64),
    ]
    nan = json.dumps(events(rng, 1)[0] | {"latency_ms": float("nan")}).encode()
    hostile = [array(events(rng, 1_500, odd=0.5)), *[nan] * 500, *[b'{"endpoint": 1}'] * 300, array([{}] * 10_000)]
    assert max(map(len, [*large, *hostile])) <= MAX_RECORD_BYTES
    yield from cycle([*single, *large, *single, *large[:3], *hostile])


def main() -> int:
    bootstrap, topic, megabytes = sys.argv[1:]
    settings = kafka_settings(KafkaConnection(bootstrap=bootstrap), "producer")
    producer = Producer(settings | {"linger.ms": 5, "message.max.bytes": 1_100_000})
    sent, left = 0, int(megabytes) << 20
    for value in records(np.random.default_rng(5)):
        if left <= 0:
            break
        while True:
            try:
                producer.produce(topic, value, ENDPOINT.encode(), partition=0)
                break
            except BufferError:
                producer.poll(0.05)
        sent, left = sent + 1, left - len(value)
    assert producer.flush(120) == 0
    sys.stdout.write(json.dumps({"sent": sent}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
