"""A run: its columns, and the ways to finish it."""

from __future__ import annotations

import asyncio

import pytest

from streams.transport.ledger import Ledger
from streams.transport.run import TP, Run
from tests.transport.fakes import FakeRecord, records

A = TP("t", 0)


def run_of(*rows: FakeRecord, ledger: Ledger | None = None) -> Run:
    ledger = ledger or Ledger()
    ledger.add(A, rows, 0.0)
    return ledger.take([A])[A][0]


def test_offsets_of_a_run_may_have_gaps() -> None:
    ledger = Ledger()
    run = run_of(FakeRecord(3), FakeRecord(7), FakeRecord(40), ledger=ledger)
    assert (run.first, run.next, len(run), run.offsets) == (3, 41, 3, [3, 7, 40])
    run.done()
    assert ledger.due() == {A: 41}


def test_keys_headers_timestamps_and_tombstones_arrive() -> None:
    run = run_of(
        FakeRecord(0, b"a", key=b"k", headers=[("h", b"1"), ("h", None)], timestamp=17),
        FakeRecord(1, None, timestamp=18),
    )
    assert run.values == [b"a", None]
    assert run.keys == [b"k", None]
    assert run.headers == [[("h", b"1"), ("h", None)], None]
    assert run.timestamps == [17, 18]


def test_leaving_the_block_by_cancellation_leaves_the_run_to_be_read_again() -> None:
    failures: list[BaseException] = []
    ledger = Ledger(on_failure=lambda _, error: failures.append(error))
    run = run_of(FakeRecord(0), ledger=ledger)
    with pytest.raises(asyncio.CancelledError), run:
        raise asyncio.CancelledError
    assert (failures, ledger.busy, ledger.due()) == ([], 0, {})


async def _confirm(outcomes: list[object]) -> tuple[Ledger, list[BaseException]]:
    failures: list[BaseException] = []
    ledger = Ledger(on_failure=lambda _, error: failures.append(error))
    run = run_of(*records(0, 2), ledger=ledger)
    futures = [asyncio.get_running_loop().create_future() for _ in outcomes]
    run.done_when(futures)
    assert run.opened or not outcomes
    for future, outcome in zip(futures, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        elif outcome == "cancel":
            future.cancel()
        elif outcome == "ok":
            future.set_result(outcome)
    await asyncio.sleep(0)
    return ledger, failures


@pytest.mark.parametrize(
    ("outcomes", "due", "busy"),
    [([], {A: 2}, 0), (["ok", "ok"], {A: 2}, 0), (["ok", "open"], {}, 1), (["ok", "cancel"], {}, 0)],
)
def test_a_run_is_done_when_every_outcome_is_confirmed(outcomes: list[object], due: dict[TP, int], busy: int) -> None:
    ledger, failures = asyncio.run(_confirm(outcomes))
    assert (ledger.due(), ledger.busy, failures) == (due, busy, [])


def test_an_outcome_that_fails_fails_the_run() -> None:
    refused = RuntimeError("refused")
    ledger, failures = asyncio.run(_confirm(["ok", refused]))
    assert (ledger.due(), failures) == ({}, [refused])


def test_a_done_run_frees_its_records() -> None:
    run = run_of(FakeRecord(0, b"x"))
    run.done()
    assert run.values == []
    assert len(run) == 1


def test_a_partition_equals_the_plain_pair() -> None:
    assert {TP("t", 1): "x"}[("t", 1)] == "x"  # type: ignore[index]
