"""The ledger: what may be committed, and what never may."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.transport.ledger import Ledger, TopicLimits
from streams.transport.run import RECORD_OVERHEAD, TP, Run, RunLost
from tests.transport.fakes import FakeRecord, ledger_with, records

A, B = TP("t", 0), TP("u", 0)
MIB = 1 << 20


def taken(ledger: Ledger, *tps: TP) -> list[Run]:
    return [run for runs in ledger.take(tps or (A, B)).values() for run in runs]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_no_committed_offset_ever_passes_an_unfinished_run(sizes: list[int], random: object) -> None:
    ledger = ledger_with(A, sizes)
    unfinished = taken(ledger)
    random.shuffle(unfinished)  # type: ignore[attr-defined]
    while unfinished:
        run = unfinished.pop().open()
        run.done()
        due = ledger.due().get(A, 0)
        assert all(due <= other.first for other in unfinished)
        ledger.committed({A: due})
    assert due == sum(sizes)
    assert ledger.due() == {}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_no_committed_offset_ever_passes_what_a_handler_still_needs(sizes: list[int], data: st.DataObject) -> None:
    end = sum(sizes)
    kept: dict[TP, int] = {}
    ledger = Ledger(kept=lambda: kept)
    ledger.add(A, records(0, end), 0.0)
    for run in taken(ledger):
        run.open().done()

    committed = 0
    for oldest in sorted(data.draw(st.lists(st.integers(0, end), min_size=1, max_size=5))):
        kept = {A: oldest, B: 0}
        due = ledger.due()
        assert due == ({A: oldest} if oldest > committed else {})
        ledger.committed(due)
        committed = max(committed, oldest)
    kept = {}
    assert ledger.due() == ({A: end} if end > committed else {})


@given(st.integers(0, 8), st.integers(0, 8))
def test_what_is_due_once_it_is_given_up_stays_whatever_handlers_forget_then(done: int, oldest: int) -> None:
    kept = {A: oldest}
    ledger = Ledger(limits={"t": TopicLimits(run_max=1)}, kept=lambda: kept)
    ledger.add(A, records(0, 8), 0.0)
    runs = [run.open() for run in taken(ledger)]
    for run in runs[:done]:
        run.done()
    due = ledger.due()
    ledger.seal()
    kept = {}
    for run in runs[done:]:
        run.done()
    assert ledger.due() == due
    ledger.committed(due)
    assert ledger.due() == {}


def test_a_run_is_cut_at_the_topics_bound() -> None:
    ledger = Ledger(limits={"t": TopicLimits(run_max=4)})
    ledger.add(A, records(0, 10), 0.0)
    assert [(run.first, run.next, len(run)) for run in taken(ledger)] == [(0, 4, 4), (4, 8, 4), (8, 10, 2)]


def test_a_run_is_cut_at_the_topics_bytes_and_a_larger_record_is_a_run_of_its_own() -> None:
    ledger = Ledger(limits={"t": TopicLimits(run_bytes=100)})
    ledger.add(A, [FakeRecord(n, b"x" * size) for n, size in enumerate((40, 60, 1, 300, 50, 51))], 0.0)
    assert [(run.first, run.next) for run in taken(ledger)] == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]


def test_a_byte_of_arrow_weighs_four_of_json() -> None:
    ledger = Ledger(limits={"t": TopicLimits(run_bytes=400)})
    arrow, text = b"\xff\xff\xff\xff" + b"x" * 46, b"x" * 50
    ledger.add(A, [FakeRecord(n, arrow) for n in range(4)], 0.0)
    ledger.add(B, [FakeRecord(n, text, "u") for n in range(8)], 0.0)
    assert [len(run) for run in taken(ledger, A)] == [2, 2]
    assert [len(run) for run in taken(ledger, B)] == [8]


@pytest.mark.parametrize(
    "rest",
    [
        {"key": b"k" * MIB},
        {"headers": [("h", b"v" * MIB)]},
        {"headers": [("h" * MIB, b"")]},
        {"headers": [(f"h{n}", None) for n in range(MIB // 8)]},
    ],
    ids=["key", "value of a header", "name of a header", "many headers"],
)
def test_a_large_key_and_large_headers_count_as_bytes_however_short_the_value(rest: dict[str, Any]) -> None:
    ledger = Ledger(limits={"t": TopicLimits(max_bytes=4 * MIB, run_bytes=3 * MIB // 2)})
    ledger.add(A, [FakeRecord(n, b"{}", **rest) for n in range(4)], 0.0)

    assert ledger.topics_above({"t"}) == {"t"}
    assert [len(run) for run in taken(ledger, A)] == [1, 1, 1, 1]


def test_usual_keys_and_headers_are_in_the_overhead_of_a_record() -> None:
    headers = [("palisade-kind", b"prediction"), ("palisade-signature", b"s" * 88)]
    plain, usual = Ledger(), Ledger()
    plain.add(A, [FakeRecord(k) for k in range(3)], 0.0)
    usual.add(A, [FakeRecord(k, key=b"credit", headers=headers) for k in range(3)], 0.0)

    assert plain.bytes("t") == usual.bytes("t")


def test_a_run_full_of_bytes_does_not_linger() -> None:
    ledger = Ledger(limits={"t": TopicLimits(linger_s=0.05, run_bytes=100)})
    ledger.add(A, [FakeRecord(0, b"x" * 60)], 10.0)
    ledger.add(A, [FakeRecord(1, b"x" * 60)], 10.01)
    assert [(run.first, run.next) for run in taken(ledger)] == [(0, 1)]
    ledger.add(A, [FakeRecord(2, b"x" * 40)], 10.02)
    assert [(run.first, run.next) for run in taken(ledger)] == [(1, 3)]


def test_only_active_partitions_are_taken_and_each_run_once() -> None:
    ledger = ledger_with(A, [1, 1])
    ledger_with(B, [1], ledger)
    assert [run.tp for run in taken(ledger, B)] == [B]
    assert [run.first for run in taken(ledger, A)] == [0, 1]
    assert taken(ledger) == []
    assert not ledger.waiting


def test_bytes_are_counted_per_topic_until_a_run_is_done() -> None:
    ledger = Ledger(limits={"t": TopicLimits(max_bytes=300)})
    ledger.add(A, [FakeRecord(0, b"x" * 50)], 0.0)
    ledger.add(B, [FakeRecord(0, b"x", "u")], 0.0)
    assert ledger.bytes("t") == 50 + RECORD_OVERHEAD
    assert ledger.topics_above({"t", "u"}) == {"t"}
    taken(ledger, A)[0].done()
    assert ledger.bytes("t") == 0
    assert ledger.bytes("u") == 1 + RECORD_OVERHEAD


def test_a_failed_run_holds_back_everything_behind_it_and_is_told_once() -> None:
    told: list[tuple[Run, BaseException]] = []
    ledger = ledger_with(A, [1, 1, 1], Ledger(on_failure=lambda run, error: told.append((run, error))))
    first, second, third = taken(ledger)
    error = ValueError("poison")
    first.done()
    with pytest.raises(ValueError, match="poison"), second:
        raise error
    second.fail(error)
    third.done()
    assert told == [(second, error)]
    assert ledger.due() == {A: 1}
    assert ledger.busy == 0


def test_a_closed_ledger_hands_out_nothing_and_commits_nothing() -> None:
    failures: list[BaseException] = []
    ledger = ledger_with(A, [1, 1], Ledger(on_failure=lambda _, error: failures.append(error)))
    first, second = taken(ledger)
    first.open().done()
    ledger.close()
    second.open().done()
    second.fail(ValueError())
    assert second.stale
    assert not ledger.add(A, records(2, 1), 0.0)
    assert (ledger.due(), ledger.busy, ledger.take([A]), failures) == ({}, 0, {}, [])


def test_a_run_whose_place_is_waited_for_tells_when_it_is_over_even_if_the_ledger_closes() -> None:
    ledger = ledger_with(A, [1, 1, 1])
    over: list[str] = []
    done, failed, stale = taken(ledger)
    done.on_over, failed.on_over, stale.on_over = (lambda name=name: over.append(name) for name in "dfs")
    done.open().done()
    done.done()
    failed.open().fail(ValueError())
    stale.open()
    ledger.close()
    assert over == ["d", "f", "s"]


def test_idle_is_told_when_the_last_open_run_is_over() -> None:
    idle: list[int] = []
    ledger = ledger_with(A, [1, 1], Ledger(on_idle=lambda: idle.append(1)))
    first, second = (run.open() for run in taken(ledger))
    first.done()
    assert not idle
    second.done()
    assert idle == [1]


def test_records_of_a_slow_topic_wait_for_company_at_most_the_linger() -> None:
    ledger = Ledger(limits={"t": TopicLimits(linger_s=0.05, run_max=100)})
    ledger.add(A, records(0, 1), 10.0)
    ledger.add(A, records(1, 2), 10.02)
    assert not ledger.waiting
    assert ledger.next_ripe(10.02) == pytest.approx(0.03)
    ledger.ripen(10.049)
    assert not ledger.waiting
    ledger.ripen(10.051)
    assert [(run.first, run.next) for run in taken(ledger)] == [(0, 3)]
    assert ledger.next_ripe(11.0) is None


def test_a_full_run_does_not_linger() -> None:
    ledger = Ledger(limits={"t": TopicLimits(linger_s=0.05, run_max=4)})
    ledger.add(A, records(0, 3), 10.0)
    ledger.add(A, records(3, 6), 10.01)
    full = taken(ledger)
    assert [(run.first, run.next) for run in full] == [(0, 4), (4, 8)]
    for run in full:
        run.begin()
    assert [(run.first, run.next) for run in taken(ledger)] == [(8, 9)]


def test_behind_a_run_that_is_not_begun_records_gather_up_to_the_bounds_and_are_a_run_once_it_is() -> None:
    ready: list[int] = []
    ledger = Ledger(limits={"t": TopicLimits(linger_s=0.05, run_max=6)}, on_ready=lambda: ready.append(1))
    ledger.add(A, records(0, 3), 10.0)
    ledger.ripen(10.06)
    (first,) = taken(ledger)
    for at in (3, 4):
        ledger.add(A, records(at, 1), 11.0 + at)
        assert not ledger.ripen(11.5 + at)
    assert (taken(ledger), ledger.next_ripe(20.0), ready) == ([], None, [])

    first.begin()
    assert ready == [1]
    (gathered,) = taken(ledger)
    assert (gathered.first, gathered.next) == (3, 5)

    ledger.add(A, records(5, 7), 21.0)
    assert [(run.first, run.next) for run in taken(ledger)] == [(5, 11)]


def test_another_partition_and_a_topic_that_does_not_linger_wait_for_nobody_s_beginning() -> None:
    ledger = Ledger(limits={"t": TopicLimits(linger_s=0.05)})
    for tp in (A, B):
        ledger.add(tp, [FakeRecord(0, topic=tp.topic, partition=tp.partition)], 10.0)
        ledger.ripen(10.06)
    assert [run.tp for run in taken(ledger)] == [A, B]
    at_once = Ledger()
    for at in (0, 1):
        at_once.add(A, records(at, 1), 10.0)
    assert len(taken(at_once)) == 2


def test_the_oldest_unfinished_run_gives_its_age() -> None:
    ledger = Ledger()
    ledger.add(A, records(0, 1), 5.0)
    ledger.add(B, [FakeRecord(0, topic="u")], 7.0)
    run = taken(ledger, A)[0]
    assert ledger.oldest_unfinished_s(9.0) == pytest.approx(4.0)
    run.done()
    assert ledger.oldest_unfinished_s(9.0) == pytest.approx(2.0)


def test_a_forgotten_run_shows_as_a_stall_whatever_is_finished_behind_it() -> None:
    ledger = Ledger(clock=lambda: 8.0)
    for offset in range(3):
        ledger.add(A, records(offset, 1), 5.0)
    first, second, third = taken(ledger)
    third.done()
    assert ledger.stalled_s(9.0) == pytest.approx(4.0)
    first.done()
    assert ledger.stalled_s(9.0) == pytest.approx(1.0)
    second.done()
    assert ledger.stalled_s(9.0) is None


def test_a_run_that_never_came_is_missed_by_the_next_one_of_its_partition() -> None:
    ledger = ledger_with(A, [1, 1, 1])
    ledger_with(B, [1], ledger)
    first, _, third = taken(ledger, A)
    (other,) = taken(ledger, B)
    first.begin()
    other.begin()
    with pytest.raises(RunLost, match=r"t\[0\] 1\.\.1"):
        third.begin()


def test_a_run_that_waits_though_its_agent_is_idle_shows_after_the_last_sign_of_the_agent() -> None:
    now = 5.0
    ledger = ledger_with(A, [1, 1], Ledger(clock=lambda: now))
    first, second = taken(ledger)
    assert ledger.unbegun_s(6.0) == pytest.approx(1.0)
    first.begin()
    assert ledger.unbegun_s(6.0) is None, "its agent is at work"
    now = 8.0
    first.open().done()
    assert ledger.unbegun_s(9.0) == pytest.approx(1.0)
    second.begin()
    second.done()
    assert ledger.unbegun_s(9.0) is None


def test_a_handler_that_gives_no_sign_shows_until_it_returns_whatever_waits_to_be_confirmed() -> None:
    now = 1.0
    ledger = ledger_with(A, [1, 1], Ledger(clock=lambda: now))
    first, _ = taken(ledger, A)
    assert ledger.unmoved_s(9.0) is None
    first.begin()
    first.open()
    assert ledger.unmoved_s(9.0) == 8.0
    now = 8.0
    first.sign()
    assert ledger.unmoved_s(9.0) == 1.0
    first.leave()
    assert ledger.unmoved_s(99.0) is None
    first.sign()
    assert ledger.unmoved_s(99.0) is None


def test_what_is_withheld_is_neither_handed_over_nor_missed() -> None:
    ledger = ledger_with(A, [1, 1, 1])
    first, _, third = taken(ledger)
    first.begin()
    ledger.withhold()
    ledger_with(A, [1], ledger, first=3)
    third.begin()
    assert (taken(ledger), ledger.unbegun_s(1e9)) == ([], None)
    first.done()
    assert ledger.due() == {A: 1}


def test_threads_that_finish_runs_together_lose_none() -> None:
    ledger = ledger_with(A, [1] * 4_000)
    runs = [run.open() for run in taken(ledger)]
    threads = [threading.Thread(target=lambda n=n: [run.done() for run in runs[n::4]]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.due() == {A: 4_000}
    assert (ledger.busy, ledger.bytes("t")) == (0, 0)


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 0}, {"run_max": 0}, {"run_bytes": 0}, {"linger_s": -1}, {"linger_s": 2}]
)
def test_limits_out_of_range_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        TopicLimits(**limits)
