import json

import pyarrow as pa
import pytest

from palisade.demo.checks import EventCount, RowKey, Totals, audit_difference, rejected, rows_in, spans
from palisade.demo.load import Answer
from palisade.demo.tap import Record

EVENT = {"endpoint": "flights-ewr", "features": {"temp": 3}, "served_by": "primary"}


def arrow(rows: int, refused: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"endpoint": ["e"] * rows, "served_by": ["refused"] * refused + ["primary"] * (rows - refused)})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=7):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def record(offset: int, value: bytes | None, **headers: bytes) -> Record:
    return Record("palisade.predictions", 0, offset, 1.0, 1.0, headers, value)


@pytest.mark.parametrize(
    ("value", "headers", "rows"),
    [
        (json.dumps(EVENT).encode(), {}, 1),
        (json.dumps(EVENT).encode(), {"palisade-kind": b"prediction"}, 1),
        (json.dumps([EVENT] * 3).encode(), {}, 3),
        (arrow(20), {}, 20),
        (arrow(20), {"content-type": b"application/vnd.apache.arrow.stream"}, 20),
        (b'{"worker":"w","at_ms":1}', {"palisade-kind": b"tick"}, 0),
        (b"{}", {"palisade-kind": b"profile_activated"}, 0),
        (b"not json", {}, 1),
        (arrow(20)[:200], {}, 1),
        (b"", {}, 1),
        (None, {}, 1),
        (b"[]", {}, 1),
        (b"[" * 100_000, {}, 1),
    ],
)
def test_rows_of_a_record_are_counted_without_the_product(value, headers, rows):
    assert rows_in(value, headers)[0] == rows


def test_refused_calls_are_told_from_answered_ones_in_both_encodings():
    refused = json.dumps([EVENT, EVENT | {"served_by": "refused"}]).encode()

    assert rows_in(refused, {}) == (2, 1)
    assert rows_in(arrow(20, refused=4), {}) == (20, 4)


def test_every_event_has_an_identity_and_ticks_have_none():
    events = EventCount()
    events.add(record(0, arrow(2)))
    events.add(record(1, b"{}", **{"palisade-kind": b"tick"}))
    events.add(record(2, b"broken"))

    assert events.total == 3
    assert [(key.offset, key.row) for key in events.identities()] == [(0, 0), (0, 1), (2, 0)]


def test_a_missing_an_extra_and_a_repeated_audit_row_are_found():
    events = {RowKey("t", 0, offset, row) for offset in range(50) for row in range(3)}
    lost, invented, repeated = RowKey("t", 0, 7, 2), RowKey("t", 1, 7, 2), RowKey("t", 0, 9, 0)

    assert audit_difference(events, events) == audit_difference(set(), [])
    found = audit_difference(events, [*(events - {lost}), invented, repeated])

    assert found.missing == (lost,)
    assert found.extra == (repeated, invented)


def test_an_answered_call_without_an_event_is_rejected():
    answers = [Answer(1, 2, "e", "c", status, "primary", "") for status in (200, 200, 200, 429, 0)]
    events = EventCount()
    events.add(record(0, json.dumps([EVENT, EVENT, EVENT | {"served_by": "refused"}]).encode()))

    assert rejected(answers, events) == 1


@pytest.mark.parametrize(
    "totals",
    [
        Totals(100, 99, 0, 0, 0, 0),
        Totals(100, 99, 1, 0, 0, 0),
        Totals(100, 100, 0, 2, 0, 0),
        Totals(100, 100, 0, 0, 1, 0),
        Totals(100, 100, 0, 0, 0, 1),
    ],
)
def test_a_balance_that_does_not_add_up_is_said_so(totals):
    assert list(Totals(100, 100, 0, 0, 0, 0).problems()) == []
    assert len(list(totals.problems())) == 1


def test_rows_that_the_audit_lacks_are_said_by_the_stretch_of_their_partition():
    keys = [RowKey("p", 1, 7, 0), RowKey("p", 0, 5, 1), RowKey("p", 1, 9, 0)]

    assert spans(keys) == "p[0] 5-5 (1 rows), p[1] 7-9 (2 rows)"
    (said,) = Totals(100, 100, 0, 0, 3, 0, spans(keys)).problems()
    assert said == f"the audit lacks 3 rows and has 0 too many (lacking: {spans(keys)})"
