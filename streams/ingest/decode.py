"""Records of requests or responses to pieces of rows: which encoding, which decoder, which dead letter."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import UNSET
from msgspec.structs import astuple
from pydantic_core import to_json

from schemas.blocks import Longs
from schemas.deadletter import DeadLetter, DeadReason
from schemas.events import MAX_EVENT_BYTES, MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD
from schemas.ids import clean_id
from schemas.topics import REQUESTS
from schemas.wire import CONTENT_TYPE_HEADER, KIND_HEADER
from streams.deadletters import Place, dead_letter
from streams.decode.arrow import read_streams
from streams.decode.fast import REFUSED
from streams.decode.headers import ARROW_MAGIC, SPACE, shown
from streams.decode.ipc import ArrowRefused, inspect
from streams.decode.judge import Refused, refusal
from streams.decode.malformed import HEAD_BYTES, OF_CALLER, top_level
from streams.decode.refusals import Refusals
from streams.decode.scan import simple, too_deep
from streams.ingest import cloudevents
from streams.ingest.arrow_events import columns_of, wrong_words
from streams.ingest.cloudevents import Attributes, NoBody
from streams.ingest.events import (
    CLOSED,
    COMBINED,
    KIND_CODES,
    MANY,
    NAMES,
    NEEDED,
    OPEN,
    REQUEST,
    RESPONSE,
    WIDTH,
    judge,
    judge_value,
    missing,
    parsed,
)
from streams.ingest.gathering import Gathered
from streams.ingest.lanes import GENERAL, WIDE, Lane, lane_of
from streams.ingest.marks import PLAIN, Mark, marks_of
from streams.ingest.pieces import ROW_BITS, Blamed, Decoded, Piece
from streams.ingest.shapes import Shape
from streams.records import Records
from streams.redaction import ANONYMOUS

TOGETHER = 128
"""Events decoded at once: their objects fit the processor's second cache."""
PIECE = 2_048
"""Work decoded without a pause, in rows of 5 us: 10 ms."""
JUDGED_WORK, JUDGED_BYTES, LETTER_WORK, BLAME_WORK = 8, 256, 4, 2
"""Measured, in the same unit: an event for the judge costs 8 and 1 for each 256 bytes, a dead letter 4."""
SHOWN_HEADERS = frozenset({CONTENT_TYPE_HEADER, KIND_HEADER, "ce_specversion", "ce_type", "ce_source"})
"""Headers whose values a dead letter keeps: others may carry what a caller sent."""
LEARN_ROWS = 64
"""Requests of one record, or of `TOGETHER`, from which a shape is learned at least."""
MAX_MISSES = 8
"""Times in a run that events may fall out of the lanes that are tried first, or change their lane, which ends a piece."""
_KINDS: Mapping[str, int | None] = {"": None, **KIND_CODES}
_raw_rows = msgspec.json.Decoder(list[msgspec.Raw])


class _Row(NamedTuple):
    """One row on its way: where it came from, its bytes, and what the record says of it."""

    at: int
    number: int
    value: bytes
    mark: Mark
    of_array: bool = False


class EventDecoder:
    """Decodes one partition's records; keeps nothing of them.

    `keep_heads`: dead letters hold the first bytes of what was refused. Off where features are sensitive: a letter then
    has size and hash alone.
    """

    def __init__(self, topic: str, partition: int, *, keep_heads: bool = True) -> None:
        self._topic = topic
        self._partition = partition
        self._keep_heads = keep_heads
        self.lanes = [WIDE[topic]]

    def learn(self, rows: Sequence[Any]) -> None:
        """Requests whose features are like these [n] have a lane of their own from the next run on."""
        shape, now = Shape.of(rows), self.lanes[0].shape
        if shape is not None and (now is None or not shape.same(now)):
            self.lanes = [lane_of(REQUEST, shape), self.lanes[-1]]

    def pieces(self, records: Records) -> Iterator[Decoded]:
        """The records as pieces of some 10 ms of work, in log order: whoever iterates may pause between them.

        Letters of refused rows come with the last piece, bounded as `Refusals` says.
        """
        run = _Run(self, records)
        for first in range(0, len(records), TOGETHER):
            for _ in run.take(first, min(first + TOGETHER, len(records))):
                yield Decoded(run.cut(), (), 0)
            if run.gather.spent >= PIECE:
                yield Decoded(run.cut(), (), 0)
        piece = run.cut()
        yield Decoded(piece, run.refused.dead_letters(), run.buried, run.blamed)

    def letter(
        self, records: Records, at: int, number: int, reason: DeadReason, detail: str, value: bytes
    ) -> DeadLetter:
        """The letter of one row."""
        place = Place(self._topic, self._partition, records.offsets[at], records.timestamps[at], number)
        headers = [(name, content if name in SHOWN_HEADERS else b"...") for name, content in records.headers[at] or ()]
        letter = dead_letter(place, reason, detail, value, headers)
        return letter if self._keep_heads else letter.model_copy(update={"head": ""})


class _Run:
    """The records of one call of `pieces`, and what has been gathered of them."""

    def __init__(self, decoder: EventDecoder, records: Records) -> None:
        self._decoder = decoder
        self.records = records
        self.gather = Gathered()
        self.refused = Refusals()
        self.buried = 0
        self.blamed: list[Blamed] = []
        self._lanes = list(decoder.lanes)
        self._misses = 0
        self._learned = False
        self._known = True  # no single event so far had fields that the contracts do not know
        self._marks = marks_of(records.headers)
        self._offset = np.array(records.offsets, dtype=np.int64)
        self._broker_ms = np.array(records.timestamps, dtype=np.int64)

    def take(self, first: int, last: int) -> Iterator[None]:
        """Takes the records; yields where a piece ends."""
        marks, values = self._marks[first:last], self.records.values[first:last]
        mark = marks[0]
        alike = marks.count(mark) == len(marks) and mark.event is None and mark.encoding in ("", "json")
        found = None
        if alike and mark.kind in _KINDS and None not in values:
            found = self._alike(values, _KINDS[mark.kind])  # type: ignore[arg-type]  # none is None
        if found is not None:
            yield from self._gather(
                *found, range(first, last), array("q", bytes(8 * (last - first))), _KINDS[mark.kind]
            )
            return
        for at, short in enumerate(simple(values), first):
            yield from self.record(at, short)

    def _alike(self, values: Sequence[bytes], kind: int | None) -> tuple[Lane, list[Any]] | None:
        """Single events, end to end; None where a decoder refuses one. Events of known fields nest no deeper than their
        types, so that nobody has to look at their bytes before; once one of the run has others, they are looked at."""
        if self._known and max(map(len, values)) <= MAX_EVENT_BYTES:
            found = self._narrow(kind, lambda lane: list(map(lane.one.decode, values)))
            if found is not None:
                return found
            try:
                return GENERAL, _flat(map(CLOSED.decode, values))
            except REFUSED:
                self._known = False
        if not all(simple(values)):
            return None
        try:
            return GENERAL, _flat(map(OPEN.decode, values))
        except REFUSED:
            return None

    def _narrow(self, kind: int | None, decode: Callable[[Lane], list[Any]]) -> tuple[Lane, list[Any]] | None:
        """The first lane that takes the events, and these end to end."""
        for lane in self._lanes:
            if kind not in (None, lane.kind):
                continue
            try:
                flat = _flat(decode(lane))
            except REFUSED:
                flat = []
            if flat and lane.takes(flat):
                if lane is WIDE[REQUESTS] and not self._learned and len(flat) >= LEARN_ROWS * lane.width:
                    self._learned = True
                    self._decoder.learn(flat[lane.names.index("features") : TOGETHER * lane.width : lane.width])
                return lane, flat
            self._miss()
        return None

    def _miss(self) -> None:
        """What changes its lane over and over is slower for it, and what is in no lane was decoded in vain."""
        self._misses += 1
        if self._misses > MAX_MISSES:
            self._lanes = []

    def _enter(self, lane: Lane) -> Iterator[None]:
        """A piece has rows of one lane."""
        if self.gather.lane is not lane:
            if self.gather.record:
                self._miss()
                yield
            self.gather.lane = lane

    def _gather(
        self, lane: Lane, flat: list[Any], record: Iterable[int], row: Iterable[int], kind: int | None
    ) -> Iterator[None]:
        yield from self._enter(lane)
        self.gather.extend(flat, record, row, kind)

    def record(self, at: int, short: bool) -> Iterator[None]:
        """One record of any kind and encoding; yields where a piece ends."""
        value, mark = self.records.values[at], self._marks[at]
        row = _Row(at, 0, value or b"", mark)
        if mark.kind not in _KINDS:
            return self._bury(row, "unknown_kind", f"palisade-kind is {mark.kind[:100]!r}")
        if value is None:
            return self._bury(row, "tombstone", "")
        if not value:
            return self._bury(row, "empty", "")
        if len(value) > MAX_RECORD_BYTES:
            return self._bury(row, "too_large", f"{len(value)} bytes")
        found = shown(value)
        claimed = "json" if mark.encoding == "cloudevent" else mark.encoding
        if claimed and found and found != claimed:
            return self._bury(row, "encoding_mismatch", f"content-type says {mark.encoding}, the bytes are {found}")
        arrow = "arrow" in (claimed, found)
        event = mark.event is not None or mark.encoding == "cloudevent"
        if not (arrow or event) and value.lstrip(SPACE)[:1] == b"[":
            return (yield from self._array(row))
        yield from self._enter(GENERAL)
        if arrow:
            return self._arrow(row)
        if event:
            return self._cloud_event(row)
        return self._event(row, short)

    def _array(self, whole: _Row) -> Iterator[None]:
        """A JSON array of events: at once if all are of known fields, else row by row."""
        value, kind = whole.value, _KINDS[whole.mark.kind]
        found = self._narrow(kind, lambda lane: lane.many.decode(value))
        if found is None:
            try:
                found = GENERAL, _flat(MANY.decode(value))  # known fields alone nest no deeper than their types
            except REFUSED:
                found = GENERAL, []
        lane, flat = found
        count = len(flat) // lane.width
        if 0 < count <= MAX_ROWS_PER_RECORD and _small(value, count):
            return (yield from self._gather(lane, flat, [whole.at] * count, range(count), kind))
        yield from self._enter(GENERAL)
        if too_deep(value):
            return self._bury(whole, "too_deep", "")
        rows = self._rows(whole)
        for number, (row, short) in enumerate(zip(rows, simple(rows), strict=True)):
            self._event(_Row(whole.at, number, row, whole.mark, of_array=True), short)
            if self.gather.spent >= PIECE:
                yield
        return None

    def _rows(self, whole: _Row) -> list[bytes]:
        """The elements of an array as bytes; none, and the record buried, if it has too many or is no array."""
        try:
            rows = [bytes(raw) for raw in _raw_rows.decode(whole.value)]
        except REFUSED:
            try:
                rows = [to_json(row, inf_nan_mode="constants") for row in parsed(whole.value)]
            except (ValueError, RecursionError) as error:
                refused = refusal(error)
                self._bury(whole, refused.reason, refused.detail)
                return []
        if not rows:
            self._bury(whole, "empty", "an array of no events")
        elif len(rows) > MAX_ROWS_PER_RECORD:
            self._bury(whole, "too_large", f"{len(rows)} events, at most {MAX_ROWS_PER_RECORD}")
            return []
        return rows

    def _event(self, row: _Row, short: bool) -> None:
        """One JSON event: fast decoder, then the judge, who sees no more of a record once it has refused many rows."""
        value = row.value
        self.gather.spent += 1
        spent = row.of_array and self.refused.judge_is_spent(row.at)
        if len(value) > MAX_EVENT_BYTES:
            return self._bury(row, "too_large", f"an event of {len(value)} bytes, at most {MAX_EVENT_BYTES}")
        if not short and too_deep(value):
            return self._bury(row, "too_deep", "")
        try:
            return self._take(row, astuple((OPEN if short else CLOSED).decode(value)))
        except REFUSED:
            if spent:
                return self._bury(row, "wrong_shape", "not judged: too many rows of the record were refused")
        self.gather.spent += JUDGED_WORK + len(value) // JUDGED_BYTES
        return self._judged(row, judge(value))

    def _judged(self, row: _Row, verdict: tuple[Any, ...] | Refused) -> None:
        if isinstance(verdict, Refused):
            self.refused.judged[row.at] = self.refused.judged.get(row.at, 0) + 1
            return self._bury(row, verdict.reason, verdict.detail)
        return self._take(row, verdict)

    def _take(self, row: _Row, fields: Sequence[Any]) -> None:
        self.gather.add(row.at, row.number, fields, _KINDS[row.mark.kind])

    def _cloud_event(self, row: _Row) -> None:
        """A CloudEvent, binary or structured: its attributes complete what its data lacks."""
        if too_deep(row.value):
            return self._bury(row, "too_deep", "")
        event, data = row.mark.event, row.value
        if event is None:
            found = cloudevents.unwrapped(row.value)
            if found is None:
                detail = "no CloudEvent in structured mode: it needs specversion, id, source, type and data"
                return self._bury(row, "wrong_shape", detail)
            event, data = found
        kind = row.mark.kind or event.kind
        row = row._replace(value=data, mark=Mark(kind, "json", event))
        try:
            rows = cloudevents.server_rows(parsed(data), event)
        except NoBody as error:
            return self._bury(row, "wrong_shape", str(error))
        except (ValueError, RecursionError) as error:
            refused = refusal(error)
            return self._bury(row, refused.reason, refused.detail)
        self.gather.spent += JUDGED_WORK + len(data) // JUDGED_BYTES
        if rows is None:
            if len(data) > MAX_EVENT_BYTES:
                return self._bury(row, "too_large", f"an event of {len(data)} bytes, at most {MAX_EVENT_BYTES}")
            return self._complete(row._replace(mark=Mark(kind, "json", None)), judge(data), event, 0)
        known, bodies = rows
        for number, body in enumerate(bodies):
            if self.refused.judge_is_spent(row.at):
                self._bury(row._replace(number=number), "wrong_shape", "not judged: too many rows were refused")
                continue
            self.gather.spent += JUDGED_WORK
            self._complete(row._replace(number=number), judge_value(body), known, number)
        return None

    def _complete(self, row: _Row, verdict: tuple[Any, ...] | Refused, event: Attributes, index: int) -> None:
        """Takes a row with what the event's attributes say where the data does not."""
        if isinstance(verdict, Refused):
            return self._judged(row, verdict)
        fields = dict(zip(NAMES, verdict, strict=False))
        own_id = fields["request_id"] is not None
        event_id = event.id if event.of_logger or not event.id else clean_id(event.id)
        for name, value in (
            ("endpoint", event.endpoint),
            ("request_id", event_id or None),
            ("producer", clean_id(event.source) if event.source else None),
            ("model_version", event.version),
            ("ts", event.ms),
        ):
            if fields[name] is None:
                fields[name] = value
        # an id of the event's own means something together with source and type alone; a row of many has its number
        if not own_id or index:
            self.gather.family[len(self.gather.record)] = f"{event.family}\x1f{event.source}\x1f{index}"
        return self._take(row, [*fields.values(), *([None] * (WIDTH - len(NAMES)))])

    def _arrow(self, row: _Row) -> None:
        """An Arrow IPC stream: columns by name, as in `predictions`."""
        if not row.value.startswith(ARROW_MAGIC):
            return self._bury(row, "arrow_broken", "the bytes do not begin as an Arrow IPC stream")
        try:
            stream = inspect(row.value)
            columns = columns_of(read_streams([stream]))
        except ArrowRefused as error:
            return self._bury(row, error.reason, error.detail)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            return self._bury(row, "arrow_schema", str(error))
        self.gather.spent += len(columns[0])
        for number, fields in enumerate(zip(*columns, strict=True)):
            wrong = wrong_words(fields)
            if wrong:
                read = dict(zip(NAMES, fields, strict=True))
                self._bury(row._replace(number=number, value=b""), "wrong_shape", wrong, read)
                continue
            self.gather.add(row.at, number, (*fields, *[None] * (WIDTH - len(NAMES))), _KINDS[row.mark.kind])
        return None

    def cut(self) -> Piece:
        """What was gathered, without rows that lack what their kind needs; gathering starts anew."""
        gathered, self.gather = self.gather, Gathered()
        piece = gathered.piece(self._offset, self._broker_ms)
        return piece if gathered.lane.kind is not None else piece.where(self._whole(piece, *gathered.records()))

    def _whole(self, piece: Piece, record: Longs, number: Longs) -> npt.NDArray[np.bool_]:
        """Which rows have what their kind needs; the others are buried."""
        kept = np.ones(len(piece), dtype=np.bool_)
        suspects = np.flatnonzero(piece.kind > COMBINED).tolist()
        for kind, needed in NEEDED.items():
            of_kind = piece.kind == kind
            for name in needed:
                column = piece.fields[name]
                if of_kind.any() and (None in column or UNSET in column):
                    suspects += [at for at in np.flatnonzero(of_kind).tolist() if column[at] in (None, UNSET)]
        for at in sorted(set(suspects)):
            kept[at] = False
            given = [(name, piece.fields[name][at]) for name in NAMES]
            kind = int(piece.kind[at])
            what = missing(kind, given) if kind <= COMBINED else "features and prediction are missing: it is no event"
            read = {} if kind == RESPONSE else dict(given)
            self._bury(_Row(int(record[at]), int(number[at]), b"", PLAIN), "wrong_shape", what, read)
        return kept

    def _bury(self, row: _Row, reason: DeadReason, detail: str, read: Mapping[str, Any] | None = None) -> None:
        """`read`: its fields, where they could be; else its own top level may show whose it is."""
        self.buried += 1
        if read is None and reason in OF_CALLER and row.value and row.mark.event is None:
            self.gather.spent += BLAME_WORK + min(len(row.value), HEAD_BYTES) // JUDGED_BYTES
            read = top_level(row.value)
        self._blame(row, read or {})
        if self.refused.lettered(row.at):
            self.gather.spent += LETTER_WORK
            value = row.value or (self.records.values[row.at] or b"")
            self.refused.letters.append(self._decoder.letter(self.records, row.at, row.number, reason, detail, value))

    def _blame(self, row: _Row, shown: Mapping[str, Any]) -> None:
        """Notes whose the row is; nobody's where it names no caller."""
        endpoint, caller = shown.get("endpoint"), shown.get("caller")
        if endpoint and caller not in (None, "", ANONYMOUS):
            place = int(self._offset[row.at]) << ROW_BITS | row.number
            auth, version = shown.get("caller_auth", "claimed"), shown.get("model_version") or "default"
            self.blamed.append(Blamed(place, clean_id(endpoint), clean_id(caller), auth, clean_id(version)))


def _small(value: bytes, count: int) -> bool:
    """Whether no event of an array is above its bound: nearly always plain from the whole, else each is looked at."""
    return len(value) - 2 * count <= MAX_EVENT_BYTES or max(map(len, _raw_rows.decode(value))) <= MAX_EVENT_BYTES


def _flat(events: Iterable[Any]) -> list[Any]:
    """The fields of events, end to end."""
    return list(chain.from_iterable(map(astuple, list(events))))
