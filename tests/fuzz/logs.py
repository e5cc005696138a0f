"""Targets of the data path: the decoder, the logs of predictions and reports with their banks, the audit's rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.config import Bucket, EndpointConfig
from schemas.deadletter import DeadLetter
from schemas.events import MAX_NUMBER, ProfileActivated, Report
from schemas.feedback import Feedback
from schemas.signals import Signal
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, DIRECTIVES, PREDICTIONS, REPORTS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.audit.rows import AUDITED, feedback_rows, rows_of
from streams.decode import Decoder
from streams.decode.ipc import ArrowRefused
from streams.feedback import FeedbackReader
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, Records, header_of
from streams.redaction import NotRedactable, Redactor
from streams.report_log import ReportLog
from tests.decode.cases import ARROW, JSON, arrow_stream, as_json, event, schema_of, with_features
from tests.decode.test_bad_input import BAD
from tests.fuzz.case import START_MS, Case, Execute, Swallowed, Target
from tests.fuzz.control import control_records
from tests.fuzz.mutate import read_arrow
from tests.streams import log_of_predictions, test_report_log
from tests.streams.fakes import no_pause

TICK = Case(b'{"worker":"w","at_ms":1,"behind_ms":3}', None, ((KIND_HEADER, b"tick"),))


def as_records(cases: Sequence[Case], first: int = 0) -> Records:
    """The cases as consecutive records from offset `first` on."""
    return Records(
        [case.value for case in cases],
        [case.key for case in cases],
        [list(case.headers) for case in cases],
        list(range(first, first + len(cases))),
        [case.at_ms for case in cases],
    )


# -- predictions -----------------------------------------------------------------------------------------------------


@cache
def prediction_seeds() -> tuple[Case, ...]:
    rich = event(
        producer="p", seq=3, request_id="r-1", model_version="v1", artifact_digest="sha256:ab", caller_auth="verified",
        latency_ms=2.5, status="ok", served_by="probe", prediction=0.5, weight=2.0, origin="t/0/1/0", schema_version=1,
    )  # fmt: skip
    outcomes: list[Any] = ["yes", True, [0.1, 0.9], {"a": 0.1}, None, 7]
    values = [as_json(), arrow_stream([rich] * 3), arrow_stream([rich], "zstd"), arrow_stream([event()] * 40, "lz4")]
    values += [as_json(**rich), *(as_json(prediction=outcome) for outcome in outcomes)]
    values += [b"[" + b",".join([as_json(), with_features(carrier="UA"), as_json(caller="a b")]) + b"]"]
    values += [as_json(features=[1.5, "AA", 3]), with_features(vector=[1.0, None, 2.0], flag=True, other=None)]
    values += [as_json(endpoint="spam", features={"x": 1.0}), as_json(ts=None), b" \t\r\n" + as_json()]
    bad = [Case(value, b"credit", tuple(headers)) for _, value, headers in BAD if value is None or len(value) < 20_000]
    told = [Case(values[0], b"credit", tuple(JSON)), Case(values[1], b"credit", tuple(ARROW))]
    return (*map(Case, values), *told, *bad, TICK, activation())


def activation() -> Case:
    value, headers = log_of_predictions.activation("credit")
    return Case(value, b"credit", tuple(headers or ()))


def signed_activation(case: Case) -> Case:
    """An operator's signature, where the record says that it activates a profile."""
    if (header_of(case.headers, KIND_HEADER) or b"").decode("latin-1") != ProfileActivated.KIND or case.value is None:
        return case
    kind = (KIND_HEADER, ProfileActivated.KIND.encode())
    signature = log_of_predictions.OPERATOR.headers(ProfileActivated.KIND, case.value)
    return case._replace(headers=(kind, *signature))


def decoder() -> Target:
    """Records to columns: each record is scored or refused, nothing raises, and no odd number is left."""

    def make() -> Execute:
        decoder, first = Decoder("log", 0, 4, schema_of, lambda name: name != "spam"), 0

        def execute(cases: Sequence[Case]) -> Hashable:
            nonlocal first
            records, first = as_records(cases, first), first + len(cases)
            behaviour, outcomes = set(), set()
            for segment in decoder.segments(
                records.values, records.keys, records.headers, records.offsets, records.timestamps
            ):
                behaviour |= {letter.reason for letter in segment.dead_letters}
                behaviour |= {int(flags) for flags in np.unique(segment.columns.flags).tolist()}
                outcomes |= set(segment.columns.offset.tolist()) | set(segment.dead_rows.offset.tolist())
                if segment.control is not None:
                    outcomes.add(segment.control.offset)
                for group in segment.columns.groups:
                    if not np.all(np.isnan(group.numeric) | (np.abs(group.numeric) <= MAX_NUMBER)):
                        raise Swallowed("a number that is none was handed on")
                if not np.all(segment.columns.weight > 0):
                    raise Swallowed("a weight that is none was handed on")
            if missing := set(records.offsets) - outcomes:
                raise Swallowed(f"records without an outcome: {len(missing)} of {len(records)}")
            return frozenset(behaviour)

        return execute

    return Target("decoder", make, prediction_seeds, share=5)


def predictions() -> Target:
    """The predictions log as detect runs it: decoding, blocks, learning, the bank, verdicts; state that can be saved."""

    def make() -> Execute:
        return fed_to(log_of_predictions.open_log())

    def seeds() -> Sequence[Case]:
        log = log_of_predictions.records()
        some = [*range(20), *range(2_900, 2_960)]
        rows = [Case(log.values[at], log.keys[at], tuple(log.headers[at] or ()), START_MS) for at in some]
        return [*rows, *prediction_seeds()]

    return Target("predictions", make, seeds, signed=signed_activation, most=40, share=4)


def fed_to(log: PredictionLog | ReportLog) -> Execute:
    """Hands cases to a log as detect does, and saves what changed."""
    first = 0

    def execute(cases: Sequence[Case]) -> Hashable:
        nonlocal first
        records, first = as_records(cases, first), first + len(cases)
        out = asyncio.run(log.take(records, 0, no_pause))
        for part in log.dirty():
            log.snapshot(part)
        return judged(out)

    return execute


def judged(out: Iterable[Outgoing]) -> Hashable:
    """What a log said, by kind; raises Swallowed for a handler or a detector that failed, and for what cannot be read."""
    behaviour: set[str] = set()
    for record in out:
        kind = (header_of(record.headers, KIND_HEADER) or b"").decode()
        behaviour.add(kind)
        if record.topic == DEAD_LETTERS:
            letter: DeadLetter = DeadLetter.from_bytes(record.value)
            behaviour.add(letter.reason)
            if letter.reason == "handler_failed":
                raise Swallowed(letter.detail)
        elif record.topic == SIGNALS and kind == Signal.KIND:
            signal: Signal = Signal.from_bytes(record.value)
            behaviour.add(f"{signal.kind} {signal.state}")
            if signal.kind == "detector_failed":
                raise Swallowed(f"{signal.evidence}")
    return frozenset(behaviour)


# -- reports -----------------------------------------------------------------------------------------------------------


@cache
def report_seeds() -> tuple[Case, ...]:
    usual = [test_report_log.report(second) for second in range(3)]
    values = [*usual, test_report_log.report(3, flood=300), test_report_log.report(4, seconds=0.25), b"{}", b"["]
    return (*(signed_report(Case(value)) for value in values), Case(usual[0], None, ((KIND_HEADER, b"report"),)), TICK)


def signed_report(case: Case) -> Case:
    """A producer's signature, where the record says that it is a report."""
    known = header_of(case.headers, KIND_HEADER)
    if case.value is None or known not in (None, Report.KIND.encode()):
        return case
    return case._replace(headers=tuple(test_report_log.headers(case.value) or ()))


def reports() -> Target:
    """The reports log as detect runs it."""

    def make() -> Execute:
        return fed_to(test_report_log.open_log())

    return Target("reports", make, report_seeds, signed=signed_report, most=20, share=4)


# -- audit -------------------------------------------------------------------------------------------------------------


@cache
def concluded() -> dict[str, list[Case]]:
    """What the logs lead to, as records of the topics that it goes to."""
    out = asyncio.run(log_of_predictions.open_log().take(log_of_predictions.records(), 0, no_pause))
    out += test_report_log.feed(test_report_log.open_log(), test_report_log.log_of_reports(), [])
    found: dict[str, list[Case]] = {}
    for record in out:
        found.setdefault(record.topic, []).append(Case(record.value, record.key, record.headers))
    letters = asyncio.run(log_of_predictions.open_log().take(as_records(prediction_seeds()), 0, no_pause))
    found[DEAD_LETTERS] = [Case(one.value, one.key, one.headers) for one in letters if one.topic == DEAD_LETTERS]
    return found


def audited() -> list[Target]:
    """Records of each topic to rows of ClickHouse."""
    return [_audit(topic) for topic in AUDITED]


def _audit(topic: str) -> Target:
    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            tables = rows_of(topic, 0, as_records(cases), 4)
            for parts in tables.values():
                for part in parts:
                    part.validate(full=True)
            return frozenset((name, min(sum(map(len, parts)), 3)) for name, parts in tables.items())

        return execute

    def seeds() -> Sequence[Case]:
        if own := {PREDICTIONS: prediction_seeds, REPORTS: report_seeds}.get(topic):
            return own()
        given = control_records(topic) if topic in (SIGNALS, COMMANDS, DIRECTIVES, ACTIONS) else ()
        kinds = [Case(b"{}", headers=((KIND_HEADER, kind),)) for kind in AUDITED[topic] or (b"",)]
        return [*concluded().get(topic, [])[:60], *given, *kinds]

    return Target(f"audit of {topic.removeprefix('palisade.')}", make, seeds)


def feedback() -> Target:
    """Feedback of anybody, and the rows that the audit keeps of it."""
    known = {"credit": EndpointConfig(name="credit", producer_keys=(test_report_log.PRODUCER.public_base64,))}

    def make() -> Execute:
        reader = FeedbackReader(known, 4)

        def execute(cases: Sequence[Case]) -> Hashable:
            records = as_records(cases)
            found, dead = reader.read(0, records)
            letters: list[DeadLetter] = [DeadLetter.from_bytes(record.value) for record in dead]
            for letter in letters:
                if letter.reason == "handler_failed":
                    raise Swallowed(letter.detail)
            for tables in feedback_rows(0, records, found).values():
                for table in tables:
                    table.validate(full=True)
            return frozenset(
                {letter.reason for letter in letters} | {type(one.feedback.label).__name__ for one in found}
            )

        return execute

    def seeds() -> Sequence[Case]:
        rows = [
            {"endpoint": "credit", "request_id": f"r-{k}", "label": label, "ts": START_MS + k, "source": "court"}
            for k, label in enumerate((1, 0.5, True, "fraud"))
        ]
        values = [json.dumps(row).encode() for row in rows]
        array = b"[" + b",".join(values) + b"]"
        return [signed_feedback(Case(value)) for value in (*values, array, arrow_stream(rows[:1] * 3))]

    return Target("feedback", make, seeds, signed=signed_feedback, share=2)


def signed_feedback(case: Case) -> Case:
    if case.value is None or header_of(case.headers, KIND_HEADER) not in (None, Feedback.KIND.encode()):
        return case
    signature = test_report_log.PRODUCER.headers(Feedback.KIND, case.value)
    return case._replace(headers=((KIND_HEADER, Feedback.KIND.encode()), *signature))


# -- redaction ---------------------------------------------------------------------------------------------------------


def redaction() -> Target:
    """Features by value and by column: redacted, missing, or refused as a whole."""
    rules: Any = {"ssn": "drop", "email": "hash", "age": Bucket(bucket=10), "0": "drop", "1": "hash", "@caller": "hash"}

    def make() -> Execute:
        redactor = Redactor(rules, bytes(32))

        def execute(cases: Sequence[Case]) -> Hashable:
            return tuple(_redacted(redactor, case.value or b"") for case in cases)

        return execute

    people: list[Any] = [
        {"ssn": "078-05-1120", "email": "a@b.c", "age": 37, "income": 1.5}, ["078-05-1120", "a@b.c", 37],
        {"email": [1.0, None], "age": "37"}, {"email": 5, "age": True, "ssn": None},
    ]  # fmt: skip

    def seeds() -> Sequence[Case]:
        values = [as_json(features=features) for features in people]
        return [Case(value) for value in [*values, arrow_stream([event(features=people[0])] * 3)]]

    return Target("redaction", make, seeds, declared=(NotRedactable, pa.ArrowInvalid), most=1)


def _redacted(redactor: Redactor, value: bytes) -> Hashable:
    if value.startswith(b"\xff\xff\xff\xff"):
        try:
            table = read_arrow(value)
        except (ArrowRefused, pa.ArrowException, OSError, ValueError):
            return "unreadable"
        columns = [column for column in table.columns if pa.types.is_struct(column.type) and column.type.num_fields]
        for column in columns:
            redactor.struct(column.combine_chunks() if column.num_chunks else pa.array([], column.type))
        return tuple(str(column.type)[:80] for column in columns)
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return "unreadable"
    features = fields.get("features") if isinstance(fields, dict) else fields
    if not isinstance(features, dict | list):
        return "no features"
    found = redactor.features(features)
    if isinstance(found, dict) and ("ssn" in found or not _hidden(found.get("email")) or _is_text(found.get("age"))):
        raise Swallowed(f"a sensitive value stayed: {found}")
    return type(found).__name__


def _hidden(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.startswith("r:"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
