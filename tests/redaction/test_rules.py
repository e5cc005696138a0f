"""Redaction gives the same bytes wherever it is done: in a serving process, in ingest by value, in ingest by column."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palisade_client import _redact as client
from palisade_client._encode import plain_features

from schemas.config import Bucket, EndpointConfig
from schemas.errors import ConfigError
from streams import redaction as service

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
KEY = bytes.fromhex(VECTORS["key"])


def by_client(value: Any, rule: Any) -> Any:
    row, _ = plain_features({"x": value})
    client.Redactor({"x": rule}, KEY).row(row)
    assert isinstance(row, dict)
    return row.get("x")


def by_value(value: Any, rule: Any) -> Any:
    return service.Redactor({"x": rule if isinstance(rule, str) else Bucket(**rule)}, KEY).features({"x": value})["x"]  # type: ignore[call-overload]


def by_column(value: Any, rule: Any) -> Any:
    parsed = rule if isinstance(rule, str) else Bucket(**rule)
    kind = pa.list_(pa.float64()) if isinstance(value, list) else None
    value = float(value) if type(value) is int else value
    return service.Redactor({"x": parsed}, KEY).column("x", pa.array([value], kind)).to_pylist()[0]


@pytest.mark.parametrize("made", [by_client, by_value, by_column])
def test_the_written_vectors_hold_in_each_implementation(made: Any) -> None:
    for value, pseudonym in VECTORS["hash"]:
        assert made(value, "hash") == pseudonym, value
    for value, width, edge in VECTORS["bucket"]:
        assert made(value, {"bucket": width}) == edge, value


numbers = st.floats() | st.integers(-(2**63), 2**63 - 1)
values = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.lists(numbers, max_size=4)


def same(a: Any, b: Any) -> bool:
    missing = (None, math.nan)
    return a == b or all(value in missing or value != value for value in (a, b))


@given(values, st.sampled_from(["hash", {"bucket": 10}, {"bucket": 0.1}, {"bucket": 1e-300}, {"bucket": 1e300}]))
def test_any_value_is_redacted_alike_by_client_and_service(value: Any, rule: Any) -> None:
    assert same(by_client(value, rule), by_value(value, rule))


@given(st.lists(numbers, max_size=30) | st.lists(st.text(max_size=20)) | st.lists(st.booleans()))
def test_a_column_is_redacted_as_its_values_are(column: list[Any]) -> None:
    redactor = service.Redactor({"h": "hash", "b": Bucket(bucket=2.5)}, KEY)
    floats = [float(value) if type(value) is int else value for value in column]
    for name, rule in redactor.rules.items():
        found = redactor.column(name, pa.chunked_array([floats[:1], floats[1:]] if floats else [[]])).to_pylist()
        assert all(map(same, found, [redactor.value(value, rule) for value in column]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None, "a"]).dictionary_encode(),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None], pa.string_view()),
        pa.array([1, 2, None], pa.uint8()),
        pa.array([1.5, None, 2], pa.float16()),
        pa.array([1, None], pa.decimal128(10, 2)),
        pa.array([[1.0], None], pa.list_(pa.float64())),
        pa.array([{"ssn": "078-05-1120"}]),
        pa.array([b"078-05-1120"]),
        pa.array([1, None], pa.timestamp("ms")),
        pa.array([["078-05-1120"]]),
        pa.array([[[1.0]]]),
        pa.nulls(3),
        pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("rule", ["hash", "drop", Bucket(bucket=1)])
def test_a_column_of_any_type_comes_out_redacted_or_missing_and_never_as_it_was(column: pa.Array, rule: Any) -> None:
    found = service.Redactor({"x": rule}, KEY).column("x", column)
    assert len(found) == len(column)
    assert pa.types.is_string(found.type) if rule == "hash" else pa.types.is_float64(found.type)
    assert all(value is None or (rule == "hash") == str(value).startswith("r:") for value in found.to_pylist())
    assert b"078-05-1120" not in b"".join(bytes(buffer) for buffer in found.buffers() if buffer is not None)


def test_equal_values_stay_equal_and_another_key_gives_others() -> None:
    mine, theirs = client.pseudonymiser(KEY), client.pseudonymiser(bytes(32))
    assert mine("a@b.c") == mine("a@b.c") != mine("a@b.d")
    assert mine("a@b.c") != theirs("a@b.c")


def test_dropped_features_are_absent_and_others_are_left_alone() -> None:
    raw = {"ssn": "078-05-1120", "age": 37, "income": 1.5, "city": "Ulm"}
    rules: Any = {"ssn": "drop", "age": {"bucket": 10}}
    client.Redactor(rules, None).row(row := dict(raw))
    assert row == {"age": 30.0, "income": 1.5, "city": "Ulm"}
    redactor = service.Redactor({"ssn": "drop", "age": Bucket(bucket=10)}, None)
    assert redactor.features(raw) == row
    batch = pa.array([raw, raw])
    assert redactor.struct(batch).to_pylist() == [row, row]
    with pytest.raises(service.NotRedactable, match="no feature is left"):
        redactor.struct(pa.array([{"ssn": "078-05-1120"}]))


def test_in_a_list_features_are_told_by_their_place() -> None:
    client.Redactor({0: "drop", "2": {"bucket": 10}}, None).row(row := ["078-05-1120", 1.5, 37])
    assert row == [None, 1.5, 30.0]
    redactor = service.Redactor({"0": "drop", "2": Bucket(bucket=10), "9": "drop"}, None)
    assert redactor.features(["078-05-1120", 1.5, 37]) == row


@pytest.mark.parametrize(
    ("rules", "features"), [({"ssn": "drop"}, ["078-05-1120"]), ({"0": "drop"}, {"ssn": "078-05-1120"})]
)
def test_features_of_a_form_that_the_rules_do_not_speak_of_are_refused(rules: Any, features: Any) -> None:
    with pytest.raises(client.UnreadableFeatures, match="features came"):
        client.Redactor(rules, None).row(features)
    with pytest.raises(service.NotRedactable, match="features came"):
        service.Redactor(rules, None).features(features)


def test_callers_are_known_by_a_pseudonym_and_nobody_stays_nobody() -> None:
    ours, theirs = client.Redactor({"@caller": "hash"}, KEY), service.Redactor({"@caller": "hash"}, KEY)
    names = ["carol@example.com", "anonymous", "an odd id \u2603"]
    assert ours.caller(names[0]) == service.Pseudonyms(KEY).of(names[0])
    assert [ours.caller(name) for name in names] == [theirs.caller(name) for name in names]
    assert theirs.callers(pa.array([*names, None])).to_pylist() == [*map(theirs.caller, names), None]
    assert theirs.features(["a"]) == ["a"]  # a rule about callers says nothing of features


def test_a_hash_without_a_key_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="openssl rand -hex 32"):
        client.Redactor({"email": "hash"}, None)
    with pytest.raises(ConfigError, match="redaction_key_file"):
        service.Redactor({"email": "hash"}, None, "credit")


@pytest.mark.parametrize("said", ["", "file", "digits"])
def test_the_key_comes_from_a_file_or_the_environment(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "redaction.key"
    file.write_text(KEY.hex() + "\n")
    given = {"": "", "file": str(file), "digits": KEY.hex()}[said]
    monkeypatch.setenv("PALISADE_REDACTION_KEY", given)
    assert client.redaction_key(None) == service.redaction_key(None) == (KEY if given else None)
    assert client.redaction_key(file) == service.redaction_key(file) == KEY


def test_a_key_with_a_slip_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slip = KEY.hex()[:-1]
    file = tmp_path / "redaction.key"
    file.write_text(slip)
    monkeypatch.setenv("PALISADE_REDACTION_KEY", slip)
    for attempt in (client.redaction_key, service.redaction_key):
        for path in (None, file):
            with pytest.raises((ValueError, ConfigError)) as refused:
                attempt(path)
            assert "64 hex digits" in str(refused.value) or "no redaction key" in str(refused.value)
            assert slip not in str(refused.value)
            assert slip not in str(refused.value.__cause__)


@pytest.mark.parametrize(
    "rule", ["hide", {"bucket": 0}, {"bucket": -1}, {"bucket": math.inf}, {"bucket": "10"}, {"bucket": 1, "x": 2}, None]
)
def test_a_rule_that_is_none_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="drop"):
        client.Redactor({"age": rule}, KEY)
    if rule != {"bucket": "10"}:  # YAML may quote a number
        with pytest.raises(ValueError, match="sensitive"):
            EndpointConfig.model_validate({"name": "credit", "sensitive": {"age": rule}})


@pytest.mark.parametrize("rule", ["drop", {"bucket": 1}])
def test_who_asks_can_be_hashed_and_nothing_else(rule: Any) -> None:
    with pytest.raises(ValueError, match="limits need to know who asks"):
        client.Redactor({"@caller": rule}, KEY)
    with pytest.raises(ValueError, match="limits need to know who asks"):
        EndpointConfig.model_validate({"name": "credit", "sensitive": {"@caller": rule}})


def test_a_place_may_be_written_as_a_number() -> None:
    endpoint = EndpointConfig.model_validate({"name": "credit", "sensitive": {0: "drop", "2": {"bucket": 10}}})
    assert service.Redactor(endpoint.sensitive, None).features(["078-05-1120", 1.5, 37]) == [None, 1.5, 30.0]


def test_a_struct_with_a_name_that_is_no_text_is_refused_as_a_whole() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array([{"naïve": 1.0, "ssn": "078-05-1120"}])], names=["features"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    odd = sink.getvalue().to_pybytes().replace("naïve".encode(), b"na\xff\xffve")
    features = pa.ipc.open_stream(odd).read_all().column("features").combine_chunks()

    with pytest.raises(service.NotRedactable, match="no UTF-8"):
        service.Redactor({"ssn": "drop"}, None).struct(features)
