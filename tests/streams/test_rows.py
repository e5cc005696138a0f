"""Records to rows of the audit: every contract, value by value; nothing that anybody sends stops it."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import pyarrow as pa
import pytest

from schemas.actions import CallerLimit, Command, Decision, Directive, InputRange, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.events import CallerCounts, ProfileActivated, Report, RouteCounts
from schemas.feedback import Labelled
from schemas.signals import CallerShare, EndpointState, KnockingCaller, Signal
from schemas.tables import BY_NAME, TABLES, columns_of
from schemas.topics import (
    ACTIONS,
    COMMANDS,
    DEAD_LETTERS,
    DIRECTIVES,
    LABELLED,
    PREDICTIONS,
    PROFILES,
    REPORTS,
    SIGNALS,
    VERDICTS,
)
from schemas.verdicts import Lost
from schemas.wire import KIND_HEADER, Wire
from streams.audit.rows import ARROW_SCHEMAS, AUDITED, Tables, merged, rows_of
from streams.decode import Decoder, partition_of
from streams.records import RawHeaders, Records
from tests.decode.cases import NOW, arrow_stream, as_json, event, schema_of
from tests.decode.test_bad_input import BAD
from tests.streams.log_of_predictions import open_log, records
from tests.streams.test_prediction_log import feed

DECISION = Decision(
    action_id="a1", kind="limit", endpoint="credit", caller="mallory", rate_per_s=1.5, reason="caller_out_of_pattern",
    incident_id="i1", signal_ids=["s1", "s2"], policy="default", policy_hash="p", rule="r", mode="enforce", epoch=3,
    issued_ms=NOW, expires_ms=NOW + 1, outcome="published", detail='"quoted"',
)  # fmt: skip
CONTRACTS: list[tuple[str, Wire]] = [
    ("reports", Report(
        endpoint="credit", guard_id="g", boot_id="b", seq=1, from_ms=NOW, to_ms=NOW + 1, asked=3, fallback_ok=True,
        directive_refused="unsigned", callers=[CallerCounts(caller="c", asked=3)], routes=[RouteCounts(route="probe")],
    )),
    ("signals", Signal(
        signal_id="s", incident_id="i", state="opened", seq=0, detector="d", detector_hash="h", kind="errors",
        endpoint="credit", subject_kind="caller", subject="c", caller_auth="verified", severity="critical", score=1.5,
        threshold=1.0, rate=2.0, shares=[CallerShare(caller="c", share=0.5)], evidence={"a": [1, None, "x"]},
        atlas=["AML.T0029"], first_ms=NOW, at_ms=NOW, log_topic="t", log_partition=0, log_offset=9,
    )),
    ("endpoint_states", EndpointState(
        endpoint="credit", at_ms=NOW, guards_live=2, knocking=[KnockingCaller(caller="c", asked_per_s=3.0)],
        guard_shares={"g1": 0.75, "g2": 0.25},
    )),
    ("labelled", Labelled(
        endpoint="credit", request_id="r", label=1, prediction={"a": 0.5}, ts=NOW, prediction_ts=NOW - 9, delay_ms=9,
        prediction_topic=PREDICTIONS, prediction_partition=0, prediction_offset=4, prediction_row=1,
        feedback_partition=0, feedback_offset=3, feedback_row=2,
    )),
    ("directives", Directive(
        endpoint="credit", epoch=2, issued_ms=NOW, ttl_ms=5, mode="observe", route="fallback",
        limits=[CallerLimit(caller="c", rate_per_s=0.5, ttl_ms=5, action_id="a")], guard_shares={"g1": 1.0}, other_share=0.5,
    )),
    ("kills", KillSwitch(kill=True, issued_ms=NOW, actor="ann", reason="drill ☃")),
    ("commands", Command(command_id="c", kind="restore", actor="ann", issued_ms=NOW, expires_ms=NOW + 1)),
    ("dead_letters", DeadLetter(
        log_topic="t", log_partition=0, log_offset=1, reason="empty", size=0, sha256="", head="", headers={"a": "b"},
        broker_ms=NOW,
    )),
    ("lost", Lost(log_topic=PREDICTIONS, log_partition=0, first=3, last=9, at_ms=NOW)),
    ("activations", ProfileActivated(endpoint="credit", version="v1", profile_hash="0" * 64, at_ms=NOW)),
    ("journal", JournalEntry(entry=1, epoch=2, now_ms=NOW, inputs=[InputRange(topic="t", first=1, last=2)],
                             decisions=[DECISION])),
]  # fmt: skip


TOPIC_OF = {"labelled": LABELLED, "reports": REPORTS, "directives": DIRECTIVES, "kills": DIRECTIVES, "commands": COMMANDS, "journal": ACTIONS,
            "dead_letters": DEAD_LETTERS, "lost": VERDICTS, "activations": PREDICTIONS}  # fmt: skip


def row_count(tables: Tables) -> int:
    return sum(table.num_rows for parts in tables.values() for table in parts)


def one(topic: str, value: bytes | None, headers: RawHeaders = (), key: bytes | None = b"credit") -> Tables:
    return rows_of(topic, 0, Records([value], [key], [headers], [7], [NOW]))


def rows(tables: Tables, name: str) -> list[dict[str, Any]]:
    return [row for table in tables.get(name, []) for row in table.to_pylist()]


def plain(value: Any) -> Any:
    """A cell as the contract has it."""
    return round(value.timestamp() * 1000) if isinstance(value, dt.datetime) else value


def test_every_kind_of_record_that_has_a_table_is_tried_here() -> None:
    tried = {name for name, _ in CONTRACTS} | {
        "decisions", "predictions", "verdicts", "block_readings", "p_values", "profiles",
    }  # fmt: skip
    tried |= {"answers", "feedback", "label_joins"}  # in tests/audit/test_labels

    assert tried == {table.name for table in TABLES}


@pytest.mark.parametrize(("name", "record"), CONTRACTS, ids=[name for name, _ in CONTRACTS])
def test_a_record_becomes_one_row_of_its_table_with_equal_values(name: str, record: Wire) -> None:
    topic = TOPIC_OF.get(name, SIGNALS)

    (row,) = rows(one(topic, record.to_bytes(), [(KIND_HEADER, record.KIND.encode())]), name)

    assert (row["topic"], row["partition"], row["offset"], row["row"], plain(row["broker_time"])) == (
        topic, 0, 7, 0, NOW,
    )  # fmt: skip
    kinds = dict(columns_of(type(record)))
    for field, value in record.model_dump(mode="json").items():
        found = plain(row[field])
        if kinds[field] == "String" and not isinstance(value, str):
            found = json.loads(found)
        assert found == value, field


@pytest.mark.parametrize(("name", "record"), CONTRACTS, ids=[name for name, _ in CONTRACTS])
def test_a_table_has_the_columns_of_its_contract(name: str, record: Wire) -> None:
    assert set(type(record).model_fields) <= set(ARROW_SCHEMAS[name].names)
    assert [column for column, _ in BY_NAME[name].all_columns] == ARROW_SCHEMAS[name].names


def test_an_entry_of_the_journal_is_a_row_and_each_of_its_decisions_too() -> None:
    entry = JournalEntry(entry=1, epoch=2, now_ms=NOW, inputs=[], decisions=[DECISION, DECISION])

    found = rows(one(ACTIONS, entry.to_bytes(), [(KIND_HEADER, b"action")]), "decisions")

    assert [row["row"] for row in found] == [0, 1]
    assert json.loads(found[0]["signal_ids"]) == ["s1", "s2"]
    assert (found[0]["caller"], found[0]["rate_per_s"], found[0]["detail"]) == ("mallory", 1.5, '"quoted"')


def test_json_and_arrow_predictions_give_equal_rows() -> None:
    features = {"distance": 12.5, "carrier": "AA", "ok": True, "temp": 3.25}
    common = {
        "features": features, "producer": "p", "seq": 5, "request_id": "r", "model_version": "v1", "caller": "odd id\x00",
        "caller_auth": "verified", "latency_ms": 1.5, "status": "ok", "served_by": "probe", "weight": 2.0,
    }  # fmt: skip
    for outcome in (0.5, "late", True, [0.25, 0.75], {"a": 0.5, "b": 0.5}, None):
        sent = [event(**common, prediction=outcome), event(**common, prediction=outcome, ts=NOW + 1)]
        by_array = rows(one(PREDICTIONS, json.dumps(sent).encode()), "predictions")
        by_arrow = rows(one(PREDICTIONS, arrow_stream(sent)), "predictions")

        assert by_array == by_arrow
        assert by_array[:1] == rows(one(PREDICTIONS, json.dumps(sent[0]).encode()), "predictions")
        assert json.loads(by_array[0]["features"]) == features
        assert json.loads(by_array[0]["prediction"]) == outcome
        assert by_array[1]["row"] == 1


def test_flat_feature_columns_are_gathered() -> None:
    table = pa.table({"endpoint": ["credit"], "features.a": [1.5], "features.b": pa.array([None], pa.string())})

    (row,) = rows(one(PREDICTIONS, arrow_stream(table)), "predictions")

    assert (row["features"], row["caller"], row["served_by"]) == ('{"a":1.5}', "anonymous", "primary")


def test_what_is_not_finite_is_null_in_the_json_text() -> None:
    for value in (
        as_json(features={"a": float("nan"), "b": [1.0, float("inf")]}),
        b"[" + as_json(features={"a": 1e999}) + b"]",
    ):
        (row,) = rows(one(PREDICTIONS, value), "predictions")
        assert json.loads(row["features"])["a"] is None
    (row,) = rows(one(PREDICTIONS, arrow_stream([event(features={"a": float("inf")})])), "predictions")
    assert json.loads(row["features"]) == {"a": None}


@pytest.mark.parametrize("number", [10**30, -(10**30), 2**63, 2**62, -1])
def test_times_and_counts_beyond_what_a_column_holds_are_moved_to_its_ends(number: int) -> None:
    (row,) = rows(one(PREDICTIONS, as_json(ts=number, seq=number)), "predictions")

    assert row["seq"] == min(max(number, -(2**63)), 2**63 - 1)
    assert 1970 <= row["ts"].year <= 2299
    if -(2**63) <= number < 2**63:
        (row,) = rows(one(PREDICTIONS, arrow_stream([event(ts=number, seq=number)])), "predictions")
        assert 1970 <= row["ts"].year <= 2299


CANNOT_BE_DECODED = [case for case in BAD if case[0] not in ("wrong_partition", "encoding_mismatch", "unknown_kind")]


@pytest.mark.parametrize(("reason", "value", "headers"), CANNOT_BE_DECODED)
def test_what_cannot_be_decoded_gives_no_row(reason: str, value: bytes | None, headers: RawHeaders) -> None:
    assert row_count(one(PREDICTIONS, value, headers)) == 0


@pytest.mark.parametrize(("name", "record"), CONTRACTS, ids=[name for name, _ in CONTRACTS])
def test_who_may_write_predictions_cannot_write_any_other_table(name: str, record: Wire) -> None:
    found = one(PREDICTIONS, record.to_bytes(), [(KIND_HEADER, record.KIND.encode())])

    assert set(found) <= {"activations"}
    assert not found or name == "activations"


def odd_columns(**columns: pa.Array) -> bytes:
    return arrow_stream(pa.table({"endpoint": ["credit"], "features.a": pa.array([1.0])} | columns))


ODD: list[tuple[bytes, RawHeaders, bytes]] = [
    (
        arrow_stream(pa.table([["credit"], [1.0], [1], [2]], names=["endpoint", "features.a", "seq", "seq"])),
        (),
        b"credit",
    ),
    (odd_columns(seq=pa.array([2**64 - 1], pa.uint64())), (), b"credit"),
    (odd_columns(seq=pa.array([1.5])), (), b"credit"),
    (odd_columns(seq=pa.array(["x"])), (), b"credit"),
    (odd_columns(ts=pa.array([2**64 - 1], pa.uint64())), (), b"credit"),
    (odd_columns(**{"features.b": pa.array([b"\xff"])}), (), b"credit"),
    (odd_columns(**{"features.b": pa.array([dt.date(2024, 1, 1)])}), (), b"credit"),
    (odd_columns(**{"features.b": pa.array([NOW], pa.timestamp("us"))}), (), b"credit"),
    (odd_columns(weight=pa.array([1], pa.decimal128(5, 2))), (), b"credit"),
    (as_json(), [("content-type", b"application/vnd.apache.arrow.stream")], b"credit"),
    (as_json(), (), b"spam"),
    (as_json(endpoint="spam"), (), b"spam"),
    (as_json(), (), b"credit"),
]


@pytest.mark.parametrize(("value", "headers", "key"), ODD)
def test_rows_of_the_audit_are_those_that_are_scored(value: bytes, headers: RawHeaders, key: bytes) -> None:
    home = partition_of(b"credit", 8)
    decoder = Decoder(PREDICTIONS, home, 8, lambda endpoint, version: None)
    records = Records([value], [key], [headers], [7], [NOW])

    (segment,) = decoder.segments(records.values, records.keys, records.headers, records.offsets, records.timestamps)

    assert row_count(rows_of(PREDICTIONS, home, records, partitions=8)) == len(segment.columns)


def test_rows_are_those_that_are_scored() -> None:
    sent = [as_json(), b"5", as_json(status="x"), as_json(features={"zzz": 1}), as_json(caller="\x00" * 999)]
    arrow = arrow_stream([event(), event(status="fine"), event(status=None), event(endpoint=None)])
    values: list[bytes | None] = [*sent, b"[" + b",".join(sent) + b"]", arrow, arrow[:-9], b"\xff" * 40]
    decoder = Decoder(PREDICTIONS, 0, 1, schema_of)
    offsets = list(range(len(values)))
    headers: list[RawHeaders] = [None] * len(values)

    scored = {
        (int(offset), int(row))
        for segment in decoder.segments(values, [b"credit"] * len(values), headers, offsets, [NOW] * len(values))
        for offset, row in zip(segment.columns.offset, segment.columns.row, strict=True)
    }
    kept = rows(rows_of(PREDICTIONS, 0, Records(values, [b"credit"] * len(values), headers, offsets, [NOW] * len(values))),
                "predictions")  # fmt: skip

    assert {(row["offset"], row["row"]) for row in kept} == scored
    assert len(kept) == len(scored) > 6


def test_a_report_without_a_kind_is_a_report() -> None:
    report = next(record for name, record in CONTRACTS if name == "reports")

    assert list(one(REPORTS, report.to_bytes())) == ["reports"]


@pytest.mark.parametrize("kind", sorted({b"tick", b""}.union(*AUDITED.values())))
@pytest.mark.parametrize("value", [b"{", b"{}", b"\xff\xff\xff\xff", b"[" * 100_000, b"\x00", arrow_stream([event()])])
def test_rubbish_of_any_kind_on_any_topic_gives_no_row_and_no_error(kind: bytes, value: bytes) -> None:
    for topic in (SIGNALS, VERDICTS, ACTIONS):
        assert row_count(one(topic, value, [(KIND_HEADER, kind)] if kind else [])) == 0


def test_profiles_are_kept_as_they_are() -> None:
    (row,) = rows(one(PROFILES, b'{"a":1}', [(KIND_HEADER, b"profile")], key=b"profile|x"), "profiles")

    assert (row["key"], row["kind"], row["content"]) == ("profile|x", "profile", '{"a":1}')


def test_verdicts_become_rows_of_the_log_that_they_are_about() -> None:
    sent = [record for record in feed(open_log(), records().part(0, 900), [300]) if record.topic == VERDICTS]
    tables = rows_of(VERDICTS, 0, Records([record.value for record in sent], [None] * len(sent),
                                          [record.headers for record in sent], list(range(len(sent))),
                                          [NOW] * len(sent)))  # fmt: skip

    verdicts, readings = rows(tables, "verdicts"), rows(tables, "block_readings")
    in_log = [json.loads(value or b"")["endpoint"] for value, headers in
              zip(records().values[:900], records().headers[:900], strict=True) if not headers]  # fmt: skip
    assert len(verdicts) == len(in_log)
    assert {row["topic"] for row in verdicts} == {PREDICTIONS}
    assert {row["endpoint"] for row in verdicts} == {"credit", "spam"}
    assert {row["detector"] for row in readings} >= {"feature_drift:feature_drift", "outliers:outliers"}
    judged = {(row["offset"], row["row"]): row for row in rows(tables, "p_values")}
    closed = [row for row in readings if row["detector"] == "outliers:outliers"]
    assert len(judged) == sum(row["rows"] for row in closed) > 500
    assert set(judged) <= {(row["offset"], row["row"]) for row in verdicts}
    assert all(0 < row["p_value"] <= 1 and row["detector"] == "outliers" for row in judged.values())
    assert {row["profile_hash"] for row in judged.values()} == {row["profile_hash"] for row in closed}


def test_rows_of_several_runs_are_merged_table_by_table() -> None:
    many = [one(PREDICTIONS, as_json()), one(PREDICTIONS, arrow_stream([event(), event()]))]

    tables = merged(many)

    assert {name: table.num_rows for name, table in tables.items()} == {"predictions": 3}
    sink = io.BytesIO()
    pa.ipc.new_stream(sink, tables["predictions"].schema).close()


def test_many_arrow_records_give_the_rows_that_each_gives_alone() -> None:
    wide = arrow_stream([event(seq=3), event(features={"zzz": "text"})])
    values: list[bytes | None] = [
        *(arrow_stream([event(seq=seq, request_id=f"r{seq}")] * (seq + 1)) for seq in range(5)),
        arrow_stream([event(), event(endpoint=None), event(seq=9)]),  # the second is no event
        wide, wide[:-9], arrow_stream([event(seq=7)]), as_json(), b"\xff\xff\xff\xff",
    ]  # fmt: skip
    offsets = [2 * number for number in range(len(values))]
    times = [NOW + number for number in range(len(values))]
    many = Records(values, [b"credit"] * len(values), [()] * len(values), offsets, times)
    sent = [record for record in feed(open_log(), records().part(0, 900), [300]) if record.topic == VERDICTS]
    log = Records([record.value for record in sent], [None] * len(sent), [record.headers for record in sent],
                  list(range(len(sent))), [NOW + number for number in range(len(sent))])  # fmt: skip

    for topic, whole in ((PREDICTIONS, many), (VERDICTS, log)):
        together = rows_of(topic, 0, whole)
        alone = [rows_of(topic, 0, whole.part(number, number + 1)) for number in range(len(whole))]
        for name in together:
            expected = [row for tables in alone for row in rows(tables, name)]
            assert sorted(map(repr, rows(together, name))) == sorted(map(repr, expected))
            assert len(expected) > 0
        assert row_count(together) == sum(map(row_count, alone))
