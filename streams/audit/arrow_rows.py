"""Arrow records of predictions and verdicts as rows of their tables, many small streams at a time.

Client libraries send ten predictions a stream and detect a few verdicts: what reading one costs is mostly what reading any
costs. Streams of one layout are read as one; if that fails, each by itself, and those that cannot be read give no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import values_of
from schemas.events import MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD
from streams.audit.prediction_rows import prediction_columns
from streams.decode.arrow import alike, read_streams
from streams.decode.ipc import ArrowRefused, Stream, inspect

log = logging.getLogger(__name__)

MAX_VERDICTS = 4_000_000
"""Rows of one record of verdicts: more than the bytes of a run can be."""
LAST_MS = 10_413_791_999_999
"""The end of the year 2299, beyond which DateTime64 holds nothing."""
_REFUSED = (ArrowRefused, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError)


class ArrowRecord(NamedTuple):
    """A record that is an Arrow stream; broker's `ms`. `rows`: those of it that are kept, None for all."""

    offset: int
    ms: int
    value: bytes
    rows: frozenset[int] | None = None


Read = tuple[ArrowRecord, Stream]
Make = Callable[[pa.RecordBatch, Sequence[Read]], pa.Table]


def prediction_tables(topic: str, partition: int, records: Iterable[ArrowRecord], schema: pa.Schema) -> list[pa.Table]:
    """Tables of `schema` with the kept rows of records of predictions of one partition."""
    short = (record for record in records if len(record.value) <= MAX_RECORD_BYTES)
    return list(_tables(short, MAX_ROWS_PER_RECORD, partial(_predictions, topic, partition, schema)))


def verdict_tables(records: Iterable[ArrowRecord], schema: pa.Schema) -> list[pa.Table]:
    """Tables of `schema` with the rows of records of verdicts, which name the log that they are about."""
    return list(_tables(records, MAX_VERDICTS, partial(_verdicts, schema)))


def _tables(records: Iterable[ArrowRecord], most_rows: int, make: Make) -> Iterator[pa.Table]:
    read: list[Read] = []
    for record in records:
        try:
            stream = inspect(record.value, most_rows)
        except ArrowRefused as error:
            _say(record, error)
        else:
            if stream.rows:
                read.append((record, stream))
    for same in alike(read):
        yield from _made(same, make)


def _made(same: Sequence[Read], make: Make) -> Iterator[pa.Table]:
    try:
        table = make(read_streams([stream for _, stream in same]), same)
    except _REFUSED as error:
        if len(same) == 1:
            _say(same[0][0], error)
            return
        for one in same:
            yield from _made([one], make)
    else:
        yield table


def _say(record: ArrowRecord, error: Exception) -> None:
    log.warning("the Arrow stream at offset %d gives no rows: %.300s", record.offset, error)


def _predictions(
    topic: str, partition: int, schema: pa.Schema, batch: pa.RecordBatch, same: Sequence[Read]
) -> pa.Table:
    kept = np.concatenate([_kept(record, stream) for record, stream in same])
    n = batch.num_rows
    of = {
        "topic": pa.array([topic] * n, pa.string()),
        "partition": pa.array(np.full(n, partition, dtype=np.int32)),
        "offset": _repeated([record.offset for record, _ in same], same),
        "row": _numbers(same),
        "broker_time": _repeated([record.ms for record, _ in same], same).cast(pa.timestamp("ms", "UTC")),
    } | prediction_columns(batch, schema)
    table = pa.Table.from_arrays([_within(of[field.name], field.type) for field in schema], schema=schema)
    return table if kept.all() else table.filter(pa.array(kept))


def _kept(record: ArrowRecord, stream: Stream) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    kept = np.full(stream.rows, record.rows is None)
    if record.rows is not None:
        kept[sorted(record.rows)] = True
    return kept


def _verdicts(schema: pa.Schema, batch: pa.RecordBatch, same: Sequence[Read]) -> pa.Table:
    meta = {name.decode(): text.decode() for name, text in (batch.schema.metadata or {}).items()}
    n = batch.num_rows
    absent: dict[str, Callable[[], pa.Array]] = {
        "topic": lambda: pa.array([meta["topic"]] * n),
        "partition": lambda: pa.array([int(meta["partition"])] * n),
        "offset": lambda: _repeated([record.offset for record, _ in same], same),
        "row": lambda: _numbers(same),
        "broker_time": lambda: _repeated([record.ms for record, _ in same], same),
    }
    arrays = [
        (values_of(batch[field.name]) if field.name in batch.schema.names else absent[field.name]()).cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _repeated(values: Sequence[int], same: Sequence[Read]) -> pa.Array:
    """int64 [rows of all streams]: each value for the rows of its stream."""
    return pa.array(np.repeat(np.array(values, dtype=np.int64), [stream.rows for _, stream in same]))


def _numbers(same: Sequence[Read]) -> pa.Array:
    """int32 [rows of all streams]: each row's number in its stream."""
    return pa.array(np.concatenate([np.arange(stream.rows, dtype=np.int32) for _, stream in same]))


def _within(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Times outside of what a column holds are moved to its ends."""
    if not pa.types.is_timestamp(kind):
        return column
    whole = column.cast(pa.timestamp("ms")).cast(pa.int64())
    low, high = pa.scalar(0, pa.int64()), pa.scalar(LAST_MS, pa.int64())
    clipped = pc.min_element_wise(pc.max_element_wise(whole, low, skip_nulls=False), high, skip_nulls=False)
    return clipped.cast(pa.timestamp("ms")).cast(kind)
