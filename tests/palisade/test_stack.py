"""A whole Palisade on the embedded broker, as a user and as a hostile sender meet it."""

from __future__ import annotations

import io
import json
import re
import time
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaException, Producer

from palisade.dev import DevKeys
from palisade.operate import Operator, activate_profile
from responders.signing import Keyring, SigningKey
from schemas.actions import JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.flags import RowFlag
from schemas.signals import Signal
from schemas.topics import ACTIONS, DEAD_LETTERS, DIRECTIVES, PREDICTIONS, SIGNALS, VERDICTS
from schemas.wire import KIND_HEADER
from streams.decode.refusals import MAX_LETTERS_PER_RECORD
from streams.embedded_broker import FETCH_WAIT_MS
from streams.reading import read_to_end
from streams.records import header_of, listed
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.decode.cases import arrow_stream, as_json, event
from tests.decode.test_bad_input import BAD
from tests.palisade.conftest import Run, Stack
from tests.streams.log_of_predictions import profile
from tests.support.waiting import until as until_within

pytestmark = pytest.mark.slow
DEADLINE_S = 120
until = partial(until_within, within_s=DEADLINE_S, every_s=0.2)
Headers = list[tuple[str, bytes]]
NOW = int(time.time() * 1000)

USUAL = {"amount": 100.0, "age": 30.0, "plan": "pro"}


def profiled(**features: Any) -> bytes:
    """An event of the version that has a profile."""
    return as_json(features=USUAL | features, model_version="v1", ts=NOW)


ODD: list[tuple[str, bytes, RowFlag]] = [
    ("NaN", profiled(amount=float("nan")), RowFlag.NOT_FINITE),
    ("Infinity", profiled(amount=float("-inf")), RowFlag.NOT_FINITE),
    ("1e999", profiled(amount=777).replace(b"777", b"1e999"), RowFlag.NOT_FINITE),
    ("an unknown feature", profiled(never_seen=1.0), RowFlag.UNKNOWN_FEATURE),
    ("an unseen category", profiled(plan="gold"), RowFlag.UNSEEN_CATEGORY),
    ("a missing feature", profiled(age=None), RowFlag.MISSING_FEATURE),
    ("text for a number", profiled(age="old"), RowFlag.WRONG_FEATURE_TYPE),
    ("control characters", profiled(plan="pro\x1b[31m"), RowFlag.CONTROL_CHARACTERS),
    ("NaN in Arrow", arrow_stream([event(features=USUAL | {"amount": float("nan")}, model_version="v1", ts=NOW)]),
     RowFlag.NOT_FINITE),
    ("no profile", as_json(features={"never_seen": "x"}, ts=NOW), RowFlag.NO_PROFILE),
    ("an odd id", as_json(caller="a b\n", ts=NOW), RowFlag.ODD_ID),
    ("control characters in an id", as_json(caller="\x1b[31m", ts=NOW), RowFlag.ODD_ID),
    ("too long an id", as_json(caller="x" * 200, ts=NOW), RowFlag.ODD_ID),
    ("late", as_json(ts=NOW - 7_200_000), RowFlag.LATE),
    ("from the future", as_json(ts=NOW + 7_200_000), RowFlag.FUTURE),
    ("before time", as_json(ts=-(10**30)), RowFlag.LATE),
    ("a negative latency", as_json(ts=NOW, latency_ms=-1.0), RowFlag.OUT_OF_RANGE),
]  # fmt: skip


@pytest.fixture(scope="module")
def connection(stack: Stack) -> KafkaConnection:
    return KafkaConnection(bootstrap=stack.dev.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)


class Sender:
    """Writes records one by one, each confirmed, and keeps where they went."""

    def __init__(self, connection: KafkaConnection) -> None:
        settings = kafka_settings(connection, "producer") | {"message.max.bytes": 5_000_000, "linger.ms": 0}
        self._producer = Producer(settings)
        self.places: list[int] = []

    def send(self, value: bytes | None, headers: Headers = ()) -> int | None:  # type: ignore[assignment]
        """The record's offset; None if the broker refuses it."""
        told: list[Any] = []
        try:
            self._producer.produce(PREDICTIONS, value, b"credit", partition=0, headers=list(headers),
                                   on_delivery=lambda error, message: told.append(error or message.offset()))  # fmt: skip
        except KafkaException:
            return None
        self._producer.flush(20)
        return told[0] if isinstance(told[0], int) else None


def outcomes(connection: KafkaConnection) -> dict[tuple[int, int], tuple[int, int]]:
    """(offset, row) of the predictions log -> (outcome, flags)."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for message in read_to_end(connection, VERDICTS, 0):
        if header_of(listed(message.headers()), KIND_HEADER) == b"verdict_rows":
            for row in pa.ipc.open_stream(io.BytesIO(message.value() or b"")).read_all().to_pylist():
                place = (row["offset"], row["row"])
                assert place not in found, f"{place} has two outcomes"
                found[place] = (row["outcome"], row["flags"])
    return found


def letters(connection: KafkaConnection) -> dict[int, DeadLetter]:
    found = (DeadLetter.from_bytes(message.value() or b"") for message in read_to_end(connection, DEAD_LETTERS, 0))
    return {letter.log_offset: letter for letter in found}


@pytest.fixture(scope="module")
def flood(stack: Stack, connection: KafkaConnection) -> dict[int, tuple[str, Any]]:
    """Everything bad and odd, a good event after each; offset -> what it is and what is expected of it."""
    person = Operator("person:test", SigningKey.load(stack.dev.keys.operator))
    activate_profile(connection, person, profile().to_bytes(), "credit", "v1")
    sender, sent = Sender(connection), {}
    for reason, value, headers in BAD:
        if reason == "wrong_partition":
            continue  # one partition is home to all
        offset = sender.send(value, list(headers))  # type: ignore[arg-type]
        if offset is not None:
            sent[offset] = ("bad", reason)
        good = sender.send(as_json(ts=NOW))
        assert good is not None
        sent[good] = ("good", None)
    for _, value, flag in ODD:
        offset = sender.send(value)
        assert offset is not None
        sent[offset] = ("odd", flag)
    last = sender.send(as_json(ts=NOW))
    assert last is not None
    until(lambda: any(place[0] == last for place in outcomes(connection)), "the outcome of the last record")
    return sent


def test_each_bad_record_is_a_dead_letter_with_its_reason_and_each_good_one_after_it_is_scored(
    flood: dict[int, tuple[str, Any]], connection: KafkaConnection
) -> None:
    found, dead = outcomes(connection), letters(connection)

    bad = {offset: reason for offset, (what, reason) in flood.items() if what == "bad"}
    assert {offset: dead[offset].reason for offset in bad} == bad
    assert {found[offset, 0][0] for offset in bad} == {1}
    assert len(set(bad.values())) >= 10
    for offset, (what, _) in flood.items():
        if what == "good":
            assert found[offset, 0][0] == 0


def test_each_row_of_an_array_is_one_outcome_however_many_of_them_are_bad(
    flood: dict[int, tuple[str, Any]], connection: KafkaConnection
) -> None:
    """The letters of one record are bounded, its outcomes are not."""
    bad, good = b'{"endpoint": 5}', as_json(ts=NOW)
    sender = Sender(connection)
    offset = sender.send(b"[" + b",".join([bad] * 300 + [good] + [b"7"] * 200 + [good]) + b"]")
    last = sender.send(good)
    until(lambda: (last, 0) in outcomes(connection), "the outcome of the record after the array")

    told = {row: outcome for (where, row), (outcome, _) in outcomes(connection).items() if where == offset}
    assert [told[row] for row in range(502)] == [1] * 300 + [0] + [1] * 200 + [0]
    assert len(told) == 502
    messages = read_to_end(connection, DEAD_LETTERS, 0)
    of_it = [each for each in (DeadLetter.from_bytes(m.value() or b"") for m in messages) if each.log_offset == offset]
    assert 0 < len(of_it) <= MAX_LETTERS_PER_RECORD + 1


def test_a_record_of_two_megabytes_is_a_dead_letter_where_the_broker_takes_it(
    flood: dict[int, tuple[str, Any]], connection: KafkaConnection
) -> None:
    huge = [letter for letter in letters(connection).values() if letter.size == 2_000_000]

    assert [letter.reason for letter in huge] == ["too_large"]


def test_odd_records_are_scored_and_their_oddity_is_noted(
    flood: dict[int, tuple[str, Any]], connection: KafkaConnection
) -> None:
    found = outcomes(connection)
    for offset, (what, flag) in flood.items():
        if what == "odd":
            outcome, flags = found[offset, 0]
            assert outcome == 0
            assert RowFlag(flags) & flag, (offset, flag, RowFlag(flags))


def test_no_worker_died_of_it(flood: dict[int, tuple[str, Any]], stack: Stack) -> None:
    assert stack.ended == []


def test_the_audit_holds_exactly_the_rows_that_were_scored(
    flood: dict[int, tuple[str, Any]], stack: Stack, connection: KafkaConnection
) -> None:
    from palisade.queries import reader
    from palisade.settings import load

    engine = reader(load(stack.config))
    # A header that lies about sound content is dead-lettered, and its content still kept as it was sent.
    lied = {offset for offset, (_, reason) in flood.items() if reason in ("encoding_mismatch", "unknown_kind")}
    scored = {place for place, (outcome, _) in outcomes(connection).items() if outcome == 0}

    def kept() -> set[tuple[int, int]]:
        rows = engine.query_arrow("SELECT offset, row FROM palisade.predictions").to_pylist()
        return {(row["offset"], row["row"]) for row in rows}

    until(lambda: kept() >= scored, "the scored rows in ClickHouse")
    assert {place for place in kept() - scored if place[0] not in lied} == set()
    until(lambda: engine.query_arrow("SELECT log_offset FROM palisade.dead_letters").num_rows
          == len(list(read_to_end(connection, DEAD_LETTERS, 0))), "the dead letters in ClickHouse")  # fmt: skip
    engine.close()


def test_dead_letters_are_listed_and_explained_to_their_owner(
    flood: dict[int, tuple[str, Any]], stack: Stack, palisade: Run
) -> None:
    status, out, _ = palisade("deadletter", "list", "--reason", "arrow_broken", "--config", stack.config)
    assert status == 0
    assert "arrow_broken" in out
    assert "too_deep" not in out
    where = re.search(r"palisade\.predictions/0/\d+/0", out)
    assert where is not None

    status, out, _ = palisade("deadletter", "show", where.group(), "--config", stack.config)
    assert status == 0
    assert "Close the stream writer" in out
    assert "\x1b[31m" not in out
    assert palisade("deadletter", "show", "palisade.predictions/0/999999", "--config", stack.config)[0] == 2


def test_a_users_own_file_goes_through_and_its_callers_can_be_asked_for(
    stack: Stack, palisade: Run, tmp_path: Any
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"who": f"caller-{k % 4}", "amount": k * 1.0}) for k in range(600)))
    ours = ("--endpoint", "credit", "--caller-column", "who", "--flat-out", "--config", stack.config)

    status, out, errors = palisade("publish", path, *ours)
    assert status == 0, errors
    assert "600 predictions" in out

    def asked() -> bool:
        return "150" in palisade("forensics", "caller", "caller-1", "--config", stack.config)[1]

    until(asked, "the caller's predictions in the audit")
    status, out, _ = palisade("status", "--config", stack.config)
    assert status == 0
    assert "credit" in out
    assert "nothing" in out


def test_the_kill_switch_reaches_every_partition_signed_and_is_on_record(
    stack: Stack, palisade: Run, connection: KafkaConnection
) -> None:
    assert palisade("kill", "--reason", "drill", "--config", stack.config)[0] == 0

    operators = Keyring([DevKeys.public(stack.dev.keys.operator)])
    switches = [message for message in read_to_end(connection, DIRECTIVES, 0)
                if header_of(listed(message.headers()), KIND_HEADER) == b"kill"]  # fmt: skip
    assert len(switches) == 1
    operators.verify("kill", switches[0].value() or b"", listed(switches[0].headers()))
    assert KillSwitch.from_bytes(switches[0].value() or b"").kill

    def journaled(kind: str) -> bool:
        entries = [JournalEntry.from_bytes(message.value() or b"") for message in read_to_end(connection, ACTIONS, 0)]
        return any(decision.kind == kind for entry in entries for decision in entry.decisions)

    until(lambda: journaled("kill"), f"the kill in the journal; see {stack.supervisor.log('respond')}")
    assert "kill switch is thrown" in palisade("status", "--config", stack.config)[1]
    assert palisade("unkill", "--config", stack.config)[0] == 0
    until(lambda: journaled("unkill"), "the unkill in the journal")
    until(
        lambda: "thrown by" in palisade("forensics", "timeline", "--config", stack.config)[1], "the audit's word of it"
    )


def test_a_person_limits_a_caller_to_a_rate_and_sees_it_in_the_status(stack: Stack, palisade: Run) -> None:
    ours = ("--reason", "a drill", "--config", stack.config)
    status, _, errors = palisade("limit", "credit", *ours)
    assert (status, "limit needs --caller ID" in errors) == (2, True)

    status, out, errors = palisade("limit", "credit", "--caller", "bob", "--rate", "2.5", *ours)
    assert status == 0, errors
    assert "caller bob of credit is limited to 2.5 answers/s" in out

    assert "would limit bob to 2.5/s since " in palisade("status", "--config", stack.config)[1]
    status, out, errors = palisade("unlimit", "credit", "--caller", "bob", *ours)
    assert status == 0, errors
    assert "bob" not in palisade("status", "--config", stack.config)[1]


def test_a_person_orders_and_is_told_what_came_of_it(stack: Stack, palisade: Run) -> None:
    def timeline() -> str:
        return palisade("forensics", "timeline", "--endpoint", "credit", "--config", stack.config)[1]

    for kind in ("fallback", "restore"):
        status, output, errors = palisade(kind, "credit", "--reason", "a drill", "--config", stack.config)
        assert (status, "refused: " in errors) == (2, True) or (status, "observed" in output) == (0, True)
        until(lambda kind=kind: f"{kind} by person:" in timeline(), f"the order {kind} in the audit")
    assert stack.ended == []


def test_labels_that_come_later_find_their_predictions_and_tell_that_the_model_got_worse(
    stack: Stack, palisade: Run, connection: KafkaConnection, tmp_path: Any
) -> None:
    from palisade.queries import reader
    from palisade.settings import load

    rows = 700
    asked, known = tmp_path / "asked.jsonl", tmp_path / "known.jsonl"
    asked.write_text("\n".join(json.dumps({"id": f"req-{k}", "who": f"w{k % 40}", "score": 0.9, "amount": k * 1.0})
                               for k in range(rows)))  # fmt: skip
    known.write_text("\n".join(json.dumps({"id": f"req-{k}", "paid": k < 420 or k % 2 == 0}) for k in range(rows)))
    ours = ("--endpoint", "credit", "--config", stack.config)
    fields = ("--field", "request_id=id", "--field", "prediction=score", "--caller-column", "who", "--flat-out")
    assert palisade("publish", asked, *fields, *ours)[0] == 0
    status, out, errors = palisade(
        "feedback", "publish", known, "--request-id-column", "id", "--label-column", "paid", *ours
    )
    assert (status, "700 labels sent" in out) == (0, True), errors

    def worse() -> list[Signal]:
        said = [Signal.from_bytes(message.value() or b"") for message in read_to_end(connection, SIGNALS, 0)
                if header_of(listed(message.headers()), KIND_HEADER) == b"signal"]  # fmt: skip
        return [signal for signal in said if signal.kind == "concept_drift" and signal.state == "opened"]

    (signal,) = until(worse, f"concept drift; see {stack.supervisor.log('audit')}")
    assert (signal.subject_kind, signal.subject, signal.severity) == ("model_version", "default", "warning")
    assert signal.log_topic == "palisade.labelled"
    assert signal.evidence.get("trusted") is None
    engine = reader(load(stack.config))
    labelled = (
        "SELECT count() AS n, uniqExact(request_id) AS ids, min(prediction = '0.9') AS same FROM palisade.labelled"
    )
    until(lambda: engine.query_arrow(labelled).to_pylist() == [{"n": rows, "ids": rows, "same": 1}],
          "every label with its prediction in ClickHouse")  # fmt: skip
    engine.close()
    assert stack.ended == []
