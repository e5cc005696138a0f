"""Blocks: up to 256 rows of one endpoint@version in log order, the unit on which everything floating is computed.

Where a block is cut depends on the log alone, so a replay sees the same blocks and computes the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]

BLOCK_ROWS = 256
MIN_TICK_ROWS = 32
"""A tick closes a block of at least so many rows that has been open for `SHORT_WAIT_MS` ..."""
SHORT_WAIT_MS = 250
LONG_WAIT_MS = 10_000
"""... and a block of any size that has been open for so long."""
MAX_OPEN_ROWS = 65_536
"""Rows of open blocks of one partition; above it the oldest block is closed."""

MISSING = -1
UNSEEN = -2
"""Codes of a categorical value that is absent, and of one that the profile does not hold."""

STATUS_CODES = {"ok": 0, "error": 1, "timeout": 2, "unanswered": 3}
ROUTE_CODES = {"primary": 0, "probe": 1, "fallback": 2, "refused": 3}
VERSION_ROUTE = 4
"""`served_by` names a version."""

ClosedBy = Literal["rows", "tick", "overflow", "activation"]


class RowId(NamedTuple):
    """A row's identity within a partition: the record's offset and the row's number in it."""

    offset: int
    row: int


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features of an endpoint@version in the order of its profile.

    `numeric` and `categorical` are names; `categories[j]` are the values of `categorical[j]`, whose code is the index.
    `order` is the order of all features in the training table: what a feature list on the wire is read by. `labels` are
    those that the model answers, if the profile knows them.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one endpoint@version; n rows, all arrays read-only and owned by the block.

    numeric [n, numeric features] float64, NaN = missing. categorical [n, categorical features] int32 codes, `MISSING`,
    `UNSEEN`. caller [n] indexes `callers`; verified[k] says whether caller k was authenticated: whoever else claims its
    name is a caller of its own, of the same name. ts and broker_ts [n] in ms; latency_ms [n], NaN = unknown. Of what was
    answered: value [n] the number, NaN = none; label [n] its code among the profile's labels, `MISSING`, `UNSEEN`;
    confidence [n] the largest probability, NaN = none (`schemas.outcomes`).
    closed_ms is the log's time (broker's ms) at the record that closed the block, closed_at that record.
    """

    endpoint: str
    version: str
    profile_hash: str
    topic: str
    partition: int
    offsets: Longs
    rows: Codes
    ts: Longs
    broker_ts: Longs
    numeric: Floats
    categorical: Codes
    caller: Codes
    callers: tuple[str, ...]
    verified: npt.NDArray[np.bool_]
    flags: Flags
    latency_ms: Floats
    status: Bytes
    served_by: Bytes
    value: Floats
    label: Codes
    confidence: Floats
    weight: Floats
    closed_by: ClosedBy
    closed_at: RowId
    closed_ms: int

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def first(self) -> RowId:
        return RowId(int(self.offsets[0]), int(self.rows[0]))

    @property
    def last(self) -> RowId:
        return RowId(int(self.offsets[-1]), int(self.rows[-1]))
