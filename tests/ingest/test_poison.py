"""Records on which pairing or writing raises: found, dead-lettered with their bytes, and all others are written once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest

from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS, PREDICTIONS, REQUESTS, RESPONSES
from streams.ingest.batches import Rules
from streams.ingest.counting import Counts
from streams.ingest.partition import PairingLog
from streams.ingest.pieces import Piece
from streams.ingest.predictions import Pairs, PredictionWriter
from streams.ingest.role import TOPICS, IngestRole
from streams.ingest.written import Already, places_of
from streams.metrics import Metrics
from streams.poison import MAX_IN_VAIN, TooManyFailures
from streams.transport.ledger import Ledger
from streams.transport.run import TP
from tests.ingest.making import NOW, Pairing, as_json, request, response
from tests.streams.fakes import FakeOutbox, settled
from tests.transport.fakes import FakeRecord

TPS = frozenset(TP(topic, 0) for topic in TOPICS)
CALLS, RUN = 60, 16
POISON = "r23"


class Worker:
    """A role with one partition of `CALLS` requests and `answered` responses, both read in runs of `RUN`, again where the
    role wants."""

    def __init__(self, answered: int = CALLS) -> None:
        self.outbox = FakeOutbox()
        self.metrics = Metrics("ingest")
        ids = [f"r{number}" for number in range(CALLS)]
        self.log = {REQUESTS: as_json(*map(request, ids)), RESPONSES: as_json(*map(response, ids[:answered]))}
        self.done = dict.fromkeys(TOPICS, 0)
        self.again = 0
        self.role = IngestRole(
            self._open, self._written, lambda tp: (0, len(self.log[tp.topic])), lambda: self.outbox, self.metrics, self._read_again  # type: ignore[arg-type, return-value]
        )  # fmt: skip

    def _open(self, number: int, most_bytes: int) -> PairingLog:
        return PairingLog(number, 1, Rules(lambda _: True, {}), Counts(number, "boot", lambda _: False))

    def _written(self, number: int, since_ms: int) -> Already:
        return Already.of([place for sent in self.outbox.of(PREDICTIONS) for place in places_of(sent.value or b"", 0)])

    async def _read_again(self) -> None:
        self.again += 1
        await self.start()

    async def start(self) -> None:
        kept = self.role.kept()
        self.next = {topic: min(self.done[topic], kept.get(TP(topic, 0), CALLS)) for topic in TOPICS}
        await self.role.start_at({TP(topic, 0): at for topic, at in self.next.items()}, TPS)

    async def run(self) -> None:
        await self.start()
        while behind := [topic for topic in TOPICS if self.next[topic] < len(self.log[topic])]:
            await self._one(min(behind, key=self.next.__getitem__))

    async def _one(self, topic: str) -> None:
        first = self.next[topic]
        values = self.log[topic][first : first + RUN]
        self.next[topic] = first + len(values)
        ledger = Ledger()
        at = [FakeRecord(offset, value, topic, timestamp=NOW) for offset, value in enumerate(values, first)]
        ledger.add(TP(topic, 0), at, 0.0)
        (run,) = ledger.take({TP(topic, 0)})[TP(topic, 0)]
        await self.role.handle(run)
        await settled()
        if run.finished:
            self.done[topic] = max(self.done[topic], run.next)

    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.from_bytes(sent.value or b"") for sent in self.outbox.of(DEAD_LETTERS)]

    def paired(self) -> list[int]:
        """The offset of each request that was written with its response, as often as it was."""
        places = [place for sent in self.outbox.of(PREDICTIONS) for place in places_of(sent.value or b"", 0)]
        return sorted(int(each) >> 14 for topic, found in places if topic == REQUESTS for each in found)


def raising(monkeypatch: pytest.MonkeyPatch, when: Callable[[Piece], bool]) -> None:
    """Pairing raises on pieces that `when` names, once it has kept half of their rows."""
    pair = PairingLog._pair_kinds

    def broken(self: PairingLog, topic: str, piece: Piece, asked: Any, step: Any) -> None:
        pair(self, topic, piece, asked, step)
        if when(piece):
            raise ZeroDivisionError("078-05-1120")

    monkeypatch.setattr(PairingLog, "_pair_kinds", broken)


@pytest.mark.anyio
@pytest.mark.parametrize("topic", TOPICS)
async def test_a_record_on_which_pairing_raises_is_a_dead_letter_and_all_others_are_written_once(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    kept = {REQUESTS: "features", RESPONSES: "prediction"}[topic]
    raising(monkeypatch, lambda piece: POISON in piece.fields["request_id"] and (kept in piece.fields or piece.features is not None))  # fmt: skip
    await worker.run()

    (letter,) = worker.letters()
    assert (letter.log_topic, letter.log_offset, letter.reason) == (topic, 23, "handler_failed")
    assert base64.b64decode(letter.head) == worker.log[topic][23]
    assert letter.detail.startswith("pairing: ZeroDivisionError; at test_poison.py:")
    assert "078-05-1120" not in letter.detail  # an error may quote what a caller sent
    assert worker.paired() == [at for at in range(CALLS) if at != 23]
    assert worker.again == 3
    assert worker.done == dict.fromkeys(TOPICS, CALLS)


@pytest.mark.anyio
async def test_an_error_of_pairing_that_does_not_come_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, raised = Worker(), []

    def once(piece: Piece) -> bool:
        raised.append(POISON in piece.fields["request_id"])
        return raised.count(True) == 1 and raised[-1]

    raising(monkeypatch, once)
    await worker.run()

    assert worker.letters() == []
    assert worker.paired() == list(range(CALLS))


@pytest.mark.anyio
async def test_pairing_that_always_raises_where_nothing_is_handled_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(PairingLog, "expire", broken)
    monkeypatch.setattr("streams.ingest.role.TURN_S", 0.0)
    worker = Worker(answered=30)
    await worker.run()

    async with asyncio.timeout(30):
        turning = asyncio.ensure_future(worker.role.turns())
        while not turning.done():
            for topic in TOPICS:
                if worker.next[topic] < len(worker.log[topic]):
                    await worker._one(topic)
            await asyncio.sleep(0)
    with pytest.raises(TooManyFailures):
        await turning
    assert worker.again == MAX_IN_VAIN - 1


@pytest.mark.anyio
@pytest.mark.parametrize("error", [MemoryError, OSError])
async def test_a_machine_that_is_exhausted_ends_the_process(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error("planted")

    monkeypatch.setattr(PairingLog, "_pair_kinds", broken)
    worker = Worker()
    with pytest.raises(error):
        await worker.run()
    assert worker.letters() == []


def unwritable(monkeypatch: pytest.MonkeyPatch, request_id: str) -> None:
    records = PredictionWriter.records

    def broken(self: PredictionWriter, many: list[Pairs]) -> Any:
        if any(request_id in pairs.request.column("request_id").to_pylist() for pairs in many):
            raise ZeroDivisionError("planted")
        return records(self, many)

    monkeypatch.setattr(PredictionWriter, "records", broken)


def letters_of(pairing: Pairing) -> list[tuple[str, int, str, bytes]]:
    letters = [DeadLetter.from_bytes(sent.value) for sent in pairing.sent if sent.topic == DEAD_LETTERS]
    return [(one.log_topic, one.log_offset, one.reason, base64.b64decode(one.head)) for one in letters]


def test_a_pair_that_cannot_be_written_is_two_dead_letters_with_the_bytes_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unwritable(monkeypatch, POISON)
    pairing = Pairing()
    pairing.ask(*(request(f"r{number}") for number in range(40)))
    answers = [response(f"r{number}") for number in range(40)]
    handled = pairing.answer(*answers)

    assert letters_of(pairing) == [
        (REQUESTS, 23, "handler_failed", b""),
        (RESPONSES, 23, "handler_failed", as_json(answers[23])[0]),
    ]
    assert sorted(row["request_id"] for row in pairing.predictions) == sorted(f"r{n}" for n in range(40) if n != 23)
    assert handled.oldest == {REQUESTS: 0, RESPONSES: 0}
    assert pairing.log.kept == {}


def test_an_unanswered_request_that_cannot_be_written_is_one_dead_letter_and_waits_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unwritable(monkeypatch, "r1")
    pairing = Pairing()
    pairing.ask(request("r0"), request("r1"), request("r2"))
    pairing.expire(NOW + 120_000)

    assert letters_of(pairing) == [(REQUESTS, 1, "handler_failed", b"")]
    assert pairing.log.kept == {}
    assert [row["request_id"] for row in pairing.predictions] == ["r0", "r2"]


def test_counting_that_raises_keeps_no_prediction_from_being_written_and_no_other_endpoint_from_its_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = Counts._report

    def broken(self: Counts, one: Any, now_ms: int) -> Any:
        if one.name == "credit":
            raise ZeroDivisionError("planted")
        return report(self, one, now_ms)

    monkeypatch.setattr(Counts, "_report", broken)
    pairing = Pairing()
    pairing.ask(request("r0"), request("r1", endpoint="spam"))
    pairing.answer(response("r0"), response("r1", endpoint="spam"))

    assert [record.key for record in pairing.log.reports(NOW + 1_500)] == [b"spam"]
    assert len(pairing.predictions) == 2

    def uncounted(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Counts, "_count_asked", uncounted)
    pairing.ask(request("r2"))
    assert pairing.log.reports(NOW + 3_000) is not None
    pairing.answer(response("r2"))
    assert len(pairing.predictions) == 3
