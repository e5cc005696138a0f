"""The fast decoders may only say yes: whatever they accept, the contract accepts with equal values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from schemas.blocks import FeatureSchema
from schemas.events import Prediction
from schemas.ids import clean_id
from streams.decode import Decoder, Segment
from streams.decode.fast import GENERIC, NAMES, REFUSED, Decoders, Plan
from streams.decode.judge import Judged, judge
from streams.decode.layout import Layout, settle
from streams.decode.scan import simple, too_deep
from tests.decode.cases import SCHEMA, arrow_stream, as_json, event, schema_of, segments

PLAN = Plan(SCHEMA)
IDS = ("endpoint", "producer", "request_id", "model_version", "caller", "served_by")

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([1e30, 1.1e30, 1e308, 2**53 + 1, 2**63, 2**64, 10**25, 10**400, -0.0, 5e-324, 1e22 + 1]),
)
texts = st.one_of(
    st.sampled_from(["AA", "UA", "credit", "v1", "ok", "", "\x00", "\ud800", "é", "a\\b", "[", "{{"]),
    st.text(max_size=8),
)
scalars = st.one_of(numbers, texts, st.booleans(), st.none())
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(texts, scalars, max_size=2))
names = st.one_of(st.sampled_from(["distance", "temp", "carrier"]), texts)
features = st.one_of(st.dictionaries(names, values, max_size=5), st.lists(scalars, max_size=5), values)
envelope_values = st.one_of(values, st.sampled_from(["ok", "error", "verified", "claimed", "primary"]))
events = st.builds(
    lambda known, odd, features: {"endpoint": "credit", "features": features} | known | odd,
    st.fixed_dictionaries(
        {},
        optional={
            "caller": texts, "ts": st.one_of(st.integers(), st.none()), "latency_ms": st.one_of(numbers, st.none()),
            "status": st.sampled_from(["ok", "timeout"]), "prediction": values, "weight": numbers, "served_by": texts,
            "caller_auth": st.sampled_from(["verified", "claimed"]), "seq": st.integers(), "model_version": texts,
        },
    ),
    st.dictionaries(st.one_of(st.sampled_from([*NAMES, "features"]), texts), envelope_values, max_size=1),
    features,
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON of events, spaced, doubled and damaged now and then."""
    text = json.dumps(draw(events), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    value = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(value)))
        cut = draw(st.integers(0, 2))
        junk = draw(
            st.sampled_from(
                [b"", b",", b'"', b"\\", b"\xff", b"\x00", b"1e999", b"-", b"0", b"}", b'"temp":2,', b'"seq":"x",']
            )
        )
        value = value[:at] + junk + value[at + cut :]
    return value


def decoders_for() -> list[tuple[Decoders, bool]]:
    typed = [(PLAN.decoders("object"), True), (PLAN.decoders("list"), True)]
    return [*typed, (GENERIC, False)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or float(one) == float(other)
    return bool(one == other)


def settled(layout: Layout, row: list[Any]) -> tuple[list[float], int]:
    row = list(row)
    layout.code(row)
    matrix = np.array([row], dtype=np.float64)
    flags = settle(matrix, layout)
    return matrix[0].tolist(), int(flags[0])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(documents())
def test_what_a_fast_decoder_accepts_the_contract_accepts_with_equal_values(value: bytes) -> None:
    if too_deep(value):
        return
    (is_simple,) = simple([value])
    for (opened, closed), typed in decoders_for():
        for decoder in [opened, closed] if is_simple else [closed]:
            try:
                event = decoder.decode(value)
            except REFUSED:
                continue
            model = Prediction.model_validate_json(value)
            for name in NAMES:
                fast = getattr(event, name)
                assert same(clean_id(fast) if name in IDS else fast, getattr(model, name)), name
            if typed:
                expected, bits = PLAN.layout.spread(model.features)
                row, flags = settled(PLAN.layout, [*astuple(event.features)])
                wanted, more = settled(PLAN.layout, expected)
                np.testing.assert_array_equal(row, wanted)
                assert flags == more | bits
            else:
                assert same(event.features, model.features)


def assert_same_rows(together: Segment, alone: Sequence[Segment]) -> None:
    """That one segment holds the rows and letters of others, in their order."""
    letters = [letter for segment in alone for letter in segment.dead_letters]
    assert list(together.dead_letters) == letters
    for name in (
        "offset",
        "row",
        "ts",
        "flags",
        "latency_ms",
        "status",
        "served_by",
        "value",
        "label",
        "confidence",
        "weight",
        "verified",
    ):
        expected = np.concatenate([getattr(s.columns, name) for s in alone])
        np.testing.assert_array_equal(getattr(together.columns, name), expected, err_msg=name)
    callers = [s.columns.callers[code] for s in alone for code in s.columns.caller.tolist()]
    assert [together.columns.callers[code] for code in together.columns.caller.tolist()] == callers
    for group in together.columns.groups:
        part = [
            g for s in alone for g in s.columns.groups if (g.endpoint, g.version) == (group.endpoint, group.version)
        ]
        np.testing.assert_array_equal(group.features, np.concatenate([g.features for g in part]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.one_of(documents(), st.binary(max_size=40), st.none()), max_size=6), st.booleans())
def test_each_record_is_scored_or_dead_lettered_whatever_was_decoded_before_it(
    values: list[bytes | None], array: bool
) -> None:
    if array:
        values = [b"[" + b",".join(value or b"" for value in values) + b"]"]
    warm = Decoder("log", 0, 1, schema_of)
    segments([as_json(), as_json(features=[1, "AA", 2]), as_json()], decoder=warm)

    found = segments(values, decoder=warm)
    alone = [segment for at, value in enumerate(values) for segment in segments([value], first=at)]

    if not values:
        assert found == []
        return
    (together,) = found
    assert_same_rows(together, alone)
    offsets = set(together.columns.offset.tolist()) | {letter.log_offset for letter in together.dead_letters}
    assert offsets == set(range(len(values)))


plain_numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([None, True, 0, -3, 1e31, 2**60]))
plain_events = st.builds(
    lambda fields, features: as_json(**fields, features=features),
    st.fixed_dictionaries(
        {},
        optional={
            "caller": st.sampled_from(["ann", "bob", "an odd one"]), "request_id": st.sampled_from(["r1", "r 2"]),
            "latency_ms": plain_numbers, "weight": st.sampled_from([1.0, 0, 2]), "prediction": plain_numbers,
            "model_version": st.sampled_from(["default", "v2", "v 3"]), "seq": st.integers(0, 9), "ts": st.just(1),
        },
    ),
    st.fixed_dictionaries(
        {}, optional={"distance": plain_numbers, "temp": plain_numbers, "carrier": st.sampled_from(["AA", "ZZ", None])}
    ),
)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(plain_events, min_size=1, max_size=8), st.integers(1, 80), st.one_of(st.none(), documents()))
def test_events_decoded_together_are_those_decoded_one_by_one(few: list[bytes], times: int, odd: bytes | None) -> None:
    """Up to 640 rows: several that are decoded at once, and several arrays of their fields; one odd record among them."""
    values: list[bytes | None] = [*few * times]
    values.insert(len(values) // 2, odd)
    warm, careful = Decoder("log", 0, 1, schema_of), Decoder("log", 0, 1, schema_of)
    segments([as_json()], decoder=warm)

    (together,) = segments(values, decoder=warm)

    alone = [segment for at, value in enumerate(values) for segment in segments([value], first=at, decoder=careful)]
    assert_same_rows(together, alone)


@pytest.mark.parametrize(
    "value",
    [
        b'{"endpoint":"credit","features":{},"x":"\xff"}',
        b'{"endpoint":"credit","features":{},"caller":"\xff"}',
        b'{"endpoint":"credit","features":{"carrier":"\xff"}}',
        b'{"endpoint":"credit","features":{},"prediction":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"endpoint":"credit","features":{},"seq":' + b"9" * 5_000 + b"}",
        b'{"endpoint":"credit","features":{},"x":' + b"9" * 5_000 + b"}",
        b'{"endpoint":"credit","features":{"distance":0.' + b"1" * 5_000 + b"}}",
        b'{"endpoint":"credit","features":{"distance":1' + b"0" * 320 + b"e-320}}",
        b'{"endpoint":"credit","features":{"distance":' + b"9" * 5_000 + b"}}",
        b'{"endpoint":"credit","features":{},"x":"\\ud800\\u0041"}',
        b'{"endpoint":"credit","features":{},"x":"\\udc00"}',
        b'{"endpoint":"credit","features":{"temp":1,"temp":2},"seq":1,"seq":2}',
        b'{"endpoint":"credit","features":{"carrier":"A\\u0000"}}',
    ],
)
def test_known_differences_between_the_parsers_end_as_the_judge_says(value: bytes) -> None:
    warm = Decoder("log", 0, 1, schema_of)
    segments([as_json()], decoder=warm)

    (segment,) = segments([value], decoder=warm)

    assert len(segment.columns) == (1 if isinstance(judge(value), Judged) else 0)


def test_feature_names_that_msgspec_cannot_hold_take_the_generic_way() -> None:
    schema = FeatureSchema(('a"b', "c\\d"), ("e\n",), (("x",),), ('a"b', "e\n", "c\\d"))
    decoder = Decoder("log", 0, 1, lambda endpoint, version: schema)
    value = as_json(features={'a"b': 1, "c\\d": 2, "e\n": "x"})

    (segment,) = segments([value, value], decoder=decoder)

    assert segment.columns.groups[0].numeric.tolist() == [[1, 2], [1, 2]]
    assert segment.columns.groups[0].categorical.tolist() == [[0], [0]]


def test_features_in_the_table_that_the_profile_does_not_judge_are_known_and_ignored() -> None:
    schema = FeatureSchema(("a",), (), (), ("note", "a"))
    decoder = Decoder("log", 0, 1, lambda endpoint, version: schema)

    (segment,) = segments([as_json(features={"a": 1, "note": "x"}), as_json(features=["y", 2])], decoder=decoder)

    assert segment.columns.groups[0].numeric.tolist() == [[1], [2]]
    assert not segment.columns.flags.any()


def test_two_versions_of_an_endpoint_are_two_groups_each_by_its_schema() -> None:
    other = FeatureSchema(("temp",), (), (), ("temp",))
    decoder = Decoder("log", 0, 1, lambda endpoint, version: other if version == "v2" else SCHEMA)
    values = [as_json(model_version=f"v{1 + n % 2}", features={"temp": n}) for n in range(6)]

    (segment,) = segments(values, decoder=decoder)

    assert [(g.version, g.rows.tolist()) for g in segment.columns.groups] == [("v1", [0, 2, 4]), ("v2", [1, 3, 5])]
    assert segment.columns.groups[1].numeric.tolist() == [[1], [3], [5]]
    assert math.isnan(segment.columns.groups[0].numeric[0, 0])


def test_one_run_of_several_encodings_keeps_the_order_of_the_log() -> None:
    values = [
        as_json(seq=0),
        arrow_stream([event(), event()]),
        b"[" + as_json() + b"," + as_json() + b"]",
        arrow_stream([event()]),
    ]
    (together,) = segments(values)
    alone = [segments([value], first=at)[0].columns for at, value in enumerate(values)]

    assert together.columns.offset.tolist() == [0, 1, 1, 2, 2, 3]
    assert together.columns.row.tolist() == [0, 0, 1, 0, 1, 0]
    assert together.columns.groups[0].rows.tolist() == list(range(6))
    np.testing.assert_array_equal(
        together.columns.groups[0].features, np.concatenate([c.groups[0].features for c in alone])
    )
