"""Dead letters: records and rows that cannot be decoded, with a reason that a service owner understands."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from schemas.wire import Column, Id, Millis, Wire, Word

DeadReason = Literal[
    "empty",
    "tombstone",
    "too_large",
    "too_deep",
    "not_json",
    "wrong_shape",
    "arrow_broken",
    "arrow_schema",
    "encoding_mismatch",
    "unknown_kind",
    "wrong_partition",
    "unsigned_control",
    "bad_signature",
    "no_request",
    "handler_failed",
    "not_audited",
]
DEAD_REASONS: tuple[str, ...] = get_args(DeadReason)

KEPT_BYTES = 8_192
"""Bytes of the offending record that a dead letter keeps."""

EXPLAINED: dict[str, str] = {
    "empty": "The record has no bytes. Send one JSON object, a JSON array of objects, or an Arrow IPC stream.",
    "tombstone": "The record's value is null, which deletes on a compacted topic and says nothing here. Send an event.",
    "too_large": "The record is larger than 1 MiB, or one JSON event is larger than 64 kB. Send fewer rows a record.",
    "too_deep": "The JSON nests deeper than 16 levels. Features are numbers, text, booleans, null or lists of numbers.",
    "not_json": "The bytes are not JSON in UTF-8. Check the serializer, or set the content-type header to what is sent.",
    "wrong_shape": "The JSON is no prediction: a required field is missing or a field has another type. See the detail.",
    "arrow_broken": "The Arrow IPC stream is cut short or damaged. Close the stream writer before sending its bytes.",
    "arrow_schema": "The Arrow batch has not the columns of a prediction. See the detail for the column.",
    "encoding_mismatch": "The content-type header names another encoding than the bytes have. Correct or omit it.",
    "unknown_kind": "The palisade-kind header names no kind of record that belongs on this topic. Correct or omit it.",
    "wrong_partition": "The endpoint does not hash to the partition that the record lies on. Use the endpoint as the key, "
    "and partitioner=murmur2_random (librdkafka) or the default partitioner (Java).",
    "unsigned_control": "A control record carries no signature. Send it with the palisade command and an operator key.",
    "bad_signature": "The record's signature does not verify with any key listed for it. Check the key and the config.",
    "no_request": "No request of this id came within 60 s, or it had its answer. Give request and response the same "
    "request_id, producer and record key, so that they lie on the same partition number of both topics.",
    "handler_failed": "Handling the record raised an error, also when it was handled alone. The detail says in which step and "
    "where; the log of that worker has the whole traceback. This is a fault of Palisade: report both. Once it is mended, "
    "`palisade deadletter redrive --filter reason=handler_failed` sends such records again; with --dry-run it says which.",
    "not_audited": "No row of the audit can be made of the record, or ClickHouse refuses it for good. What detect or respond "
    "made of it is not touched. This is a fault of Palisade: report the detail.",
}


REDRIVEN_HEADER = "palisade-redriven"
"""On a record that was sent again out of a dead letter: how many times it has been by now."""
MAX_REDRIVES = 3


class Redriven(Wire):
    """A dead letter's record was sent again; lies among the dead letters, so that it is not by mistake once more."""

    KIND: ClassVar[str] = "redriven"

    log_topic: Word
    log_partition: int
    log_offset: int
    log_row: int = 0
    at_ms: Millis


class DeadLetter(Wire):
    """Why a row was not scored, with the first `KEPT_BYTES` of it (base64) and its headers."""

    KIND: ClassVar[str] = "dead_letter"

    log_topic: Word
    log_partition: int
    log_offset: int
    log_row: int = 0
    reason: Annotated[DeadReason, Column("LowCardinality(String)")]
    detail: str = ""
    endpoint: Word | None = None
    caller: Id | None = None
    size: int
    sha256: str
    head: str
    headers: Annotated[dict[str, str], Column("String")]
    broker_ms: Millis
