"""Each request becomes one prediction: with its response, or as unanswered; whatever the order and the cut."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.ingest import MAX_WAIT_MS
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from schemas.wire import KIND_HEADER
from streams.audit.rows import rows_of as rows_of_log
from streams.decode.partitioner import partition_of
from streams.ingest.written import Already, places_of
from streams.records import Outgoing, Records
from tests.ingest.making import NOW, PARTITIONS, Pairing, as_json, request, response, rows_of


def test_a_request_and_its_response_become_one_prediction() -> None:
    pairing = Pairing()

    assert not pairing.ask(request("r1", ts=NOW - 40, model_version="v1", weight=2.0)).outgoing
    pairing.answer(response("r1", model_version="v2", served_by="fallback"), ms=NOW + 5)

    (prediction,) = pairing.predictions
    assert prediction == {
        "endpoint": "credit", "producer": "unknown", "request_id": "r1", "model_version": "v2", "artifact_digest": None,
        "caller": "ann", "caller_auth": "claimed", "ts": NOW - 40, "latency_ms": 3.5, "status": "ok",
        "served_by": "fallback", "weight": 2.0, "origin": "palisade.requests/0/0/0", "answer": "palisade.responses/0/0/0",
        "reused_id": False, "features": {"amount": 12.5, "country": "NL"}, "prediction": 0.25,
    }  # fmt: skip


def test_predictions_lie_where_their_endpoint_belongs_one_record_a_partition() -> None:
    pairing = Pairing()
    names = [f"e{number}" for number in range(40)]

    pairing.ask(*(request(name, endpoint=name) for name in names))
    pairing.answer(*(response(name, endpoint=name) for name in names))

    assert [record.topic for record in pairing.sent] == [PREDICTIONS] * PARTITIONS
    homes = {row: record.partition for record in pairing.sent for row in endpoints_of(record.value)}
    assert homes == {name: partition_of(name.encode(), PARTITIONS) for name in names}


def endpoints_of(value: bytes) -> list[str]:
    return [row["endpoint"] for row in rows_of(value)]


def test_a_record_of_one_endpoint_has_it_as_its_key_and_says_that_ingest_wrote_it() -> None:
    pairing = Pairing()

    pairing.ask(request("r1"))
    pairing.answer(response("r1"))

    (record,) = pairing.sent
    assert record.key == b"credit"
    assert dict(record.headers) == {
        KIND_HEADER: b"prediction",
        "content-type": b"application/vnd.apache.arrow.stream",
        "palisade-ingest": b"0",
    }


IDS = st.sampled_from([f"r{number}" for number in range(8)])
ENDPOINTS = st.sampled_from(["credit", "fraud"])
EVENTS = st.lists(
    st.one_of(
        st.builds(lambda one, endpoint: (REQUESTS, one, endpoint), IDS, ENDPOINTS),
        st.builds(lambda one, endpoint: (RESPONSES, one, endpoint), IDS, ENDPOINTS),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, data=st.data(), array=st.booleans())
def test_any_interleaving_and_cut_gives_the_same_pairs_once_each(
    events: list[tuple[str, str, str]], data: st.DataObject, array: bool
) -> None:
    """The n-th request of an id pairs with its n-th response, however the two topics are read beside each other."""
    asked = [(one, endpoint) for topic, one, endpoint in events if topic == REQUESTS]
    answered = [(one, endpoint) for topic, one, endpoint in events if topic == RESPONSES]
    pairing = Pairing()

    left = {REQUESTS: as_json(*(request(one, endpoint=e) for one, e in asked)),
            RESPONSES: as_json(*(response(one, endpoint=e) for one, e in answered))}  # fmt: skip
    while left[REQUESTS] or left[RESPONSES]:
        topic = data.draw(st.sampled_from([topic for topic in left if left[topic]]))
        count = data.draw(st.integers(1, len(left[topic])))
        values, left[topic] = left[topic][:count], left[topic][count:]
        pairing.take(topic, *([b"[" + b",".join(values) + b"]"] if array else values))
    pairing.expire(NOW + MAX_WAIT_MS)

    both = Counter(asked) & Counter(answered)
    got = Counter((row["request_id"], row["endpoint"], row["status"]) for row in pairing.predictions)
    assert got == Counter({(*key, "ok"): count for key, count in both.items()}) + Counter(
        {(*key, "unanswered"): count for key, count in (Counter(asked) - both).items()}
    )
    assert len({row["origin"] for row in pairing.predictions}) == len(asked)
    assert sum(lettered(letter.detail) for letter in pairing.letters) == (Counter(answered) - both).total()
    assert {letter.reason for letter in pairing.letters} <= {"no_request"}
    assert pairing.log.held_rows == {REQUESTS: 0, RESPONSES: 0}
    assert pairing.log.held_bytes == {REQUESTS: 0, RESPONSES: 0}
    assert pairing.log.kept == {}


def lettered(detail: str) -> int:
    """Rows that a letter stands for."""
    return 1 + (int(detail.split()[0]) if "more such rows" in detail else 0)


def test_an_id_that_is_reused_while_it_is_open_hides_nothing_and_is_noted() -> None:
    pairing = Pairing()

    pairing.ask(request("r1", caller="ann"), request("r1", caller="mallory"), request("r2", caller="bob"))
    pairing.answer(response("r1", prediction=1.0), response("r1", prediction=2.0), response("r2", prediction=3.0))
    pairing.ask(request("r1", caller="carol"))
    pairing.answer(response("r1", prediction=4.0))

    assert [(row["caller"], row["prediction"], row["reused_id"]) for row in pairing.predictions] == [
        ("ann", 1.0, False), ("mallory", 2.0, True), ("bob", 3.0, False), ("carol", 4.0, False),
    ]  # fmt: skip


def test_one_id_at_two_endpoints_is_two_calls() -> None:
    pairing = Pairing()

    pairing.ask(request("r1", endpoint="credit"), request("r1", endpoint="fraud"))
    pairing.answer(response("r1", endpoint="fraud", prediction=2.0), response("r1", endpoint="credit", prediction=1.0))

    assert {(row["endpoint"], row["prediction"], row["reused_id"]) for row in pairing.predictions} == {
        ("credit", 1.0, False), ("fraud", 2.0, False),
    }  # fmt: skip


def test_a_response_for_another_endpoint_leaves_the_request_to_its_own_response() -> None:
    pairing = Pairing()

    pairing.ask(request("r1"), request("r2"))
    pairing.answer(response("r1", endpoint="fraud"), response("r2"), response("r1", prediction=7.0))

    assert [(row["request_id"], row["prediction"]) for row in pairing.predictions] == [("r2", 0.25), ("r1", 7.0)]
    assert pairing.log.held_rows == {REQUESTS: 0, RESPONSES: 1}


def test_a_response_need_not_name_its_endpoint() -> None:
    pairing = Pairing()
    unnamed = response("r1")
    del unnamed["endpoint"]

    pairing.ask(request("r1"))
    pairing.answer(unnamed)

    assert [row["endpoint"] for row in pairing.predictions] == ["credit"]


def test_ids_of_two_producers_never_meet() -> None:
    pairing = Pairing()

    pairing.ask(request("1", producer="a"), request("1", producer="b", caller="bob"))
    pairing.answer(response("1", producer="b"))

    assert [row["caller"] for row in pairing.predictions] == ["bob"]


def test_a_combined_event_needs_no_pairing_on_either_topic() -> None:
    pairing = Pairing()
    whole = request("r1") | response("r1")

    pairing.ask(whole)
    pairing.answer(whole)

    assert [(row["origin"], row["answer"]) for row in pairing.predictions] == [
        ("palisade.requests/0/0/0", None), ("palisade.responses/0/0/0", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "outcome",
    [0.5, 3, True, "fraud", [0.1, 0.9], {"a": 0.25, "b": 0.75}, None],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_prediction_of_any_type_is_written_as_it_was_sent(outcome: Any) -> None:
    pairing = Pairing()

    pairing.ask(request("r1"), request("r2"))
    pairing.answer(response("r1", prediction=outcome), response("r2", prediction=0.75))

    found = {row["request_id"]: row["prediction"] for row in pairing.predictions}
    assert found == {"r1": outcome, "r2": 0.75}
    assert type(found["r1"]) is (float if type(outcome) is int else type(outcome))


def test_latency_is_told_by_the_times_where_the_service_does_not() -> None:
    pairing = Pairing()

    pairing.ask(request("r1", ts=NOW), request("r2", ts=NOW), request("r3"))
    pairing.answer(
        *(response(one, latency_ms=None, ts=at) for one, at in (("r1", NOW + 30), ("r2", NOW - 5), ("r3", NOW)))
    )

    assert [row["latency_ms"] for row in pairing.predictions] == [30.0, None, None]


def test_whom_the_owner_does_not_vouch_for_is_claimed() -> None:
    found = []
    for vouched in (False, True):
        pairing = Pairing(vouched=vouched)
        pairing.ask(request("r1", caller_auth="verified"), request("r2"))
        pairing.answer(response("r1"), response("r2"))
        found.append([row["caller_auth"] for row in pairing.predictions])

    assert found == [["claimed", "claimed"], ["verified", "claimed"]]


def test_nothing_is_committed_over_what_waits() -> None:
    pairing = Pairing()

    pairing.ask(*(request(f"r{number}") for number in range(4)))
    pairing.answer(response("r0"), response("r2"), response("early"))
    assert pairing.log.kept == {REQUESTS: 1, RESPONSES: 2}
    handled = pairing.answer(response("r1"))

    assert handled.oldest == {REQUESTS: 1, RESPONSES: 3}
    assert pairing.log.kept == {REQUESTS: 3, RESPONSES: 2}


def test_what_was_written_before_a_restart_is_not_written_again() -> None:
    events = as_json(*(request(f"r{number}") for number in range(6)))
    answers = as_json(*(response(f"r{number}") for number in (0, 1, 3)))
    before = Pairing()
    before.take(REQUESTS, *events)
    before.take(RESPONSES, *answers)

    after = Pairing()
    after.log.recall(Already.of([found for record in before.sent for found in places_of(record.value, 0)]))
    after.take(REQUESTS, *events)
    after.take(RESPONSES, *answers)
    after.answer(response("r2"))
    after.expire(NOW + MAX_WAIT_MS)

    rows = before.predictions + after.predictions
    assert sorted(row["origin"] for row in rows) == [f"palisade.requests/0/{number}/0" for number in range(6)]
    assert [row["request_id"] for row in after.predictions] == ["r2", "r4", "r5"]
    assert not after.letters


@pytest.mark.parametrize("features", [{"amount": 12.5}, [12.5]], ids=["arrow", "json"])
def test_the_audit_keeps_where_a_prediction_came_from(features: Any) -> None:
    pairing = Pairing()
    pairing.ask(request("r1", features=features), request("r1", features=features))
    pairing.answer(response("r1", prediction="fraud"), response("r1"))
    pairing.ask(request("r2", features=features))
    pairing.expire(NOW + MAX_WAIT_MS)

    rows = [
        row
        for offset, record in enumerate(pairing.sent)
        for table in audited(record, offset)
        for row in table.select(["origin", "answer", "reused_id", "status", "prediction"]).to_pylist()
    ]

    assert sorted(tuple(row.values()) for row in rows if row["answer"]) == [
        ("palisade.requests/0/0/0", "palisade.responses/0/0/0", False, "ok", '"fraud"'),
        ("palisade.requests/0/1/0", "palisade.responses/0/1/0", True, "ok", "0.25"),
    ]
    assert [(row["origin"], row["status"]) for row in rows if not row["answer"]] == [
        ("palisade.requests/0/2/0", "unanswered")
    ]


def audited(record: Outgoing, offset: int) -> list[pa.Table]:
    """The rows that role audit inserts of a record of predictions."""
    log = Records([record.value], [record.key], [record.headers], [offset], [NOW])
    return rows_of_log(PREDICTIONS, record.partition or 0, log, PARTITIONS)["predictions"]


def test_texts_numbers_and_nothing_answered_in_one_run_stay_what_they_were() -> None:
    answers = ["yes", 0.5, None, "no", {"yes": 0.25, "no": 0.75}, True]
    pairing = Pairing()
    pairing.ask(*(request(f"r{number}") for number in range(len(answers))))

    pairing.answer(*(response(f"r{number}", prediction=answer) for number, answer in enumerate(answers)))

    assert {row["request_id"]: row["prediction"] for row in pairing.predictions} == {
        f"r{number}": answer for number, answer in enumerate(answers)
    }
