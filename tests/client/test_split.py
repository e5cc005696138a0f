"""A caller's limit holds over all Guards of an endpoint: each admits its share, and the shares follow the calls."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from palisade_client import CallerLimited, Guard
from palisade_client._clock import SystemClock
from palisade_client.testing import START_MS, FakeTransport, ManualClock, ThrowawayKey, directive

from detectors.base import LogPoint, ReportAt
from detectors.endpoint_state import EndpointStates
from responders.directives import directive_for
from responders.state import Action, EndpointRecord, RespondState
from schemas.actions import Directive
from schemas.events import Report
from schemas.topics import DIRECTIVES, PREDICTIONS, REPORTS
from streams.embedded_broker import EmbeddedBroker
from tests.client.conftest import ENDPOINT, Bench

CALLER = "carol"
KEY = ThrowawayKey()


class Splitter:
    """What detect and respond do about one limited caller: reports in, the directive out."""

    def __init__(self, rate: float, now_ms: int) -> None:
        action = Action("a1", "enforce", "caller_out_of_pattern", "ana", now_ms, now_ms + 3_600_000, rate)
        self._states = EndpointStates({})
        self._states.watch(ENDPOINT, True)
        self._respond = RespondState(endpoints={ENDPOINT: EndpointRecord(1, limits={CALLER: action})})
        self._offset = 0

    def take(self, report: Report, at_ms: int) -> None:
        self._offset += 1
        at = LogPoint(REPORTS, 0, self._offset, 0, at_ms)
        for state in self._states.update([ReportAt(report, True, at)]):
            self._respond.seen.views[ENDPOINT] = state

    def directive(self, now_ms: int) -> Directive:
        return directive_for(self._respond, ENDPOINT, now_ms)


class Fleet:
    """Guards of one endpoint on doubles, with a clock in common."""

    def __init__(self, guards: int, rate: float) -> None:
        self.clock = ManualClock()
        self.splitter = Splitter(rate, START_MS)
        self.transports: list[FakeTransport] = []
        self.guards: list[Guard] = []
        self._told: list[int] = []
        for _ in range(guards):
            self.add()
        self.second()

    def add(self) -> None:
        transport = FakeTransport()
        guard = Guard(
            ENDPOINT, directive_keys=KEY.public, transport=transport, clock=self.clock, sample=1e-9
        )  # predictions are of no interest here
        self.transports.append(transport)
        self.guards.append(guard.start())
        self._told.append(0)
        self.tell([transport])

    def tell(self, transports: Sequence[FakeTransport]) -> None:
        wanted = self.splitter.directive(self.clock.wall_ms())
        record = KEY.signed("directive", ENDPOINT, wanted.model_dump(exclude_none=True), self.clock.wall_ms())
        for transport in transports:
            transport.deliver(record)

    def ask(self, guard: int) -> bool:
        """One call of the limited caller; True if it was admitted."""
        try:
            self.guards[guard].call(lambda features: 0.9, {}, caller=CALLER, caller_auth="verified")
        except CallerLimited:
            return False
        return True

    def second(self) -> None:
        """All report, the split is made anew, all are told."""
        for guard in self.guards:
            guard.flush()
        for number, transport in enumerate(self.transports):
            reports = [Report.from_bytes(sent.value) for sent in transport.sent if sent.topic == REPORTS]
            for report in reports[self._told[number] :]:
                self.splitter.take(report, self.clock.wall_ms())
            self._told[number] = len(reports)
        self.tell(self.transports)


def admitted(fleet: Fleet, seconds: Sequence[Sequence[int]]) -> list[int]:
    """Calls admitted in each second; in each, guard i is asked so many times, evenly."""
    passed = []
    for asked in seconds:
        count = 0
        for tenth in range(10):
            fleet.clock.advance(0.1)
            for guard, calls in enumerate(asked):
                due = calls * (tenth + 1) // 10 - calls * tenth // 10
                count += sum(fleet.ask(guard) for _ in range(due))
        fleet.second()
        passed.append(count)
    return passed


_LOADS = st.integers(1, 6).flatmap(
    lambda guards: st.lists(
        st.lists(st.sampled_from([0, 1, 5, 40, 120]), min_size=guards, max_size=guards), min_size=3, max_size=12
    )
)


@settings(deadline=None, max_examples=40)
@given(_LOADS, st.sampled_from([0.5, 1.0, 7.0, 50.0]))
def test_however_the_calls_move_all_guards_together_admit_the_limit(loads: list[list[int]], rate: float) -> None:
    """A guard that is met for the first time has one call to give; beyond that, nothing but the limit."""
    fleet = Fleet(len(loads[0]), rate)

    passed = admitted(fleet, loads)

    assert sum(passed) <= 1.1 * rate * len(loads) + len(fleet.guards)


@pytest.mark.parametrize(
    ("asked", "least"),
    [((100,), 1.0), ((25, 25, 25, 25), 0.95), ((100, 0, 0, 0), 0.8), ((97, 1, 1, 1), 0.8)],
)
def test_a_limited_caller_gets_its_limit_whichever_guards_it_asks(asked: tuple[int, ...], least: float) -> None:
    passed = admitted(Fleet(len(asked), 20.0), [asked] * 12)

    assert least * 20.0 * 8 - 1 <= sum(passed[4:]) <= 1.05 * 20.0 * 8 + 1


def test_a_guard_that_joins_takes_what_one_more_would_get_until_it_is_named() -> None:
    fleet = Fleet(3, 20.0)
    admitted(fleet, [(40, 40, 40)] * 3)
    fleet.add()

    joining = fleet.guards[-1].status()["limit_share"]
    passed = admitted(fleet, [(40, 40, 40, 40)] * 6)

    assert joining == 0.25
    assert passed[0] <= 20 * 1.25 + 1
    assert max(passed[2:]) <= 21


def test_a_share_that_moves_on_leaves_no_burst_behind(bench: Bench) -> None:
    """Idle time is earned at the rate that held in it, whenever the caller comes back."""
    guard = bench.guard().start()
    me = guard.status()["guard_id"]

    def told(share: float) -> None:
        now_ms = bench.clock.wall_ms()
        bench.transport.deliver(
            directive(ENDPOINT, bench.key, limits={CALLER: 100.0}, guard_shares={me: share}, timestamp_ms=now_ms)
        )

    def burst() -> int:
        passed = 0
        while True:
            try:
                guard.call(lambda features: 0.9, {}, caller=CALLER)
            except CallerLimited:
                return passed
            passed += 1

    told(0.01)
    first = burst()
    bench.clock.advance(60.0)
    told(0.9)

    assert (first, burst()) == (1, 1)
    bench.clock.advance(0.1)
    assert burst() == 9


CHILD = f"""
import sys, time
from palisade_client import CallerLimited, Guard
guard = Guard({ENDPOINT!r}, bootstrap=sys.argv[1], directive_keys=sys.argv[2]).start()

def ask():
    try:
        guard.call(lambda features: 0.9, {{}}, caller={CALLER!r}, caller_auth="verified")
    except CallerLimited:
        return 0
    return 1

begun = time.monotonic()
while not 0 < guard.status()["limit_share"] < 0.9:
    assert time.monotonic() < begun + 120, "the split was never told"
    ask()
    time.sleep(0.002)
print("split", flush=True)
sys.stdin.readline()
begun, passed = time.monotonic(), 0
while (lasted := time.monotonic() - begun) < 3.0:
    passed += ask()
    time.sleep(0.002)
print(passed, lasted, flush=True)
"""


@contextmanager
def served(broker: EmbeddedBroker, rate: float) -> Iterator[None]:
    """Detect and respond, in a thread: each report is taken in, each half second the directive is sent again."""
    stop = threading.Event()

    def run() -> None:
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test", "fetch.wait.max.ms": 10})
        consumer.assign([TopicPartition(REPORTS, 0, 0)])
        producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
        now_ms = SystemClock.wall_ms
        splitter = Splitter(rate, now_ms())
        while not stop.is_set():
            for message in consumer.consume(100, 0.5):
                splitter.take(Report.from_bytes(message.value() or b""), now_ms())
            wanted = splitter.directive(now_ms()).model_dump(exclude_none=True)
            record = KEY.signed("directive", ENDPOINT, wanted, now_ms())
            producer.produce(DIRECTIVES, record.value, record.key, partition=0, headers=dict(record.headers))
            producer.flush(5)
        consumer.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def test_two_processes_together_admit_the_limit(embedded_broker: Callable[..., EmbeddedBroker]) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1, DIRECTIVES: 1})
    command = [sys.executable, "-c", CHILD, broker.bootstrap, KEY.public]
    with served(broker, 20.0):
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "split\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            counted = [child.communicate(timeout=120)[0].split() for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait(10)
    longest = max(float(lasted) for _, lasted in counted)
    together = sum(int(passed) for passed, _ in counted)

    assert 0.5 * 20.0 * longest <= together <= 1.1 * 20.0 * longest + 2
