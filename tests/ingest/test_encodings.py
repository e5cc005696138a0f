"""Own JSON, arrays, Arrow, CloudEvents in both modes (written by the PyPI package), bodies of inference servers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from schemas.ingest import MAX_WAIT_MS
from schemas.topics import REQUESTS, RESPONSES
from schemas.wire import KIND_HEADER
from streams.records import RawHeaders
from tests.ingest.making import NOW, Pairing, as_json, request, response


def arrow(events: list[dict[str, Any]]) -> bytes:
    batch = pa.RecordBatch.from_pylist(events)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def array(events: list[dict[str, Any]]) -> bytes:
    return json.dumps(events).encode()


@pytest.mark.parametrize("asks", [array, arrow])
@pytest.mark.parametrize("answers", [array, arrow])
def test_many_events_travel_in_one_record(asks: Any, answers: Any) -> None:
    pairing = Pairing()

    pairing.take(REQUESTS, asks([request(f"r{number}", weight=1.5) for number in range(3)]))
    pairing.take(RESPONSES, answers([response(f"r{number}", prediction=float(number)) for number in (2, 0, 1)]))

    rows = sorted(pairing.predictions, key=lambda row: row["request_id"])
    assert [(row["origin"], row["answer"], row["prediction"], row["features"]) for row in rows] == [
        (f"palisade.requests/0/0/{number}", f"palisade.responses/0/0/{at}", float(number), {"amount": 12.5, "country": "NL"})
        for number, at in ((0, 1), (1, 2), (2, 0))
    ]  # fmt: skip
    assert not pairing.letters


def test_a_kind_in_the_header_counts_more_than_the_shape() -> None:
    pairing = Pairing()
    whole = request("r1") | response("r1")

    pairing.take(REQUESTS, *as_json(whole), headers=[[(KIND_HEADER, b"request")]])
    assert not pairing.predictions
    pairing.take(RESPONSES, *as_json(whole), headers=[[(KIND_HEADER, b"response")]])

    assert [row["answer"] for row in pairing.predictions] == ["palisade.responses/0/0/0"]


KSERVE = "org.kubeflow.serving.inference"


def kafka_event(mode: Any, data: Any, **attributes: Any) -> tuple[bytes, RawHeaders]:
    """A CloudEvent as the PyPI package puts it on Kafka."""
    known = {"specversion": "1.0", "datacontenttype": "application/json"} | attributes
    message: KafkaMessage = mode(CloudEvent(known, data))
    headers = [(name, value if isinstance(value, bytes) else value.encode()) for name, value in message.headers.items()]
    value = message.value if isinstance(message.value, bytes) else str(message.value).encode()
    return value, headers


MODES = pytest.mark.parametrize("mode", [to_binary_event, to_structured_event], ids=["binary", "structured"])


@MODES
def test_cloud_events_pair_by_source_and_id(mode: Any) -> None:
    pairing = Pairing()
    for source in ("/svc/a", "/svc/b"):
        data = {"endpoint": "credit", "caller": source[-1], "features": {"amount": 1.0}}
        value, headers = kafka_event(mode, data, id="1", source=source, type="com.acme.request")
        pairing.take(REQUESTS, value, headers=[headers])
    value, headers = kafka_event(mode, {"prediction": 0.5}, id="1", source="/svc/b", type="com.acme.response")
    pairing.take(RESPONSES, value, headers=[headers])

    assert [(row["caller"], row["prediction"], row["request_id"]) for row in pairing.predictions] == [("b", 0.5, "1")]
    assert not pairing.letters


@MODES
def test_loggers_of_inference_servers_are_read_as_they_are(mode: Any) -> None:
    """KServe logs request and response with one id; V1 bodies, one row an instance."""
    pairing = Pairing()
    same = {
        "id": "9e4163ad",
        "source": "http://x/",
        "inferenceservicename": "fraud",
        "time": None,
        "endpoint": "default",
    }
    same = {name: value for name, value in same.items() if value is not None}
    asked = {"instances": [{"amount": 1.0}, {"amount": 2.0}]}
    value, headers = kafka_event(mode, asked, type=f"{KSERVE}.request", **same)
    pairing.take(REQUESTS, value, headers=[headers])
    value, headers = kafka_event(mode, {"predictions": [0.1, 0.2]}, type=f"{KSERVE}.response", **same)
    pairing.take(RESPONSES, value, headers=[headers])

    rows = [
        (row["endpoint"], row["features"]["amount"], row["prediction"], row["origin"]) for row in pairing.predictions
    ]
    assert sorted(rows) == [
        ("fraud", 1.0, 0.1, "palisade.requests/0/0/0"),
        ("fraud", 2.0, 0.2, "palisade.requests/0/0/1"),
    ]


@MODES
def test_the_open_inference_protocol_is_read(mode: Any) -> None:
    pairing = Pairing()
    same = {"id": "7", "source": "http://x/", "inferenceservicename": "fraud"}
    asked = {"id": "7", "inputs": [
        {"name": "amount", "shape": [2, 1], "datatype": "FP64", "data": [12.5, 13]},
        {"name": "country", "shape": [2], "datatype": "BYTES", "data": ["NL", "BE"]},
        {"name": "v", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]},
    ]}  # fmt: skip
    told = {"model_name": "m", "model_version": "v3", "outputs": [
        {"name": "p", "shape": [2, 2], "datatype": "FP64", "data": [0.1, 0.9, 0.2, 0.8]},
    ]}  # fmt: skip
    value, headers = kafka_event(mode, asked, type=f"{KSERVE}.request", **same)
    pairing.take(REQUESTS, value, headers=[headers])
    value, headers = kafka_event(mode, told, type=f"{KSERVE}.response", **same)
    pairing.take(RESPONSES, value, headers=[headers])

    assert [(row["features"], row["prediction"], row["model_version"]) for row in pairing.predictions] == [
        ({"amount": 12.5, "country": "NL", "v.0": 1.0, "v.1": 2.0}, [0.1, 0.9], "v3"),
        ({"amount": 13.0, "country": "BE", "v.0": 3.0, "v.1": 4.0}, [0.2, 0.8], "v3"),
    ]


def logged(side: str, body: Any) -> tuple[bytes, RawHeaders]:
    """What KServe's logger writes of a call to the model `fraud`."""
    return kafka_event(
        to_binary_event, body, type=f"{KSERVE}.{side}", id="7", source="http://x/", inferenceservicename="fraud"
    )


def test_a_caller_whose_bytes_are_logged_speaks_for_nobody_else() -> None:
    """The logger passes on what a caller sent, our own fields among it."""
    pairing = Pairing(vouched=True)
    posing = {"endpoint": "credit", "caller": "ann", "caller_auth": "verified", "features": {"amount": 1.0}}

    for body in (
        posing,
        posing | {"features": 7},
        {name: value for name, value in posing.items() if name != "features"},
        posing | {"prediction": 0.5},
        posing | {"instances": [{"amount": 1.0}]},
    ):
        value, headers = logged("request", body)
        pairing.take(REQUESTS, value, headers=[headers])
    pairing.expire(NOW + 2 * MAX_WAIT_MS)

    assert [(row["endpoint"], row["caller"], row["caller_auth"]) for row in pairing.predictions] == [
        ("fraud", "anonymous", "claimed")
    ]
    assert [letter.reason for letter in pairing.letters] == ["wrong_shape"] * 4
    assert not pairing.blamed


def test_the_version_is_the_word_of_the_server_not_of_the_caller() -> None:
    """A caller who could name one would be judged by no profile, and say which version the endpoint's health is."""
    pairing = Pairing()
    value, headers = logged("request", {"instances": [{"amount": 1.0}], "model_name": "m", "model_version": "ghost"})
    pairing.take(REQUESTS, value, headers=[headers])
    value, headers = logged("response", {"predictions": [0.5]})
    pairing.take(RESPONSES, value, headers=[headers])

    assert [row["model_version"] for row in pairing.predictions] == ["default"]


@MODES
def test_a_malformed_event_in_a_cloud_event_counts_against_its_caller(mode: Any) -> None:
    pairing = Pairing()
    data = {"endpoint": "credit", "caller": "mallory", "features": {"amount": {}}}
    value, headers = kafka_event(mode, data, id="1", source="/svc/a", type="com.acme.request")
    pairing.take(REQUESTS, value, headers=[headers])

    assert [letter.reason for letter in pairing.letters] == ["wrong_shape"]
    assert [row["caller"] for row in pairing.blamed] == ["mallory"]


def test_an_id_that_a_caller_chose_hides_no_query() -> None:
    """A logger keeps the caller's Ce-Id: reusing one must not make a row vanish."""
    pairing = Pairing()
    same = {"id": "mine", "source": "http://x/", "inferenceservicename": "fraud"}
    for number in range(3):
        value, headers = kafka_event(
            to_binary_event, {"instances": [[float(number)]]}, type=f"{KSERVE}.request", **same
        )
        pairing.take(REQUESTS, value, headers=[headers])
    for number in range(3):
        value, headers = kafka_event(to_binary_event, {"predictions": [number]}, type=f"{KSERVE}.response", **same)
        pairing.take(RESPONSES, value, headers=[headers])

    assert [(row["features"], row["prediction"], row.get("reused_id", False)) for row in pairing.predictions] == [
        ([0.0], 0.0, False), ([1.0], 1.0, True), ([2.0], 2.0, True),
    ]  # fmt: skip


def test_features_in_a_list_keep_their_order_and_what_is_not_finite() -> None:
    pairing = Pairing()

    pairing.take(REQUESTS, b'{"endpoint":"credit","request_id":"r1","features":[1,null,"a",NaN,true]}')
    pairing.answer(response("r1"))

    (record,) = pairing.sent
    (row,) = json.loads(record.value)
    assert row["features"][:3] + row["features"][4:] == [1.0, None, "a", True]
    assert np.isnan(row["features"][3])
    assert row["origin"] == "palisade.requests/0/0/0"


def test_rows_of_other_types_than_most_lose_nothing() -> None:
    pairing = Pairing()
    odd: list[dict[str, Any]] = [
        {"amount": "much", "country": "NL"},
        {"amount": True, "country": 3},
        {},
        {"other": [1, 2]},
    ]

    pairing.ask(*(request(f"r{number}") for number in range(5)))
    pairing.ask(*(request(f"o{number}", features=features) for number, features in enumerate(odd)))
    names = [f"r{number}" for number in range(5)] + [f"o{number}" for number in range(len(odd))]
    pairing.answer(*(response(name) for name in names))

    found = {row["request_id"]: row["features"] for row in pairing.predictions}
    assert found.keys() == set(names)
    assert [found[f"o{number}"] for number in range(len(odd))] == odd


def test_event_time_of_a_cloud_event_is_its_own() -> None:
    pairing = Pairing()
    data = {"endpoint": "credit", "features": {"a": 1.0}, "prediction": 1.0}
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t"),
               ("ce_time", b"2025-10-09T08:53:19.500Z"), ("content-type", b"application/json")]  # fmt: skip

    pairing.take(REQUESTS, *as_json(data), headers=[headers])

    assert [row["ts"] for row in pairing.predictions] == [NOW - 500]
