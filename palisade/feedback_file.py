"""Labels from a user's file onto `palisade.feedback`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Producer

from palisade.publish import BATCH_ROWS, RECORD_BYTES, encoded, produce
from palisade.recorded import milliseconds_of, plain_values, text_of
from palisade.tables import UnusableFile, read_table
from responders.signing import SigningKey
from schemas.arrow import values_of
from schemas.feedback import Feedback
from schemas.topics import FEEDBACK
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, KIND_HEADER
from streams.transport.settings import KafkaConnection, kafka_settings


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Which columns mean what. `time` None: the broker's time."""

    request_id: str
    label: str
    time: str | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """Feedback of a file: `table` has a feedback's columns but the endpoint. `unlabelled`: rows that were left out."""

    table: pa.Table
    unlabelled: int


def read_labels(path: Path, columns: LabelColumns) -> Labels:
    """The labels of a file; rows without a label (not known yet) are left out. Raises UnusableFile with what to do."""
    table = read_table(path)
    wanted = [name for name in (columns.request_id, columns.label, columns.time) if name is not None]
    if absent := [name for name in wanted if name not in table.column_names]:
        raise UnusableFile(f"{path} has no column {absent[0]!r}; it has {', '.join(table.column_names)}")
    label = _label(table[columns.label].combine_chunks(), columns.label, path)
    kept = label.is_valid()
    table, label = table.filter(kept), label.filter(kept)
    if not len(label):
        raise UnusableFile(f"{path} has no labels in {columns.label!r}: there is nothing to publish")
    whole = values_of(table[columns.request_id].combine_chunks())
    try:
        ids = text_of(whole, "request_id", columns.request_id, path)
    except pa.ArrowException as error:
        raise UnusableFile(f"{path}: column {columns.request_id!r} is {whole.type}, no request ids") from error
    if ids.null_count:
        raise UnusableFile(f"{path}: {ids.null_count:,} labelled rows have no request id in {columns.request_id!r}")
    found = {"request_id": ids, "label": label}
    if columns.time is not None:
        times = values_of(table[columns.time].combine_chunks())
        found["ts"] = milliseconds_of(times, columns.time, path)
    return Labels(pa.table(found), len(kept) - len(label))


def publish_labels(
    labels: Labels,
    endpoint: str,
    source: str,
    connection: KafkaConnection,
    signer: SigningKey | None,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Sends all rows as Arrow records, signed where there is a key, which makes their source verified.

    The reason why not all were confirmed; "" if they were.
    """
    producer = Producer(kafka_settings(connection, "producer") | {"linger.ms": 20})
    failures: list[KafkaError] = []
    auth = "verified" if signer is not None else "claimed"
    for first in range(0, labels.table.num_rows, BATCH_ROWS):
        rows = labels.table.slice(first, BATCH_ROWS).combine_chunks()
        for name, word in (("endpoint", endpoint), ("source", source), ("source_auth", auth)):
            rows = rows.append_column(name, pa.array([word] * rows.num_rows, pa.string()))
        value = encoded(rows)
        if len(value) > RECORD_BYTES:
            raise UnusableFile(f"{BATCH_ROWS} rows have {len(value):,} bytes, at most {RECORD_BYTES:,}: shorten labels")
        headers: list[tuple[str, str | bytes | None]] = [
            (KIND_HEADER, Feedback.KIND.encode()),
            (CONTENT_TYPE_HEADER, ARROW_TYPE.encode()),
        ]
        headers += signer.headers(Feedback.KIND, value) if signer is not None else []
        produce(producer, FEEDBACK, endpoint, value, headers, failures)
        if progress is not None:
            progress(rows.num_rows)
        if failures:
            break
    left = producer.flush(60)
    return failures[0].str() if failures else "no answer" if left else ""


def _label(whole: pa.Array, name: str, path: Path) -> pa.Array:
    """Whole numbers, numbers (NaN, which tables write for "missing", as null), text ("" as null) or booleans."""
    values = values_of(whole)
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64(), safe=False)
    plain = plain_values(values)
    if plain is None:
        raise UnusableFile(f"{path}: column {name!r} is {values.type}; a label is a number, text or a boolean")
    return (
        pc.if_else(pc.equal(plain, ""), pa.scalar(None, pa.string()), plain)
        if pa.types.is_string(plain.type)
        else plain
    )
