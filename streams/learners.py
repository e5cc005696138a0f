"""What a version that nobody profiled sends, read from its records again until its schema is known: features by name."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from detectors.base import part_of
from detectors.learning import Learning
from schemas.blocks import RowId
from schemas.flags import RowFlag
from schemas.outcomes import Words, label_of
from streams.blocks import OTHER
from streams.decode import Columns, Group
from streams.decode.arrow import Batch, read_streams
from streams.decode.headers import ARROW_MAGIC
from streams.decode.ipc import inspect
from streams.records import Records

Rows = npt.NDArray[np.int64]
_rows = msgspec.json.Decoder(list[msgspec.Raw])
Features = Mapping[str, object] | Sequence[object]


def let_vote(learning: Learning, columns: Columns, records: Records, through: Mapping[str, int]) -> None:
    """Rows of `columns` that were decoded without a schema vote on one, as far as their part learns.

    `records` hold the rows; `through` says of parts below which offset their state holds the votes already. Parts are admitted in the order of their first rows, so that any cut admits the same. Malformed
    rows have no features and no vote.
    """
    decoded = (columns.flags & np.uint32(RowFlag.MALFORMED)) == 0
    unknown = [
        group._replace(rows=new)
        for group in columns.groups
        if group.layout is None and group.version != OTHER and len(new := _new(group, columns, decoded, through))
    ]
    for group in sorted(unknown, key=lambda group: int(group.rows[0])):
        if not learning.admit(group.endpoint, group.version, int(columns.broker_ts[group.rows].max())):
            continue
        part = part_of(group.endpoint, group.version)
        offsets, numbers = columns.offset[group.rows].tolist(), columns.row[group.rows].tolist()
        rows = [RowId(offset, number) for offset, number in zip(offsets, numbers, strict=True)]
        read: dict[int, tuple[Sequence[Features | None], Sequence[str | None]]] = {}
        for at in learning.voters(part, rows):
            row = rows[at]
            if row.offset not in read:
                value = records.values[bisect_left(records.offsets, row.offset)]
                read = {row.offset: rows_of(value or b"")}
            features, labels = read[row.offset]
            if row.row < len(features):
                learning.vote(part, row, features[row.row], labels[row.row])
            else:
                learning.vote(part, row, None)


def _new(group: Group, columns: Columns, decoded: npt.NDArray[np.bool_], through: Mapping[str, int]) -> Rows:
    """The decoded rows of a group that its part has not seen."""
    rows = group.rows[decoded[group.rows]]
    return rows[columns.offset[rows] >= through.get(part_of(group.endpoint, group.version), 0)]


def rows_of(value: bytes) -> tuple[Sequence[Features | None], Sequence[str | None]]:
    """The features of each row of a record that has been decoded, and the label that was answered; None for a row that
    has none."""
    if value.startswith(ARROW_MAGIC):
        batch, words = Batch(read_streams([inspect(value)])), Words()
        columns, label = batch.features, batch.outcomes(words).label.tolist()
        names = words.all()
        features = [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.to_pylist() for c in columns.values()), strict=True)
        ]
        return features, [names[code] for code in label]
    events = [each if isinstance(each, dict) else {} for each in _events(value)]
    found = [each.get("features") for each in events]
    return [each if isinstance(each, dict | list) else None for each in found], [_label(each) for each in events]


def _label(event: Mapping[str, Any]) -> str | None:
    """A row that was refused, beside ones that were not, may have anything as its answer."""
    try:
        return label_of(event.get("prediction"))
    except TypeError:
        return None


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
