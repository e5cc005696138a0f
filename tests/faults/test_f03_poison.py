"""F3: bytes that nobody should send, to every topic that a role reads: one outcome each, and nobody stops."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError, Message, Producer

from schemas.deadletter import DeadLetter
from schemas.topics import (
    COMMANDS,
    DEAD_LETTERS,
    FEEDBACK,
    LABELLED,
    PREDICTIONS,
    REPORTS,
    REQUESTS,
    RESPONSES,
    SIGNALS,
)
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from streams.transport.settings import kafka_settings
from tests.faults.ground import Ground
from tests.faults.load import GUARDED, PLAIN, VERSION
from tests.faults.outages import await_beats
from tests.faults.stage import PARTITIONS, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.fault("F3")]

KINDS: Mapping[str, str] = {
    PREDICTIONS: "prediction",
    REQUESTS: "request",
    RESPONSES: "response",
    REPORTS: "report",
    FEEDBACK: "feedback",
    LABELLED: "labelled",
    SIGNALS: "signal",
    COMMANDS: "command",
}
"""The topics that a role reads as input, and the kind of record that each holds."""
CLOUDEVENT = "application/cloudevents+json"
BETWEEN = 4
"""Beats of the load between two poisons."""
Headers = list[tuple[str, str | bytes | None]]
Place = tuple[str, int, int]


class Poison(NamedTuple):
    """One record that must be refused. `headers` come on top of its kind."""

    name: str
    value: bytes | None
    headers: tuple[tuple[str, str], ...] = ()


def _arrow(**columns: object) -> bytes:
    table, sink = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def poisons() -> Iterator[Poison]:
    about = f'{{"endpoint": "{GUARDED}", "request_id": "p", "caller": '.encode()
    stream = _arrow(endpoint=[GUARDED] * 50, caller=["mallory"] * 50)
    arrow, json_type = ((CONTENT_TYPE_HEADER, ARROW_TYPE),), ((CONTENT_TYPE_HEADER, JSON_TYPE),)
    yield Poison("bytes", bytes(range(256)) * 4)
    yield Poison("no json", about, json_type)
    yield Poison("deep json", about + b"[" * 100_000 + b"]" * 100_000 + b"}", json_type)
    yield Poison("deep json in an unknown field", b'{"x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}")
    yield Poison("2 MB", about + b'"' + b"x" * 2_000_000 + b'"}', json_type)
    yield Poison("a lone surrogate", about + b'"\\ud800"}', json_type)
    yield Poison("broken utf-8", about + b'"\xed\xa0\x80"}', json_type)
    yield Poison("no object", b"17", json_type)
    yield Poison("nothing", b"")
    yield Poison("a tombstone", None)
    yield Poison("arrow cut short", stream[: len(stream) // 2], arrow)
    yield Poison("arrow that is none", b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x07" * 64, arrow)
    yield Poison("arrow of other columns", _arrow(blob=[b"\x00" * 9]), arrow)
    yield Poison("arrow that claims 2^60 rows", stream.replace((50).to_bytes(8, "little"), (1 << 60).to_bytes(8, "little")), arrow)  # fmt: skip
    yield Poison("json that says arrow", b'{"endpoint": "credit"}', arrow)
    yield Poison("cloudevent cut short", b'{"specversion": "1.0", "id"', ((CONTENT_TYPE_HEADER, CLOUDEVENT),))
    yield Poison("cloudevent without data", b'{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}', ((CONTENT_TYPE_HEADER, CLOUDEVENT),))  # fmt: skip
    yield Poison(
        "binary cloudevent",
        b'{"instances": [[[[',
        (("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "s"), ("ce_type", "org.kubeflow.serving.inference.request")),
    )  # fmt: skip
    yield Poison("another kind", b"{}", ((KIND_HEADER, "no-such-kind"),))


class Sender:
    """Writes records of any size and headers, and notes where they lie."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        settings = kafka_settings(stage.connection, "producer") | {"message.max.bytes": 4_000_000, "linger.ms": 0}
        self._producer = Producer(settings)
        self.places: dict[Place, str] = {}

    def send(self, topic: str, key: str, value: bytes | None, name: str, headers: Headers) -> None:
        def told(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            place = (topic, int(message.partition() or 0), int(message.offset() or 0))
            self.places[place] = f"{name} on {topic}"
            at = dict(zip(("topic", "partition", "offset"), place, strict=True))
            self._stage.load.sent.append(at | {"rows": 1, "producer": "poison"})

        self._producer.produce(topic, value, key.encode(), headers=headers, on_delivery=told)
        assert self._producer.flush(60) == 0


def test_poison_on_every_topic_is_one_dead_letter_each_and_stops_nobody(ground: Ground) -> None:
    with ground.stage() as stage:
        stage.load.start()
        refused = poisoned(stage, ground)
        stage.settle()
        assert stage.ended == []
        assert letters_amiss(stage, refused) == {}
        stage.prove()


def poisoned(stage: Stage, ground: Ground) -> dict[Place, str]:
    """Each poison to each topic; returns what each is called that must end as a dead letter, as it has by now."""
    ended = list(stage.ended)
    sender = Sender(stage)
    for number, poison in enumerate(poisons()):
        for topic, kind in KINDS.items():
            told = [name for name, _ in poison.headers]
            headers: Headers = [*poison.headers] if KIND_HEADER in told else [(KIND_HEADER, kind), *poison.headers]
            sender.send(topic, GUARDED, poison.value, poison.name, headers)
            ground.made()
        _odd_numbers(sender, number)
        await_beats(stage, BETWEEN)
    refused = {place: name for place, name in sender.places.items() if not name.startswith("taken")}
    until(lambda: refused.keys() <= _letters(stage).keys(), "a dead letter of each", 120, 0.5)
    assert stage.ended == ended  # nobody was restarted
    return refused


def letters_amiss(stage: Stage, refused: Mapping[Place, str]) -> dict[str, int]:
    """What has not one dead letter, and how many it has."""
    letters = _letters(stage)
    return {name: letters[place] for place, name in refused.items() if letters[place] != 1}


def _odd_numbers(sender: Sender, number: int) -> None:
    """What JSON should not hold and a service may well send: NaN, infinity, numbers of 400 digits. It is taken as missing."""
    odd = ("NaN", "-Infinity", "1e999", "9" * 400)[number % 4]
    about = {"model_version": VERSION, "caller": "odd", "request_id": f"odd-{number}"}
    features = '{"income": ODD, "debt": 110.0, "age": 120.0, "score": 130.0, "plan": "free"}'.replace("ODD", odd)

    def event(endpoint: str, more: str) -> bytes:
        return (json.dumps({"endpoint": endpoint} | about)[:-1] + more + "}").encode()

    for topic, endpoint, more in (
        (PREDICTIONS, GUARDED, f', "features": {features}, "prediction": 0.5'),
        (REQUESTS, PLAIN, f', "features": {features}'),
        (RESPONSES, PLAIN, f', "prediction": {odd}, "status": "ok"'),
    ):
        key = GUARDED if topic == PREDICTIONS else f"odd-{number}"
        sender.send(topic, key, event(endpoint, more), "taken", [(KIND_HEADER, KINDS[topic])])


def _letters(stage: Stage) -> Counter[Place]:
    """How many dead letters lie there of each record."""
    found: Counter[Place] = Counter()
    for partition in range(PARTITIONS):
        for message in read_to_end(stage.connection, DEAD_LETTERS, partition):
            if header_of(headers_of(message), KIND_HEADER) == DeadLetter.KIND.encode():
                letter: DeadLetter = DeadLetter.from_bytes(message.value() or b"")
                found[letter.log_topic, letter.log_partition, letter.log_offset] += 1
    return found
