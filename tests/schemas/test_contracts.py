"""The contracts and everything generated from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import actions, config, events, generate, signals, tables, topics
from schemas.ids import clean_id, is_plain_id, stable_id


@pytest.mark.parametrize("path", sorted(generate.generated()), ids=lambda path: path.name)
def test_generated_files_are_those_that_the_contracts_give(path: Path) -> None:
    assert path.read_text() == generate.generated()[path], "run `make schemas` and commit what it wrote"


def test_no_generated_file_is_left_over_from_a_contract_that_is_gone() -> None:
    folder = generate.HERE / "json"

    assert {path for path in folder.iterdir() if path.suffix == ".json"} <= set(generate.generated())


@given(st.text())
def test_any_text_becomes_an_id_that_may_be_used_anywhere(text: str) -> None:
    cleaned = clean_id(text)

    assert is_plain_id(cleaned)
    assert clean_id(cleaned) == cleaned


@given(st.text(), st.text())
def test_two_different_odd_ids_stay_different(one: str, other: str) -> None:
    assert (clean_id(one) == clean_id(other)) == (one == other) or is_plain_id(one) or is_plain_id(other)


def test_a_lone_surrogate_is_hashed_and_not_an_error() -> None:
    assert clean_id("\ud800").startswith("h:")


def test_stable_ids_tell_parts_apart() -> None:
    assert stable_id("ab", "c") != stable_id("a", "bc")


def test_the_smallest_prediction_names_its_endpoint_and_features() -> None:
    prediction = events.Prediction.from_bytes(b'{"endpoint":"credit","features":{"amount":12}}')

    assert prediction.caller_auth == "claimed"
    assert prediction.served_by == "primary"


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_no_measurement_are_decodable(literal: bytes) -> None:
    prediction = events.Prediction.from_bytes(b'{"endpoint":"e","features":{"x":' + literal + b"}}")

    assert "x" in prediction.features


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b"[]",
        b"1",
        b'{"endpoint":1,"features":{}}',
        b'{"endpoint":"e","features":"no"}',
        b'{"endpoint":"e","features":{},"ts":"x"}',
    ],
)
def test_another_shape_or_type_is_no_prediction(value: bytes) -> None:
    with pytest.raises(ValidationError):
        events.Prediction.from_bytes(value)


def test_unknown_fields_are_ignored() -> None:
    assert events.Prediction.from_bytes(b'{"endpoint":"e","features":{},"new":1}').endpoint == "e"


def test_a_directive_may_not_outlive_an_hour() -> None:
    with pytest.raises(ValidationError):
        actions.Directive(endpoint="e", epoch=1, issued_ms=0, ttl_ms=3_600_001, mode="enforce")


def test_a_policy_with_two_rules_of_one_name_is_refused() -> None:
    rule = {"name": "r", "when": {"kinds": ["errors"]}, "then": "notify"}
    with pytest.raises(ValidationError, match="two rules are named 'r'"):
        config.PolicyConfig.model_validate({"rules": [rule, rule]})


def test_an_endpoint_has_no_at_sign_in_its_name_for_that_separates_its_versions() -> None:
    with pytest.raises(ValidationError, match="choose another"):
        config.EndpointConfig(name="credit@eu")


def test_a_misspelt_key_in_a_configuration_is_refused() -> None:
    with pytest.raises(ValidationError):
        config.PalisadeConfig.model_validate({"endpointz": []})


def test_every_topic_has_a_broker_setting_for_time_and_cleanup() -> None:
    for spec in topics.TOPICS:
        assert spec.config()["message.timestamp.type"] == "LogAppendTime"
        assert spec.config()["cleanup.policy"] in {"compact", "delete"}


def test_every_table_is_ordered_by_something_that_ends_in_the_row() -> None:
    for table in tables.TABLES:
        assert table.order_by[-4:] == ("topic", "partition", "offset", "row")
        assert set(table.order_by) | set(table.one_row_by) <= {name for name, _ in table.all_columns}


def test_a_signal_survives_its_trip_over_the_wire() -> None:
    signal = signals.Signal(
        signal_id="a", incident_id="a", state="opened", seq=0, detector="d", detector_hash="h", kind="errors", endpoint="e",
        subject_kind="endpoint", subject="e", severity="critical", score=1.0, threshold=0.5, first_ms=1, at_ms=2,
        log_topic="palisade.reports", log_partition=0, log_offset=3, evidence={"share": 0.5, "top": ["x", 1.0]},
    )  # fmt: skip

    assert signals.Signal.from_bytes(signal.to_bytes()) == signal
    assert json.loads(signal.to_bytes())["evidence"]["share"] == 0.5
