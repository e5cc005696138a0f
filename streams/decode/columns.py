"""Columns of a run's rows, all endpoints together in log order, and features by endpoint@version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.blocks import Bytes, Codes, FeatureSchema, Flags, Floats, Longs
from schemas.deadletter import DeadLetter
from streams.decode.layout import Layout, codes_of

SchemaLookup = Callable[[str, str], FeatureSchema | None]
"""The schema of the profile that is active for (endpoint, version), None without one."""
Headers = Sequence[tuple[str, bytes | None]]


class Group(NamedTuple):
    """Rows of one endpoint@version. `rows` index the columns, ascending; `features` [len(rows), layout.width].

    `layout` is None and `features` has no columns where no profile is active.
    """

    endpoint: str
    version: str
    layout: Layout | None
    rows: npt.NDArray[np.intp]
    features: Floats

    @property
    def schema(self) -> FeatureSchema | None:
        return None if self.layout is None else self.layout.schema

    @property
    def numeric(self) -> Floats:
        """[n, numeric features] in the schema's order, NaN = missing."""
        return self.features if self.layout is None else self.features[:, self.layout.numeric]

    @property
    def categorical(self) -> Codes:
        """[n, categorical features] codes, `MISSING`, `UNSEEN`."""
        return self.features.astype(np.int32) if self.layout is None else codes_of(self.features, self.layout)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """n scored rows in log order: (offset, row) ascending.

    endpoint, version, caller [n] int32 index `endpoints`, `versions`, `callers` (codes hold for these columns alone).
    verified [n]: the caller was authenticated. ts [n] event time, clamped to broker_ts [n] (ms). flags: RowFlag bits.
    latency_ms [n], NaN = unknown. status, served_by [n]: STATUS_CODES, ROUTE_CODES. Of what was answered (`outcomes`): value
    [n] the number, NaN = none; label [n] int32 codes by the labels of the row's group, `MISSING`, `UNSEEN`; confidence [n] the
    largest probability, NaN = none. weight [n] > 0. Each row is in exactly one of `groups`.
    """

    offset: Longs
    row: Codes
    endpoint: Codes
    endpoints: tuple[str, ...]
    version: Codes
    versions: tuple[str, ...]
    caller: Codes
    callers: tuple[str, ...]
    verified: npt.NDArray[np.bool_]
    ts: Longs
    broker_ts: Longs
    flags: Flags
    latency_ms: Floats
    status: Bytes
    served_by: Bytes
    value: Floats
    label: Codes
    confidence: Floats
    weight: Floats
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Control:
    """A record of the log that is no event: a tick or a profile activation, as it came (signature not verified)."""

    index: int
    kind: str
    offset: int
    broker_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class DeadRows(NamedTuple):
    """Rows that were refused [n]: each is one outcome, whether it has a letter of its own or not."""

    offset: Longs
    row: Codes
    endpoint: Sequence[str]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of a run, and `control` if it comes after them in the log before any other row.

    What was refused since the last control is said with the last rows before the next one (or the run's end), all
    together. `dead_letters` may be fewer than `dead_rows`: a letter may stand for the rest of a record. `evidence`: `columns`
    and, beside them, the refused rows that show whose they are (`MALFORMED`); what blocks are cut from.
    """

    columns: Columns
    dead_letters: tuple[DeadLetter, ...]
    control: Control | None
    dead_rows: DeadRows
    evidence: Columns
