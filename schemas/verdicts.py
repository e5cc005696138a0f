"""Verdicts: the outcome of each row, as Arrow: one record a run, and two records a batch of closed blocks."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from schemas.wire import Millis, Wire, Word

VERDICT_ROWS_KIND = "verdict_rows"
VERDICT_BLOCKS_KIND = "verdict_blocks"
VERDICT_P_VALUES_KIND = "verdict_p_values"

OUTCOMES = ("scored", "dead_lettered")

VERDICT_ROWS = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("outcome", pa.uint8(), nullable=False),
        pa.field("flags", pa.uint32(), nullable=False),
        pa.field("endpoint", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
"""Schema metadata: `topic`, `partition`, `first`, `last` of the run, `bank` (hash of bank and configuration)."""

VERDICT_BLOCKS = pa.schema(
    [
        pa.field("endpoint", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("profile_hash", pa.string(), nullable=False),
        pa.field("first_offset", pa.int64(), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
        pa.field("last_offset", pa.int64(), nullable=False),
        pa.field("last_row", pa.int32(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("closed_by", pa.string(), nullable=False),
        pa.field("closed_ms", pa.int64(), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),
    ]
)
"""One row a reading of a block. Schema metadata: `topic`, `partition`, `bank`."""

VERDICT_P_VALUES = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("p_value", pa.float32(), nullable=False),
        pa.field("endpoint", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("version", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("detector", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("profile_hash", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
"""One row for each row of a closed block that a detector judges rows of, by the profile that held. Metadata as above."""

VERDICT_LOST_KIND = "lost"


class Lost(Wire):
    """Offsets `first` to `last` of a log that detect could not read: retention removed them first, or librdkafka cannot
    unpack them. It is their outcome."""

    KIND: ClassVar[str] = VERDICT_LOST_KIND

    log_topic: Word
    log_partition: int
    first: int
    last: int
    at_ms: Millis
