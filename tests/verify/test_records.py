"""What records on Kafka become in a history."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from palisade.verify.records import Read, Reader, events_in, log_record, lost_row, outcomes
from responders.signing import Keyring, SigningKey
from schemas.actions import CallerLimit, Command, Decision, Directive, JournalEntry
from schemas.deadletter import DeadLetter
from schemas.events import CallerCounts, Report, RouteCounts
from schemas.signals import EndpointState, Signal
from schemas.topics import (
    ACTIONS,
    COMMANDS,
    DEAD_LETTERS,
    DIRECTIVES,
    FEEDBACK,
    PREDICTIONS,
    REPORTS,
    SIGNALS,
    VERDICTS,
)
from schemas.wire import KIND_HEADER, Wire
from streams.deadletters import Place, dead_letter
from streams.decode import Decoder
from streams.outgoing import lost_record
from streams.verdicts import row_verdicts
from tests.decode.cases import arrow_stream, as_json, event, schema_of
from tests.decode.test_bad_input import BAD

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()


def read(topic: str, value: bytes | None, kind: str = "", **headers: bytes) -> Read:
    named = {KIND_HEADER: kind.encode()} if kind else {}
    return Read(topic, 2, 7, 1_000, None, named | headers, value)


def taken(topic: str, record: Wire, *, signer: SigningKey | None = None) -> dict[str, list[dict[str, Any]]]:
    """Rows of a record; `KEY` is believed."""
    keys = Keyring([KEY.public_base64])
    reader = Reader({"credit": keys}, keys)
    value = record.to_bytes()
    signed = {} if signer is None else dict(signer.headers(record.KIND, value))
    reader.take(read(topic, value, record.KIND, **signed))
    return {name: table.to_pylist() for name, table in reader.tables().items()}


@pytest.mark.parametrize(
    ("value", "kind", "count"),
    [
        (as_json(), "", 1),
        (as_json(), "prediction", 1),
        (b" [" + b",".join([as_json()] * 3) + b"]", "", 3),
        (arrow_stream([event()] * 40), "", 40),
        (b'{"worker":"w","at_ms":1}', "tick", 0),
        (b"{}", "profile_activated", 0),
        (b"{}", "something else", 1),
        (b"[1, 2", "", 1),
        (b"[]", "", 1),
        (arrow_stream([event()] * 40)[:200], "", 1),
        (arrow_stream([event()] * 50).replace((50).to_bytes(8, "little"), (1 << 60).to_bytes(8, "little")), "", 1),
        (b"[" * 100_000, "", 1),
        (None, "", 1),
    ],
)
def test_events_of_a_record_are_counted_without_the_product(value: bytes | None, kind: str, count: int):
    found = read(PREDICTIONS, value, kind)

    assert events_in(found) == count
    assert log_record(found)["rows"] == count


@pytest.mark.parametrize(("reason", "value", "headers"), BAD, ids=[reason for reason, *_ in BAD])
def test_what_detect_refuses_as_a_whole_is_counted_as_what_it_says_or_as_one_letter_of_all_its_bytes(
    reason: str, value: bytes | None, headers: Any
):
    """For each hostile record: as many outcomes as events, or one dead letter that is as large as the record."""
    found = Read(PREDICTIONS, 0, 7, 1_000, b"credit", {name: content or b"" for name, content in headers}, value)
    segments = list(Decoder(PREDICTIONS, 0, 1, schema_of).segments([value], [b"credit"], [headers], [7], [1_000]))
    ended = sum(len(segment.columns) + len(segment.dead_rows.offset) for segment in segments)
    letters = [letter for segment in segments for letter in segment.dead_letters]

    assert ended == events_in(found) or (ended == 1 and letters[0].size == log_record(found)["size"])


def test_verdicts_become_outcomes():
    decoder = Decoder(PREDICTIONS, 0, 1, schema_of)
    (segment,) = decoder.segments([b"[" + as_json() + b", 5]"], [b"credit"], [None], [41], [1_000])
    record = row_verdicts(PREDICTIONS, 2, [segment.columns], [segment.dead_rows], 0, "bank")
    assert record is not None
    found = outcomes(Read(VERDICTS, 2, 7, 1_000, None, dict(record.headers), record.value))
    assert found is not None
    rows = {row["row"]: row for row in found.to_pylist()}

    assert {row: each["outcome"] for row, each in rows.items()} == {0: 0, 1: 1}
    assert {each["offset"] for each in rows.values()} == {41}
    assert (rows[0]["topic"], rows[0]["partition"], rows[0]["at_ms"], rows[0]["told_at"]) == (PREDICTIONS, 2, 1_000, 7)
    assert outcomes(read(VERDICTS, b"broken", "verdict_rows")) is None
    assert outcomes(read(VERDICTS, record.value, "verdict_blocks")) is None


def letter(topic: str = PREDICTIONS, detail: str = "no endpoint") -> DeadLetter:
    return dead_letter(Place(topic, 2, 41, 900, 3), "wrong_shape", detail, b"[5]")


def test_a_dead_letter_says_of_how_many_bytes_it_is_and_whether_it_stands_for_others():
    (row,) = taken(DEAD_LETTERS, letter())["dead_letters"]
    (more,) = taken(DEAD_LETTERS, letter(detail="8 more refused rows of this run have no letter of their own; x"))[
        "dead_letters"
    ]

    assert (row["topic"], row["partition"], row["offset"], row["row"], row["size"]) == (PREDICTIONS, 2, 41, 3, 3)
    assert [row["for_run"], more["for_run"]] == [False, True]
    assert taken(DEAD_LETTERS, letter(FEEDBACK)) == {}


def signal(**fields: Any) -> Signal:
    base = {
        "signal_id": "s", "incident_id": "s", "state": "opened", "seq": 0, "detector": "d", "detector_hash": "h",
        "kind": "errors", "endpoint": "credit", "subject_kind": "endpoint", "subject": "credit", "severity": "critical",
        "score": 3.0, "threshold": 1.0, "first_ms": 1, "at_ms": 2, "log_topic": REPORTS, "log_partition": 0, "log_offset": 5,
    }  # fmt: skip
    return Signal.model_validate(base | fields)


def test_what_retention_removed_is_a_loss_that_people_were_told_and_nothing_else_is():
    told = lost_record(REPORTS, 0, 3, 9, 5)
    found = Read(VERDICTS, 0, 7, 1_000, None, dict(told.headers), told.value)

    assert lost_row(found) == {"topic": REPORTS, "partition": 0, "first": 3, "last": 9, "at_ms": 1_000, "told": True}
    assert lost_row(found._replace(value=b"{")) is None
    assert lost_row(found._replace(topic=SIGNALS)) is None
    assert lost_row(found._replace(headers={KIND_HEADER: b"verdict_rows"})) is None


def test_two_signals_of_one_id_differ_by_what_they_say_and_not_by_the_last_bits_of_their_numbers():
    first, again, other = (
        taken(SIGNALS, each)["signals"][0]["digest"]
        for each in (signal(), signal(score=float(np.nextafter(3.0, 4.0))), signal(severity="warning"))
    )

    assert first == again != other
    view = EndpointState(endpoint="credit", at_ms=1, active_callers=9)
    assert taken(SIGNALS, view)["views"] == [{"at_ms": 1_000, "endpoint": "credit", "active_callers": 9}]


def test_an_entry_of_the_journal_is_a_row_and_each_of_its_decisions_one():
    decision = Decision(
        action_id="a", kind="limit", endpoint="credit", caller="eve", reason="caller_out_of_pattern", policy="p",
        policy_hash="h", mode="enforce", epoch=4, issued_ms=10, expires_ms=20, outcome="published", signal_ids=["s"],
    )  # fmt: skip
    found = taken(ACTIONS, JournalEntry(entry=3, epoch=4, now_ms=10, inputs=[], decisions=[decision, decision]))

    assert [(row["entry"], row["epoch"], row["offset"]) for row in found["journal"]] == [(3, 4, 7)]
    assert [(row["row"], row["action_id"], row["signal_ids"]) for row in found["decisions"]] == [
        (0, "a", ["s"]),
        (1, "a", ["s"]),
    ]
    assert found["decisions"][0]["at_ms"] == 1_000


def test_a_directive_is_a_row_for_each_thing_that_it_orders_if_its_signer_is_known():
    limit = CallerLimit(caller="eve", rate_per_s=1.0, ttl_ms=500, action_id="a")
    both = Directive(
        endpoint="credit", epoch=4, issued_ms=100, ttl_ms=900, mode="enforce", route="fallback", route_action_id="f",
        limits=[limit],
    )  # fmt: skip
    rows = taken(DIRECTIVES, both, signer=KEY)["orders"]

    assert [(row["caller"], row["action_id"], row["expires_ms"]) for row in rows] == [
        ("eve", "a", 600),
        (None, "f", 1_000),
    ]
    empty = Directive(endpoint="credit", epoch=5, issued_ms=100, ttl_ms=900, mode="enforce")
    assert [row["action_id"] for row in taken(DIRECTIVES, empty, signer=KEY)["orders"]] == [None]
    assert taken(DIRECTIVES, both, signer=STRANGER) == taken(DIRECTIVES, both) == {}


def test_a_report_says_what_a_guard_did_and_whether_it_vouches():
    routes = [RouteCounts(route="primary", errors=2, timeouts=1), RouteCounts(route="fallback", served=4)]
    callers = [CallerCounts(caller="eve", asked=9, refused=6), CallerCounts(caller="ann", asked=1)]
    report = Report(
        endpoint="credit", guard_id="g", boot_id="b", seq=3, from_ms=1, to_ms=2, epoch_applied=4, routes=routes,
        callers=callers, breaker="open",
    )  # fmt: skip
    found = taken(REPORTS, report, signer=KEY)

    (row,) = found["reports"]
    assert (row["fallbacks"], row["troubles"], row["signed"], row["epoch_applied"]) == (4, 4, True, 4)
    assert [(each["caller"], each["refused"]) for each in found["refused_calls"]] == [("eve", 6)]
    forged = taken(REPORTS, report, signer=STRANGER)
    assert not forged["reports"][0]["signed"]
    assert "refused_calls" not in forged


def test_a_command_names_its_actor_and_what_is_no_record_of_ours_gives_no_row():
    command = Command(command_id="c", kind="kill", actor="ana", issued_ms=1, expires_ms=2)
    reader = Reader({}, None)
    for value, kind in ((b"broken", "command"), (b"{}", "command"), (None, "command"), (command.to_bytes(), "other")):
        reader.take(read(COMMANDS, value, kind))

    assert reader.tables() == {}
    assert [row["actor"] for row in taken(COMMANDS, command)["commands"]] == ["ana"]
    assert json.loads(command.to_bytes())["actor"] == "ana"


def test_tables_have_their_schema_however_few_rows_they_have():
    assert isinstance(taken(COMMANDS, Command(command_id="c", kind="kill", actor="a", issued_ms=1, expires_ms=2)), dict)
    reader = Reader({}, None)
    reader.add("webhooks", [{"id": "w"}])

    assert reader.tables()["webhooks"].schema.field("at_ms").type == pa.int64()
