"""What a version that nobody profiled sends, read from its records again until its schema is known: features by name."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from pydantic_core import from_json

from detectors.base import part_of
from detectors.learning import Learning
from schemas.blocks import RowId
from schemas.flags import RowFlag
from streams.blocks import OTHER
from streams.decode import Columns
from streams.decode.arrow import Batch, read_streams
from streams.decode.headers import ARROW_MAGIC
from streams.decode.ipc import inspect
from streams.records import Records

_rows = msgspec.json.Decoder(list[msgspec.Raw])
Features = Mapping[str, object] | Sequence[object]


def let_vote(learning: Learning, columns: Columns, records: Records) -> None:
    """Rows of `columns` that were decoded without a schema vote on one, as far as their part learns.

    `records` hold the rows. Parts are admitted in the order of their first rows, so that any cut admits the same. Malformed
    rows have no features and no vote.
    """
    decoded = (columns.flags & np.uint32(RowFlag.MALFORMED)) == 0
    unknown = [
        group._replace(rows=rows)
        for group in columns.groups
        if group.layout is None and group.version != OTHER and len(rows := group.rows[decoded[group.rows]])
    ]
    for group in sorted(unknown, key=lambda group: int(group.rows[0])):
        if not learning.admit(group.endpoint, group.version, int(columns.broker_ts[group.rows[0]])):
            continue
        part = part_of(group.endpoint, group.version)
        offsets, numbers = columns.offset[group.rows].tolist(), columns.row[group.rows].tolist()
        rows = [RowId(offset, number) for offset, number in zip(offsets, numbers, strict=True)]
        read: dict[int, Sequence[Any]] = {}
        for at in learning.voters(part, rows):
            row = rows[at]
            if row.offset not in read:
                value = records.values[bisect_left(records.offsets, row.offset)]
                read = {row.offset: features_of(value or b"")}
            found = read[row.offset]
            learning.vote(part, row, found[row.row] if row.row < len(found) else None)


def features_of(value: bytes) -> Sequence[Features | None]:
    """The features of each row of a record that has been decoded; None for a row that has none."""
    if value.startswith(ARROW_MAGIC):
        columns = Batch(read_streams([inspect(value)])).features
        return [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.to_pylist() for c in columns.values()), strict=True)
        ]
    found = [each.get("features") if isinstance(each, dict) else None for each in _events(value)]
    return [each if isinstance(each, dict | list) else None for each in found]


def _events(value: bytes) -> Sequence[Any]:
    """The rows of a JSON record; None for one that was refused while its neighbours were decoded."""
    try:
        event = from_json(value)
    except ValueError:
        return [_event(raw) for raw in _raw_rows(value)]
    return event if isinstance(event, list) else [event]


def _raw_rows(value: bytes) -> Sequence[msgspec.Raw]:
    try:
        return _rows.decode(value)
    except ValueError:
        return ()


def _event(raw: msgspec.Raw) -> Any:
    try:
        return from_json(bytes(raw))
    except ValueError:
        return None
