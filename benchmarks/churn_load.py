"""The load of `benchmarks.churn`: every name that a stranger can make up, new each time, at a steady rate.

A second holds 10,000 rows of predictions of one endpoint, 1,670 predictions of endpoints that nobody configured, 4,000
requests (half of them answered), 20 signed reports of guards that are heard of once with 100 callers each, and 100 pieces of
feedback. No caller, producer, request id, source, guard or unknown endpoint comes twice; versions, labels and names of
features are made up, too, in a tenth of the rows that stand alone. That is 17,000 callers and 1,670 endpoints a second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from responders.signing import SigningKey
from schemas.events import Report
from schemas.topics import FEEDBACK, PREDICTIONS, REPORTS, REQUESTS, RESPONSES
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, KIND_HEADER
from streams.transport.settings import KafkaConnection, kafka_settings

WATCHED, PLAIN = "credit", "orders"
"""The endpoint with a Guard, and the one whose service writes requests and responses."""
VERSION = "v1"
STEPS_PER_S = 10
FULL_S = 60.0
ROWS, STRANGERS, ASKED, REPORTS_OUT, REPORTED, LABELS = 1_000, 167, 400, 2, 100, 10
"""In one step."""
CALLERS_PER_STEP = ROWS + STRANGERS + ASKED + REPORTS_OUT * REPORTED
FEATURES = 8


def ordinary(rows: int, seed: int = 2) -> dict[str, pa.Table]:
    """What either endpoint is asked, as training tables with a column `answer`."""
    random = np.random.default_rng(seed)
    numbers = {f"f{n}": random.normal(100, 15, rows) for n in range(FEATURES)}
    asked = {"amount": np.arange(rows) % ASKED / 7, "country": [f"word-{n}" for n in range(rows)]}
    return {
        WATCHED: pa.table(numbers | {"answer": random.uniform(size=rows)}),
        PLAIN: pa.table(asked | {"answer": np.full(rows, 0.5)}),
    }


class Churn:
    """Makes up names without end. `send(topic, key, value, headers, rows)`."""

    def __init__(self, run: str, key: SigningKey, send: Callable[..., None]) -> None:
        self._run = run
        self._key = key
        self._send = send
        self._number = count()
        self._boot = count()
        self._random = np.random.default_rng(1)

    def step(self) -> None:
        """A tenth of a second."""
        now_ms = int(time.time() * 1000)
        self._rows(now_ms)
        self._strangers(now_ms)
        self._requests(now_ms)
        for _ in range(REPORTS_OUT):
            self._report(now_ms)
        self._feedback()

    def _names(self, prefix: str, many: int) -> list[str]:
        return [f"{prefix}-{self._run}-{next(self._number):08x}" for _ in range(many)]

    def _rows(self, now_ms: int) -> None:
        """One Arrow batch of the watched endpoint."""
        values = self._random.normal(100, 15, (FEATURES, ROWS))
        callers = self._names("c", ROWS)
        columns = {
            "endpoint": pa.array([WATCHED] * ROWS),
            "features": pa.StructArray.from_arrays(list(map(pa.array, values)), names=[f"f{n}" for n in range(FEATURES)]),
            "request_id": pa.array(callers),
            "producer": pa.array(callers),
            "model_version": pa.array([VERSION] * ROWS),
            "caller": pa.array(callers),
            "caller_auth": pa.array(["verified"] * ROWS),
            "ts": pa.array([now_ms] * ROWS),
            "prediction": pa.array(self._random.uniform(size=ROWS)),
        }  # fmt: skip
        table, sink = pa.table(columns), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        headers = [(KIND_HEADER, b"prediction"), (CONTENT_TYPE_HEADER, ARROW_TYPE.encode())]
        self._send(PREDICTIONS, WATCHED.encode(), bytes(sink.getvalue()), headers, ROWS)

    def _strangers(self, now_ms: int) -> None:
        """Single events of endpoints that nobody configured; a tenth of known ones with odd versions, labels and features."""
        for at, name in enumerate(self._names("e", STRANGERS)):
            event = {
                "endpoint": name, "caller": f"of-{name}", "producer": name, "request_id": name, "ts": now_ms,
                "features": {"amount": 1.0}, "prediction": 0.5,
            }  # fmt: skip
            if at % 10 == 0:
                event |= {"endpoint": WATCHED, "model_version": f"v-{name}", "prediction": f"label-{name}"}
                event["features"] = {f"feature-{name}": 1.0, "amount": f"word-{name}"}
            endpoint = str(event["endpoint"])
            self._send(PREDICTIONS, endpoint.encode(), json.dumps(event).encode(), [(KIND_HEADER, b"prediction")], 1)
            if at % 10 == 1:
                report = self._counts(name, [], now_ms).to_bytes()
                self._send(REPORTS, name.encode(), report, [(KIND_HEADER, b"report")], 1)

    def _requests(self, now_ms: int) -> None:
        names = self._names("r", ASKED)
        asked = [
            {
                "endpoint": PLAIN if at % 10 else name, "request_id": name, "producer": name, "caller": f"of-{name}",
                "ts": now_ms, "features": {"amount": at / 7, "country": f"word-{name}"},
            }
            for at, name in enumerate(names)
        ]  # fmt: skip
        answered = [
            {
                "request_id": name,
                "producer": name,
                "prediction": 0.5,
                "model_version": f"v-{name}" if at % 10 else VERSION,
            }
            for at, name in enumerate(names[: ASKED // 2])
        ]
        self._send(REQUESTS, b"service", json.dumps(asked).encode(), [], len(asked))
        self._send(RESPONSES, b"service", json.dumps(answered).encode(), [], len(answered))

    def _report(self, now_ms: int) -> None:
        report = self._counts(WATCHED, self._names("c", REPORTED), now_ms)
        value = report.to_bytes()
        headers = [(KIND_HEADER, b"report"), *self._key.headers(Report.KIND, value)]
        self._send(REPORTS, WATCHED.encode(), value, headers, 1)

    def _counts(self, endpoint: str, callers: list[str], now_ms: int) -> Report:
        guard = f"g-{self._run}-{next(self._boot):08x}"
        counts = [{"caller": name, "caller_auth": "verified", "asked": 1, "served": 1} for name in callers]
        routes = [{"route": "primary", "version": "v1", "served": len(callers), "latency": [len(callers)]}]
        return Report.model_validate({
            "endpoint": endpoint, "guard_id": guard, "boot_id": guard, "seq": 0, "from_ms": now_ms - 1_000,
            "to_ms": now_ms, "live_version": "v1", "asked": len(callers), "distinct_callers": len(callers),
            "callers": counts, "routes": routes, "fallback_ok": True,
        })  # fmt: skip

    def _feedback(self) -> None:
        for name in self._names("s", LABELS):
            label = {"endpoint": WATCHED, "request_id": name, "label": f"label-{name}", "source": name}
            self._send(FEEDBACK, WATCHED.encode(), json.dumps(label).encode(), [], 1)


def main() -> None:
    """`churn_load BOOTSTRAP PRODUCER_KEY SECONDS THEN`: a minute at the full rate, the rest at a share of it; the last line says
    how many callers and endpoints were made up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("key")
    parser.add_argument("seconds", type=float)
    parser.add_argument("then", type=float)
    given = parser.parse_args()
    producer = Producer(kafka_settings(KafkaConnection(bootstrap=given.bootstrap), "producer") | {"linger.ms": 20})

    def send(topic: str, key: bytes, value: bytes, headers: list[tuple[str, str | bytes | None]], _rows: int) -> None:
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
                return
            except BufferError:
                producer.poll(0.1)

    churn = Churn(f"{time.time_ns() & 0xFFFFFF:x}", SigningKey.load(given.key), send)
    began, steps = time.monotonic(), 0
    while (passed := time.monotonic() - began) < given.seconds:
        due = STEPS_PER_S * (min(passed, FULL_S) + max(0.0, passed - FULL_S) * given.then)
        if steps < due:
            churn.step()
            steps += 1
        producer.poll(0.0 if steps < due else 0.01)
    left = producer.flush(60)
    said = {
        "seconds": round(time.monotonic() - began, 1),
        "callers": steps * CALLERS_PER_STEP,
        "endpoints": steps * STRANGERS,
    }
    sys.stdout.write(json.dumps(said | {"unsent": left}) + "\n")


if __name__ == "__main__":
    main()
