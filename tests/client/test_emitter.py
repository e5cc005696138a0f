"""Predictions on their way: encodings, odd values, bounds, drops."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palisade_client import Emitter, _encode
from palisade_client.testing import FakeTransport

from schemas.events import MAX_EVENT_BYTES, MAX_RECORD_BYTES, Prediction
from tests.client.conftest import Bench


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def emitter(transport: FakeTransport) -> Emitter:
    return Emitter(transport=transport)


def judged(transport: FakeTransport) -> list[Prediction]:
    return [Prediction.model_validate(row) for row in transport.predictions]


def content_types(transport: FakeTransport) -> list[str]:
    return [sent.headers["content-type"].decode().rsplit("/")[-1] for sent in transport.sent]


def test_a_prediction_travels_whole(emitter: Emitter, transport: FakeTransport) -> None:
    emitter.emit(
        "credit",
        {"income": 1.5, "age": 40, "country": "DE", "new": True, "score": None, "embedding": [0.5, 1]},
        0.7,
        caller="carol",
        caller_auth="verified",
        ts=1_750_000_000_000,
        latency_ms=2.5,
        model_version="v7",
        artifact_digest="sha256:ab",
        weight=4.0,
    )
    emitter.flush()
    sent, event = transport.sent[0], Prediction.from_bytes(transport.sent[0].value)

    assert (sent.topic, sent.key, sent.headers["palisade-kind"]) == ("palisade.predictions", "credit", b"prediction")
    assert event.features == {
        "income": 1.5,
        "age": 40,
        "country": "DE",
        "new": True,
        "score": None,
        "embedding": [0.5, 1],
    }
    assert (event.caller, event.caller_auth, event.model_version, event.weight) == ("carol", "verified", "v7", 4.0)
    assert (event.prediction, event.latency_ms, event.artifact_digest) == (0.7, 2.5, "sha256:ab")
    assert event.request_id == f"{event.producer}-{event.seq}"


@pytest.mark.parametrize(("waiting", "types"), [(1, ["json"]), (3, ["json"] * 3), (4, ["vnd.apache.arrow.stream"])])
def test_few_predictions_travel_as_json_and_many_as_arrow(
    emitter: Emitter, transport: FakeTransport, waiting: int, types: list[str]
) -> None:
    for number in range(waiting):
        emitter.emit("credit", {"x": float(number)}, number)
    emitter.flush()

    assert content_types(transport) == types
    assert [row.features for row in judged(transport)] == [{"x": float(number)} for number in range(waiting)]


def test_an_arrow_batch_has_the_columns_of_the_contract(emitter: Emitter, transport: FakeTransport) -> None:
    for number in range(5):
        features = {"amount": number, "country": "DE", "new": number > 2, "vector": [1.0, None]}
        emitter.emit("credit", features if number else {"amount": 0.5}, "yes" if number else None)
    emitter.flush()
    table = pa.ipc.open_stream(transport.sent[0].value).read_all()

    assert set(table.column_names) <= set(Prediction.model_fields)
    assert {f.name: str(f.type) for f in table.schema.field("features").type} == {
        "amount": "double",
        "country": "string",
        "new": "bool",
        "vector": "list<item: double>",
    }
    assert str(table.schema.field("prediction").type) == "string"
    assert table.column("features").to_pylist()[0] == {"amount": 0.5, "country": None, "new": None, "vector": None}
    assert len(judged(transport)) == 5


def test_predictions_of_mixed_types_travel_as_a_json_array(emitter: Emitter, transport: FakeTransport) -> None:
    for value in (1.0, "one", 2.0, True):
        emitter.emit("credit", {"x": value}, 0.5)
    emitter.flush()

    assert content_types(transport) == ["json"]
    assert [row.features["x"] for row in judged(transport) if isinstance(row.features, dict)] == [1.0, "one", 2.0, True]


def test_without_pyarrow_many_predictions_travel_as_a_json_array(
    emitter: Emitter, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encode, "pa", None)
    for number in range(10):
        emitter.emit("credit", {"x": number}, number)
    emitter.flush()

    assert content_types(transport) == ["json"]
    assert len(judged(transport)) == 10


def test_features_in_profile_order_travel_as_a_list(emitter: Emitter, transport: FakeTransport) -> None:
    for features in ([1.0, "a", None], (1, 2), np.array([1.5, 2.5]), np.array([1, 2]), [np.float32(0.5)]):
        emitter.emit("credit", features, 0.5)
    emitter.flush()

    assert [row.features for row in judged(transport)] == [[1.0, "a", None], [1, 2], [1.5, 2.5], [1, 2], [0.5]]


def test_one_record_holds_predictions_of_one_endpoint(emitter: Emitter, transport: FakeTransport) -> None:
    for number in range(20):
        emitter.emit(f"e{number % 2}", {"x": 1.0}, number)
    emitter.flush()

    assert [sent.key for sent in transport.sent] == ["e0", "e1"]
    assert {(row.endpoint, row.prediction % 2) for row in judged(transport)} == {("e0", 0), ("e1", 1)}  # type: ignore[operator]


def test_sequence_numbers_have_no_gap(emitter: Emitter, transport: FakeTransport) -> None:
    for _ in range(10):
        emitter.emit("credit", {"x": 1.0}, 0.5)
        emitter.flush()

    assert [row.seq for row in judged(transport)] == list(range(1, 11))


def test_features_changed_after_the_call_are_emitted_as_they_were(emitter: Emitter, transport: FakeTransport) -> None:
    features: dict[str, Any] = {"x": 1.0, "v": [1.0]}
    emitter.emit("credit", features, 0.5)
    features["x"] = 2.0
    features["v"].append(2.0)
    emitter.flush()

    assert judged(transport)[0].features == {"x": 1.0, "v": [1.0]}


class Odd:
    def __str__(self) -> str:
        return "odd"


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError

    @property
    def tolist(self) -> Any:
        raise RuntimeError


def test_odd_values_become_plain_ones(emitter: Emitter, transport: FakeTransport) -> None:
    odd = {
        "np": np.float64(1.5),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "array": np.array([1.0, 2.0]),
        "object": Odd(),
        "nan": math.nan,
        "inf": math.inf,
        "huge": 10**400,
        "surrogate": "\ud800",
        "nested": {"a": 1},
        "texts": ["a", "b"],
        7: "number",
    }
    emitter.emit("credit", odd, np.float32(0.5))
    emitter.flush()
    row = judged(transport)[0]

    assert row.features == {
        "np": 1.5,
        "int": 3,
        "bool": True,
        "array": [1.0, 2.0],
        "object": "odd",
        "nan": None,
        "inf": 1e308,
        "huge": 1e308,
        "surrogate": "?",
        "nested": "{'a': 1}",
        "texts": "['a', 'b']",
        "7": "number",
    }
    assert row.prediction == 0.5


def test_values_that_cannot_be_read_are_dropped_and_counted(emitter: Emitter, transport: FakeTransport) -> None:
    assert not emitter.emit("credit", {"x": Hostile()}, 0.5)
    assert emitter.take_dropped("credit") == 1


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (np.array([0.1, 0.9]), [0.1, 0.9]),
        ({"yes": np.float64(0.9), "no": 0.1}, {"yes": 0.9, "no": 0.1}),
        (np.int64(3), 3),
        ("label", "label"),
        (None, None),
        ([0.1, None], "[0.1, None]"),
        ({"a": "b"}, "{'a': 'b'}"),
    ],
)
def test_an_outcome_is_said_as_the_contract_takes_it(
    emitter: Emitter, transport: FakeTransport, outcome: Any, said: Any
) -> None:
    emitter.emit("credit", {"x": 1.0}, outcome)
    emitter.flush()

    assert judged(transport)[0].prediction == said


def test_a_full_queue_drops_and_counts(transport: FakeTransport) -> None:
    emitter = Emitter(max_queued=3, transport=transport)
    taken = [emitter.emit("credit", {"x": 1.0}, 0.5) for _ in range(5)]

    assert taken == [True] * 3 + [False] * 2
    assert (emitter.take_dropped("credit"), emitter.take_dropped("credit")) == (2, 0)


def test_the_queue_is_bounded_in_bytes_too(transport: FakeTransport) -> None:
    emitter = Emitter(max_queued_bytes=20_000, transport=transport)
    taken = [emitter.emit("credit", {"x": "a" * 4_000}, 0.5) for _ in range(10)]

    assert taken == [True] * 4 + [False] * 6


def test_what_is_not_delivered_is_counted(transport: FakeTransport, emitter: Emitter) -> None:
    transport.failing = True
    for _ in range(7):
        emitter.emit("credit", {"x": 1.0}, 0.5)
    emitter.flush()

    assert emitter.take_dropped("credit") == 7


def test_no_record_exceeds_what_a_decoder_takes(emitter: Emitter, transport: FakeTransport) -> None:
    features = {f"feature-{number}": "x" * 1_000 for number in range(20)}
    for _ in range(200):
        emitter.emit("credit", features, 0.5)
    emitter.flush()

    assert max(len(sent.value) for sent in transport.sent) <= MAX_RECORD_BYTES
    assert len(judged(transport)) == 200


def test_a_single_event_beyond_the_bound_is_dropped_and_counted(emitter: Emitter, transport: FakeTransport) -> None:
    emitter.emit("credit", {f"f{number}": "x" * 4_000 for number in range(20)}, 0.5)
    emitter.emit("credit", {"x": "y" * 10**7}, 0.5)  # cut to 4,096 characters
    emitter.flush()

    assert emitter.take_dropped("credit") == 1
    assert [len(sent.value) < MAX_EVENT_BYTES for sent in transport.sent] == [True]


def test_a_sample_carries_its_weight(bench: Bench) -> None:
    guard = bench.guard(sample=0.25)
    for _ in range(2000):
        guard.call(lambda features: 0.9, {"x": 1.0}, caller="a")
    guard.flush()

    assert {row.weight for row in bench.predictions} == {4.0}
    assert sum(row.weight for row in bench.predictions) == pytest.approx(2000, rel=0.25)
    assert bench.report.asked == 2000


_VALUES = st.one_of(
    st.floats(), st.integers(), st.text(max_size=20), st.booleans(), st.none(), st.lists(st.floats(), max_size=3)
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=5), _VALUES, max_size=4), _VALUES), max_size=6))
def test_whatever_is_emitted_is_a_prediction_of_the_contract(rows: list[tuple[dict[str, Any], Any]]) -> None:
    transport = FakeTransport()
    emitter = Emitter(transport=transport)
    for features, outcome in rows:
        emitter.emit("credit", features, outcome)
    emitter.flush()

    assert len(judged(transport)) == len(rows)
    for sent in transport.sent:
        if sent.headers["content-type"] == b"application/json":
            json.loads(sent.value.decode(), parse_constant=pytest.fail)
