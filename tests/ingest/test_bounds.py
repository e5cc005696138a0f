"""What waits is bounded in time and in bytes, and one forgotten row holds no more than itself."""

from __future__ import annotations

import pytest

from schemas.ingest import MAX_WAIT_MS
from schemas.topics import REQUESTS, RESPONSES
from tests.ingest.making import NOW, Pairing, request, response


def test_a_request_without_a_response_is_unanswered_after_a_minute_of_the_log() -> None:
    pairing = Pairing()
    pairing.ask(request("r1"), ms=NOW)
    pairing.ask(request("r2"), ms=NOW + 1)

    assert not pairing.expire(NOW + MAX_WAIT_MS - 1).outgoing
    pairing.expire(NOW + MAX_WAIT_MS)

    (prediction,) = pairing.predictions
    assert (prediction["request_id"], prediction["status"]) == ("r1", "unanswered")
    assert (prediction["prediction"], prediction["answer"], prediction["model_version"]) == (None, None, "default")


def test_time_stands_still_for_requests_while_the_responses_are_read_behind_them() -> None:
    pairing = Pairing()
    pairing.ask(request("r1"), ms=NOW)

    held = pairing.log.expire(NOW + MAX_WAIT_MS - 1, NOW + 10 * MAX_WAIT_MS, NOW + 10 * MAX_WAIT_MS)

    assert not held.outgoing


@pytest.mark.parametrize("set_by_ms", [86_400_000, -3_600_000])
def test_rows_of_a_clock_that_is_set_wait_a_minute_and_no_day(set_by_ms: int) -> None:
    pairing = Pairing()
    pairing.ask(request("before"))
    pairing.log_at(NOW + 1_000, ask=request("meanwhile"), ms=NOW + 1_000 + set_by_ms)
    pairing.expire(NOW + 2_000)
    assert pairing.predictions == []
    pairing.answer(response("meanwhile"), ms=NOW + 3_000)
    assert [row["status"] for row in pairing.predictions] == ["ok"]

    pairing.log_at(NOW + 4_000, ask=request("never"), ms=NOW + 4_000 + set_by_ms)
    pairing.expire(NOW + 4_000 + MAX_WAIT_MS)
    assert [row["status"] for row in pairing.predictions] == ["ok", "unanswered", "unanswered"]


def test_a_response_without_a_request_is_dead_lettered_without_its_bytes() -> None:
    pairing = Pairing()
    pairing.answer(response("r1", prediction="secret"))

    pairing.expire(NOW + MAX_WAIT_MS)

    (letter,) = pairing.letters
    assert (letter.reason, letter.log_topic, letter.log_offset, letter.head) == ("no_request", RESPONSES, 0, "")
    assert "request_id r1" in letter.detail


def test_a_response_on_another_partition_than_its_key_is_told_so() -> None:
    pairing = Pairing()
    pairing.answer(*(response(f"r{number}") for number in range(8)))

    pairing.expire(NOW + MAX_WAIT_MS)

    assert any("belongs on partition" in letter.detail for letter in pairing.letters)


def test_the_letters_of_many_orphans_are_few_and_say_for_how_many_they_stand() -> None:
    pairing = Pairing()
    pairing.answer(*(response(f"r{number}") for number in range(1_000)))

    pairing.expire(NOW + MAX_WAIT_MS)

    assert len(pairing.letters) == 64
    assert pairing.letters[-1].detail.startswith("936 more such rows")
    assert pairing.log.outcomes.no_request == 1_000


def test_memory_stays_flat_when_responses_never_come() -> None:
    pairing = Pairing(most_bytes=1 << 20)
    most = 0
    for turn in range(20):
        pairing.ask(*(request(f"r{turn}-{number}") for number in range(500)))
        pairing.expire(NOW)
        most = max(most, pairing.log.held_bytes[REQUESTS])

    assert most <= 1 << 20
    assert pairing.log.outcomes.unanswered + pairing.log.held_rows[REQUESTS] == 10_000
    first = [row["request_id"] for row in pairing.predictions[:3]]
    assert first == ["r0-0", "r0-1", "r0-2"]


def test_a_flood_of_orphan_responses_takes_no_request_its_place() -> None:
    pairing = Pairing(most_bytes=1 << 20)
    pairing.ask(*(request(f"r{number}") for number in range(100)))
    for turn in range(20):
        pairing.answer(*(response(f"x{turn}-{number}") for number in range(500)))
        pairing.expire(NOW)
    pairing.answer(*(response(f"r{number}") for number in range(100)))

    assert [row["status"] for row in pairing.predictions] == ["ok"] * 100


def test_one_row_that_waits_for_long_holds_no_more_than_itself() -> None:
    pairing = Pairing()
    pairing.ask(*(request(f"r{number}") for number in range(2_000)))
    full = pairing.log.held_bytes[REQUESTS]

    pairing.answer(*(response(f"r{number}") for number in range(1, 2_000)))

    assert pairing.log.held_rows[REQUESTS] == 1
    assert pairing.log.held_bytes[REQUESTS] < full / 20
