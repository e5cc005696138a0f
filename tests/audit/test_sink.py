"""The sink: runs are done only when their rows are in; repeated rows are read once; a busy engine is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from palisade.queries import TIMELINE
from schemas.deadletter import DeadLetter
from schemas.tables import RAW, TABLES, VIEWS, all_ddl
from schemas.topics import DEAD_LETTERS, PREDICTIONS, PROFILES, SIGNALS
from schemas.wire import KIND_HEADER
from streams.audit import rows as rows_module
from streams.audit import sink as sink_module
from streams.audit.engine import (
    ClickHouseError,
    EmbeddedClickHouse,
    LimitExceeded,
    NotAuthenticated,
    NotPermitted,
    RowRefused,
    StorageFull,
    Unavailable,
)
from streams.audit.rows import ARROW_SCHEMAS
from streams.audit.sink import AuditSink
from streams.metrics import Metrics
from streams.transport.ledger import Ledger
from streams.transport.run import TP, Run
from tests.decode.cases import NOW, arrow_stream, as_json, event
from tests.streams.fakes import FakeOutbox, settled
from tests.streams.test_rows import CONTRACTS, TOPIC_OF
from tests.transport.fakes import FakeRecord

TP0 = TP(PREDICTIONS, 0)
LATELY = int(time.time() * 1000)
"""Rows live for some days after the broker's time."""


class FakeEngine:
    """Takes rows, or raises what the test planned next."""

    def __init__(self) -> None:
        self.inserts: list[tuple[str, int, str | None]] = []
        self.commands: list[str] = []
        self.plans: list[Exception] = []

    def command(self, sql: str) -> str:
        self._plan()
        self.commands.append(sql)
        return ""

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        self._plan()
        self.inserts.append((table, rows.num_rows, token))

    def _plan(self) -> None:
        if self.plans:
            raise self.plans.pop(0)


def run_of(values: list[bytes], first: int = 0, tp: TP = TP0, ledger: Ledger | None = None, kind: str = "") -> Run:
    ledger = ledger or Ledger()
    headers = [(KIND_HEADER, kind.encode())] if kind else None
    ledger.add(
        tp,
        [FakeRecord(first + k, value, tp.topic, headers=headers, timestamp=LATELY) for k, value in enumerate(values)],
        0.0,
    )
    (run,) = ledger.take({tp})[tp]
    return run


def sink_of(engine: Any) -> AuditSink:
    return AuditSink(engine, Metrics("audit"))


def test_a_run_is_done_after_its_insert_and_not_before() -> None:
    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        runs = [run_of([as_json()] * 3), run_of([as_json()] * 2, first=3)]
        for run in runs:
            await sink.handle(run)
        assert [(run.opened, run.finished) for run in runs] == [(True, False)] * 2

        await sink.flush()
        assert [run.finished for run in runs] == [True, True]
        assert [(table, rows) for table, rows, _ in engine.inserts] == [(f"{RAW}.predictions", 5)]

    asyncio.run(story())


def test_a_run_without_rows_is_done_too() -> None:
    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        run = run_of([b"rubbish"])
        await sink.handle(run)
        await sink.flush()
        assert (run.finished, engine.inserts) == (True, [])

    asyncio.run(story())


def test_a_run_that_was_revoked_meanwhile_is_left_to_its_next_owner() -> None:
    async def story() -> None:
        engine, ledger = FakeEngine(), Ledger()
        sink = sink_of(engine)
        await sink.handle(run_of([as_json()], ledger=ledger))
        ledger.close()
        await sink.flush()
        assert engine.inserts == []

    asyncio.run(story())


def test_an_engine_that_is_away_is_tried_again_with_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.0,))

    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        run = run_of([as_json()])
        engine.plans = [Unavailable("away"), Unavailable("away")]
        await sink.handle(run)
        await sink.flush()
        assert (run.finished, len(engine.inserts)) == (True, 1)
        assert sink._metrics.insert_failures._value.get() == 2

    asyncio.run(story())


def test_an_error_that_no_retry_mends_ends_the_process_and_leaves_the_run_undone() -> None:
    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        run = run_of([as_json()])
        engine.plans = [ClickHouseError("no such column")]
        await sink.handle(run)
        with pytest.raises(ClickHouseError, match="no such column"):
            await sink.flush()
        assert not run.finished

    asyncio.run(story())


@pytest.mark.parametrize(
    "refusal",
    [
        Unavailable("away"),
        StorageFull("full"),
        LimitExceeded("slow"),
        NotPermitted("readonly"),
        NotAuthenticated("who?"),
    ],
)
def test_what_time_or_people_mend_is_waited_for_and_told_meanwhile(
    refusal: ClickHouseError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.0,))

    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        engine.plans = [refusal] * 3
        told: list[tuple[str, bool, float]] = []

        def look(wait: float) -> None:
            failing = sink._metrics.store_failing._value.get()
            told.append((sink.store.why.partition(":")[0], sink.store.failing_since is not None, failing))

        monkeypatch.setattr(sink_module.log, "warning", lambda *_: look(0.0))
        run = run_of([as_json()])
        await sink.handle(run)
        await sink.flush()
        assert told == [(type(refusal).__name__, True, 1.0)] * 3
        assert (run.finished, sink.store.failing_since, sink.store.why) == (True, None, "")
        assert sink._metrics.store_failing._value.get() == 0

    asyncio.run(story())


def test_a_batch_that_another_process_reads_by_now_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "RETRY_S", (0.0,))

    async def story() -> None:
        engine, ledger = FakeEngine(), Ledger()
        sink = sink_of(engine)
        engine.plans = [Unavailable("away")] * 1_000
        await sink.handle(run_of([as_json()], ledger=ledger))
        flushing = asyncio.ensure_future(sink.flush())
        while len(engine.plans) > 990:
            await asyncio.sleep(0)
        ledger.close()
        await asyncio.wait_for(flushing, 60)
        assert engine.inserts == []

    asyncio.run(story())


def test_a_rebalance_does_not_wait_for_an_engine_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "LEAVE_S", 0.1)

    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        run = run_of([as_json()])
        await sink.prepare()
        engine.plans = [Unavailable("away")] * 1_000
        await sink.handle(run)
        await sink.leave({TP0})
        assert (run.finished, engine.inserts) == (False, [])

    asyncio.run(story())


def test_nothing_is_inserted_before_the_tables_are_made() -> None:
    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        run = run_of([as_json()])
        await sink.handle(run)
        await sink.leave({TP0})
        assert (run.finished, engine.inserts, engine.commands) == (False, [], [])

    asyncio.run(story())


def test_the_inserts_are_silent_for_as_long_as_one_call_lasts() -> None:
    async def story() -> None:
        calling, answer = threading.Event(), threading.Event()

        class Stuck(FakeEngine):
            def command(self, sql: str) -> str:
                calling.set()
                answer.wait(60)
                return ""

        sink = sink_of(Stuck())
        assert sink.silent_s(time.monotonic()) is None
        preparing = asyncio.ensure_future(sink.prepare())
        await asyncio.to_thread(calling.wait, 60)
        begun = sink.silent_s(time.monotonic() + 500.0)
        assert begun is not None
        assert begun >= 500.0
        answer.set()
        await preparing

    asyncio.run(story())


class PickyEngine(FakeEngine):
    """Refuses whole inserts for the rows of some offsets, as ClickHouse does for a value that no column holds."""

    def __init__(self, refused: set[int]) -> None:
        super().__init__()
        self.refused = refused
        self.stored: list[int] = []

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        offsets = rows["offset"].to_pylist()
        if self.refused.intersection(offsets):
            raise RowRefused("Code: 407. DB::Exception: Decimal overflow", 407)
        super().insert_arrow(table, rows, token)
        self.stored += offsets


@pytest.mark.parametrize("refused", [{0}, {4}, {2, 5}, {0, 1, 2, 3, 4, 5, 6}])
def test_a_row_that_clickhouse_can_never_take_is_skipped_counted_and_named(
    refused: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        engine = PickyEngine(refused)
        sink = sink_of(engine)
        run = run_of([as_json()] * 7)
        await sink.handle(run)
        await sink.flush()
        assert run.finished
        assert engine.stored == sorted(set(range(7)) - refused)
        assert len({token for _, _, token in engine.inserts}) == len(engine.inserts)
        assert sink._metrics.records_skipped._value.get() == len(refused)

    asyncio.run(story())
    assert [line for line in caplog.messages if f"{PREDICTIONS}[0] {max(refused)} is not in the audit" in line]


def test_a_record_that_no_rows_can_be_made_of_is_skipped_counted_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(rows_module, "_take_record", raising)

    async def story() -> None:
        engine = FakeEngine()
        sink = sink_of(engine)
        runs = [run_of([b"{}"], tp=TP(SIGNALS, 0), kind="signal", first=5), run_of([as_json()])]
        for run in runs:
            await sink.handle(run)
        await sink.flush()
        assert [run.finished for run in runs] == [True, True]
        assert [rows for _, rows, _ in engine.inserts] == [1]
        assert sink._metrics.records_skipped._value.get() == 1

    asyncio.run(story())
    told = f"{SIGNALS}[0] 5 is not in the audit: making its row: ZeroDivisionError: planted; at test_sink.py:"
    assert any(message.startswith(told) for message in caplog.messages)


def test_what_is_not_audited_is_a_dead_letter_and_its_run_is_done_when_that_is_confirmed() -> None:
    async def story() -> None:
        outbox = FakeOutbox(confirms=False)
        sink = AuditSink(PickyEngine({1}), Metrics("audit"), outbox=lambda: outbox)  # type: ignore[arg-type,return-value]
        run = run_of([as_json(), as_json(caller="odd"), as_json()])
        await sink.handle(run)
        await sink.flush()
        (sent,) = outbox.sent
        letter = DeadLetter.from_bytes(sent.value or b"")
        assert (letter.reason, letter.log_topic, letter.log_offset, letter.caller) == (
            "not_audited", PREDICTIONS, 1, "odd",
        )  # fmt: skip
        assert not run.finished
        outbox.confirm()
        await settled()
        assert run.finished

    asyncio.run(story())


def test_a_row_that_cannot_be_encoded_is_a_dead_letter_and_an_exhausted_machine_blames_no_row() -> None:
    class Engine(FakeEngine):
        error: type[Exception] = pa.ArrowInvalid

        def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
            if "odd" in rows["caller"].to_pylist():
                raise self.error("planted")
            super().insert_arrow(table, rows, token)

    async def story() -> None:
        outbox, engine = FakeOutbox(), Engine()
        sink = AuditSink(engine, Metrics("audit"), outbox=lambda: outbox)  # type: ignore[arg-type,return-value]
        await sink.handle(run_of([as_json(), as_json(caller="odd"), as_json()]))
        await sink.flush()
        (sent,) = outbox.sent
        letter = DeadLetter.from_bytes(sent.value or b"")
        assert (letter.reason, letter.log_offset) == ("not_audited", 1)
        assert letter.detail.startswith("making its row: ArrowInvalid: planted; at ")
        assert sum(rows for table, rows, _ in engine.inserts if table == f"{RAW}.predictions") == 2

        engine.error = MemoryError
        run = run_of([as_json(caller="odd")], first=3)
        await sink.handle(run)
        with pytest.raises(MemoryError):
            await sink.flush()
        assert (len(outbox.sent), run.finished) == (1, False)

    asyncio.run(story())


def test_a_dead_letter_that_cannot_be_audited_leads_to_no_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(rows_module, "_take_record", raising)

    async def story() -> None:
        outbox = FakeOutbox()
        sink = AuditSink(FakeEngine(), Metrics("audit"), outbox=lambda: outbox)  # type: ignore[arg-type,return-value]
        await sink.handle(run_of([b"{}"], tp=TP(DEAD_LETTERS, 0), kind="dead_letter"))
        await sink.flush()
        assert (outbox.sent, sink._metrics.records_skipped._value.get()) == ([], 1)

    asyncio.run(story())


def test_a_machine_without_memory_skips_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(rows_module, "_take_record", exhausted)

    async def story() -> None:
        sink = sink_of(FakeEngine())
        await sink.handle(run_of([b"{}"], tp=TP(SIGNALS, 0), kind="signal"))
        with pytest.raises(MemoryError):
            await sink.flush()

    asyncio.run(story())


def test_a_token_names_its_table_and_exactly_its_offsets() -> None:
    async def token(first: int, count: int) -> str | None:
        engine = FakeEngine()
        sink = sink_of(engine)
        await sink.handle(run_of([as_json()] * count, first=first))
        await sink.flush()
        return engine.inserts[0][2]

    tokens = [asyncio.run(token(*where)) for where in ((0, 2), (0, 2), (0, 3), (1, 2))]
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


def test_rows_are_inserted_when_enough_has_gathered_without_waiting_for_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = run_of([as_json()] * 3), run_of([as_json()] * 3, first=3)
    monkeypatch.setattr(sink_module, "GATHER_BYTES", few.size + 1)
    monkeypatch.setattr(sink_module, "GATHER_S", 600.0)

    async def story() -> None:
        sink = sink_of(FakeEngine())
        task = asyncio.ensure_future(sink.inserts())
        await sink.handle(few)
        await settled()
        assert not few.finished
        await sink.handle(many)
        async with asyncio.timeout(120):
            while not many.finished:
                await asyncio.sleep(0.01)
        assert few.finished
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_a_backlog_is_inserted_in_pieces_and_every_partition_moves_on_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = [run_of([as_json()] * 3, first=3 * number) for number in range(4)]
    quiet = run_of([as_json()], tp=TP(PREDICTIONS, 1))
    monkeypatch.setattr(sink_module, "GATHER_BYTES", loud[0].size + quiet.size)
    done: list[list[bool]] = []

    class Watching(FakeEngine):
        def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
            done.append([run.finished for run in (*loud, quiet)])
            super().insert_arrow(table, rows, token)

    async def story() -> None:
        engine = Watching()
        sink = sink_of(engine)
        for run in (*loud, quiet):
            await sink.handle(run)
        await sink.flush()
        assert [rows for _, rows, _ in engine.inserts] == [4, 6, 3]
        assert all(run.finished for run in (*loud, quiet))

    asyncio.run(story())
    assert done[1] == [True, False, False, False, True]


# -- with the real engine


@pytest.fixture
def audit(fresh_tables: EmbeddedClickHouse) -> Iterator[EmbeddedClickHouse]:
    for statement in all_ddl():
        fresh_tables.command(statement)
    yield fresh_tables
    for table in TABLES:
        fresh_tables.command(f"DROP VIEW IF EXISTS {VIEWS}.{table.name}")
        fresh_tables.command(f"DROP TABLE IF EXISTS {RAW}.{table.name}")


def count(engine: EmbeddedClickHouse, table: str) -> int:
    return int(engine.command(f"SELECT count() FROM {table}"))


def insert(engine: EmbeddedClickHouse, *runs: Run) -> None:
    async def story() -> None:
        sink = sink_of(engine)
        for run in runs:
            await sink.handle(run)
        await sink.flush()
        assert all(run.finished for run in runs)

    asyncio.run(story())


def test_the_ddl_loads_twice_and_each_table_has_the_columns_of_its_rows(audit: EmbeddedClickHouse) -> None:
    for statement in all_ddl():
        audit.command(statement)
    for table in TABLES:
        found = audit.command(
            f"SELECT name, type FROM system.columns WHERE database = '{RAW}' AND table = '{table.name}' ORDER BY position"
        )
        columns = [tuple(line.split("\t")) for line in found.replace("\\'", "'").splitlines()]
        assert columns == [tuple(column) for column in table.all_columns]
        assert [name for name, _ in columns] == ARROW_SCHEMAS[table.name].names


def test_every_contract_is_inserted_and_read_back(audit: EmbeddedClickHouse) -> None:
    for name, record in CONTRACTS:
        insert(audit, run_of([record.to_bytes()], tp=TP(TOPIC_OF.get(name, SIGNALS), 0), kind=record.KIND))
        assert count(audit, f"{VIEWS}.{name}") == 1, name
    stored = audit.query_arrow("SELECT * FROM palisade.signals").to_pylist()[0]
    assert (stored["signal_id"], stored["caller_auth"], stored["score"], stored["version"]) == (
        "s",
        "verified",
        1.5,
        None,
    )
    assert round(stored["at_ms"].timestamp() * 1000) == NOW


def test_rows_that_come_twice_are_read_once_whatever_cut_they_come_in(audit: EmbeddedClickHouse) -> None:
    values = [as_json(seq=k) for k in range(5)] + [arrow_stream([event(), event()])]
    insert(audit, run_of(values))
    insert(audit, run_of(values))  # the same range: its token is known
    insert(audit, run_of(values[2:], first=2))  # another cut: the view reads each row once

    assert count(audit, f"{RAW}.predictions") > 7
    assert count(audit, f"{VIEWS}.predictions") == 7
    assert audit.command("SELECT uniqExact(topic, partition, offset, row) FROM palisade.predictions") == "7"


def test_a_signal_that_a_restart_said_twice_is_read_once(audit: EmbeddedClickHouse) -> None:
    signal = next(record for name, record in CONTRACTS if name == "signals").to_bytes()
    for first in (0, 1):
        insert(audit, run_of([signal], first=first, tp=TP(SIGNALS, 0), kind="signal"))

    assert count(audit, f"{VIEWS}.signals") == 1


def test_the_timeline_names_the_version_that_a_signal_is_about(audit: EmbeddedClickHouse) -> None:
    signal = next(record for name, record in CONTRACTS if name == "signals")
    for number, version in enumerate((None, "default", "v2")):
        of = signal.model_copy(update={"signal_id": f"s{number}", "version": version})
        insert(audit, run_of([of.to_bytes()], first=number, tp=TP(SIGNALS, 0), kind="signal"))

    said = [row["happened"] for row in audit.query_arrow(TIMELINE.sql, {"endpoint": ""}).to_pylist()]
    assert sorted(said) == ["errors of v2 opened (critical)"] + ["errors opened (critical)"] * 2


def test_times_at_the_ends_of_a_column_are_taken_by_the_engine(audit: EmbeddedClickHouse) -> None:
    insert(
        audit,
        run_of([as_json(ts=10**30), as_json(ts=-(10**30)), as_json(ts=None), as_json(features={"a": float("nan")})]),
    )

    found = audit.query_arrow("SELECT ts FROM palisade.predictions ORDER BY offset").to_pylist()
    assert [row["ts"].year if row["ts"] else None for row in found] == [2299, 1970, None, 2023]


@pytest.mark.parametrize("timestamp", [-1, 0, 2**63 - 1])
def test_whatever_time_a_record_claims_the_engine_takes_its_rows(audit: EmbeddedClickHouse, timestamp: int) -> None:
    ledger = Ledger()
    for tp, value, kind in ((TP0, as_json(), b"prediction"), (TP(PROFILES, 0), b"{}", b"\xff")):
        record = FakeRecord(0, value, tp.topic, headers=[(KIND_HEADER, kind)], timestamp=timestamp)
        ledger.add(tp, [record], 0.0)
        insert(audit, *ledger.take({tp})[tp])


def test_the_engine_says_of_a_value_that_no_column_holds_that_it_is_the_row(audit: EmbeddedClickHouse) -> None:
    table = pa.table({"topic": ["t"], "offset": ["no number"]})

    with pytest.raises(RowRefused):
        audit.insert_arrow(f"{RAW}.kills", table)
