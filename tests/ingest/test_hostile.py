"""Whatever a stranger writes to the topics of ingest ends as exactly one outcome, and nothing stops the role."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.deadletter import DeadLetter
from schemas.events import MAX_ROWS_PER_RECORD
from schemas.ingest import MAX_WAIT_MS
from schemas.topics import DEAD_LETTERS, PREDICTIONS, REQUESTS, RESPONSES
from schemas.wire import KIND_HEADER
from streams.decode import Decoder, Segment
from streams.records import Outgoing, RawHeaders
from streams.redaction import Redactor
from tests.ingest.making import NOW, PARTITIONS, Pairing, as_json, records, request, response
from tests.ingest.test_encodings import KSERVE, arrow

DEEP = b'{"endpoint":"credit","request_id":"r","features":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
CE: list[tuple[str, bytes | None]] = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"1"),
    ("ce_source", b"s"),
    ("ce_type", b"t"),
]

CASES: list[tuple[bytes | None, RawHeaders, str]] = [
    (None, None, "tombstone"),
    (b"", None, "empty"),
    (b"[]", None, "empty"),
    (b"{", None, "not_json"),
    (b"\xff\xfe{}", None, "not_json"),
    (b"{}", None, "wrong_shape"),
    (b"7", None, "wrong_shape"),
    (b"[7]", None, "wrong_shape"),
    (b'{"endpoint":"credit","features":{"a":1}}', None, "wrong_shape"),
    (b'{"endpoint":"credit","request_id":"r"}', None, "wrong_shape"),
    (b'{"request_id":"r","features":{"a":1}}', None, "wrong_shape"),
    (b'{"endpoint":"credit","request_id":7,"features":{"a":1}}', None, "wrong_shape"),
    (b'{"endpoint":"credit","request_id":"r","features":{"a":{}}}', None, "wrong_shape"),
    (DEEP, None, "too_deep"),
    (b'{"x":"' + b"x" * 65_536 + b'"}', None, "too_large"),
    (b"x" * 1_048_577, None, "too_large"),
    (b"[" + b"{}," * MAX_ROWS_PER_RECORD + b"{}]", None, "too_large"),
    (b"{}", [(KIND_HEADER, b"tick")], "unknown_kind"),
    (as_json(response("r"))[0], None, "unknown_kind"),
    (b"\xff\xff\xff\xff\x10\x00\x00\x00", None, "arrow_broken"),
    (b"{}", [("content-type", b"application/vnd.apache.arrow.stream")], "encoding_mismatch"),
    (b"7", [("content-type", b"application/vnd.apache.arrow.stream")], "arrow_broken"),
    (arrow([{"endpoint": "credit", "request_id": 7, "features": {"a": 1.0}}]), None, "arrow_schema"),
    (arrow([{"endpoint": "credit", "request_id": "r", "features": 7}]), None, "arrow_schema"),
    (arrow([{"endpoint": "credit", "request_id": "r", "caller_auth": "root", "features": {"a": 1.0}}]), None, "wrong_shape"),
    (arrow([{"endpoint": "credit", "request_id": None, "features": {"a": 1.0}}]), None, "wrong_shape"),
    (b"{", CE, "not_json"),
    (b"[1]", CE, "wrong_shape"),
    (b"{}", CE, "wrong_shape"),
    (b'{"instances":[]}', CE, "wrong_shape"),
    (b'{"instances":[{"a":{"b":1}}]}', CE, "wrong_shape"),
    (b'{"inputs":[{"name":"a","shape":[3],"data":[]}]}', CE, "wrong_shape"),
    (b'{"inputs":[{"name":"a","shape":[99999999999],"data":[1]},{"name":"b","data":[1,2]}]}', CE, "wrong_shape"),
    (DEEP, CE, "too_deep"),
    (b"{}", [("content-type", b"application/cloudevents+json")], "wrong_shape"),
    (b'{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"!"}',
     [("content-type", b"application/cloudevents+json")], "wrong_shape"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "headers", "reason"), CASES)
def test_what_cannot_be_decoded_is_dead_lettered_and_its_neighbours_are_not(
    value: bytes | None, headers: RawHeaders, reason: str
) -> None:
    pairing = Pairing()
    good = as_json(request("before"), request("after"))

    pairing.take(REQUESTS, good[0], value, good[1], headers=[None, headers, None])
    pairing.answer(response("before"), response("after"))

    assert {letter.reason for letter in pairing.letters} == {reason}
    assert {letter.log_offset for letter in pairing.letters} == {1}
    assert [row["request_id"] for row in pairing.predictions] == ["before", "after"]


def test_a_letter_keeps_nothing_of_what_was_refused_where_features_are_sensitive() -> None:
    secret = b'{"endpoint":"credit","request_id":"r","features":{"ssn":"078-05-1120"}'
    shown, hidden = Pairing(), Pairing(keep_heads=False)
    headers: RawHeaders = [*CE, ("ce_metadata", b"078-05-1120")]

    for pairing in (shown, hidden):
        pairing.take(REQUESTS, secret, headers=[headers])

    assert shown.letters[0].head
    assert hidden.letters[0].size == len(secret)
    assert b"078-05-1120" not in hidden.sent[0].value
    assert b"078-05-1120" not in b"".join(str(letter.headers).encode() for letter in shown.letters)


def test_a_malformed_request_counts_against_its_caller_without_a_byte_of_it() -> None:
    """A caller whose every request is malformed is no less visible to the detectors, and to the counters of traffic."""
    pairing = Pairing(vouched=True)
    bad = request("r", caller="mallory", caller_auth="verified", features={"amount": {"$": "078-05-1120"}})

    pairing.take(REQUESTS, json.dumps([bad, request("r1"), bad]).encode(), as_json(bad)[0])

    assert [(row["endpoint"], row["caller"], row["caller_auth"], row["origin"]) for row in pairing.blamed] == [
        ("credit", "mallory", "verified", f"palisade.requests/0/{offset}/{row}") for offset, row in ((0, 0), (0, 2), (1, 0))
    ]  # fmt: skip
    passed = [one for one in pairing.sent if one.topic == PREDICTIONS]
    assert all(b"078-05" not in one.value for one in passed)
    (report,) = pairing.reports(NOW + 1_000)
    assert ({each["caller"]: each["asked"] for each in report["callers"]}, report["in_flight"]) == (
        {"mallory": 3, "ann": 1},
        1,
    )
    (segment,) = detected(passed[0])
    assert [(letter.reason, letter.caller) for letter in segment.dead_letters] == [("wrong_shape", "mallory")] * 3


@pytest.mark.parametrize(
    "encode", [lambda *rows: as_json(*rows), lambda *rows: [arrow(list(rows))]], ids=["json", "arrow"]
)
def test_what_was_read_and_is_no_event_counts_against_its_caller(encode: Callable[..., list[bytes]]) -> None:
    """Without features, or by a word that is none, a caller is as malformed as by what no decoder reads."""
    pairing = Pairing(vouched=True)
    whole = request("r0", caller_auth="verified")
    empty = {name: value for name, value in whole.items() if name != "features"} | {"caller": "mallory"}

    pairing.take(REQUESTS, *encode(whole | {"caller_auth": "sworn", "caller": "eve"}), *encode(empty))
    pairing.take(REQUESTS, *encode({"endpoint": "credit", "request_id": "nobody's"}))

    assert [letter.reason for letter in pairing.letters] == ["wrong_shape"] * 3
    assert {row["caller"]: row.get("caller_auth") for row in pairing.blamed} == {"eve": None, "mallory": "verified"}


@pytest.mark.parametrize("features", [{"amount": {}}, [12.5]], ids=["no decoder reads it", "no rule speaks of it"])
def test_a_refused_combined_event_counts_against_its_caller_wherever_it_is_written(features: Any) -> None:
    pairing = Pairing(redactions={"credit": Redactor({"amount": "drop"}, b"k" * 32)}, keep_heads=False)
    bad = request("r", caller="mallory", features=features, prediction=0.5)

    pairing.take(RESPONSES, *as_json(bad, response("plain") | {"latency_ms": "long"}))

    assert [(row["caller"], row["origin"]) for row in pairing.blamed] == [("mallory", "palisade.responses/0/0/0")]
    (report,) = pairing.reports(NOW + 1_000)
    assert {each["caller"]: each["asked"] for each in report["callers"]} == {"mallory": 1}


def detected(record: Outgoing) -> list[Segment]:
    """What role detect makes of a record of ingest."""
    decoder = Decoder(PREDICTIONS, record.partition or 0, PARTITIONS, lambda _endpoint, _version: None)
    return list(decoder.segments([record.value], [record.key], [record.headers], [0], [NOW]))


def test_a_row_of_an_array_is_refused_alone() -> None:
    pairing = Pairing()
    rows = [request("r0"), {"endpoint": 7}, request("r2")]

    pairing.take(REQUESTS, json.dumps(rows).encode())
    pairing.answer(response("r0"), response("r2"))

    assert [(letter.log_offset, letter.log_row, letter.reason) for letter in pairing.letters] == [(0, 1, "wrong_shape")]
    assert [row["origin"][-1] for row in pairing.predictions] == ["0", "2"]


def test_the_letters_of_one_record_are_bounded() -> None:
    pairing = Pairing()

    pairing.take(REQUESTS, b"[" + b",".join([b'{"endpoint":7}'] * 5_000) + b"]")

    assert len(pairing.letters) == 65
    assert pairing.log.outcomes.refused == 5_000


def test_layouts_without_end_are_written_without_loss() -> None:
    pairing = Pairing()
    many = [request(f"r{number}", features={f"f{number}": 1.0}) for number in range(300)]

    pairing.ask(*many)
    pairing.answer(*(response(f"r{number}") for number in range(300)))

    assert {row["request_id"]: row["features"] for row in pairing.predictions} == {
        each["request_id"]: each["features"] for each in many
    }
    assert len(pairing.sent) < 100


TEXT = st.text(max_size=20)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
FIELD = st.sampled_from([
    "endpoint", "request_id", "features", "caller", "caller_auth", "ts", "status", "prediction", "latency_ms", "producer",
    "model_version", "weight", "served_by", "instances", "inputs", "predictions", "outputs", "data", "id", "source",
])  # fmt: skip
EVENT = st.one_of(
    st.dictionaries(FIELD, JUNK, max_size=6),
    st.builds(lambda more: request("r") | more, st.dictionaries(FIELD, JUNK, max_size=2)),
    st.builds(lambda more: response("r") | more, st.dictionaries(FIELD, JUNK, max_size=2)),
)
BODY: st.SearchStrategy[bytes | None] = st.one_of(
    st.none(),
    st.binary(max_size=60),
    EVENT.map(lambda event: json.dumps(event).encode("utf-8", "surrogatepass")),
    st.lists(EVENT, max_size=4).map(lambda events: json.dumps(events).encode("utf-8", "surrogatepass")),
)
HEADERS: st.SearchStrategy[RawHeaders] = st.one_of(
    st.none(),
    st.lists(
        st.tuples(
            st.sampled_from(
                [KIND_HEADER, "content-type", "ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "x"]
            ),
            st.one_of(
                st.none(),
                st.binary(max_size=12),
                st.sampled_from(
                    [b"application/json", b"application/cloudevents+json", b"1.0", KSERVE.encode(), b"request"]
                ),
            ),
        ),
        max_size=5,
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([REQUESTS, RESPONSES]), BODY, HEADERS), max_size=12))
def test_every_record_ends_as_predictions_or_letters(written: list[tuple[str, bytes | None, RawHeaders]]) -> None:
    pairing = Pairing()
    for topic, value, headers in written:
        pairing.take(topic, value, headers=[headers])
    pairing.expire(NOW + MAX_WAIT_MS)

    settled = {(letter.log_topic, letter.log_offset) for letter in pairing.letters}
    for row in pairing.predictions:
        for place in (row["origin"], row.get("answer")):
            if place is not None:
                topic, _, offset, _ = place.split("/")
                settled.add((topic, int(offset)))
    assert settled == {(topic, offset) for topic in (REQUESTS, RESPONSES) for offset in range(pairing.next[topic])}
    assert pairing.log.held_rows == {REQUESTS: 0, RESPONSES: 0}
    assert_scored(pairing)


def assert_scored(pairing: Pairing) -> None:
    """What ingest writes is what the detect role takes: not one row of it is dead-lettered there."""
    for partition in range(PARTITIONS):
        mine = [one for one in pairing.sent if one.partition == partition and one.topic not in (DEAD_LETTERS,)]
        decoder = Decoder("palisade.predictions", partition, PARTITIONS, lambda _endpoint, _version: None)
        log = records([one.value for one in mine])
        keys = [one.key for one in mine]
        for segment in decoder.segments(log.values, keys, [one.headers for one in mine], log.offsets, log.timestamps):
            refused = [letter.detail for letter in segment.dead_letters]
            assert not refused or pairing.blamed
            assert all("features: Field required" in detail for detail in refused)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_arrow_stream_harms_nobody(data: st.DataObject) -> None:
    whole = bytearray(arrow([request("r1"), request("r2")]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    pairing = Pairing()

    pairing.take(REQUESTS, bytes(whole[:cut]) if data.draw(st.booleans()) else bytes(whole))
    pairing.ask(request("mine"))
    pairing.answer(response("mine"))

    assert "mine" in [row["request_id"] for row in pairing.predictions]


def test_a_letter_says_what_to_do() -> None:
    pairing = Pairing()

    pairing.ask({"endpoint": "credit", "features": {"a": 1.0}})

    (letter,) = pairing.letters
    assert isinstance(letter, DeadLetter)
    assert letter.detail == "request_id: the field is missing; a request has endpoint, request_id, features"
    assert (letter.endpoint, letter.caller) == ("credit", None)
