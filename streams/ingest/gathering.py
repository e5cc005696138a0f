"""Rows that were decoded, field by field end to end, until they are cut into a piece."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from schemas.blocks import Longs
from schemas.ids import clean_id
from streams.ingest.events import COMBINED, REQUEST, RESPONSE
from streams.ingest.lanes import GENERAL, Lane
from streams.ingest.pieces import ROW_BITS, Piece
from streams.ingest.shapes import Block

MAX_KEY_CHARS = 400
"""A longer key stands as its hash: what waits is bounded by rows, not by what ids weigh."""
_NO_KIND = 3


@dataclass(slots=True)
class Gathered:
    """Rows of one lane: `flat` holds the fields end to end, the rest one entry a row; `family` what is not "" of them.

    `record`: the row's record in its run, `row`: its number there. `kind`: as the records say, where the lane does not.
    `blocks`: features of one shape, which `flat` has None for. `spent`: the work that went into them.
    """

    flat: list[Any] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    record: array[int] = field(default_factory=lambda: array("q"))
    row: array[int] = field(default_factory=lambda: array("q"))
    lane: Lane = GENERAL
    kind: list[int | None] = field(default_factory=list)
    family: dict[int, str] = field(default_factory=dict)
    spent: int = 0

    def add(self, record: int, row: int, fields: Iterable[Any], kind: int | None) -> None:
        """One row of the general lane."""
        self.flat += fields
        self.record.append(record)
        self.row.append(row)
        self.kind.append(kind)

    def extend(self, flat: list[Any], record: Iterable[int], row: Iterable[int], kind: int | None) -> None:
        """Rows of the lane, their fields end to end."""
        lane, rows = self.lane, len(flat) // self.lane.width
        if lane.shape is not None:
            features = slice(lane.names.index("features"), None, lane.width)
            self.blocks.append(lane.shape.block(flat[features]))
            flat[features] = [None] * rows
        self.flat += flat
        self.record.extend(record)
        self.row.extend(row)
        self.kind += [kind] * rows
        self.spent += rows

    def records(self) -> tuple[Longs, Longs]:
        """The record of each row in its run, and the row's number there."""
        return np.frombuffer(self.record, np.int64), np.frombuffer(self.row, np.int64)

    def piece(self, offset: Longs, broker_ms: Longs) -> Piece:
        """The rows; `offset` and `broker_ms` of each record of the run."""
        lane = self.lane
        fields = {name: self.flat[at :: lane.width] for at, name in enumerate(lane.names)}
        record, number = self.records()
        place = offset[record] << ROW_BITS | number if len(record) else record
        times = broker_ms[record] if len(record) else record
        key = self._keys(fields)
        if lane.kind is None:
            return Piece(fields, place, times, _kinds(fields, self.kind), key)
        features = None if lane.shape is None else lane.shape.features(self.blocks)
        if features is not None:
            del fields["features"]
        return Piece(fields, place, times, np.full(len(key), lane.kind, np.uint8), key, features)

    def _keys(self, fields: dict[str, list[Any]]) -> list[str]:
        """What request and response of one call share; a producer without a name gets one."""
        producers, ids = fields["producer"], fields["request_id"]
        if not all(producers):
            producers = fields["producer"] = [name or "unknown" for name in producers]
        key = list(map("\x1f".join, zip(producers, ids if all(ids) else [name or "" for name in ids], strict=True)))
        for at, family in self.family.items():
            key[at] = f"{key[at]}\x1f{family}"
        if key and max(map(len, key)) > MAX_KEY_CHARS:
            key = [one if len(one) <= MAX_KEY_CHARS else clean_id(one) for one in key]
        if not "".join(key).isascii():
            key = [one if one.isascii() else clean_id(one) for one in key]
        return key


def _kinds(fields: Mapping[str, list[Any]], said: Sequence[int | None]) -> npt.NDArray[np.uint8]:
    """The kind [n] of each row: as the record says, else by what it has."""
    asks = np.array([value is not UNSET for value in fields["features"]], dtype=np.bool_)
    answers = np.array(
        [a is not UNSET or b is not UNSET for a, b in zip(fields["prediction"], fields["status"], strict=True)],
        dtype=np.bool_,
    )
    by_shape = np.where(asks, np.where(answers, COMBINED, REQUEST), np.where(answers, RESPONSE, _NO_KIND))
    if set(said) <= {None}:
        return by_shape.astype(np.uint8)
    return np.array([by if one is None else one for by, one in zip(by_shape.tolist(), said, strict=True)], np.uint8)
