"""A worker that is behind on predictions says so in its ticks on reports: content is unknown there, and reports go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import MAX_BEHIND_MS, Tick
from schemas.signals import Signal
from schemas.topics import PREDICTIONS, REPORTS
from schemas.wire import KIND_HEADER
from streams import detect
from streams.records import RawHeaders, Records
from streams.transport.ledger import Ledger
from streams.transport.outbox import Confirmed
from streams.transport.run import TP
from tests.responders.given import Responder, mandate
from tests.streams.fakes import settled
from tests.streams.test_detect import Bench, running
from tests.streams.test_report_log import ENDPOINT, FLOOD_AT, SECONDS, feed, log_of_reports, open_log, signals
from tests.transport.fakes import FakeRecord

TICKS = {FLOOD_AT - 5: 1_999, FLOOD_AT - 2: 2_000, FLOOD_AT + 2: 9_000, FLOOD_AT + 4: 1_000, FLOOD_AT + 15: 999}
"""Second -> what its tick tells; the others tell what the one before told."""
FROM, UNTIL = FLOOD_AT - 2, FLOOD_AT + 15


def log_with_lag(told: Mapping[int, int | None] = TICKS, extra: tuple[bytes | None, ...] = ()) -> Records:
    """A report and a tick a second, as `log_of_reports`; `extra` are values of ticks that follow at its end."""
    plain = log_of_reports()
    values, behind_ms = list(plain.values), None
    for second in range(SECONDS):
        behind_ms = told.get(second, behind_ms)
        values[2 * second + 1] = Tick(worker="w", at_ms=1, behind_ms=behind_ms).to_bytes()
    heads: list[RawHeaders] = [*plain.headers, *([(KIND_HEADER, b"tick")] for _ in extra)]
    count, last_ms = len(values) + len(extra), plain.timestamps[-1]
    times = [*plain.timestamps, *(last_ms + 2_000 * (place + 1) for place in range(len(extra)))]
    return Records([*values, *extra], [None] * count, heads, list(range(count)), times)


def of_lag(found: list[Signal]) -> list[Signal]:
    return [signal for signal in found if signal.kind == "lag"]


def test_content_is_unknown_once_two_seconds_behind_and_known_again_below_one() -> None:
    unknown, recovered = of_lag(signals(feed(open_log(), log_with_lag(), [])))

    assert (unknown.state, unknown.log_offset, unknown.evidence["behind_ms"]) == ("unknown", 2 * FROM + 1, 2_000)
    assert (recovered.state, recovered.log_offset, recovered.evidence["behind_ms"]) == ("recovered", 2 * UNTIL + 1, 999)
    assert recovered.evidence["most_behind_ms"] == 9_000
    assert (recovered.incident_id, recovered.seq) == (unknown.signal_id, 1)
    assert recovered.first_ms == unknown.at_ms
    assert {(signal.endpoint, signal.subject, signal.log_topic) for signal in (unknown, recovered)} == {
        (ENDPOINT, ENDPOINT, REPORTS)
    }


def test_traffic_is_judged_as_ever_while_content_is_unknown() -> None:
    found = signals(feed(open_log(), log_with_lag(), []))
    flood = [signal for signal in found if signal.kind == "caller_rate"]

    assert 2 * FROM + 1 < flood[0].log_offset < 2 * UNTIL + 1
    assert [signal for signal in found if signal.kind != "lag"] == signals(feed(open_log(), log_of_reports(), []))


def test_ticks_that_tell_nothing_leave_what_is_known_as_it_is() -> None:
    told: dict[int, int | None] = {30: 5_000, 31: None}

    assert [signal.state for signal in of_lag(signals(feed(open_log(), log_with_lag(told), [])))] == ["unknown"]
    assert of_lag(signals(feed(open_log(), log_of_reports(), []))) == []


def test_a_worker_that_keeps_up_says_nothing() -> None:
    assert of_lag(signals(feed(open_log(), log_with_lag({0: 0, 30: 1_999}), []))) == []


def test_a_lag_that_swings_is_said_at_most_once_a_second() -> None:
    ticks = [Tick(worker="w", at_ms=1, behind_ms=9_000 * (place % 2)).to_bytes() for place in range(80)]
    calm = log_with_lag({0: 0})
    start = calm.timestamps[-1] + 1_000
    times = [start + 250 * place for place in range(80)]
    swings = Records(ticks, [None] * 80, [[(KIND_HEADER, b"tick")]] * 80, list(range(1_000, 1_080)), times)
    log = open_log()
    feed(log, calm, [])

    moments = [signal.at_ms for signal in of_lag(signals(feed(log, swings, [])))]

    assert len(moments) > 10
    assert min(after - before for before, after in pairwise(moments)) >= 1_000


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b'{"worker":"w","at_ms":1,"behind_ms":-5}', b'{"worker":"w","at_ms":1,"behind_ms":1e400}',
     b'{"worker":"w","at_ms":1,"behind_ms":1%s}' % (b"0" * 400), b'{"worker":"w","at_ms":1,"behind_ms":"9000"}'],
)  # fmt: skip
def test_a_tick_that_cannot_be_read_is_the_clock_and_tells_nothing(value: bytes | None) -> None:
    log = open_log()

    assert of_lag(signals(feed(log, log_with_lag({0: 0}, (value,)), []))) == []
    assert log.restart == 2 * SECONDS + 1


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 2 * SECONDS), max_size=40))
def test_any_cut_of_the_log_says_the_same(cuts: list[int]) -> None:
    assert signals(feed(open_log(), log_with_lag(), cuts)) == signals(feed(open_log(), log_with_lag(), []))


@pytest.mark.parametrize("killed_at", [2 * FROM + 1, 2 * FROM + 2, 2 * FLOOD_AT + 3, 2 * UNTIL + 1, 2 * UNTIL + 2])
def test_a_restart_in_between_goes_on_with_the_same_incident(killed_at: int) -> None:
    log, uninterrupted, first, second = log_with_lag(), open_log(), open_log(), open_log()
    expected = feed(uninterrupted, log, [])
    before = feed(first, log.part(0, killed_at), [])

    second.restore(ENDPOINT, first.snapshot(ENDPOINT))
    after = feed(second, log.part(killed_at - 4, len(log)), [], quiet_below=killed_at)

    assert signals(before) + signals(after) == signals(expected)
    assert second.snapshot(ENDPOINT) == uninterrupted.snapshot(ENDPOINT)


def test_nothing_is_done_about_it() -> None:
    responder = Responder(mandate(mode="enforce"))

    for signal in of_lag(signals(feed(open_log(), log_with_lag(), []))):
        assert responder.take(signal) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's clock stands at 1,005,000 ms."""
    monkeypatch.setattr(detect.time, "time", lambda: 1_005.0)


class TwoLogs(Bench):
    """A role that owns partition 0 of reports, and of predictions if it should."""

    async def own(self, *, committed: int = 0, predictions: bool = True) -> None:
        content = TP(PREDICTIONS, 0)
        tps = {TP(REPORTS, 0), content} if predictions else {TP(REPORTS, 0)}
        await self.role.start_at({content: committed} if predictions else {}, frozenset(tps))

    async def tick(self, topic: str, *, offset: int, ms: int) -> int | None:
        """One tick of `topic`, confirmed at that offset and time; gives what it told."""
        tp = TP(topic, 0)
        self.outbox.confirms = False
        self.role._tick(tp, self.role._owned[tp])
        sent = self.outbox.of(topic)[-1]
        sent.future.set_result(Confirmed(topic, 0, offset, ms))
        self.outbox.confirms = True
        await settled()
        tick: Tick = Tick.from_bytes(sent.value or b"")
        return tick.behind_ms

    async def handle(self, *, first: int, last: int, last_ms: int) -> None:
        """A run of predictions of which the last one lies at `last_ms`."""
        ledger = Ledger()
        records = [FakeRecord(offset, topic=PREDICTIONS, timestamp=last_ms) for offset in range(first, last + 1)]
        ledger.add(TP(PREDICTIONS, 0), records, 0.0)
        (run,) = ledger.take({TP(PREDICTIONS, 0)})[TP(PREDICTIONS, 0)]
        await self.role.handle(run)


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_a_worker_tells_how_far_it_is_behind_until_it_reads_its_own_tick() -> None:
    bench = TwoLogs()
    await bench.own()
    await bench.handle(first=0, last=9, last_ms=1_000_000)
    assert await bench.tick(PREDICTIONS, offset=500, ms=1_004_000) is None
    assert await bench.tick(REPORTS, offset=7, ms=1_004_001) == 4_000

    await bench.handle(first=10, last=499, last_ms=1_003_500)
    assert await bench.tick(REPORTS, offset=8, ms=1_004_500) == 500

    await bench.handle(first=500, last=500, last_ms=1_004_000)
    assert await bench.tick(REPORTS, offset=9, ms=1_009_000) == 0

    await bench.handle(first=501, last=501, last_ms=1)  # its producer's clock is wrong, on a broker that stamps none
    assert await bench.tick(REPORTS, offset=10, ms=1_009_500) == 0


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_a_run_that_takes_long_is_seen_while_it_lasts() -> None:
    bench = TwoLogs()
    await bench.own()
    await bench.handle(first=0, last=0, last_ms=1_000_000)
    content = bench.logs[0]
    content.gate = asyncio.Event()

    async with running(lambda: bench.handle(first=1, last=5, last_ms=1_000_100)):
        await settled()
        await bench.tick(PREDICTIONS, offset=6, ms=1_003_000)
        assert await bench.tick(REPORTS, offset=1, ms=1_003_000) == 3_000


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_a_replay_of_what_was_handled_before_is_no_lag() -> None:
    bench = TwoLogs()
    await bench.own(committed=100)
    await bench.tick(PREDICTIONS, offset=110, ms=1_009_000)
    await bench.handle(first=50, last=99, last_ms=1_000_000)
    assert await bench.tick(REPORTS, offset=1, ms=1_009_000) is None

    await bench.handle(first=100, last=109, last_ms=1_006_000)
    assert await bench.tick(REPORTS, offset=2, ms=1_009_000) == 3_000


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_a_worker_without_the_partition_of_predictions_tells_nothing() -> None:
    bench = TwoLogs()
    await bench.own(predictions=False)
    await bench.tick(REPORTS, offset=0, ms=1_000_000)

    assert await bench.tick(REPORTS, offset=1, ms=1_009_000) is None
    assert b"behind_ms" not in (bench.outbox.sent[-1].value or b"")


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_times_that_no_clock_gives_stop_no_tick() -> None:
    bench = TwoLogs()
    await bench.own()
    await bench.handle(first=0, last=0, last_ms=-(2**63))
    await bench.tick(PREDICTIONS, offset=1, ms=-1)

    assert await bench.tick(REPORTS, offset=1, ms=1_000_000) == MAX_BEHIND_MS


@pytest.mark.anyio
@pytest.mark.usefixtures("clock")
async def test_a_broker_that_confirms_without_a_clock_leaves_the_time_at_which_the_tick_was_sent() -> None:
    bench = TwoLogs()
    await bench.own()
    await bench.handle(first=0, last=0, last_ms=1_001_000)
    await bench.tick(PREDICTIONS, offset=9, ms=1_005_000 - 86_400_000)

    assert await bench.tick(REPORTS, offset=1, ms=1_005_000) == 4_000
