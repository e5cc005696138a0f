"""What is odd but decodable is scored: as missing or clamped, and flagged."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.blocks import MISSING, UNSEEN
from schemas.flags import RowFlag
from schemas.ids import clean_id
from streams.decode import Decoder
from tests.decode.cases import NOW, arrow_stream, as_json, event, one, schema_of, segments, with_features

HOUR = 3_600_000
NAN = math.nan

CASES: list[tuple[bytes, RowFlag, list[float], int]] = [
    (as_json(), RowFlag(0), [12.5, 3], 1),
    (as_json(features=[12.5, "AA", 3]), RowFlag(0), [12.5, 3], 1),
    (as_json(features=[12.5]), RowFlag.MISSING_FEATURE, [12.5, NAN], MISSING),
    (as_json(features=[12.5, "AA", 3, 4]), RowFlag.UNKNOWN_FEATURE, [12.5, 3], 1),
    (as_json(features={}), RowFlag.MISSING_FEATURE, [NAN, NAN], MISSING),
    (with_features(temp=None), RowFlag.MISSING_FEATURE, [12.5, NAN], 1),
    (with_features(temp=True), RowFlag(0), [12.5, 1], 1),
    (with_features(temp="3"), RowFlag.WRONG_FEATURE_TYPE, [12.5, NAN], 1),
    (with_features(temp=[3]), RowFlag.WRONG_FEATURE_TYPE, [12.5, NAN], 1),
    (with_features(temp=NAN), RowFlag.NOT_FINITE, [12.5, NAN], 1),
    (with_features(temp=math.inf), RowFlag.NOT_FINITE, [12.5, NAN], 1),
    (with_features(temp=1e31), RowFlag.NOT_FINITE, [12.5, NAN], 1),
    (with_features(temp=10**400), RowFlag.NOT_FINITE, [12.5, NAN], 1),
    (
        as_json(features={"distance": 0, "carrier": "AA", "temp": 5}).replace(b"5}", b"1e999}"),
        RowFlag.NOT_FINITE,
        [0, NAN],
        1,
    ),
    (with_features(temp=-1e30), RowFlag(0), [12.5, -1e30], 1),
    (with_features(carrier="ZZ"), RowFlag.UNSEEN_CATEGORY, [12.5, 3], UNSEEN),
    (with_features(carrier="Z\x07"), RowFlag.UNSEEN_CATEGORY | RowFlag.CONTROL_CHARACTERS, [12.5, 3], UNSEEN),
    (with_features(carrier=3), RowFlag.WRONG_FEATURE_TYPE, [12.5, 3], MISSING),
    (with_features(carrier=None), RowFlag.MISSING_FEATURE, [12.5, 3], MISSING),
    (with_features(extra=1), RowFlag.UNKNOWN_FEATURE, [12.5, 3], 1),
    (as_json(caller="a b"), RowFlag.ODD_ID, [12.5, 3], 1),
    (as_json(request_id="x" * 129), RowFlag.ODD_ID, [12.5, 3], 1),
    (as_json(producer=""), RowFlag.ODD_ID, [12.5, 3], 1),
    (as_json(reused_id=True), RowFlag.REUSED_ID, [12.5, 3], 1),
    (as_json(served_by="v\x00"), RowFlag.ODD_ID, [12.5, 3], 1),
    (as_json(ts=NOW - HOUR - 1), RowFlag.LATE, [12.5, 3], 1),
    (as_json(ts=10**30), RowFlag.FUTURE, [12.5, 3], 1),
    (as_json(ts=-(10**30)), RowFlag.LATE, [12.5, 3], 1),
    (as_json(latency_ms=-1), RowFlag.OUT_OF_RANGE, [12.5, 3], 1),
    (as_json(latency_ms=math.inf), RowFlag.NOT_FINITE, [12.5, 3], 1),
    (as_json(weight=0), RowFlag.OUT_OF_RANGE, [12.5, 3], 1),
    (as_json(weight=NAN), RowFlag.OUT_OF_RANGE, [12.5, 3], 1),
    (as_json(unknown={"a": [1]}), RowFlag(0), [12.5, 3], 1),
    (as_json()[:-1] + b',"caller":"bob"}', RowFlag(0), [12.5, 3], 1),
]


@pytest.mark.parametrize(("value", "flags", "numeric", "code"), CASES)
@pytest.mark.parametrize("warm", [False, True])
def test_an_odd_event_is_scored_and_flagged(
    value: bytes, flags: RowFlag, numeric: list[float], code: int, warm: bool
) -> None:
    """Warm: the endpoint's typed decoder exists already, and other rows surround the odd one."""
    values = [as_json(), value, as_json()] if warm else [value]
    (segment,) = segments(values)

    at = len(values) // 2
    (group,) = segment.columns.groups
    assert not segment.dead_letters
    assert RowFlag(int(segment.columns.flags[at])) == flags
    np.testing.assert_array_equal(group.numeric[at], numeric)
    assert group.categorical[at].tolist() == [code]
    assert np.count_nonzero(segment.columns.flags) == (1 if flags else 0)


def test_event_time_is_clamped_to_the_brokers() -> None:
    values = [as_json(ts=ts) for ts in (NOW - 2 * HOUR, NOW - 5, NOW + HOUR, None)]

    assert one_columns(values).ts.tolist() == [NOW - HOUR, NOW - 5, NOW + 300_000, NOW]


def test_ids_are_cleaned_and_never_dropped() -> None:
    odd = "<script>"
    columns = one_columns([as_json(caller=odd), as_json(caller="ann"), as_json(caller=odd)])

    assert [columns.callers[code] for code in columns.caller] == [clean_id(odd), "ann", clean_id(odd)]


def test_an_odd_endpoint_is_hashed_and_scored() -> None:
    segment = one(as_json(endpoint="a b"), key=b"a b")

    assert segment.columns.endpoints == (clean_id("a b"),)
    assert segment.columns.flags[0] == RowFlag.ODD_ID | RowFlag.NO_PROFILE


def test_an_endpoint_without_a_profile_has_no_features_and_says_so() -> None:
    segment = one(as_json(endpoint="fraud"), key=b"fraud")

    assert segment.columns.flags[0] == RowFlag.NO_PROFILE
    assert segment.columns.groups[0].features.shape == (1, 0)


def test_an_endpoint_that_is_not_configured_is_flagged() -> None:
    decoder = Decoder("log", 0, 1, schema_of, registered=lambda endpoint: endpoint != "credit")

    assert one(as_json(), decoder=decoder).columns.flags[0] == RowFlag.UNREGISTERED_ENDPOINT


@pytest.mark.parametrize(
    ("prediction", "value"),
    [
        (0.5, 0.5),
        (3, 3.0),
        (True, 1.0),
        (None, NAN),
        ("fraud", NAN),
        ("0.7", NAN),
        ([0.1, 0.9], NAN),
        ({"a": 0.3}, 0.3),
        ({"a": 0.3, "b": 0.7}, NAN),
    ],
)
def test_the_value_is_the_numeric_outcome(prediction: Any, value: float) -> None:
    columns = one_columns([as_json(prediction=prediction), as_json(prediction=1.0)])

    np.testing.assert_array_equal(columns.value, [value, 1.0])


def test_a_verified_caller_is_told_from_a_claimed_one() -> None:
    columns = one_columns([as_json(caller_auth="verified"), as_json()])

    assert columns.verified.tolist() == [True, False]


def test_status_and_route_are_codes() -> None:
    columns = one_columns([as_json(status="timeout", served_by="fallback"), as_json(served_by="v7"), as_json()])

    assert columns.status.tolist() == [2, 0, 0]
    assert columns.served_by.tolist() == [2, 4, 0]


ARROW_ROWS = [
    event(),
    event(features={"distance": None, "carrier": "ZZ", "temp": math.inf}),
    event(caller="a b", ts=NOW - 2 * HOUR, latency_ms=-1.0),
    event(features={"distance": 1e31, "carrier": None, "temp": NAN}, weight=4.0, status="error", prediction=0.5),
]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("dictionaries", [False, True])
def test_arrow_and_json_of_the_same_events_give_equal_columns(compression: str | None, dictionaries: bool) -> None:
    names = dict.fromkeys(name for row in ARROW_ROWS for name in row)
    table = pa.Table.from_pylist([dict.fromkeys(names) | row for row in ARROW_ROWS])
    if dictionaries:
        for name in ("endpoint", "caller"):
            table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    by_json = one(b"[" + b",".join(json.dumps(drop_nulls(row)).encode() for row in ARROW_ROWS) + b"]").columns

    by_arrow = one(arrow_stream(table, compression)).columns

    assert_equal(by_arrow, by_json)


def test_flattened_feature_columns_are_features() -> None:
    table = pa.table(
        {
            "endpoint": ["credit"] * 2,
            "features.distance": [1, 2],
            "features.carrier": ["UA", None],
            "features.x": [None, 1],
        }
    )
    columns = one(arrow_stream(table)).columns

    np.testing.assert_array_equal(columns.groups[0].numeric, [[1, NAN], [2, NAN]])
    assert columns.groups[0].categorical.tolist() == [[0], [MISSING]]
    assert columns.flags.tolist() == [RowFlag.MISSING_FEATURE, RowFlag.MISSING_FEATURE | RowFlag.UNKNOWN_FEATURE]


def test_arrow_features_of_another_type_are_missing_and_flagged() -> None:
    table = pa.table(
        {"endpoint": ["credit"], "features.distance": ["1"], "features.carrier": [7], "features.temp": [True]}
    )
    columns = one(arrow_stream(table)).columns

    np.testing.assert_array_equal(columns.groups[0].numeric, [[NAN, 1.0]])
    assert columns.groups[0].categorical.tolist() == [[MISSING]]
    assert columns.flags.tolist() == [RowFlag.WRONG_FEATURE_TYPE]


def test_arrow_times_may_be_timestamps() -> None:
    table = pa.table(
        {
            "endpoint": ["credit"] * 2,
            "features.temp": [1.0, 2.0],
            "ts": pa.array([NOW * 1000, None], pa.timestamp("us", "UTC")),
        }
    )

    assert one(arrow_stream(table)).columns.ts.tolist() == [NOW, NOW]


def one_columns(values: list[bytes]) -> Any:
    (segment,) = segments(values)
    assert not segment.dead_letters
    return segment.columns


def drop_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def assert_equal(one: Any, other: Any) -> None:
    for name in (
        "offset",
        "row",
        "ts",
        "broker_ts",
        "flags",
        "latency_ms",
        "status",
        "served_by",
        "value",
        "label",
        "confidence",
        "weight",
    ):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name, names in (("endpoint", "endpoints"), ("version", "versions"), ("caller", "callers")):
        a = [getattr(one, names)[code] for code in getattr(one, name)]
        b = [getattr(other, names)[code] for code in getattr(other, name)]
        assert a == b
    for a, b in zip(one.groups, other.groups, strict=True):
        assert (a.endpoint, a.version, a.rows.tolist()) == (b.endpoint, b.version, b.rows.tolist())
        np.testing.assert_array_equal(a.features, b.features)
