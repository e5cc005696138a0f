"""A registered version without a profile learns one from the log alone, and says so."""

from __future__ import annotations

import io
import json
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from detectors.learning import LEAST_ROWS, Learning
from detectors.profile import Profile
from detectors.schema_vote import SCHEMA_ROWS
from schemas.deadletter import DeadLetter
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, PROFILES
from schemas.wire import KIND_HEADER
from streams.learners import rows_of
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, RawHeaders, Records
from tests.streams.log_of_predictions import activation, content_of_log, open_log
from tests.streams.log_of_predictions import profile as approved_profile
from tests.streams.test_prediction_log import feed, signals, table_of

PART = "credit@v1"
LEARN_ROWS = 2 * LEAST_ROWS
SHIFT_FROM = SCHEMA_ROWS + LEARN_ROWS + 700
ROWS = SHIFT_FROM + 900


def event(rng: np.random.Generator, caller: str, factor: float) -> bytes:
    features = {
        "amount": float(rng.normal(100, 15)) * factor,
        "age": float(rng.gamma(3, 12)) if rng.random() > 0.1 else None,
        "plan": str(rng.choice(["free", "basic", "pro"], p=[0.6, 0.3, 0.1])),
        "vip": bool(rng.random() < 0.2),
    }
    return json.dumps(
        {
            "endpoint": "credit",
            "model_version": "v1",
            "caller": caller,
            "caller_auth": "verified",
            "features": features,
        }
    ).encode()


def log_of(callers: int, heavy: float = 0.0, factor: float = 25.4) -> Records:
    """`ROWS` rows without any activation, a tick each 20; `amount` in another unit from `SHIFT_FROM` on. One caller
    sends a share of `heavy`."""
    rng = np.random.default_rng(5)
    values: list[bytes | None] = []
    headers: list[RawHeaders] = []
    keys: list[bytes | None] = []
    times: list[int] = []
    for row in range(ROWS):
        caller = "heavy" if rng.random() < heavy else f"c{int(rng.integers(0, callers))}"
        values.append(event(rng, caller, factor if row >= SHIFT_FROM else 1.0))
        headers.append(None)
        keys.append(b"credit")
        times.append(1_000_000 + 10 * row)
        if row % 20 == 19:
            values.append(b'{"worker":"w","at_ms":1}')
            headers.append([(KIND_HEADER, b"tick")])
            keys.append(None)
            times.append(1_000_000 + 10 * row)
    return Records(values, keys, headers, list(range(100, 100 + len(values))), times)


@cache
def records() -> Records:
    return log_of(callers=40)


def learning_log() -> PredictionLog:
    return open_log(learning=Learning(LEARN_ROWS, at_least_ms=1_000))


@pytest.fixture(scope="module")
def whole() -> list[Outgoing]:
    return feed(learning_log(), records(), [])


def said(out: list[Outgoing], kind: str) -> list[Signal]:
    return [signal for signal in signals(out) if signal.kind == kind]


def learned_profile(out: list[Outgoing]) -> Profile:
    (record,) = [record for record in out if record.topic == PROFILES]
    return Profile.from_bytes(record.value)


def test_it_says_that_it_learns_and_then_that_it_has_learned(whole: list[Outgoing]) -> None:
    unknown, learned = said(whole, "learning")[:2]

    assert (unknown.state, unknown.evidence["reason"]) == ("unknown", "learning")
    assert (learned.state, learned.severity, learned.evidence["reason"]) == ("opened", "info", "learned")
    assert learned.evidence["profile"] == learned_profile(whole).hash
    assert learned.evidence["rows"] >= LEARN_ROWS  # type: ignore[operator]


def test_what_it_learned_is_the_profile_of_its_rows(whole: list[Outgoing]) -> None:
    profile = learned_profile(whole)

    assert [feature.name for feature in profile.numeric] == ["amount", "age"]
    assert [(feature.name, feature.categories) for feature in profile.categorical] == [
        ("plan", ("free", "basic", "pro")),
        ("vip", ("false", "true")),
    ]
    assert profile.numeric[0].mean == pytest.approx(100, abs=2)
    assert profile.numeric[0].sd == pytest.approx(15, abs=1)
    assert profile.numeric[1].missing_rate == pytest.approx(0.1, abs=0.03)


def test_progress_is_in_the_evidence_and_verdicts_carry_the_learned_hash(whole: list[Outgoing]) -> None:
    read = table_of(whole, b"verdict_blocks")
    progress = [json.loads(str(row["evidence"])) for row in read if row["detector"] == "learning:learning"]
    drift = [row for row in read if row["detector"] == "feature_drift:feature_drift"]

    rows = [each["rows"] for each in progress if each.get("reason") == "learning"]
    assert rows == sorted(rows)
    assert rows[-1] > 0
    assert {json.loads(str(row["evidence"]))["reason"] for row in drift if row["state"] == "unknown"} == {
        "no_profile",
        "learning",
    }
    assert {row["profile_hash"] for row in drift if row["state"] != "unknown"} == {learned_profile(whole).hash}


def test_drift_from_a_learned_profile_is_seen_and_is_never_critical(whole: list[Outgoing]) -> None:
    found = said(whole, "feature_drift")

    opened = [signal for signal in found if signal.state == "opened"]
    assert opened
    assert opened[0].log_offset >= records().offsets[0] + SHIFT_FROM
    assert opened[0].evidence["profile"] == "learned"
    statistics = [signal.evidence.get("block_statistic") for signal in found]
    statistic = max(each for each in statistics if isinstance(each, float))
    assert statistic > 5.0, "an approved profile would make this critical"
    assert {signal.severity for signal in found} <= {"info", "warning"}


@pytest.mark.parametrize("size", [1, 37, 1_000])
def test_any_cut_of_the_log_learns_the_same(whole: list[Outgoing], size: int) -> None:
    cut = feed(learning_log(), records(), list(range(0, len(records()), size)))

    assert signals(cut) == signals(whole)
    assert table_of(cut, b"verdict_blocks") == table_of(whole, b"verdict_blocks")
    assert table_of(cut, b"verdict_rows") == table_of(whole, b"verdict_rows")
    assert learned_profile(cut) == learned_profile(whole)


@pytest.mark.parametrize(
    "killed_at", [500, SCHEMA_ROWS + 700, SCHEMA_ROWS + LEARN_ROWS + 100, SCHEMA_ROWS + LEARN_ROWS + 600]
)
def test_a_restart_while_it_learns_changes_nothing(whole: list[Outgoing], killed_at: int) -> None:
    log = records()
    first = learning_log()
    before = feed(first, log.part(0, killed_at), [killed_at // 2])
    saved = {part: first.snapshot(part) for part in first.dirty()}

    second = open_log(learning=Learning(LEARN_ROWS, at_least_ms=1_000), content=content_of_log(before))
    for part, state in saved.items():
        assert len(state) < 262_144
        second.restore(part, state)
    again = log.part(first.restart - log.offsets[0], len(log))
    after = feed(second, again, [37], quiet_below=log.offsets[0] + killed_at)

    assert signals(before) + signals(after) == signals(whole)
    found = {record.value for record in before + after if record.topic == PROFILES}
    assert found == {learned_profile(whole).to_bytes()}


def test_a_table_that_one_caller_made_is_said_and_learned_anew() -> None:
    out = feed(learning_log(), log_of(callers=40, heavy=0.9), [])

    warned = [signal for signal in said(out, "learning") if signal.severity == "warning"]
    assert warned[0].evidence["reason"] == "one_caller"
    assert warned[0].evidence["heaviest_share"] == pytest.approx(0.9, abs=0.03)
    assert not [record for record in out if record.topic == PROFILES]


def test_an_approved_profile_replaces_a_learned_one_at_once() -> None:
    log, at = records(), SHIFT_FROM
    value, header = activation("credit")
    out_log = learning_log()
    feed(out_log, log.part(0, at), [])
    place = Records([value], [b"credit"], [header], [log.offsets[at - 1] + 1], [log.timestamps[at - 1]])
    feed(out_log, place, [])

    shifted = Records(
        log.values[at:], log.keys[at:], log.headers[at:], [n + 1 for n in log.offsets[at:]], log.timestamps[at:]
    )
    out = feed(out_log, shifted, [])

    read = [row for row in table_of(out, b"verdict_blocks") if row["detector"] == "feature_drift:feature_drift"]
    assert {row["profile_hash"] for row in read} == {approved_profile().hash}
    assert any(signal.severity == "critical" for signal in said(out, "feature_drift"))


def test_a_profile_activated_while_no_block_is_open_is_saved_with_its_part() -> None:
    log = learning_log()
    end = records().offsets[-1] + 1
    feed(log, records(), [])
    feed(log, Records([b'{"worker":"w","at_ms":1}'], [None], [[(KIND_HEADER, b"tick")]], [end], [9_000_000]), [])
    assert not log.pending
    for part in log.dirty():
        log.snapshot(part)

    value, header = activation("credit")
    feed(log, Records([value], [b"credit"], [header], [end + 1], [9_000_000]), [])

    assert log.dirty() == [PART]


def test_features_are_read_again_from_every_encoding() -> None:
    rows = [{"a": 1.0, "b": "x"}, {"a": None, "b": "y"}]
    answers = [{"yes": 0.25, "no": 0.75}, {"yes": 1.0, "no": 0.0}]
    table = pa.table({"endpoint": ["e", "e"], "features": rows, "prediction": answers})
    events = [{"features": row, "prediction": answer} for row, answer in zip(rows, answers, strict=True)]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    assert rows_of(sink.getvalue()) == (rows, ["no", "yes"])
    assert rows_of(json.dumps(events).encode()) == (rows, ["no", "yes"])
    assert rows_of(json.dumps({"features": [1, "x"]}).encode()) == ([[1, "x"]], [None])
    assert rows_of(b'{"features": {"a": NaN}}')[0] != [None]


def test_a_row_that_is_refused_keeps_no_neighbour_from_voting_and_stops_nothing() -> None:
    good, bad = b'{"endpoint":"credit","features":{"a":1.5}}', b'{"endpoint":"credit","x":"\xff"}'
    array = b"[" + b",".join([good, bad, good]) + b"]"

    assert rows_of(array) == ([{"a": 1.5}, None, {"a": 1.5}], [None, None, None])
    assert rows_of(bad) == ([], [])
    values = [array, good]
    out = feed(open_log(), Records(values, [b"credit"] * 2, [None] * 2, [0, 1], [1_000_000, 1_000_001]), [])
    reasons = [DeadLetter.from_bytes(record.value).reason for record in out if record.topic == DEAD_LETTERS]
    assert reasons == ["not_json"]
