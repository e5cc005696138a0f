"""Records of one partition to segments of columns: which encoding, which decoder, which dead letter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import astuple
from pydantic_core import from_json, to_json

from schemas.blocks import Codes, FeatureSchema, Longs
from schemas.deadletter import DeadReason
from schemas.events import (
    MAX_EVENT_BYTES,
    MAX_RECORD_BYTES,
    MAX_ROWS_PER_RECORD,
    Prediction,
    ProfileActivated,
    Tick,
)
from schemas.flags import RowFlag
from schemas.ids import MAX_ID_BYTES, clean_id
from streams.deadletters import Place, dead_letter
from streams.decode.arrow import alike, read_streams
from streams.decode.arrow_rows import arrow_rows
from streams.decode.columns import Control, Headers, SchemaLookup, Segment
from streams.decode.fast import GENERIC, NAMES, REFUSED, Plan
from streams.decode.gather import PIECE, Gather, Registered, Target
from streams.decode.headers import ARROW_MAGIC, SPACE, Mark, marks_of, shown
from streams.decode.ipc import ArrowRefused, Stream, inspect
from streams.decode.judge import Judged, Refused, judge, refusal
from streams.decode.malformed import HEAD_BYTES, OF_CALLER, malformed_row
from streams.decode.partitioner import partition_of
from streams.decode.refusals import MAX_LETTERS, Refusals
from streams.decode.scan import simple, too_deep

TOGETHER = 128
"""Events decoded at once: their objects fit the processor's second cache."""
MAX_TARGETS = 16_384
"""Endpoint@versions remembered (about 1 kB each without a profile); above it they are met anew."""
JUDGED_WORK, JUDGED_BYTES, LETTER_WORK, ARROW_ROWS, ARROW_BYTES = 8, 256, 4, 8, 1_024
"""Measured, in the unit of `PIECE`: an event for the judge costs 8 and 1 for each 256 bytes, a dead letter 4; Arrow costs 1
for 8 rows and 1 for each kB when decompressed."""
MAX_PLANS = 4_096
"""Schemas whose decoders are kept (about 50 kB each) when profiles change."""
_CONTROLS = (Tick.KIND, ProfileActivated.KIND)
_raw_rows = msgspec.json.Decoder(list[msgspec.Raw])


_ENDPOINT_AT, _CALLER_AT, _VERSION_AT = (NAMES.index(name) for name in ("endpoint", "caller", "model_version"))


class Decoder:
    """Decodes one partition's records. Keeps nothing of them but how endpoints were last decoded.

    `partitions` is the topic's count. `schema_of` is asked once an endpoint@version and again after `forget` or a
    `profile_activated` record. `registered` says whether an endpoint is configured (None: all are).
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        partitions: int,
        schema_of: SchemaLookup,
        registered: Registered | None = None,
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._partitions = partitions
        self._schema_of = schema_of
        self._registered = registered
        self._plans: dict[FeatureSchema, Plan] = {}
        self._by_key: dict[bytes | None, Target] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        self._homes: dict[str, int] = {}

    def forget(self) -> None:
        """Ask `schema_of` anew from the next segment on."""
        self._by_key.clear()
        self._targets.clear()
        if len(self._plans) > MAX_PLANS:
            self._plans.clear()

    def _forget_strangers(self) -> None:
        """Keeps what is remembered bounded: endpoints without a profile go first, for anybody can name those."""
        if len(self._homes) > MAX_TARGETS:
            self._homes.clear()
        if len(self._targets) > MAX_TARGETS:
            self._by_key.clear()
            self._targets = {name: target for name, target in self._targets.items() if target.plan is not None}
            if len(self._targets) > MAX_TARGETS:
                self.forget()

    def segments(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers | None],
        offsets: Sequence[int],
        timestamps: Sequence[int],
    ) -> Iterator[Segment]:
        """The records (parallel lists; timestamps in ms) as segments in log order, each ended by a control record or
        by the work that is in it (`PIECE`): whoever iterates may pause between them.

        Lazy: what the caller does about a control is done before the segment after it is decoded.
        """
        run = _Run(values, keys, headers, marks_of(headers), offsets, timestamps)
        offset, broker = np.array(offsets, dtype=np.int64), np.array(timestamps, dtype=np.int64)
        first, letters_left = 0, MAX_LETTERS
        for last in [at for at, mark in enumerate(run.marks) if mark.kind in _CONTROLS] + [len(values)]:
            self._forget_strangers()
            gather = Gather(refused=Refusals(letters_left))
            try:
                for _ in self._decode(run, first, last, gather):
                    columns, evidence = gather.columns(offset, broker, self._registered)
                    yield Segment(columns, (), None, Refusals().dead_rows(()), evidence)
                    gather.clear()
                columns, evidence = gather.columns(offset, broker, self._registered)
            except BaseException:  # half-gathered rows lie in plans and targets: none may reach the next segment
                self._plans.clear()
                self.forget()
                raise
            control = run.control(last) if last < len(values) else None
            if control is not None or last > first:
                dead = gather.refused
                letters_left = dead.left
                yield Segment(columns, dead.dead_letters(), control, dead.dead_rows(offsets), evidence)
            if control is not None and control.kind == ProfileActivated.KIND:
                self.forget()
            first = last + 1

    def _decode(self, run: _Run, first: int, last: int, gather: Gather) -> Iterator[None]:
        """Gathers the rows of records first to last.

        Yields when a piece is full: rows before and after it are in log order.
        """
        for start in range(first, last, TOGETHER):
            stop = min(start + TOGETHER, last)
            if not self._alike(run, start, stop, gather):
                yield from self._one_by_one(run, start, stop, gather)
            gather.pack()
        self._arrow_streams(run, gather)

    def _alike(self, run: _Run, first: int, last: int, gather: Gather) -> bool:
        """Takes the records if they are events of one schema, of endpoints that were seen under their keys, without unknown
        fields: by decoders that skip nothing, so that the bytes need no look (`fast` says why). False: nothing was taken.
        """
        marks, values = run.marks[first:last], run.values[first:last]
        targets: list[Any] = list(map(self._by_key.get, run.keys[first:last]))
        if not (marks[0].plain and marks.count(marks[0]) == len(marks) and all(targets) and targets[0].typed):
            return False
        if len({target.closed for target in targets}) > 1 or not all(values):
            return False
        if max(map(len, values)) > MAX_EVENT_BYTES:  # type: ignore[arg-type]  # none is None
            return False
        try:
            events = list(map(targets[0].closed.decode, values))
        except REFUSED:
            return False
        if [event.endpoint for event in events] != [target.endpoint for target in targets]:
            return False
        versions = [event.model_version for event in events]
        if versions != [target.version for target in targets]:
            plan = targets[0].plan
            targets = [self._target(event.endpoint, event.model_version) for event in events]
            if versions != [target.version for target in targets] or any(target.plan is not plan for target in targets):
                return False
        flat, envelope = targets[0].flat, gather.envelope
        for event in events:
            flat += astuple(event.features)
            envelope += astuple(event)
        gather.records.extend(range(first, last))
        gather.slots.extend([target.slot if target.slot >= 0 else gather.slot_of(target) for target in targets])
        return True

    def _one_by_one(self, run: _Run, first: int, last: int, gather: Gather) -> Iterator[None]:
        """Takes each record by the fast way that it allows; what that is not sure of is for `_record`."""
        by_key, index_of, slot_of = self._by_key.get, gather.records.append, gather.slots.append
        values = run.values[first:last]
        records = zip(values, run.keys[first:last], run.marks[first:last], simple(values), strict=True)
        for index, (value, key, mark, is_simple) in enumerate(records, first):
            target = by_key(key)
            if not is_simple or target is None or not mark.plain:
                yield from self._record(run, index, gather)
                continue
            try:
                event = target.open.decode(value)  # type: ignore[arg-type]  # what is simple is not None
            except REFUSED:
                yield from self._record(run, index, gather)
                continue
            if event.model_version != target.version or event.endpoint != target.endpoint:
                yield from self._record(run, index, gather)
                continue
            if target.typed:
                target.flat += astuple(event.features)
            elif target.plan is not None and (bits := target.take(event.features, True)):
                gather.flags[len(gather.slots)] = bits
            gather.envelope += astuple(event)
            index_of(index)
            slot = target.slot
            slot_of(slot if slot >= 0 else gather.slot_of(target))

    def _record(self, run: _Run, index: int, gather: Gather) -> Iterator[None]:
        """One record of any kind and encoding."""
        value, mark = run.values[index], run.marks[index]
        row = _Row(run, index, 0, value or b"")
        if mark.kind != Prediction.KIND:
            self._bury(gather, row, "unknown_kind", f"palisade-kind is {mark.kind!r}")
        elif value is None:
            self._bury(gather, row, "tombstone", "")
        elif not value:
            self._bury(gather, row, "empty", "")
        elif len(value) > MAX_RECORD_BYTES:
            self._bury(gather, row, "too_large", f"{len(value)} bytes")
        elif mark.encoding and (found := shown(value)) and found != mark.encoding:
            self._bury(gather, row, "encoding_mismatch", f"content-type says {mark.encoding}, the bytes are {found}")
        elif mark.encoding == "arrow" or value.startswith(ARROW_MAGIC):
            yield from self._arrow(run, index, value, gather)
        elif value.lstrip(SPACE)[:1] == b"[":
            yield from self._array(run, index, value, gather)
        else:
            self._event(row, simple((value,))[0], gather)
        if gather.full:
            self._arrow_streams(run, gather)
            yield

    def _array(self, run: _Run, index: int, value: bytes, gather: Gather) -> Iterator[None]:
        """A JSON array of events, row by row."""
        whole = _Row(run, index, 0, value)
        if too_deep(value):
            return self._bury(gather, whole, "too_deep", "")
        try:
            rows = [bytes(raw) for raw in _raw_rows.decode(value)]
        except REFUSED:
            try:
                rows = [to_json(row, inf_nan_mode="constants") for row in from_json(value)]
            except (ValueError, RecursionError) as error:
                refused = refusal(error)
                return self._bury(gather, whole, refused.reason, refused.detail)
        if not rows:
            return self._bury(gather, whole, "empty", "an array of no events")
        if len(rows) > MAX_ROWS_PER_RECORD:
            return self._bury(gather, whole, "too_large", f"{len(rows)} events, at most {MAX_ROWS_PER_RECORD}")
        for number, (row, short) in enumerate(zip(rows, simple(rows), strict=True)):
            self._event(_Row(run, index, number, row, of_array=True), short, gather)
            if gather.full:
                self._arrow_streams(run, gather)
                yield
        return None

    def _event(self, row: _Row, short: bool, gather: Gather) -> None:
        """One JSON event: decoders of the endpoint that is expected, generic decoder, judge; in this order.

        The judge is slow: once it has refused many rows of a record, it sees no more of them.
        """
        value = row.value
        gather.spent += 1
        spent = row.of_array and gather.refused.judge_is_spent(row.at)
        if spent and value[:1] != b"{":
            return self._bury(gather, row, "wrong_shape", "the row is no JSON object")
        if len(value) > MAX_EVENT_BYTES:
            return self._bury(gather, row, "too_large", f"an event of {len(value)} bytes, at most {MAX_EVENT_BYTES}")
        if not short and too_deep(value):
            return self._bury(gather, row, "too_deep", "")
        expected = self._by_key.get(row.key)
        if expected is not None and self._as_expected(row, short, expected, gather):
            return None
        try:
            event = GENERIC[0 if short else 1].decode(value)
            judged = Judged(astuple(event)[:-1], event.features, finite=True)
        except REFUSED:
            if spent:
                return self._bury(gather, row, "wrong_shape", "not judged: too many rows of the record were refused")
            gather.spent += JUDGED_WORK + len(value) // JUDGED_BYTES
            verdict = judge(value)
            if isinstance(verdict, Refused):
                gather.refused.judged[row.at] = gather.refused.judged.get(row.at, 0) + 1
                return self._bury(gather, row, verdict.reason, verdict.detail)
            judged = verdict
        endpoint, version = judged.envelope[_ENDPOINT_AT], judged.envelope[_VERSION_AT]
        if not self._belongs(row, endpoint, judged.envelope[_CALLER_AT], gather):
            return None
        target = self._target(endpoint, version)
        flags = 0 if endpoint == target.endpoint and version == target.version else int(RowFlag.ODD_ID)
        if target.plan is not None:
            flags |= target.take(judged.features, judged.finite)
        if endpoint == target.endpoint and (row.key is None or row.key == endpoint.encode()):
            self._by_key[row.key] = target
        return self._take(gather, row, target, judged.envelope, flags)

    def _as_expected(self, row: _Row, short: bool, expected: Target, gather: Gather) -> bool:
        """Takes the row if it is of the endpoint last seen under its key, and of a version of equal schema."""
        try:
            event = (expected.open if short else expected.closed).decode(row.value)
        except REFUSED:
            return False
        if event.endpoint != expected.endpoint:
            return False
        target = expected
        if event.model_version != expected.version:
            target = self._target(event.endpoint, event.model_version)
            if target.plan is not expected.plan or event.model_version != target.version:
                return False
        flags = 0
        if expected.typed:
            target.flat += astuple(event.features)
        elif target.plan is not None:
            flags = target.take(event.features, True)
        self._take(gather, row, target, astuple(event), flags)
        return True

    def _take(self, gather: Gather, row: _Row, target: Target, fields: tuple[Any, ...], flags: int) -> None:
        if flags:
            gather.flags[len(gather.slots)] = int(flags)
        if row.number:
            gather.rows[len(gather.slots)] = row.number
        gather.envelope += fields[: len(NAMES)]
        gather.envelope.append(None)
        gather.records.append(row.at)
        gather.slots.append(gather.slot_of(target))

    def _arrow(self, run: _Run, index: int, value: bytes, gather: Gather) -> Iterator[None]:
        """An Arrow IPC stream, column by column: one that is a piece or more by itself, slice by slice."""
        row = _Row(run, index, 0, value)
        if not value.startswith(ARROW_MAGIC):
            return self._bury(gather, row, "arrow_broken", "the bytes do not begin as an Arrow IPC stream")
        try:
            stream = inspect(value)
            if stream.rows == 0:
                raise ArrowRefused("empty", "an Arrow stream of no rows")
        except ArrowRefused as error:
            return self._bury(gather, row, error.reason, error.detail)
        work = stream.rows // ARROW_ROWS + stream.decoded_bytes // ARROW_BYTES
        if work < PIECE:
            gather.streams.append((index, stream))
            gather.spent += work
            return None
        if gather.slots or gather.streams:
            self._arrow_streams(run, gather)
            yield
        yield from self._arrow_slices(run, index, stream, -(-stream.rows * PIECE // work), gather)
        return None

    def _arrow_slices(self, run: _Run, index: int, stream: Stream, size: int, gather: Gather) -> Iterator[None]:
        """A large stream, `size` rows at a time."""
        numbers = np.arange(stream.rows, dtype=np.int32)
        first = 0
        try:
            batch = read_streams([stream])
            for first in range(0, stream.rows, size):
                if first:
                    yield
                row = numbers[first : first + size]
                self._take_rows(run, batch.slice(first, size), np.full(len(row), index, dtype=np.int64), row, gather)
                gather.spent += PIECE
        except ArrowRefused as error:  # of the rows before this slice each has its outcome already
            self._bury(gather, _Row(run, index, first, run.values[index] or b""), error.reason, error.detail)

    def _arrow_streams(self, run: _Run, gather: Gather) -> None:
        for same in alike(gather.streams):
            self._read_streams(run, same, gather)

    def _read_streams(self, run: _Run, same: list[tuple[int, Stream]], gather: Gather) -> None:
        counts = [stream.rows for _, stream in same]
        record = np.repeat(np.array([index for index, _ in same], dtype=np.int64), counts)
        row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        try:
            self._take_rows(run, read_streams([stream for _, stream in same]), record, row, gather)
        except ArrowRefused as error:
            if len(same) > 1:
                for one in same:
                    self._read_streams(run, [one], gather)
                return
            index = same[0][0]
            self._bury(gather, _Row(run, index, 0, run.values[index] or b""), error.reason, error.detail)

    def _take_rows(self, run: _Run, batch: pa.RecordBatch, record: Longs, row: Codes, gather: Gather) -> None:
        """Rows of Arrow; record, row [n]: where each lies. Raises ArrowRefused, and has then taken none."""
        try:
            rows, refused = arrow_rows(batch, record, row, gather.names, self._target, self._home)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ArrowRefused("arrow_schema", str(error)) from error
        if rows is not None:
            gather.others.append(rows)
        for bad in refused:
            shown_row = _Row(run, bad.record, bad.row, to_json(bad.shown, inf_nan_mode="constants"))
            self._bury(gather, shown_row, bad.reason, bad.detail, clean_id(bad.shown["endpoint"]), None)

    def _home(self, endpoint: str) -> str:
        """ "" if rows of the endpoint (as it was sent) belong on this partition, else what is wrong."""
        home = self._homes.get(endpoint)
        if home is None:
            home = partition_of(endpoint.encode("utf-8", "surrogatepass"), self._partitions)
            if len(endpoint) <= MAX_ID_BYTES:
                self._homes[endpoint] = home
        if home == self._partition:
            return ""
        return f"{clean_id(endpoint)} belongs on partition {home} of {self._partitions}"

    def _target(self, endpoint: str, version: str) -> Target:
        """Of an endpoint and version as they were sent."""
        part = (clean_id(endpoint), clean_id(version))
        target = self._targets.get(part)
        if target is None:
            schema = self._schema_of(*part)
            plan = None
            if schema is not None:
                plan = self._plans.get(schema) or self._plans.setdefault(schema, Plan(schema))
            target = self._targets[part] = Target(*part, plan)
        return target

    def _belongs(self, row: _Row, endpoint: str, caller: str, gather: Gather) -> bool:
        """Whether the endpoint is the key's and hashes to this partition; else the row is dead-lettered."""
        sent = endpoint.encode("utf-8", "surrogatepass")
        if not row.of_array and row.key is not None and row.key != sent:
            detail = f"the key is {row.key[:128]!r}, the endpoint {clean_id(endpoint)}"
        else:
            detail = self._home(endpoint)
        if detail:
            self._bury(gather, row, "wrong_partition", detail, clean_id(endpoint), clean_id(caller))
        return not detail

    def _bury(
        self,
        gather: Gather,
        row: _Row,
        reason: DeadReason,
        detail: str,
        endpoint: str | None = None,
        caller: str | None = None,
    ) -> None:
        of_key = clean_id(row.key.decode("utf-8", "surrogateescape")) if row.key else None
        if reason in OF_CALLER:
            shown = malformed_row(row[1:3], row.value, row.key, self._target, self._home)
            gather.blame(shown, min(len(row.value), HEAD_BYTES))
        if not gather.refused.lettered(row.at):
            gather.refused.row(row.at, row.number, endpoint or of_key or "")
            return
        place = Place(self._topic, self._partition, row.run.offsets[row.at], row.run.timestamps[row.at], row.number)
        gather.spent += LETTER_WORK
        letter = dead_letter(place, reason, detail, row.value, row.run.headers[row.at], endpoint, caller)
        if letter.endpoint is None and of_key is not None:
            letter = letter.model_copy(update={"endpoint": of_key})
        gather.refused.letters.append(letter)
        gather.refused.row(row.at, row.number, letter.endpoint or "")


class _Run(NamedTuple):
    """The records as they were handed in, and what their headers say."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    headers: Sequence[Headers | None]
    marks: list[Mark]
    offsets: Sequence[int]
    timestamps: Sequence[int]

    def control(self, at: int) -> Control:
        return Control(
            index=at,
            kind=self.marks[at].kind,
            offset=self.offsets[at],
            broker_ms=self.timestamps[at],
            key=self.keys[at],
            value=self.values[at],
            headers=self.headers[at] or (),
        )


class _Row(NamedTuple):
    """One row on its way: where it came from and its bytes."""

    run: _Run
    at: int
    number: int
    value: bytes
    of_array: bool = False

    @property
    def key(self) -> bytes | None:
        return self.run.keys[self.at]
