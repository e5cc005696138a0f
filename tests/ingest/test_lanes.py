"""Events that are alike are decoded in a narrow way: nobody can tell by what comes of them, or make it slow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.topics import REQUESTS
from streams.ingest import decode
from streams.ingest.decode import MAX_MISSES, EventDecoder
from tests.ingest.making import Pairing, as_json, records, request, response

ROWS = 300
ODD: dict[str, dict[str, Any]] = {
    "null": {"features": {"amount": None, "country": "NL"}},
    "other type": {"features": {"amount": "much", "country": "NL"}},
    "feature less": {"features": {"country": "NL"}},
    "other order": {"features": {"country": "NL", "amount": 3}},
    "list": {"features": [1.0, "NL"]},
    "unknown field": {"why": {"deep": [1]}},
    "lone surrogate": {"features": {"amount": 1.5, "country": "\ud800"}},
    "integer": {"features": {"amount": 12, "country": "NL"}},
    "whole event": {"prediction": 0.5},
}


def told(pairing: Pairing) -> list[dict[str, Any]]:
    """What was written, whether as Arrow or as JSON."""
    return sorted(
        (
            {name: value for name, value in row.items() if value is not None and name != "schema_version"}
            for row in pairing.predictions
        ),
        key=lambda row: (str(row["request_id"]), str(row["origin"])),
    )


@pytest.mark.parametrize("odd", ODD)
def test_a_shape_that_was_learned_changes_nothing_of_what_comes_of_events(odd: str) -> None:
    events = [request(f"r{number}", caller=f"c{number % 7}") for number in range(ROWS)]
    events[ROWS // 2] |= ODD[odd]
    answers = [response(f"r{number}") for number in range(ROWS)]
    learned, plain = Pairing(), Pairing()
    learned.ask(*(request(f"before-{number}") for number in range(ROWS)))
    for number in range(ROWS):  # too few at once to learn from
        plain.ask(request(f"before-{number}"))
    for event, answer in zip(events, answers, strict=True):
        plain.ask(event)
        plain.answer(answer)
    learned.ask(*events)
    learned.answer(*answers)

    assert learned.log._decoders[REQUESTS].lanes[0].shape is not None
    assert plain.log._decoders[REQUESTS].lanes[0].shape is None
    assert told(learned) == told(plain)
    assert [letter.reason for letter in learned.letters] == [letter.reason for letter in plain.letters]


def test_a_response_that_says_nothing_is_refused_among_others_too() -> None:
    pairing = Pairing()
    pairing.ask(request("r0"), request("r1"))
    pairing.answer(response("r0"), {"request_id": "r1", "endpoint": "credit"})

    assert [row["request_id"] for row in pairing.predictions] == ["r0"]
    assert [letter.reason for letter in pairing.letters] == ["wrong_shape"]


def test_whoever_changes_the_shape_over_and_over_cuts_few_pieces() -> None:
    decoder = EventDecoder(REQUESTS, 0)
    plain = json.dumps([request("a")] * 4).encode()
    odd = json.dumps(request("b", why=1)).encode()

    pieces = list(decoder.pieces(records([plain, odd] * 200)))

    assert sum(len(piece.piece) for piece in pieces) == 1_000
    assert len(pieces) <= MAX_MISSES + 2


def test_a_shape_is_learned_from_many_rows_alone_and_of_one_kind() -> None:
    decoder = EventDecoder(REQUESTS, 0)
    few, many = as_json(*[request("a")] * (decode.LEARN_ROWS - 1)), as_json(*[request("a")] * decode.LEARN_ROWS)
    mixed = as_json(*(request("a", features={f"f{number % 2}": 1.0}) for number in range(decode.LEARN_ROWS)))

    for values, learns in ((few, False), (mixed, False), (many, True)):
        list(decoder.pieces(records(values)))
        assert (decoder.lanes[0].shape is not None) == learns
