"""Whose a row is that cannot be decoded: what counts against a caller, and how nobody is framed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import ROUTE_CODES
from schemas.events import MAX_EVENT_BYTES
from schemas.flags import RowFlag
from schemas.ids import clean_id
from streams.decode import Columns, Decoder, Segment
from streams.decode.malformed import HEAD_BYTES, top_level
from tests.decode.cases import ARROW, arrow_stream, as_json, event, one, schema_of, segments


def garbage(**fields: object) -> bytes:
    """An event of ann, whom the service authenticated, whose features are no features."""
    return as_json(features=5, **({"caller_auth": "verified", "model_version": "v1"} | fields))


def accused(found: Segment) -> list[tuple[str, str, str, bool]]:
    """(endpoint, version, caller, verified) of the malformed rows."""
    rows = found.evidence
    dead = np.flatnonzero(rows.flags & np.uint32(RowFlag.MALFORMED))
    return [
        (
            rows.endpoints[rows.endpoint[at]],
            rows.versions[rows.version[at]],
            rows.callers[rows.caller[at]],
            bool(rows.verified[at]),
        )
        for at in dead.tolist()
    ]


ANN = ("credit", "v1", "ann", True)
CLAIMED = ("credit", "v1", "ann", False)
HUGE = json.dumps(
    {"endpoint": "credit", "model_version": "v1", "caller": "ann", "features": {"a": "x" * 70_000}}
).encode()
DEEP = b'{"endpoint":"credit","caller":"ann","model_version":"v1","features":{"a":' + b"[" * 40 + b"]" * 40 + b"}}"


@pytest.mark.parametrize(
    ("value", "who"),
    [
        (garbage(), ANN),
        (garbage(caller_auth="claimed"), CLAIMED),
        (garbage(caller_auth="trust me"), CLAIMED),
        (as_json(features=None, model_version="v1"), CLAIMED),
        (as_json(status="great", model_version="v1", caller_auth="verified"), ANN),
        (as_json(status="great", model_version=7, caller_auth="verified"), ("credit", "default", "ann", True)),
        (HUGE, CLAIMED),
        (HUGE[:-3] + b"x" * 1_100_000 + HUGE[-3:], CLAIMED),
        (DEEP, CLAIMED),
        (b" \n" + garbage()[:-1] + b', "weight": 1e}', ANN),
        (garbage(caller="a b\n"), ("credit", "v1", clean_id("a b\n"), True)),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_decoded_counts_against_the_caller_that_it_shows(
    value: bytes, who: tuple[str, str, str, bool]
) -> None:
    found = one(value)

    assert accused(found) == [who]
    assert len(found.columns) == 0
    assert len(found.dead_rows.offset) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"", None, b"\xff\xfe", b"5", b"[]", b"{}", b"[" + garbage(),
        as_json(features=5, caller=None), as_json(features=5, caller=7), as_json(features=5, caller=""),
        b'{"features": 5, "caller": "ann", "caller": "bob"}',
        b'{"features": 5, "caller": "ann" "bob"}',
        b'{"features": {"caller": "ann"}',
    ],
)  # fmt: skip
def test_where_nothing_shows_the_caller_nobody_is_accused(value: bytes | None) -> None:
    assert accused(one(value)) == []


def test_what_a_caller_can_write_names_nobody_else() -> None:
    """Names and values of features are the caller's own; the event's top level is the writer's."""
    framing = {
        "caller": "bob",
        '"caller":"bob","x': 1,
        "x": '","caller":"bob","caller_auth":"verified',
        "y": {"caller": "bob"},
    }
    for features in (framing, [framing, '"caller":"bob"'], '{"caller":"bob"}', framing | {"z": "x" * 70_000}):
        for order in (("features", "caller"), ("caller", "features")):
            fields = {"caller": "ann", "features": features}
            value = json.dumps(
                {"endpoint": "credit", "status": "great"} | {name: fields[name] for name in order}
            ).encode()
            assert {caller for _, _, caller, _ in accused(one(value))} <= {"ann"}


def test_each_element_of_an_array_counts_for_itself_and_good_ones_are_scored() -> None:
    rows = [garbage(), as_json(), garbage(caller="bob"), b"7", garbage(caller="eve", caller_auth="claimed")]
    found = one(b"[" + b",".join(rows) + b"]")

    assert [caller for _, _, caller, _ in accused(found)] == ["ann", "bob", "eve"]
    assert found.columns.row.tolist() == [1]
    assert found.evidence.row.tolist() == [0, 1, 2, 4]
    assert found.dead_rows.row.tolist() == [0, 2, 3, 4]


def test_rows_beyond_those_with_a_letter_count_as_well() -> None:
    found = segments([b"[" + b",".join([garbage()] * 3_000) + b"]"])

    assert sum(len(accused(segment)) for segment in found) == 3_000


def test_refused_rows_of_arrow_count_against_their_caller() -> None:
    rows = [
        event(status="great", caller="eve", model_version="v1", caller_auth="verified"),
        event(caller_auth="nobody", model_version="v1"),
        event(),
    ]

    assert accused(one(arrow_stream(rows), headers=ARROW)) == [("credit", "v1", "eve", True), CLAIMED]


def test_a_wrong_partition_is_not_the_callers_fault() -> None:
    decoder = Decoder("log", 0, 12, schema_of)
    names = [f"e{number}" for number in range(40)]
    found = [segments([garbage(endpoint=name)], key=name.encode(), decoder=decoder)[0] for name in names]

    assert 0 < sum(bool(accused(segment)) for segment in found) < len(names)
    misplaced = segments([as_json(endpoint=name) for name in names], key=None, decoder=decoder)[0]
    assert accused(misplaced) == []
    assert len(misplaced.dead_rows.offset) > 0


def test_the_records_key_stands_in_for_an_endpoint_that_is_missing() -> None:
    assert accused(one(b'{"caller":"ann","model_version":"v1","caller_auth":"verified"}', key=b"credit")) == [ANN]
    assert accused(one(b'{"caller":"ann"}', key=None)) == []


def test_a_malformed_row_holds_nothing_and_weighs_nothing() -> None:
    rows: Columns = one(garbage()).evidence
    (group,) = rows.groups

    assert rows.served_by.tolist() == [ROUTE_CODES["refused"]]
    assert np.isnan(group.numeric).all()
    assert (group.categorical < 0).all()
    assert group.layout is not None


def test_without_malformed_rows_the_evidence_is_the_columns() -> None:
    found = one(as_json())

    assert found.evidence is found.columns


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\acler', max_size=200).map(str.encode))
def test_whatever_the_bytes_are_they_show_text_or_nothing(data: bytes) -> None:
    for text in (data, b"{" + data, b'{"caller":"ann",' + data):
        assert all(isinstance(shown, str) for shown in top_level(text).values())


NAMES = st.sampled_from(["endpoint", "caller", "caller_auth", "model_version", "features", "x"])
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)  # fmt: skip


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_of_json_it_shows_what_any_parser_would(fields: dict[str, object]) -> None:
    wanted = ("endpoint", "caller", "caller_auth", "model_version")
    shown = top_level(json.dumps(fields).encode())

    assert shown == {name: fields[name] for name in wanted if isinstance(fields.get(name), str)}


def test_only_the_head_of_an_event_is_looked_at() -> None:
    late = b'{"features": "' + b"x" * HEAD_BYTES + b'", "caller": "ann"}'

    assert top_level(late) == {}
    assert len(late) < MAX_EVENT_BYTES
