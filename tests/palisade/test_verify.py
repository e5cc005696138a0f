"""`palisade verify run` on a run that really happened: all of it holds, until somebody writes another outcome."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from palisade.verify.history import History
from schemas.topics import PREDICTIONS, VERDICTS
from schemas.verdicts import VERDICT_ROWS, VERDICT_ROWS_KIND
from schemas.wire import KIND_HEADER
from streams.embedded_broker import FETCH_WAIT_MS
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.decode.cases import arrow_stream, as_json, event
from tests.palisade.conftest import Run, Stack
from tests.support.waiting import until as until_within

pytestmark = pytest.mark.slow
DEADLINE_S = 180
until = partial(until_within, within_s=DEADLINE_S, every_s=0.0)
ARRAY = b"[" + b",".join([as_json()] * 20 + [b"5"] + [as_json()] * 9) + b"]"
SENT = [as_json(), ARRAY, b"broken", arrow_stream([event()] * 50), b"[1, 2", as_json()]
EVENTS, DEAD = 1 + 30 + 1 + 50 + 1 + 1, 3


def another_outcome(offset: int) -> bytes:
    """A verdict that says that the first row of a record was dead-lettered."""
    columns = [[offset], [0], [1], [0], ["credit"]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, VERDICT_ROWS, strict=True)]
    meta = {"topic": PREDICTIONS, "partition": "0", "bank": "forged"}
    batch = pa.RecordBatch.from_arrays(arrays, schema=VERDICT_ROWS).replace_schema_metadata(meta)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_run_is_proven_and_one_forged_outcome_is_named(stack: Stack, palisade: Run, tmp_path: Path) -> None:
    connection = KafkaConnection(bootstrap=stack.dev.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)
    producer = Producer(kafka_settings(connection, "producer"))
    for value in SENT:
        producer.produce(PREDICTIONS, value, b"credit", partition=0)
    producer.flush(20)

    def verified() -> tuple[int, dict[str, Any], str]:
        status, out, errors = palisade("verify", "run", "--recompute", "--out", tmp_path, "--config", stack.config)
        assert status in (0, 1), errors
        return status, json.loads(out.splitlines()[-1])["verify"], out

    def all_of_it() -> tuple[int, dict[str, Any], str] | None:
        found = verified()
        told = f"{EVENTS} events: {EVENTS - DEAD} scored, {DEAD} dead-lettered, 0 in flight"
        kept = f"{2 * EVENTS - DEAD} that must be there"
        return found if told in found[2] and kept in found[2] and found[1]["I3"] != "not judged" else None

    status, said, out = until(all_of_it, "outcomes and audit of everything that was sent")
    assert status == 0, out
    assert {said[name] for name in ("I1", "I2", "I3", "I4", "I6")} == {"holds"}
    assert {said[name] for name in ("I5", "I7", "I10", "I12")} == {"not judged"}

    history = History.load(tmp_path)
    offset = next(row["offset"] for row in history["records"].to_pylist() if row["rows"] == 50)
    headers = [(KIND_HEADER, VERDICT_ROWS_KIND.encode())]
    producer.produce(VERDICTS, another_outcome(offset), partition=0, headers=headers)
    producer.flush(20)
    status, said, out = verified()

    assert status == 1
    assert said["I1"] == "violated"
    assert f"palisade.predictions[0] offset {offset} row 0 is both scored and dead-lettered" in out
    assert stack.ended == []
