"""One partition of requests and responses: records in; predictions, reports and dead letters out. No I/O, no clock.

The log's time is the broker's. A request waits until the *responses* of its partition have been read up to 60 s past it,
and a response until the requests have: where one topic is read behind the other, nothing runs out of time for that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from responders.signing import SigningKey
from schemas.blocks import Longs
from schemas.deadletter import DeadLetter, DeadReason
from schemas.errors import MACHINE_ERRORS
from schemas.ids import clean_id
from schemas.ingest import MAX_HELD_BYTES, MAX_WAIT_MS
from schemas.topics import REQUESTS, RESPONSES
from streams.deadletters import Place, dead_letter, told
from streams.decode.partitioner import partition_of
from streams.ingest.batches import Requests, Rules, hidden, request_batches, response_batch
from streams.ingest.counting import Counts
from streams.ingest.decode import EventDecoder
from streams.ingest.events import COMBINED, REQUEST, RESPONSE
from streams.ingest.pieces import ROW_BITS, Blamed, Decoded, Piece
from streams.ingest.predictions import Pairs, PredictionWriter, Written
from streams.ingest.waiting import Waiting
from streams.ingest.written import Already
from streams.outgoing import dead
from streams.records import Outgoing, Records
from streams.turns import Pause

log = logging.getLogger(__name__)

MAX_LETTERS = 64
"""Letters of responses that run out of time together; the last stands for all others."""


class Handled(NamedTuple):
    """What a call has led to. `oldest`: by topic, the oldest offset whose rows the outgoing records settle."""

    outgoing: list[Outgoing]
    oldest: dict[str, int]


@dataclass(slots=True)
class Outcomes:
    """Rows by what became of them, since the start."""

    paired: int = 0
    combined: int = 0
    unanswered: int = 0
    no_request: int = 0
    refused: int = 0
    again: int = 0


class PairingLog:
    """Pairs the events of one partition number of both topics.

    Held: at most `most_bytes` of requests and responses together (the oldest give way), each at most `MAX_WAIT_MS`.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        rules: Rules,
        counts: Counts,
        *,
        targets: int | None = None,
        most_bytes: int = MAX_HELD_BYTES,
        keep_heads: bool = True,
        signer: SigningKey | None = None,
    ) -> None:
        """partitions: of requests and of responses; targets: of predictions (None: as many). keep_heads: letters hold bytes of what was refused."""
        self._partition = partition
        self._partitions = partitions
        self._rules = rules
        self._counts = counts
        self._already = Already()
        self._counted_to = -1
        self.most_bytes = most_bytes
        self._decoders = {
            topic: EventDecoder(topic, partition, keep_heads=keep_heads) for topic in (REQUESTS, RESPONSES)
        }
        self._writer = PredictionWriter(partition, targets or partitions, signer)
        self._requests, self._responses = Waiting("reused_id"), Waiting()
        self.outcomes = Outcomes()

    def recall(self, already: Already) -> None:
        """What the process before this one has written: it is not written again. Requests up to the last of it were
        counted; those of a report that was not written yet, at most a second of them, are counted by nobody."""
        self._already = already
        self._counted_to = already.last(REQUESTS)

    @property
    def held_bytes(self) -> dict[str, int]:
        """By topic, of what waits."""
        return {REQUESTS: self._requests.bytes, RESPONSES: self._responses.bytes}

    @property
    def held_rows(self) -> dict[str, int]:
        return {REQUESTS: self._requests.rows, RESPONSES: self._responses.rows}

    @property
    def kept(self) -> dict[str, int]:
        """By topic, the oldest offset of which a row waits."""
        held = {REQUESTS: self._requests.oldest_place, RESPONSES: self._responses.oldest_place}
        return {topic: place >> ROW_BITS for topic, place in held.items() if place is not None}

    async def take(self, topic: str, records: Records, now_ms: int, pause: Pause) -> Handled:
        """What the records lead to. now_ms: the log's time, against which what waits is aged."""
        step = _Step(topic, records)
        for chunk in self._decoded(topic, records):
            step.letters += chunk.letters
            self.outcomes.refused += chunk.refused
            self._pair(topic, chunk.piece, now_ms, step)
            self._blame(topic, chunk.blamed, now_ms, step)
            await pause()
        return self._done(step, now_ms)

    def pass_over(self, topic: str, record: Records, reason: str) -> Handled:
        """The dead letter of the one record on which `take` raises: of it nothing waits, and nothing is written."""
        self.outcomes.refused += 1
        value = record.values[0] or b""
        letter = self._decoders[topic].letter(record, 0, 0, "handler_failed", reason, value)
        return Handled([dead(letter)], {topic: record.offsets[0]})

    def expire(self, requests_before_ms: int, responses_before_ms: int, now_ms: int) -> Handled:
        """Requests and responses that came before these times run out of time; so do the oldest above the bound."""
        step = _Step()
        most = self.most_bytes
        # what takes more room gives way: a flood of orphan responses costs no request its answer
        of_responses = max(most - self._requests.bytes, most // 2)
        of_requests = max(most - self._responses.bytes, most // 2)
        for batch in self._requests.expire(requests_before_ms - MAX_WAIT_MS, of_requests):
            self.outcomes.unanswered += batch.num_rows
            step.pairs.append(Pairs(batch, None))
            step.note(REQUESTS, batch)
        for batch in self._responses.expire(responses_before_ms - MAX_WAIT_MS, of_responses):
            self.outcomes.no_request += batch.num_rows
            step.orphans.append(batch)
            step.note(RESPONSES, batch)
        return self._done(step, now_ms)

    def reports(self, now_ms: int) -> list[Outgoing]:
        """Reports that are due at the log's time."""
        return self._counts.due(now_ms)

    def _decoded(self, topic: str, records: Records) -> Iterator[Decoded]:
        """Decoded pieces; a record on which decoding raises is found by bisection and dead-lettered."""
        try:
            yield from list(self._decoders[topic].pieces(records))
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            if len(records) > 1:
                for half in records.halves():
                    yield from self._decoded(topic, half)
                return
            log.exception("decoding failed at %s[%d] %d", topic, self._partition, records.offsets[0])
            detail = told("decoding", error, words=False)
            letter = self._decoders[topic].letter(records, 0, 0, "handler_failed", detail, records.values[0] or b"")
            empty = next(iter(self._decoders[topic].pieces(records.part(0, 0))))
            yield Decoded(empty.piece, (letter,), 1)

    def _pair(self, topic: str, piece: Piece, now_ms: int, step: _Step) -> None:
        fresh = self._already.fresh(topic, piece.place)
        if fresh is not None:
            self.outcomes.again += int((~fresh).sum())
            piece = piece.where(fresh)
        counted = piece.place <= (self._counted_to if topic == REQUESTS else -1)
        for again in (True, False) if counted.any() else (False,):
            rows = piece.where(counted == again)
            self._pair_kinds(topic, rows, _Asked(now_ms, again), step)

    def _pair_kinds(self, topic: str, piece: Piece, asked: _Asked, step: _Step) -> None:
        for kind in np.unique(piece.kind).tolist():
            rows = piece.where(piece.kind == kind)
            if kind == COMBINED or _HOMES[kind] == topic:
                if kind == RESPONSE:
                    self._answer(rows, asked.now_ms, step)
                else:
                    self._ask(topic, rows, asked, step)
            else:
                self._refuse(topic, rows, range(len(rows)), "unknown_kind", f"it belongs on {_HOMES[kind]}", step)

    def _ask(self, topic: str, piece: Piece, asked: _Asked, step: _Step) -> None:
        """Requests, or combined events, which need no pairing."""
        combined = int(piece.kind[0]) == COMBINED
        batches, refused = request_batches(piece, self._rules)
        for rows in refused:
            self._refuse(topic, piece, rows.rows.tolist(), "wrong_shape", rows.detail, step)
            self._blame(topic, _whose(piece, rows.rows.tolist()), asked.now_ms, step, again=asked.again)
        answers = response_batch(piece).drop_columns(["place"]) if combined else None
        for batch in batches:
            column = batch.batch.column
            who = column("endpoint"), column("caller"), column("verified")
            self._counts.asked(*who, asked.now_ms, again=asked.again)
            if answers is None:
                self._meet(batch, _since(piece.broker_ms[batch.rows], asked.now_ms), step)
                continue
            self.outcomes.combined += len(batch.keys)
            step.pairs.append(Pairs(batch.batch, answers.take(pa.array(batch.rows)), topic))
            step.note(topic, batch.batch)

    def _meet(self, asked: Requests, ms: Longs, step: _Step) -> None:
        """Requests find responses that came before them; the others wait."""
        waits = np.ones(len(asked.keys), dtype=np.bool_)
        for found in self._responses.take(asked.keys, asked.endpoints):
            waits[found.positions] = False
            self._paired(asked.batch.take(pa.array(found.positions)), found.batch, step)
        at = np.flatnonzero(waits)
        if len(at) == len(waits):
            self._requests.hold(asked.batch, asked.keys, asked.endpoints, ms)
        elif len(at):
            rows = at.tolist()
            keys, endpoints = [asked.keys[row] for row in rows], [asked.endpoints[row] for row in rows]
            self._requests.hold(asked.batch.take(pa.array(at)), keys, endpoints, ms[at])

    def _answer(self, piece: Piece, now_ms: int, step: _Step) -> None:
        """Responses find the requests that wait for them; the others wait."""
        batch, endpoints = response_batch(piece), piece.fields["endpoint"]
        waits = np.ones(len(piece), dtype=np.bool_)
        for found in self._requests.take(piece.key, endpoints):
            waits[found.positions] = False
            whole = np.array_equal(found.positions, np.arange(len(piece)))
            self._paired(found.batch, batch if whole else batch.take(pa.array(found.positions)), step)
        at = np.flatnonzero(waits)
        if len(at):
            rows = at.tolist()
            keys, named = [piece.key[row] for row in rows], [endpoints[row] for row in rows]
            self._responses.hold(batch.take(pa.array(at)), keys, named, _since(piece.broker_ms[at], now_ms))

    def _blame(self, topic: str, rows: Sequence[Blamed], now_ms: int, step: _Step, *, again: bool = False) -> None:
        """Passes on whose the refused requests and combined events are, without a byte of theirs: to detect they are
        malformed, and count against their caller. They were asked, and do not wait. A plain response names no caller."""
        if not rows:
            return
        names = [row.endpoint for row in rows]
        callers = [hidden(row.caller, self._rules.redactions.get(row.endpoint)) for row in rows]
        verified = [row.caller_auth == "verified" and self._rules.vouched(row.endpoint) for row in rows]
        step.blamed += self._writer.malformed(topic, rows, callers, verified)
        columns = pa.array(names, pa.string()), pa.array(callers, pa.string()), pa.array(verified, pa.bool_())
        self._counts.asked(*columns, now_ms, again=again, waits=False)

    def _paired(self, request: pa.RecordBatch, response: pa.RecordBatch, step: _Step) -> None:
        self.outcomes.paired += request.num_rows
        step.pairs.append(Pairs(request, response))
        step.note(REQUESTS, request)
        step.note(RESPONSES, response)

    def _refuse(
        self, topic: str, piece: Piece, rows: Sequence[int], reason: DeadReason, detail: str, step: _Step
    ) -> None:
        """Dead-letters rows that were decoded, without their bytes: one letter each, the last for all others."""
        self.outcomes.refused += len(rows)
        places = [(int(piece.place[at]), int(piece.broker_ms[at])) for at in rows[:MAX_LETTERS]]
        step.letters += self._letters(topic, places, len(rows), reason, [detail] * len(places))

    def _letters(
        self, topic: str, places: list[tuple[int, int]], count: int, reason: DeadReason, details: list[str]
    ) -> list[DeadLetter]:
        letters = []
        for number, ((place, broker_ms), detail) in enumerate(zip(places, details, strict=True), 1):
            more = count - number if number == len(places) else 0
            said = f"{more} more such rows have no letter of their own; {detail}" if more else detail
            at = Place(topic, self._partition, place >> ROW_BITS, broker_ms, place & ((1 << ROW_BITS) - 1))
            letters.append(dead_letter(at, reason, said, None))
        return letters

    def _orphans(self, batch: pa.RecordBatch) -> list[DeadLetter]:
        shown = batch.slice(0, MAX_LETTERS)
        ids = shown.column("request_id").to_pylist()
        places = list(zip(shown.column("place").to_pylist(), shown.column("broker_ms").to_pylist(), strict=True))
        details = [f"request_id {clean_id(one)}{self._elsewhere(one)}" for one in ids]
        return self._letters(RESPONSES, places, batch.num_rows, "no_request", details)

    def _elsewhere(self, request_id: str) -> str:
        """What is wrong with the partition, if the id was the record's key."""
        home = partition_of(request_id.encode(), self._partitions)
        if home == self._partition:
            return ""
        return (
            f"; as a key it belongs on partition {home}, this is {self._partition}: request and response need one key"
        )

    def _done(self, step: _Step, now_ms: int) -> Handled:
        for batch in step.orphans:
            step.letters += self._orphans(batch)
        outgoing, written = self._records(step.pairs, step)
        self._counts.written(written, now_ms)
        return Handled(outgoing + step.blamed + [dead(letter) for letter in step.letters], step.oldest)

    def _records(self, many: Sequence[Pairs], step: _Step) -> tuple[list[Outgoing], list[Written]]:
        """Predictions of all pairs but those on which writing raises, which bisection finds: they are dead letters."""
        if not many:
            return [], []
        try:
            return self._writer.records(many)
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            if len(many) == 1 and many[0].request.num_rows == 1:
                log.exception("a pair of partition %d cannot be written", self._partition)
                self._unwritable(many[0], error, step)
                return [], []
        first, second = (self._records(half, step) for half in _halves(many))
        return first[0] + second[0], first[1] + second[1]

    def _unwritable(self, pairs: Pairs, error: Exception, step: _Step) -> None:
        """Letters of a request and of its response, with the bytes of those that were just read; and whose they are."""
        self.outcomes.refused += 1
        detail = told("writing the prediction", error, words=False)
        sides = [(pairs.topic, pairs.request), (RESPONSES, pairs.response)]
        for topic, side in sides:
            if side is not None and "place" in side.schema.names:
                place, ms = int(side.column("place")[0].as_py()), _ms_of(side)
                step.letters.append(self._letter_of(topic, place, ms, detail, step))
        row = {name: pairs.request.column(name)[0].as_py() for name in ("place", "verified", *_IDS)}
        auth = "verified" if row["verified"] else "claimed"
        blamed = Blamed(row["place"], row["endpoint"], row["caller"], auth, row["model_version"] or "default")
        step.blamed += self._writer.malformed(pairs.topic, [blamed], [row["caller"]], [row["verified"]])

    def _letter_of(self, topic: str, place: int, ms: int, detail: str, step: _Step) -> DeadLetter:
        offset, row = place >> ROW_BITS, place & ((1 << ROW_BITS) - 1)
        if step.records is not None and topic == step.topic and offset in step.records.offsets:
            at = step.records.offsets.index(offset)
            value = step.records.values[at] or b""
            return self._decoders[topic].letter(step.records, at, row, "handler_failed", detail, value)
        return dead_letter(Place(topic, self._partition, offset, ms, row), "handler_failed", detail, None)


def _halves(many: Sequence[Pairs]) -> tuple[Sequence[Pairs], Sequence[Pairs]]:
    if len(many) > 1:
        return many[: len(many) // 2], many[len(many) // 2 :]
    pairs, half = many[0], many[0].request.num_rows // 2
    first, second = (
        Pairs(
            pairs.request.slice(start, length),
            None if pairs.response is None else pairs.response.slice(start, length),
            pairs.topic,
        )
        for start, length in ((0, half), (half, pairs.request.num_rows - half))
    )
    return [first], [second]


def _ms_of(side: pa.RecordBatch) -> int:
    return int(side.column("broker_ms")[0].as_py()) if "broker_ms" in side.schema.names else 0


def _since(broker_ms: Longs, now_ms: int) -> Longs:
    """Since when rows wait [n]. What the broker's clock puts after now, or before all that may wait, came now: that clock was
    set, and nothing is to wait for a day, nor to run out of time at once."""
    odd = (broker_ms > now_ms) | (broker_ms < now_ms - MAX_WAIT_MS)
    return np.where(odd, now_ms, broker_ms)


_HOMES = {REQUEST: REQUESTS, RESPONSE: RESPONSES}


def _whose(piece: Piece, rows: Sequence[int]) -> list[Blamed]:
    """Whose these rows are, which were read and must not be written."""
    ids = [[clean_id(piece.fields[name][row] or "default") for name in _IDS] for row in rows]
    auths = [piece.fields["caller_auth"][row] for row in rows]
    places = piece.place[rows].tolist()
    return [
        Blamed(place, endpoint, caller, auth, version)
        for place, (endpoint, caller, version), auth in zip(places, ids, auths, strict=True)
    ]


_IDS = ("endpoint", "caller", "model_version")


class _Asked(NamedTuple):
    """When requests were read, on the log's time; `again`: they were counted before a restart."""

    now_ms: int
    again: bool


@dataclass(slots=True)
class _Step:
    """What one call has led to so far; `records`: those that it was given."""

    topic: str = ""
    records: Records | None = None
    pairs: list[Pairs] = field(default_factory=list)
    orphans: list[pa.RecordBatch] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    blamed: list[Outgoing] = field(default_factory=list)
    oldest: dict[str, int] = field(default_factory=dict)

    def note(self, topic: str, batch: pa.RecordBatch) -> None:
        """These rows are settled by what goes out."""
        offset = int(pc.min(batch.column("place")).as_py()) >> ROW_BITS
        self.oldest[topic] = min(offset, self.oldest.get(topic, offset))
