"""What becomes of requests and responses, by what ingest says of where its predictions come from."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from palisade.verify.ingested import asked_ends, paired_rows
from palisade.verify.records import Read, events_in
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.ingest.written import places_of
from tests.verify.given import ASKED, WHOLE, changed, finished, history

ORIGINS = [f"{REQUESTS}/3/17/0", f"{REQUESTS}/3/17/1", None]
ANSWERS = [f"{RESPONSES}/3/4/0", None, "palisade.requests/3/-1/0"]


def arrow() -> bytes:
    table = pa.table({"origin": pa.array(ORIGINS), "answer": pa.array(ANSWERS)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def as_json() -> bytes:
    return json.dumps(
        [{"origin": origin, "answer": answer} for origin, answer in zip(ORIGINS, ANSWERS, strict=True)]
    ).encode()


@pytest.mark.parametrize("value", [arrow(), as_json()], ids=["Arrow", "JSON"])
def test_predictions_say_where_they_come_from(value: bytes):
    rows = paired_rows(Read(PREDICTIONS, 0, 9, 1, None, {}, value))

    assert [(row["topic"], row["partition"], row["offset"], row["row"]) for row in rows] == [
        (REQUESTS, 3, 17, 0), (REQUESTS, 3, 17, 1), (RESPONSES, 3, 4, 0)
    ]  # fmt: skip
    assert {row["written"] for row in rows} == {9}
    assert sum(len(found) for _, found in places_of(value, 3)) >= 3  # ingest reads the same of its own


@pytest.mark.parametrize("value", [None, b"", b"{", b"[1, 2]", arrow()[:-40], b'{"origin": 7}', b'[{"origin": "a/b"}]'])
def test_what_says_nothing_readable_comes_from_nowhere(value: bytes | None):
    assert paired_rows(Read(PREDICTIONS, 0, 9, 1, None, {}, value)) == []


@pytest.mark.parametrize(
    ("value", "headers", "events"),
    [
        (b'{"request_id": "a"}', {}, 1),
        (b'[{"request_id": "a"}, {"request_id": "b"}]', {"palisade-kind": b"request"}, 2),
        (b'[{"specversion": "1.0"}, {"specversion": "1.0"}]', {}, 1),
        (b"[1, 2, 3]", {"ce_type": b"x"}, 1),
        (b"[1, 2, 3]", {"content-type": b"application/cloudevents-batch+json"}, 1),
    ],
)
def test_events_are_counted_where_the_form_is_our_own(value: bytes, headers: dict[str, bytes], events: int):
    assert events_in(Read(REQUESTS, 0, 9, 1, None, headers, value)) == events


def test_what_ended_and_what_was_written_twice_is_counted():
    ends = asked_ends(history())

    assert (ends.broken, ends.unjudged) == ((), "")
    assert ends.asked == 2 * 2 * (ASKED - 1)
    assert ends.twice == 2


def test_of_a_finished_run_the_last_request_must_have_ended_too():
    (first, *_) = asked_ends(finished(history())).broken

    assert f"offset {ASKED - 1} of" in first.words


def test_where_letters_stand_for_others_nothing_is_missed():
    def for_others(rows):
        return [row | {"for_run": True} if row["topic"] in (REQUESTS, RESPONSES) else row for row in rows]

    found = changed(history(), "dead_letters", for_others)
    found = changed(found, "paired", lambda rows: [row for row in rows if row["offset"] != WHOLE + 1])

    assert asked_ends(found).broken == ()
