"""Late labels find their prediction in ClickHouse: exactly, in order, once; never by a guess, and whatever is killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.deadletter import DeadLetter
from schemas.feedback import Labelled
from schemas.tables import RAW, TABLES, VIEWS, all_ddl
from schemas.topics import DEAD_LETTERS, FEEDBACK, LABELLED, PREDICTIONS
from streams.audit import labels, rows
from streams.audit.engine import EmbeddedClickHouse, ServerClickHouse, Unavailable
from streams.audit.http_port import HttpPort
from streams.audit.labels import LATEST_S, RESTING_S
from streams.feedback import FeedbackAt
from streams.records import Records
from tests.audit.http_asking import WRITER_TOKEN
from tests.audit.labelling import LATELY, Labelling, feedback, once, position, prediction


@pytest.fixture
def stage(fresh_tables: EmbeddedClickHouse) -> Iterator[Labelling]:
    for statement in all_ddl():
        fresh_tables.command(statement)
    yield Labelling(fresh_tables)
    for table in TABLES:
        fresh_tables.command(f"DROP VIEW IF EXISTS {VIEWS}.{table.name}")
        fresh_tables.command(f"DROP TABLE IF EXISTS {RAW}.{table.name}")


def test_shuffled_and_repeated_feedback_is_joined_exactly(stage: Labelling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "JOIN_ROWS", 37)
    rng = random.Random(1)
    ids = list(range(300))
    stage.insert(PREDICTIONS, [prediction(f"r{n}", n / 300, caller=f"c{n % 7}") for n in ids])
    picked = rng.sample(ids, 150) + rng.sample(ids, 40)
    events = [feedback(f"r{n}", n % 2) for n in picked]
    stage.insert(FEEDBACK, events[:100])
    stage.insert(FEEDBACK, events[60:], first=60)  # a crash before the commit: read again from there
    while stage.round():
        pass

    said = stage.said()
    assert [position(one) for one in said] == [(n, 0) for n in range(190)]
    assert [one.request_id for one in said] == [f"r{n}" for n in picked]
    for one, n in zip(said, picked, strict=True):
        assert (one.prediction, one.label, one.caller, one.prediction_offset) == (n / 300, n % 2, f"c{n % 7}", n)
        assert (one.prediction_topic, one.model_version, one.delay_ms) == (PREDICTIONS, "v1", 5_000)
    assert stage.counted("joined") == 190


def test_what_was_said_is_read_back_from_its_view_once(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("a", "no"), prediction("b", {"yes": 0.75, "no": 0.25})])
    stage.insert(FEEDBACK, [feedback("a", "yes"), feedback("b", "1")])
    stage.round()
    values = [one.to_bytes() for one in stage.said()]
    from streams.audit.rows import merged, rows_of
    from streams.records import Records

    twice = Records(values * 2, [None] * 4, [[("palisade-kind", b"labelled")]] * 4, range(4), [LATELY] * 4)
    stage.engine.insert_arrow(f"{RAW}.labelled", merged([rows_of(LABELLED, 0, twice)])["labelled"])

    rows = stage.engine.query_arrow(
        "SELECT request_id, prediction, label FROM palisade.labelled ORDER BY 1"
    ).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("a", '"no"', '"yes"'), ("b", '{"yes":0.75,"no":0.25}', '"1"')]


def test_an_id_of_two_predictions_labels_neither_and_one_of_another_endpoint_is_not_taken(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("twice"), prediction("twice", 0.9), prediction("x", endpoint="spam"),
                               prediction("mine"), prediction("mine", endpoint="spam")])  # fmt: skip
    stage.insert(FEEDBACK, [feedback("twice"), feedback("x"), feedback("mine"), feedback("none")])
    stage.round()

    assert [one.request_id for one in stage.said()] == ["mine"]
    assert [stage.counted(outcome) for outcome in ("joined", "ambiguous", "no_prediction")] == [1, 1, 2]
    (row,) = stage.engine.query_arrow("SELECT joined, ambiguous, no_prediction FROM palisade.label_joins").to_pylist()
    assert tuple(row.values()) == (1, 1, 2)


def test_a_prediction_that_was_inserted_twice_is_one(stage: Labelling) -> None:
    for first in (0, 0):
        stage.insert(PREDICTIONS, [prediction("a"), prediction("b")], first=first)
    stage.insert(PREDICTIONS, [prediction("b")], first=1)
    stage.insert(FEEDBACK, [feedback("a"), feedback("b")])
    stage.round()

    assert [one.request_id for one in stage.said()] == ["a", "b"]


def test_a_label_that_overtakes_its_prediction_waits_for_it_and_keeps_the_order(stage: Labelling) -> None:
    stage.stored = LATELY
    stage.insert(PREDICTIONS, [prediction("old")])
    stage.insert(FEEDBACK, [feedback("old"), feedback("early"), feedback("old")])
    stage.round()
    stage.round()
    assert [position(one) for one in stage.said()] == [(0, 0)]

    stage.insert(PREDICTIONS, [prediction("early")])
    stage.round()
    assert [(position(one), one.request_id) for one in stage.said()] == [
        ((0, 0), "old"), ((1, 0), "early"), ((2, 0), "old"),
    ]  # fmt: skip


def test_a_backlog_behind_a_waiting_label_is_joined_once_that_is_decided(
    stage: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "JOIN_ROWS", 50)
    monkeypatch.setattr(labels, "WAITING_ROWS", 3)
    stage.insert(PREDICTIONS, [prediction(f"r{n}") for n in range(200)])
    stage.insert(FEEDBACK, [feedback("nobody-asked"), *(feedback(f"r{n}") for n in range(200))])
    stage.stored = LATELY
    assert [stage.round(), stage.round()] == [False, False]

    stage.stored = LATELY + int(LATEST_S * 1000)
    rounds = 1
    while stage.round():
        rounds += 1
    assert [one.request_id for one in stage.said()] == [f"r{n}" for n in range(200)]
    assert rounds == 1 + 4  # 3 rows, then 50 at a time


def test_nobody_waits_for_a_prediction_once_all_that_could_be_it_is_inserted(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("known")])
    stage.insert(FEEDBACK, [feedback("nobody-asked"), feedback("known")])
    stage.stored = LATELY + int(LATEST_S * 1000) - 1
    stage.round()
    assert stage.said() == []

    stage.stored += 1
    stage.round()
    assert [one.request_id for one in stage.said()] == ["known"]
    assert stage.counted("no_prediction") == 1


@pytest.mark.parametrize("stored", [None, LATELY - 1], ids=["none ever", "all before"])
def test_where_no_predictions_come_at_all_nobody_waits_for_ever(stage: Labelling, stored: int | None) -> None:
    stage.stored = stored
    stage.insert(PREDICTIONS, [prediction("known")])
    stage.insert(FEEDBACK, [feedback("nobody-asked"), feedback("known")])
    for after in (0.0, RESTING_S / 2, RESTING_S / 2 - 0.1):
        stage.clock += after
        stage.round()
        assert stage.said() == []

    stage.clock += 0.1
    stage.round()
    assert [one.request_id for one in stage.said()] == ["known"]


def test_while_a_backlog_of_predictions_is_inserted_its_labels_are_waited_for(stage: Labelling) -> None:
    stage.insert(FEEDBACK, [feedback("far-behind")])
    for minutes in range(60, 0, -1):
        stage.stored = LATELY - minutes * 60_000
        stage.clock += 60.0
        stage.round()
    stage.insert(PREDICTIONS, [prediction("far-behind")])
    stage.round()

    assert [one.request_id for one in stage.said()] == ["far-behind"]


def test_a_record_from_the_year_2299_holds_up_nobody(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("known")])
    stage.insert(FEEDBACK, [feedback("nobody-asked")], ms=10_413_791_999_999)
    stage.insert(FEEDBACK, [feedback("known")])
    stage.stored = LATELY + 3_600_000 + int(LATEST_S * 1000)
    stage.join._now_ms = lambda: LATELY + 3_600_000 + int(LATEST_S * 1000)
    stage.round()
    stage.join._now_ms = lambda: LATELY + 3_600_000 + 2 * int(LATEST_S * 1000)
    stage.stored += int(LATEST_S * 1000)
    stage.round()

    assert [one.request_id for one in stage.said()] == ["known"]


class Failing:
    """An engine whose inserts into one table fail."""

    def __init__(self, engine: EmbeddedClickHouse, table: str) -> None:
        self._engine, self._table = engine, table
        self.query_arrow = engine.query_arrow

    def insert_arrow(self, table: str, *rest: object) -> None:
        if table.endswith(self._table):
            raise Unavailable("planted")
        self._engine.insert_arrow(table, *rest)  # type: ignore[arg-type]


def test_a_crash_after_producing_repeats_records_that_are_told_by_their_position(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction(f"r{n}") for n in range(5)])
    stage.insert(FEEDBACK, [feedback(f"r{n}") for n in range(5)])
    stage.join._engine = Failing(stage.engine, "label_joins")  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        stage.round()
    stage.insert(FEEDBACK, [feedback("r0", 0)])
    stage.restart()
    stage.round()

    assert len(stage.said()) == 11
    assert [position(one) for one in stage.once()] == [(n, 0) for n in range(6)]


def test_a_row_that_was_unknown_before_a_crash_and_found_after_it_is_not_counted_beside_the_order(
    stage: Labelling,
) -> None:
    """What was said first is what counts: a repetition may say more, at positions that every reader has passed."""
    stage.insert(PREDICTIONS, [prediction("b")])
    stage.insert(FEEDBACK, [feedback("a"), feedback("b")])
    stage.join._engine = Failing(stage.engine, "label_joins")  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        stage.round()
    stage.insert(PREDICTIONS, [prediction("a")])
    stage.restart()
    stage.round()

    assert [one.request_id for one in stage.once()] == ["b"]


def test_a_restart_goes_on_where_the_last_round_ended(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("a")])
    stage.insert(FEEDBACK, [feedback("a"), feedback("a")])
    stage.round()
    stage.restart()
    stage.insert(FEEDBACK, [feedback("a")])
    stage.round()

    assert [position(one) for one in stage.said()] == [(0, 0), (1, 0), (2, 0)]


def test_a_broker_that_does_not_confirm_leaves_the_feedback_unjoined(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("a")])
    stage.insert(FEEDBACK, [feedback("a")])
    send, stage.outbox.send = stage.outbox.send, lambda *_: _broken()
    with pytest.raises(OSError, match="planted"):
        stage.round()
    stage.outbox.send = send
    stage.round()

    assert [one.request_id for one in stage.said()] == ["a"]


def _broken() -> object:
    import asyncio

    future = asyncio.get_running_loop().create_future()
    future.set_exception(OSError("planted"))
    return future


def test_a_label_comes_two_hundred_days_late_when_the_features_are_long_gone(stage: Labelling) -> None:
    day = 86_400_000
    then = int(time.time() * 1000) - 200 * day
    stage.insert(PREDICTIONS, [prediction("booking", ts=then)], ms=then)
    for table in ("predictions", "answers"):
        stage.engine.command(f"OPTIMIZE TABLE {RAW}.{table} FINAL")
    assert stage.engine.command("SELECT count() FROM palisade.predictions") == "0"
    stage.insert(FEEDBACK, [feedback("booking", ts=then + 200 * day)])
    stage.round()

    (one,) = stage.said()
    assert (one.delay_ms, one.prediction_ts) == (200 * day, then)


def test_over_http_the_same_sql_joins_the_same(stage: Labelling, clickhouse_port: HttpPort, tmp_path: Path) -> None:
    """The client for a server against our own port; a real server is not run here."""
    (tmp_path / "password").write_text(WRITER_TOKEN)
    stage.engine = server = ServerClickHouse(clickhouse_port.url, "writer", tmp_path / "password")
    stage.restart()
    stage.insert(PREDICTIONS, [prediction("a", {"yes": 0.5}), prediction("b"), prediction("b")])
    stage.insert(FEEDBACK, [feedback("a", "yes"), feedback("b"), feedback("c"), feedback("a", False)])
    stage.round()
    stage.restart()
    stage.round()

    assert [(position(one), one.prediction, one.label) for one in stage.said()] == [
        ((0, 0), {"yes": 0.5}, "yes"), ((3, 0), {"yes": 0.5}, False),
    ]  # fmt: skip
    assert [stage.counted(outcome) for outcome in ("joined", "ambiguous", "no_prediction")] == [2, 1, 1]
    server.close()


def test_hostile_feedback_is_dead_lettered_and_stops_no_label(stage: Labelling) -> None:
    stage.insert(PREDICTIONS, [prediction("a")])
    hostile = [b"{", b"\xff\xff\xff\xff", b"[]", feedback("a", [1]), feedback("a", "x" * 300), b"[" * 50_000,
               feedback("'; DROP TABLE palisade_raw.feedback; --"), feedback("{most:UInt32}", "\x00")]  # fmt: skip
    stage.insert(FEEDBACK, [*hostile, feedback("a")])
    stage.round()

    assert [one.request_id for one in stage.said()] == ["a"]
    letters = [DeadLetter.from_bytes(sent.value or b"") for sent in stage.outbox.of(DEAD_LETTERS)]
    assert [letter.log_offset for letter in letters] == [0, 1, 2, 3, 4, 5]


def test_a_label_on_which_joining_raises_is_a_dead_letter_and_those_behind_it_are_joined(
    stage: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = labels._labelled

    def broken(partition: int, row: Any) -> Labelled:
        if row["request_id"] == "b":
            raise ZeroDivisionError("planted")
        return labelled(partition, row)

    monkeypatch.setattr(labels, "_labelled", broken)
    stage.insert(PREDICTIONS, [prediction("a"), prediction("b"), prediction("c")])
    stage.insert(FEEDBACK, [feedback("a"), feedback("b"), feedback("c")])
    stage.round()
    stage.restart()
    stage.round()

    assert [one.request_id for one in stage.said()] == ["a", "c"]
    (letter,) = [DeadLetter.from_bytes(sent.value or b"") for sent in stage.outbox.of(DEAD_LETTERS)]
    assert (letter.reason, letter.log_topic, letter.log_offset) == ("handler_failed", FEEDBACK, 1)
    assert letter.detail.startswith("joining it with its prediction: ZeroDivisionError: planted; at test_labels.py:")


def test_feedback_of_which_no_row_can_be_made_is_a_dead_letter_and_the_others_are_rows(
    stage: Labelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = rows.feedback_rows

    def broken(partition: int, records: Records, found: Sequence[FeedbackAt]) -> rows.Tables:
        if any(one.feedback.request_id == "b" for one in found):
            raise OverflowError("planted")
        return make(partition, records, found)

    monkeypatch.setattr(rows, "feedback_rows", broken)
    stage.insert(PREDICTIONS, [prediction("a"), prediction("b"), prediction("c")])
    stage.insert(FEEDBACK, [feedback("a"), feedback("b"), feedback("c")])
    stage.round()

    assert [one.request_id for one in stage.said()] == ["a", "c"]
    (letter,) = [DeadLetter.from_bytes(sent.value or b"") for sent in stage.outbox.of(DEAD_LETTERS)]
    assert (letter.reason, letter.log_topic, letter.log_offset) == ("not_audited", FEEDBACK, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", [1, 120, 200])
def test_each_feedback_is_labelled_exactly_once_though_the_audit_is_killed_while_it_says_so(
    tmp_path: Path, dies_after: int
) -> None:
    def run(dying: int) -> int:
        command = [sys.executable, "-m", "tests.audit.labelling", str(tmp_path), str(dying), "200"]
        return subprocess.run(command, check=False, timeout=120).returncode

    assert run(dies_after) == -9
    assert run(0) == 0
    said = [Labelled.from_bytes(line) for line in (tmp_path / "labelled").read_bytes().splitlines()]

    assert len(said) == 200 + dies_after
    assert [(one.feedback_offset, one.prediction, one.label) for one in once(said)] == [(n, n, n) for n in range(200)]
