"""The audit is killed while it joins labels: each feedback is labelled exactly once for whoever reads the log of labels."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Producer

from schemas.feedback import Labelled
from schemas.topics import FEEDBACK, LABELLED, PREDICTIONS
from streams.embedded_broker import FETCH_WAIT_MS
from streams.reading import read_to_end
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.audit.labelling import once
from tests.palisade.conftest import Stack
from tests.support.waiting import until as until_within

pytestmark = pytest.mark.slow
COUNT, CHUNKS = 3_000, 6
DEADLINE_S = 180
until = partial(until_within, within_s=DEADLINE_S)


def test_each_feedback_is_labelled_once_however_often_the_audit_is_killed(stack: Stack) -> None:
    connection = KafkaConnection(bootstrap=stack.dev.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)
    producer = Producer(kafka_settings(connection, "producer"))

    def send(topic: str, events: list[dict[str, Any]]) -> None:
        for first in range(0, len(events), 100):
            producer.produce(topic, json.dumps(events[first : first + 100]).encode(), b"credit", partition=0)
        producer.flush(20)

    def said() -> list[Labelled]:
        return [Labelled.from_bytes(message.value() or b"") for message in read_to_end(connection, LABELLED, 0)]

    def answered(numbers: range) -> list[dict[str, Any]]:
        return [{"endpoint": "credit", "features": {"a": n}, "request_id": f"r{n}", "prediction": n} for n in numbers]

    def true(numbers: range) -> list[dict[str, Any]]:
        return [{"endpoint": "credit", "request_id": f"r{n}", "label": n} for n in numbers]

    size = COUNT // CHUNKS
    for chunk in range(CHUNKS):
        numbers = range(chunk * size, (chunk + 1) * size)
        pair = [(PREDICTIONS, answered(numbers)), (FEEDBACK, true(numbers))]
        for topic, events in reversed(pair) if chunk % 2 else pair:  # every other time the labels overtake
            send(topic, events)
        if chunk in (1, 3):
            before = len(said())
            until(lambda before=before: len(said()) > before, "some labels")
            stack.supervisor.kill("audit")

    def all_of_them() -> bool:
        return {one.label for one in said()} >= set(range(COUNT))

    until(all_of_them, f"all labels; see {stack.supervisor.log('audit')}")
    kept = once(said())
    assert [one.label for one in kept] == list(range(COUNT))
    assert all(one.prediction == one.label for one in kept)
    assert [name for name, _ in stack.ended] == ["audit", "audit"]
