"""A record of many bad rows costs a few dead letters; its rows are each one outcome all the same."""

from __future__ import annotations

from streams.decode.refusals import MAX_LETTERS, MAX_LETTERS_PER_RECORD
from tests.decode.cases import as_json, one, places, segments


def test_many_bad_rows_of_a_record_share_a_letter_and_stay_one_outcome_each() -> None:
    *pieces, segment = found = segments([b"[" + b",".join([b"1"] * 5_000 + [as_json()]) + b"]"])

    assert segment.dead_rows.row.tolist() == list(range(5_000))
    assert set(segment.dead_rows.endpoint) == {"credit"}
    assert len(segment.dead_letters) == MAX_LETTERS_PER_RECORD + 1
    assert segment.dead_letters[-1].detail.startswith(f"{5_000 - MAX_LETTERS_PER_RECORD - 1} more refused rows")
    assert places(found) == [(0, 5_000)]
    assert not any(piece.dead_letters or len(piece.dead_rows.offset) for piece in pieces)


def test_objects_that_the_judge_refuses_are_counted_and_good_rows_among_them_are_scored() -> None:
    segment = one(b"[" + b",".join([b"{}", as_json()] * 500) + b"]")

    assert segment.dead_rows.row.tolist() == list(range(0, 1_000, 2))
    assert segment.columns.row.tolist() == list(range(1, 1_000, 2))
    assert len(segment.dead_letters) == MAX_LETTERS_PER_RECORD + 1


def test_letters_of_a_run_are_bounded_whatever_the_number_of_its_records() -> None:
    *_, segment = segments([b"5"] * (MAX_LETTERS + 500))

    assert segment.dead_rows.offset.tolist() == list(range(MAX_LETTERS + 500))
    assert len(segment.dead_letters) == MAX_LETTERS + 1
    assert segment.dead_letters[-1].detail.startswith("499 more refused rows of this run")
