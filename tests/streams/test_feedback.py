"""Reading feedback: JSON, arrays, Arrow; who vouches for a source; what is none becomes a dead letter, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from responders.signing import SigningKey
from schemas.config import EndpointConfig
from schemas.deadletter import DeadLetter
from schemas.feedback import Feedback
from schemas.wire import KIND_HEADER
from streams.audit.rows import ARROW_SCHEMAS, feedback_rows, merged
from streams.feedback import FeedbackAt, FeedbackReader
from streams.records import RawHeaders, Records

PRODUCER, STRANGER = SigningKey.generate(), SigningKey.generate()
ENDPOINTS = {
    "credit": EndpointConfig(name="credit", producer_keys=(PRODUCER.public_base64,)),
    "open": EndpointConfig(name="open", trust_unsigned=True),
}
NOW = 1_700_000_000_000


def event(**fields: Any) -> dict[str, Any]:
    return {"endpoint": "credit", "request_id": "r1", "label": True} | fields


def stream(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read(
    value: bytes | None, headers: RawHeaders = (), partitions: int = 1
) -> tuple[list[FeedbackAt], list[DeadLetter]]:
    records = Records([value], [b"credit"], [headers], [7], [NOW])
    found, dead = FeedbackReader(ENDPOINTS, partitions).read(0, records)
    return found, [DeadLetter.from_bytes(letter.value) for letter in dead]


def reasons(value: bytes | None, headers: RawHeaders = (), partitions: int = 1) -> list[str]:
    found, dead = read(value, headers, partitions)
    assert not found
    return [letter.reason for letter in dead]


def test_one_event_an_array_and_an_arrow_stream_say_the_same() -> None:
    rows = [event(request_id=f"r{n}", ts=NOW + n, source="bank") for n in range(3)]
    array, _ = read(json.dumps(rows).encode())
    arrow, dead = read(stream(rows))

    assert dead == []
    assert [one.feedback for one in array] == [one.feedback for one in arrow]
    assert [(one.record, one.row) for one in arrow] == [(0, 0), (0, 1), (0, 2)]
    assert read(json.dumps(rows[0]).encode())[0] == array[:1]


@pytest.mark.parametrize("label", [True, 1, 0.5, "yes", "1"])
def test_a_label_keeps_its_type_on_its_way_into_clickhouse(label: Any) -> None:
    records = Records([json.dumps(event(label=label)).encode()], [None], [()], [7], [NOW])
    found, _ = FeedbackReader(ENDPOINTS, 1).read(0, records)
    (row,) = merged([feedback_rows(0, records, found)])["feedback"].to_pylist()

    back = json.loads(row["label"])
    assert (back, type(back)) == (label, type(label))


@pytest.mark.parametrize(
    ("key", "says", "auth"),
    [(PRODUCER, "verified", "verified"), (PRODUCER, "claimed", "claimed"), (STRANGER, "verified", "claimed"),
     (None, "verified", "claimed")],
)  # fmt: skip
def test_a_source_is_verified_only_by_a_producer_key_of_the_endpoint(
    key: SigningKey | None, says: str, auth: str
) -> None:
    value = json.dumps([event(source_auth=says)] * 2).encode()
    (first, second), _ = read(value, key.headers(Feedback.KIND, value) if key else ())

    assert first.auth == second.auth == auth


def test_a_signature_over_other_bytes_or_as_another_kind_vouches_for_nothing() -> None:
    value = json.dumps(event(source_auth="verified")).encode()
    for headers in (PRODUCER.headers(Feedback.KIND, value + b" "), PRODUCER.headers("report", value)):
        assert read(value, headers)[0][0].auth == "claimed"


def test_an_endpoint_that_trusts_unsigned_records_does_so_here_too_and_a_bad_signature_is_none() -> None:
    value = json.dumps(event(endpoint="open", source_auth="verified")).encode()

    assert read(value)[0][0].auth == "verified"
    assert read(value, STRANGER.headers(Feedback.KIND, value))[0][0].auth == "claimed"


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, (), "tombstone"),
        (b"", (), "empty"),
        (b"[]", (), "empty"),
        (b"{", (), "not_json"),
        (b"[{", (), "not_json"),
        (b"{}", (), "wrong_shape"),
        (b"7", (), "wrong_shape"),
        (b'{"endpoint":"credit","request_id":"r","label":null}', (), "wrong_shape"),
        (b'{"endpoint":"credit","request_id":"r","label":NaN}', (), "wrong_shape"),
        (b'{"endpoint":"credit","request_id":"r","label":1e999}', (), "wrong_shape"),
        (json.dumps(event(label="x" * 300)).encode(), (), "wrong_shape"),
        (json.dumps(event(label=[1])).encode(), (), "wrong_shape"),
        (json.dumps(event(label="x" * 70_000)).encode(), (), "too_large"),
        (b" " * 1_100_000, (), "too_large"),
        (b"[" * 40 + b"]" * 40, (), "too_deep"),
        (json.dumps([event()] * 10_001).encode(), (), "too_large"),
        (b"\xff\xff\xff\xff\x00", (), "arrow_broken"),
        (stream([{"x": 1}])[:-9], (), "arrow_broken"),
        (b"{}", [(KIND_HEADER, b"prediction")], "unknown_kind"),
        (b"{}", [("content-type", b"application/vnd.apache.arrow.stream")], "encoding_mismatch"),
    ],
)
def test_what_is_no_feedback_is_a_dead_letter_with_its_reason(
    value: bytes | None, headers: RawHeaders, reason: str
) -> None:
    assert reasons(value, headers) == [reason]


def test_an_arrow_stream_without_the_columns_is_refused_row_by_row_within_the_bound_of_letters() -> None:
    letters = reasons(stream([{"x": 1}] * 500))

    assert set(letters) == {"wrong_shape"}
    assert len(letters) <= 65


def test_a_bad_row_of_an_array_costs_no_other_row() -> None:
    found, dead = read(json.dumps([event(request_id="a"), {"endpoint": 5}, event(request_id="b")]).encode())

    assert [(one.feedback.request_id, one.row) for one in found] == [("a", 0), ("b", 2)]
    assert [(letter.reason, letter.log_row, letter.log_offset) for letter in dead] == [("wrong_shape", 1, 7)]


def test_feedback_of_an_endpoint_that_belongs_elsewhere_is_refused() -> None:
    assert reasons(json.dumps(event()).encode(), partitions=64) == ["wrong_partition"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from([*Feedback.model_fields, "other"]), JSON | st.sampled_from(["credit", "verified", 10**5_000])
)


def _loose(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:  # more digits than Python writes
        return b'{"endpoint":"credit","request_id":"r","label":' + b"9" * 5_000 + b"}"


@settings(max_examples=300, deadline=None)
@given(
    value=st.none() | st.binary(max_size=80) | FIELDS.map(_loose) | st.lists(FIELDS, max_size=4).map(_loose)
    | st.binary(max_size=40).map(lambda tail: stream([event()])[:-20] + tail),
    headers=st.lists(st.tuples(st.text(max_size=12), st.none() | st.binary(max_size=8)), max_size=3),
    ms=st.sampled_from([-1, 0, NOW, 2**63 - 1]),
)  # fmt: skip
def test_no_record_raises_and_each_is_rows_or_a_letter(value: bytes | None, headers: Any, ms: int) -> None:
    records = Records([value], [None], [headers], [7], [ms])
    found, dead = FeedbackReader(ENDPOINTS, 1).read(0, records)

    assert found or dead
    assert "handler_failed" not in {DeadLetter.from_bytes(letter.value).reason for letter in dead}
    for table in merged([feedback_rows(0, records, found)]).values():
        assert table.schema == ARROW_SCHEMAS["feedback"]
        table.validate(full=True)
