"""Records of `palisade.feedback` to feedback, row by row; what cannot be decoded becomes a dead letter. No I/O.

One JSON object, a JSON array, or an Arrow IPC stream with the columns of `feedback`. Labels come slowly: each row is judged by
the contract itself, about 100,000 rows/s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
from pydantic import ValidationError

from responders.signing import Keyring
from schemas.arrow import values_of
from schemas.config import EndpointConfig
from schemas.deadletter import DeadReason
from schemas.errors import MACHINE_ERRORS, SignatureRefused
from schemas.events import MAX_EVENT_BYTES, MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD, CallerAuth
from schemas.feedback import Feedback
from schemas.topics import FEEDBACK
from schemas.wire import KIND_HEADER, SIGNATURE_HEADER
from streams.deadletters import Place, dead_letter, told
from streams.decode.arrow import read_streams
from streams.decode.headers import ARROW_MAGIC, SPACE, marks_of, shown
from streams.decode.ipc import ArrowRefused, inspect
from streams.decode.judge import refusal
from streams.decode.partitioner import partition_of
from streams.decode.refusals import Refusals
from streams.decode.scan import too_deep
from streams.outgoing import dead
from streams.records import Outgoing, RawHeaders, Records, header_of

_rows = msgspec.json.Decoder(list[msgspec.Raw])
_BROKEN_ARROW = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError, OverflowError)


@dataclass(frozen=True, slots=True)
class FeedbackAt:
    """A feedback where it lies: index of its record in the run, row within the record. `auth`: who vouches for its source."""

    feedback: Feedback
    auth: CallerAuth
    record: int
    row: int


class _Unusable(Exception):
    """A record or row that is none."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: DeadReason = reason
        self.detail = detail


class FeedbackReader:
    """Reads the feedback of one topic. `partitions` is the topic's count.

    Dead letters are at most 64 a record and 1,024 a run; further ones are counted in the last.
    """

    def __init__(self, endpoints: Mapping[str, EndpointConfig], partitions: int) -> None:
        self._partitions = partitions
        self._trusting = {name for name, endpoint in endpoints.items() if endpoint.trust_unsigned}
        self._keys = {name: Keyring(endpoint.producer_keys) for name, endpoint in endpoints.items()}
        self._homes: dict[str, int] = {name: partition_of(name.encode(), partitions) for name in endpoints}

    def read(self, partition: int, records: Records) -> tuple[list[FeedbackAt], list[Outgoing]]:
        """The feedback of consecutive records of a partition, and the dead letters of what is none. Raises MACHINE_ERRORS only."""
        found: list[FeedbackAt] = []
        refusals = Refusals()
        for index, mark in enumerate(marks_of(records.headers)):
            kind = Feedback.KIND if header_of(records.headers[index], KIND_HEADER) is None else mark.kind
            seen = 0
            vouched: dict[str, bool] = {}
            try:
                for row, value in self._values(records.values[index], kind, mark.encoding):
                    seen = row
                    try:
                        feedback = self._feedback(partition, value)
                        auth = self._auth(feedback, records, index, vouched)
                        found.append(FeedbackAt(feedback, auth, index, row))
                    except _Unusable as refused:
                        _bury(refusals, partition, records, index, row, refused, value)
            except _Unusable as refused:
                _bury(refusals, partition, records, index, 0, refused)
            except MACHINE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  no record may stop the audit of all others
                failed = _Unusable("handler_failed", told("reading", error))
                _bury(refusals, partition, records, index, seen, failed)
        return found, [dead(letter) for letter in refusals.dead_letters()]

    @staticmethod
    def _values(value: bytes | None, kind: str, encoding: str) -> Iterator[tuple[int, Any]]:
        """(row, JSON bytes or dict of fields) of each row of a record. Raises _Unusable."""
        if kind != Feedback.KIND:
            raise _Unusable("unknown_kind", f"kind {kind[:40]!r} does not belong on {FEEDBACK}")
        if value is None:
            raise _Unusable("tombstone", "")
        if not value:
            raise _Unusable("empty", "")
        if len(value) > MAX_RECORD_BYTES:
            raise _Unusable("too_large", f"{len(value)} bytes")
        if encoding and (seen := shown(value)) and seen != encoding:
            raise _Unusable("encoding_mismatch", f"content-type says {encoding}, the bytes are {seen}")
        if value.startswith(ARROW_MAGIC):
            yield from enumerate(_arrow_rows(value))
        elif too_deep(value):
            raise _Unusable("too_deep", "")
        elif value.lstrip(SPACE)[:1] == b"[":
            yield from enumerate(_array_rows(value))
        else:
            yield 0, value

    def _feedback(self, partition: int, value: Any) -> Feedback:
        if isinstance(value, bytes) and len(value) > MAX_EVENT_BYTES:
            raise _Unusable("too_large", f"an event of {len(value)} bytes, at most {MAX_EVENT_BYTES}")
        try:
            as_json = isinstance(value, bytes)
            feedback = Feedback.model_validate_json(value) if as_json else Feedback.model_validate(value)
        except (ValidationError, ValueError, RecursionError) as error:
            refused = refusal(error)
            raise _Unusable(refused.reason, refused.detail) from error
        home = self._homes.get(feedback.endpoint)
        if home is None:
            home = partition_of(feedback.endpoint.encode(), self._partitions)
        if home != partition:
            detail = f"{feedback.endpoint} belongs on partition {home} of {self._partitions}"
            raise _Unusable("wrong_partition", detail)
        return feedback

    def _auth(self, feedback: Feedback, records: Records, index: int, vouched: dict[str, bool]) -> CallerAuth:
        """`vouched`: endpoints whose keys were tried on this record; a signature costs 90 us to verify."""
        name = feedback.endpoint
        if feedback.source_auth == "claimed" or name not in self._keys:
            return "claimed"
        if name not in vouched:
            vouched[name] = self._vouches(name, records.values[index] or b"", records.headers[index])
        return "verified" if vouched[name] else "claimed"

    def _vouches(self, endpoint: str, value: bytes, headers: RawHeaders) -> bool:
        """Whether a producer key of the endpoint signed the record; without a signature, where that is configured to do."""
        if header_of(headers, SIGNATURE_HEADER) is None:
            return endpoint in self._trusting
        try:
            self._keys[endpoint].verify(Feedback.KIND, value, headers or ())
        except SignatureRefused:
            return False
        return True


def _array_rows(value: bytes) -> list[bytes]:
    try:
        rows = [bytes(raw) for raw in _rows.decode(value)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Unusable("not_json", str(error)) from error
    if not rows:
        raise _Unusable("empty", "an array of no events")
    if len(rows) > MAX_ROWS_PER_RECORD:
        raise _Unusable("too_large", f"{len(rows)} events, at most {MAX_ROWS_PER_RECORD}")
    return rows


def _arrow_rows(value: bytes) -> list[dict[str, Any]]:
    """Each row's fields as the contract takes them: absent where null, times in ms."""
    try:
        batch = read_streams([inspect(value)])
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        named = {name: _plain(columns[name]) for name in Feedback.model_fields if name in columns}
    except ArrowRefused as error:
        raise _Unusable(error.reason, error.detail) from error
    except _BROKEN_ARROW as error:
        raise _Unusable("arrow_schema", str(error)) from error
    return [
        {name: column[row] for name, column in named.items() if column[row] is not None}
        for row in range(batch.num_rows)
    ]


def _plain(column: pa.Array) -> list[Any]:
    values = values_of(column)
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("ms", values.type.tz), safe=False).cast(pa.int64())
    return values.to_pylist()  # type: ignore[no-any-return]


def _bury(
    refusals: Refusals, partition: int, records: Records, index: int, row: int, why: _Unusable, value: Any = None
) -> None:
    if refusals.lettered(index):
        place = Place(FEEDBACK, partition, records.offsets[index], records.timestamps[index], row)
        shown_bytes = value if isinstance(value, bytes) else records.values[index]
        refusals.letters.append(dead_letter(place, why.reason, why.detail, shown_bytes, records.headers[index]))
