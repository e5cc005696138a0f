"""F13, a flood of made-up names: memory stays within its bound, and who was limited before, or floods within it, is limited."""

from __future__ import annotations

import threading
import time

import pytest

from benchmarks.churn_load import Churn
from responders.signing import SigningKey
from schemas.actions import Directive, JournalEntry
from schemas.events import CallerCounts, Report, RouteCounts
from schemas.topics import ACTIONS, DIRECTIVES, REPORTS
from schemas.wire import KIND_HEADER
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from tests.faults.ground import Ground
from tests.faults.load import GUARDED, VERSION, Headers
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.fault("F13"), pytest.mark.shared, pytest.mark.kafka, pytest.mark.slow]

STEPS_A_MINUTE = 600
FLOOD_PER_S = 400
LEARNED_BEATS = 240
"""Twelve seconds of ordinary callers, before any stands out."""


class Service:
    """A serving process of `credit` beside the load's: it reports each second what its callers ask. `floods`: those who
    ask far too much, all along."""

    def __init__(self, stage: Stage) -> None:
        self.floods: list[str] = []
        self._stage = stage
        self._key = SigningKey.load(stage.stack.keys.producer)
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._thread.join()

    def _run(self) -> None:
        seq = 0
        while not self._halt.wait(1.0):
            seq += 1
            callers = [CallerCounts(caller=f"c{n}", caller_auth="verified", asked=3, served=3) for n in range(20)]
            callers += [
                CallerCounts(caller=name, caller_auth="verified", asked=FLOOD_PER_S, served=FLOOD_PER_S)
                for name in self.floods
            ]
            now_ms, served = int(time.time() * 1000), sum(caller.served for caller in callers)
            report = Report(
                endpoint=GUARDED, guard_id="guard-2", boot_id="boot-2", seq=seq, from_ms=now_ms - 1_000, to_ms=now_ms,
                live_version=VERSION, asked=sum(caller.asked for caller in callers), callers=callers,
                distinct_callers=len(callers), fallback_ok=True,
                routes=[RouteCounts(route="primary", version=VERSION, served=served)],
            )  # fmt: skip
            value = report.to_bytes()
            headers: Headers = [(KIND_HEADER, Report.KIND.encode()), *self._key.headers(Report.KIND, value)]
            self._stage.load.send_as(REPORTS, GUARDED, value, headers, 1)


def limited_ever(stage: Stage, caller: str) -> bool:
    """Whether the journal says that this caller was limited."""
    entries = [JournalEntry.from_bytes(message.value() or b"") for message in read_to_end(stage.connection, ACTIONS, 0)]
    return any(
        decision.kind == "limit" and decision.caller == caller and decision.outcome == "published"
        for entry in entries
        for decision in entry.decisions
    )


def limited_now(stage: Stage) -> set[str]:
    """Callers that the endpoint's newest directive limits."""
    newest: Directive | None = None
    for partition in range(stage.setup.partitions):
        for message in read_to_end(stage.connection, DIRECTIVES, partition):
            if header_of(headers_of(message), KIND_HEADER) == b"directive":
                directive: Directive = Directive.from_bytes(message.value() or b"")
                newer = newest is None or (directive.epoch, directive.issued_ms) >= (newest.epoch, newest.issued_ms)
                newest = directive if directive.endpoint == GUARDED and newer else newest
    return set() if newest is None else {limit.caller for limit in newest.limits}


def test_made_up_names_cost_no_memory_and_free_nobody(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True)) as stage:
        stage.load.start()
        made_up_names(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def made_up_names(stage: Stage, ground: Ground) -> None:
    steps = STEPS_A_MINUTE if ground.full else STEPS_A_MINUTE // 20
    with Service(stage) as service:
        until(lambda: stage.load.beats > LEARNED_BEATS, "ordinary traffic to be learned", 240.0)
        service.floods.append("before")
        until(lambda: limited_ever(stage, "before"), "who floods before the churn to be limited", 120.0, 1.0)
        key = SigningKey.load(stage.stack.keys.producer)
        churn = Churn("f13", key, lambda topic, key, *rest: stage.load.send_as(topic, key.decode(), *rest))
        for step in range(steps):
            churn.step()
            if step == steps // 3:
                service.floods.append("within")
        ground.made()
        until(lambda: limited_ever(stage, "within"), "who floods within the churn to be limited", 240.0, 1.0)
        until(lambda: limited_now(stage) >= {"before", "within"}, "both to be limited after it", 60.0, 1.0)
