"""Sensitive features are unreadable in whatever ingest writes."""

from __future__ import annotations

from schemas.config import Bucket
from schemas.topics import REQUESTS
from streams.ingest.batches import MAX_LAYOUTS
from streams.redaction import Redactor
from tests.ingest.making import Pairing, as_json, request, response

KEY = bytes(range(32))
SECRET = "078-05-1120"


def pairing_with_rules() -> Pairing:
    rules = {"ssn": "hash", "note": "drop", "age": Bucket(bucket=10), "@caller": "hash"}
    return Pairing(redactions={"credit": Redactor(rules, KEY)}, keep_heads=False)  # type: ignore[arg-type]


def test_features_and_callers_are_redacted_before_anything_is_written() -> None:
    pairing = pairing_with_rules()
    features = {"ssn": SECRET, "note": SECRET, "age": 37, "amount": 1.5}

    pairing.ask(request("r0", caller="ann", features=features), request("r1", endpoint="fraud", features={"age": 37}))
    pairing.answer(response("r0"), response("r1", endpoint="fraud"))

    credit, fraud = sorted(pairing.predictions, key=lambda row: row["endpoint"])
    assert credit["features"].keys() == {"ssn", "age", "amount"}
    assert (credit["features"]["age"], credit["features"]["amount"]) == (30.0, 1.5)
    assert credit["features"]["ssn"].startswith("r:")
    assert credit["caller"].startswith("r:")
    assert (fraud["features"], fraud["caller"]) == ({"age": 37.0}, "ann")
    (of_credit, of_fraud) = sorted(pairing.reports(2**41), key=lambda report: report["endpoint"])
    assert of_credit["callers"][0]["caller"] == credit["caller"]
    assert of_fraud["callers"][0]["caller"] == "ann"


def test_what_cannot_be_redacted_is_not_written() -> None:
    """Rules name features; a list of values has no names."""
    pairing = pairing_with_rules()

    pairing.ask(request("r0", features=[SECRET, 1.0]), request("r1", features={"ssn": SECRET, "amount": "odd"}))
    pairing.ask(
        request("r2", features={"ssn": [1.0], "amount": 2.0}), request("r3", features={"ssn": 7, "amount": 2.0})
    )
    pairing.take(REQUESTS, as_json(request("r4", features={"ssn": SECRET}))[0][:-1])
    pairing.answer(*(response(f"r{number}") for number in range(5)))

    assert {letter.reason for letter in pairing.letters} == {"wrong_shape", "not_json"}
    assert {row["request_id"] for row in pairing.predictions} == {"r1", "r2", "r3"}
    assert all(SECRET.encode() not in record.value for record in pairing.sent)
    assert all(not letter.head for letter in pairing.letters)


def test_a_row_that_cannot_be_redacted_takes_no_other_with_it_and_counts_against_its_caller() -> None:
    """Rules give places in a list; a caller sends an object without a name in it."""
    pairing = Pairing(redactions={"credit": Redactor({"0": "drop"}, KEY)}, keep_heads=False)

    pairing.ask(
        request("r0", features=[SECRET, 1.0]),
        request("odd", caller="mallory", features={}),
        request("r1", features=[SECRET, 2.0]),
    )
    pairing.answer(response("r0"), response("r1"))

    assert {row["request_id"] for row in pairing.predictions} == {"r0", "r1"}
    assert [letter.reason for letter in pairing.letters] == ["wrong_shape"]
    assert [row["caller"] for row in pairing.blamed] == ["mallory"]
    (report,) = pairing.reports(2**41)
    assert {caller["caller"]: caller["asked"] for caller in report["callers"]} == {"ann": 2, "mallory": 1}


def test_rows_of_many_layouts_are_redacted_one_by_one() -> None:
    """Layouts beyond the bound of a piece share what is written, not what is refused."""
    pairing = Pairing(redactions={"credit": Redactor({"ssn": "drop"}, KEY)}, keep_heads=False)
    many = [request(f"m{at}", caller="mallory", features={f"x{at}": 1.0}) for at in range(MAX_LAYOUTS)]

    pairing.ask(
        *many,
        request("good", features={"ssn": SECRET, "amount": 1.0}),
        request("odd", caller="mallory", features=[SECRET]),
    )
    pairing.answer(response("good"))

    assert [(row["request_id"], row["features"]) for row in pairing.predictions] == [("good", {"amount": 1.0})]
    assert len(pairing.letters) == 1
