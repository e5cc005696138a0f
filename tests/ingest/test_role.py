"""The role around a partition: what may be committed when, which topic waits for which, what is aged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.ingest import role
from streams.ingest.batches import Rules
from streams.ingest.counting import Counts
from streams.ingest.partition import PairingLog
from streams.ingest.role import TOPICS, IngestRole
from streams.ingest.written import Already
from streams.metrics import Metrics
from streams.transport.ledger import Ledger
from streams.transport.run import TP, Run
from tests.ingest.making import NOW, as_json, request, response
from tests.streams.fakes import FakeOutbox, settled
from tests.transport.fakes import FakeRecord

pytestmark = pytest.mark.anyio
TPS = frozenset(TP(topic, 0) for topic in TOPICS)


class Outbox(FakeOutbox):
    """Has room for all."""

    async def room(self, size: int) -> None:
        return None


class Worker:
    """A role with one partition. `ends`: of each topic, as the broker tells them."""

    def __init__(self, *, confirms: bool = True, most_bytes: int | None = None) -> None:
        self.outbox = Outbox(confirms=confirms)
        self.ends: dict[str, int] = {}
        self.recalled: list[tuple[int, int]] = []
        self.away: list[Exception] = []  # what reading back raises, one after the other
        self.most_bytes = most_bytes
        self.role = IngestRole(self._open, self._recall, self._ends, lambda: self.outbox, Metrics("ingest"))  # type: ignore[arg-type, return-value]
        self.next = dict.fromkeys(TOPICS, 0)

    def _open(self, partition: int, most_bytes: int) -> PairingLog:
        counts = Counts(partition, "boot", lambda _: False)
        return PairingLog(partition, 1, Rules(lambda _: True, {}), counts, most_bytes=self.most_bytes or most_bytes)

    def _recall(self, partition: int, since_ms: int) -> Already:
        self.recalled.append((partition, since_ms))
        if self.away:
            raise self.away.pop(0)
        return Already()

    def _ends(self, tp: TP) -> tuple[int, int] | None:
        return (0, self.ends[tp.topic]) if tp.topic in self.ends else None

    def run(self, topic: str, *events: dict[str, Any], ms: int = NOW) -> Run:
        tp, first = TP(topic, 0), self.next[topic]
        self.next[topic] += len(events)
        ledger = Ledger()
        at = [FakeRecord(offset, value, topic, timestamp=ms) for offset, value in enumerate(as_json(*events), first)]
        ledger.add(tp, at, 0.0)
        (run,) = ledger.take({tp})[tp]
        return run

    async def handle(self, topic: str, *events: dict[str, Any], ms: int = NOW) -> Run:
        run = self.run(topic, *events, ms=ms)
        await self.role.handle(run)
        await settled()
        return run


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_request_is_needed_until_its_prediction_is_confirmed() -> None:
    worker = Worker(confirms=False)
    await worker.role.start_at({}, TPS)
    asked = await worker.handle(REQUESTS, request("r0"), request("r1"))
    assert asked.finished
    assert worker.role.kept() == {TP(REQUESTS, 0): 0}

    answered = await worker.handle(RESPONSES, response("r0"))
    assert not answered.finished
    assert worker.role.kept() == {TP(REQUESTS, 0): 0, TP(RESPONSES, 0): 0}

    worker.outbox.confirm()
    await settled()
    assert answered.finished
    assert worker.role.kept() == {TP(REQUESTS, 0): 1}


async def test_a_prediction_that_is_lost_is_never_committed_over() -> None:
    worker = Worker(confirms=False)
    await worker.role.start_at({}, TPS)
    await worker.handle(REQUESTS, request("r0"))
    await worker.handle(RESPONSES, response("r0"))

    worker.outbox.lose(OSError("away"))
    await settled()

    assert worker.role.kept()[TP(REQUESTS, 0)] == 0


async def test_what_was_written_is_read_back_at_the_first_run_from_the_oldest_record_on() -> None:
    worker = Worker()
    await worker.role.start_at({}, TPS)

    await worker.handle(REQUESTS, request("r0"), ms=NOW)
    await worker.handle(REQUESTS, request("r1"), ms=NOW - 9)
    await worker.handle(RESPONSES, response("r0"), ms=NOW - 500)
    await worker.handle(RESPONSES, response("r1"), ms=NOW - 900)

    assert worker.recalled == [(0, NOW), (0, NOW - 500)]


def refused(code: int) -> KafkaException:
    return KafkaException(KafkaError(code))


async def test_what_was_written_is_read_back_again_while_no_broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "AGAIN_S", 0.01)
    worker = Worker()
    await worker.role.start_at({}, TPS)
    worker.away = [refused(KafkaError._TRANSPORT), refused(KafkaError._UNKNOWN_PARTITION), TimeoutError("no answer")]

    run = await worker.handle(REQUESTS, request("r0"))

    assert (run.finished, run.failed, len(worker.recalled)) == (True, False, 4)


async def test_who_may_not_read_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "NOT_THERE_S", 0.0)
    for code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._UNKNOWN_TOPIC):
        worker = Worker()
        await worker.role.start_at({}, TPS)
        worker.away = [refused(code)] * 3
        with pytest.raises(KafkaException):
            await worker.handle(REQUESTS, request("r0"))


async def test_who_loses_its_partition_reads_nothing_back_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "AGAIN_S", 0.01)
    worker = Worker()
    await worker.role.start_at({}, TPS)
    worker.away = [refused(KafkaError._TRANSPORT)] * 100_000

    run = worker.run(REQUESTS, request("r0"))
    working = asyncio.create_task(worker.role.handle(run))
    while len(worker.recalled) < 3:
        await asyncio.sleep(0.001)
    await worker.role.leave(TPS)
    await asyncio.wait_for(working, 30)

    assert not run.finished
    assert not run.failed


async def test_the_topic_that_is_read_ahead_waits_for_the_other() -> None:
    worker = Worker(most_bytes=40_000)
    await worker.role.start_at({}, TPS)
    worker.ends = {REQUESTS: 1_000, RESPONSES: 1_000}
    many = [request(f"r{number}") for number in range(100)]
    await worker.handle(REQUESTS, *many)

    ahead = asyncio.create_task(worker.role.handle(worker.run(REQUESTS, request("more"))))
    await asyncio.sleep(0.12)
    assert not ahead.done()
    await worker.handle(RESPONSES, *(response(f"r{number}") for number in range(100)))
    await asyncio.wait_for(ahead, 5)

    assert worker.outbox.of(PREDICTIONS)


async def test_the_topic_ahead_waits_for_nothing_that_is_not_there() -> None:
    worker = Worker(most_bytes=40_000)
    await worker.role.start_at({}, TPS)
    worker.ends = {REQUESTS: 1_000, RESPONSES: 0}
    await worker.handle(REQUESTS, *(request(f"r{number}") for number in range(100)))

    await asyncio.wait_for(worker.handle(REQUESTS, request("more")), 5)
