"""Cutting columns into blocks: rules on the log alone, so that any cut of the log into runs gives the same blocks.

A block closes at its 256th row; at a tick, with at least 32 rows after 250 ms, else after 10 s (log's time since its
first row, or since the log's time went back behind that); at an activation of its endpoint@version; and, while a partition holds more than 65,536 open rows, the block
with the oldest first row closes. A version without a profile shares `@other` while 8 blocks of its endpoint are open.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from schemas.blocks import (
    BLOCK_ROWS,
    LONG_WAIT_MS,
    MAX_OPEN_ROWS,
    MIN_TICK_ROWS,
    SHORT_WAIT_MS,
    Block,
    ClosedBy,
    Codes,
    Floats,
    RowId,
)
from streams.decode.columns import Columns, Group
from streams.decode.layout import Layout

MAX_LIVE_VERSIONS = 8
"""Open blocks of one endpoint, those of versions with a profile always included; others share `OTHER`."""
OTHER = "@other"

HashOf = Callable[[str, str], str]
"""The hash of the profile that is active for (endpoint, version), "" without one."""

_ROW = np.dtype(
    [
        ("offset", np.int64),
        ("row", np.int32),
        ("ts", np.int64),
        ("broker_ts", np.int64),
        ("flags", np.uint32),
        ("latency_ms", np.float64),
        ("status", np.uint8),
        ("served_by", np.uint8),
        ("value", np.float64),
        ("label", np.int32),
        ("confidence", np.float64),
        ("weight", np.float64),
        ("verified", np.bool_),
    ]
)
_FIELDS = tuple(name for name in _ROW.names or ())
_Table = npt.NDArray[np.void]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(slots=True, eq=False)
class _Open:
    """The open block of one part: rows in pieces, as bytes of `_ROW` and of float64: copied, joined and freed cheaply."""

    endpoint: str
    version: str
    layout: Layout | None
    profile_hash: str
    first: RowId
    since_ms: int
    serial: int
    rows: int = 0
    tables: list[bytes] = field(default_factory=list)
    features: list[bytes] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)

    def take(self, table: bytes, features: Floats, callers: list[str]) -> None:
        """Copies: a block that stays open must not hold a whole run's arrays."""
        self.tables.append(table)
        self.features.append(features.tobytes())
        self.callers += callers
        self.rows += len(callers)


class BlockBuilder:
    """The open blocks of one partition.

    `skip_through`: endpoint@version to the last row that its detectors have applied; rows up to it are passed over, so
    that a replay's blocks begin where the saved state ends. Blocks come out in the order of the rows that close them;
    blocks that one tick closes, in the order of their first rows.
    """

    def __init__(
        self, topic: str, partition: int, hash_of: HashOf, skip_through: Mapping[str, RowId] | None = None
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._hash_of = hash_of
        self._skip = dict(skip_through or {})
        self._open: dict[tuple[str, str], _Open] = {}
        self._of_endpoint: dict[str, set[str]] = {}
        self._oldest: list[tuple[RowId, int, tuple[str, str]]] = []
        self._serial = 0
        self.open_rows = 0

    @property
    def open_blocks(self) -> int:
        return len(self._open)

    def oldest_open(self) -> int | None:
        """The offset to read again from after a restart: that of the oldest open row; None if no row is open."""
        part = self._oldest_part()
        return None if part is None else self._open[part].first.offset

    def add(self, columns: Columns) -> list[Block]:
        """Takes rows that follow all before; returns the blocks they closed."""
        groups = list(columns.groups)
        if self._skip:
            groups = [left for group in groups if (left := self._unskipped(group, columns)) is not None]
        total = sum(len(group.rows) for group in groups)
        if self.open_rows + total <= MAX_OPEN_ROWS:
            return self._append(columns, self._share_other(groups, columns))
        # Near the bound, rows go in by as many as cannot pass it; the row that passes it goes in alone.
        closed: list[Block] = []
        rows = np.sort(np.concatenate([group.rows for group in groups]))
        at = 0
        while at < len(rows):
            stop = min(at + max(1, MAX_OPEN_ROWS - self.open_rows), len(rows))
            first, last = int(rows[at]), int(rows[stop - 1])
            closed += self._append(columns, self._share_other(_between(groups, first, last), columns))
            if self.open_rows > MAX_OPEN_ROWS and (part := self._oldest_part()) is not None:
                row = RowId(int(columns.offset[last]), int(columns.row[last]))
                closed.append(self._close(part, "overflow", row, int(columns.broker_ts[last])))
            at = stop
        return closed

    def tick(self, offset: int, broker_ms: int) -> Iterator[Block]:
        """The log's clock says `broker_ms` at the record at `offset`: the blocks whose time has come, one by one.

        All are to be taken before anything else is added: a tick may close a thousand, and each takes its time.
        """
        for block in self._open.values():
            block.since_ms = min(
                block.since_ms, broker_ms
            )  # a clock that was set back: none waits for an hour that passed
        due = [
            (block.first, part)
            for part, block in self._open.items()
            if broker_ms - block.since_ms >= (SHORT_WAIT_MS if block.rows >= MIN_TICK_ROWS else LONG_WAIT_MS)
        ]
        for _, part in sorted(due):
            yield self._close(part, "tick", RowId(offset, 0), broker_ms)

    def activate(self, endpoint: str, version: str, offset: int, broker_ms: int) -> list[Block]:
        """A profile is active from the record at `offset` on: rows before it are judged by what was active then."""
        part = (endpoint, version)
        return [self._close(part, "activation", RowId(offset, 0), broker_ms)] if part in self._open else []

    def _unskipped(self, group: Group, columns: Columns) -> Group | None:
        """The group without rows that are applied already; None if nothing is left."""
        if not self._skip:
            return group
        through = self._skip.get(f"{group.endpoint}@{group.version}")
        if through is None:
            return group
        offset, row = columns.offset[group.rows], columns.row[group.rows]
        new = (offset > through.offset) | ((offset == through.offset) & (row > through.row))
        if new.all():
            return group
        kept = group._replace(rows=group.rows[new], features=group.features[new])
        return kept if len(kept.rows) else None

    def _share_other(self, groups: Sequence[Group], columns: Columns) -> list[Group]:
        """Groups with rows of too many versions moved to `OTHER`, by the blocks that are open at each row."""
        crowded = any(len(self._of_endpoint.get(group.endpoint, ())) >= MAX_LIVE_VERSIONS for group in groups)
        if not crowded and len({group.endpoint for group in groups}) == len(groups):
            return list(groups)
        by_endpoint: dict[str, list[Group]] = {}
        for group in groups:
            by_endpoint.setdefault(group.endpoint, []).append(group)
        shared: list[Group] = []
        for endpoint, own in by_endpoint.items():
            live = (self._of_endpoint.get(endpoint, set()) | {group.version for group in own}) - {OTHER}
            shared += own if len(live) <= MAX_LIVE_VERSIONS else self._split(endpoint, own, columns)
        return shared

    def _split(self, endpoint: str, groups: Sequence[Group], columns: Columns) -> list[Group]:
        """Row by row, because which blocks are open changes where one fills up: seldom needed, and then short."""
        rows_of = {version: self._open[endpoint, version].rows for version in self._of_endpoint.get(endpoint, ())}
        rows_of.pop(OTHER, None)
        number = np.concatenate([np.full(len(group.rows), at) for at, group in enumerate(groups)])
        rows = np.concatenate([group.rows for group in groups])
        order = np.argsort(rows)
        to_other = np.zeros(len(rows), dtype=np.bool_)
        for at in order.tolist():
            group = groups[number[at]]
            version = group.version
            if version == OTHER or (
                group.layout is None and version not in rows_of and len(rows_of) >= MAX_LIVE_VERSIONS
            ):
                to_other[at] = True
                continue
            rows_of[version] = rows_of.get(version, 0) + 1
            if rows_of[version] == BLOCK_ROWS:
                del rows_of[version]
        split = []
        for at, group in enumerate(groups):
            kept = ~to_other[number == at]
            if kept.any():
                split.append(group._replace(rows=group.rows[kept], features=group.features[kept]))
        if to_other.any():
            moved = np.sort(rows[to_other])
            other = self._unskipped(Group(endpoint, OTHER, None, moved, np.empty((len(moved), 0))), columns)
            split += [other] if other is not None else []
        return split

    def _append(self, columns: Columns, groups: Sequence[Group]) -> list[Block]:
        """Adds rows that together cannot pass the bound, or one row that does."""
        if not groups:
            return []
        order = np.concatenate([group.rows for group in groups])
        table = np.empty(len(order), dtype=_ROW)
        for name in _FIELDS:
            table[name] = getattr(columns, name)[order]
        names = columns.callers
        callers = [names[code] for code in columns.caller[order].tolist()]
        data, size = table.tobytes(), _ROW.itemsize
        closed: list[tuple[int, Block]] = []
        start = 0
        for group in groups:
            stop = start + len(group.rows)
            block = self._open.get((group.endpoint, group.version))
            if block is not None and block.rows + stop - start < BLOCK_ROWS and block.layout is group.layout:
                # most rows of many endpoints go here; all other cases are `_extend`
                block.take(data[start * size : stop * size], group.features, callers[start:stop])
                self.open_rows += stop - start
            else:
                for at, full in self._extend(group, table[start:stop], callers[start:stop]):
                    closed.append((int(order[start + at]), full))
            start = stop
        closed.sort(key=lambda item: item[0])
        return [block for _, block in closed]

    def _extend(self, group: Group, table: _Table, callers: list[str]) -> list[tuple[int, Block]]:
        """Adds one group's rows; returns the blocks they closed, each with the number of the row that closed it."""
        part = (group.endpoint, group.version)
        layout, features = (group.layout, group.features) if group.version != OTHER else (None, group.features[:, :0])
        closed: list[tuple[int, Block]] = []
        at = 0
        while at < len(callers):
            block = self._open.get(part)
            if block is not None and not _same(block.layout, layout):
                closed.append((at, self._close(part, "activation", *_point(table[at]))))
                block = None
            if block is None:
                block = self._begin(part, layout, table[at])
            stop = min(len(callers), at + BLOCK_ROWS - block.rows)
            block.take(table[at:stop].tobytes(), features[at:stop], callers[at:stop])
            self.open_rows += stop - at
            at = stop
            if block.rows == BLOCK_ROWS:
                closed.append((at - 1, self._close(part, "rows", *_point(table[at - 1]))))
        return closed

    def _begin(self, part: tuple[str, str], layout: Layout | None, row: np.void) -> _Open:
        self._serial += 1
        first, ms = _point(row)
        block = _Open(*part, layout, self._hash_of(*part), first, ms, self._serial)
        self._open[part] = block
        self._of_endpoint.setdefault(part[0], set()).add(part[1])
        if len(self._oldest) > 64 + 2 * len(self._open):
            self._oldest = [(open_.first, open_.serial, name) for name, open_ in self._open.items()]
            heapq.heapify(self._oldest)
        else:
            heapq.heappush(self._oldest, (first, self._serial, part))
        return block

    def _oldest_part(self) -> tuple[str, str] | None:
        while self._oldest:
            _, serial, part = self._oldest[0]
            block = self._open.get(part)
            if block is not None and block.serial == serial:
                return part
            heapq.heappop(self._oldest)
        return None

    def _close(self, part: tuple[str, str], closed_by: ClosedBy, at: RowId, ms: int) -> Block:
        block = self._open.pop(part)
        self.open_rows -= block.rows
        versions = self._of_endpoint[part[0]]
        versions.discard(part[1])
        if not versions:
            del self._of_endpoint[part[0]]
        return self._block(block, closed_by, at, ms)

    def _block(self, block: _Open, closed_by: ClosedBy, at: RowId, ms: int) -> Block:
        layout = block.layout
        table = np.frombuffer(b"".join(block.tables), dtype=_ROW)
        width = 0 if layout is None else layout.width
        features = np.frombuffer(b"".join(block.features), dtype=np.float64).reshape(len(table), width)
        numeric = features if layout is None else features[:, layout.numeric]
        categorical = features if layout is None else features[:, layout.categorical]
        codes: dict[str, int] = {}
        caller = np.array([codes.setdefault(name, len(codes)) for name in block.callers], dtype=np.int32)
        caller, callers, verified = _identities(caller, tuple(codes), table["verified"])
        return Block(
            endpoint=block.endpoint,
            version=block.version,
            profile_hash=block.profile_hash,
            topic=self._topic,
            partition=self._partition,
            offsets=_frozen(table["offset"]),
            rows=_frozen(table["row"]),
            ts=_frozen(table["ts"]),
            broker_ts=_frozen(table["broker_ts"]),
            numeric=_frozen(numeric),
            categorical=_frozen(categorical.astype(np.int32)),
            caller=_frozen(caller),
            callers=callers,
            verified=_frozen(verified),
            flags=_frozen(table["flags"]),
            latency_ms=_frozen(table["latency_ms"]),
            status=_frozen(table["status"]),
            served_by=_frozen(table["served_by"]),
            value=_frozen(table["value"]),
            label=_frozen(table["label"]),
            confidence=_frozen(table["confidence"]),
            weight=_frozen(table["weight"]),
            closed_by=closed_by,
            closed_at=at,
            closed_ms=ms,
        )


def _identities(
    caller: Codes, names: tuple[str, ...], verified: npt.NDArray[np.bool_]
) -> tuple[Codes, tuple[str, ...], npt.NDArray[np.bool_]]:
    """Callers by name and by whether they were authenticated: who only claims a name is another caller than its owner,
    and can neither frame nor shield it. Codes [n] of the `names`, and which rows [n] are verified."""
    if verified.all():
        return caller, names, np.ones(len(names), dtype=np.bool_)
    claims = ~verified
    claimed, owned = np.zeros((2, len(names)), dtype=np.bool_)
    claimed[caller[claims]] = True
    owned[caller[verified]] = True
    both = np.flatnonzero(claimed & owned)
    if len(both):
        other = np.arange(len(names), dtype=np.int32)
        other[both] = len(names) + np.arange(len(both), dtype=np.int32)
        caller = np.where(claims, other[caller], caller).astype(np.int32)
    return caller, (*names, *(names[k] for k in both.tolist())), np.concatenate([owned, np.zeros(len(both), np.bool_)])


def _frozen(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    own = np.ascontiguousarray(array)
    own.flags.writeable = False
    return own


def _point(row: np.void) -> tuple[RowId, int]:
    return RowId(int(row["offset"]), int(row["row"])), int(row["broker_ts"])


def _same(one: Layout | None, other: Layout | None) -> bool:
    """Whether rows of both can lie in one block; a lookup may change without an activation in the log."""
    return one is other or (one is not None and other is not None and one.schema == other.schema)


def _between(groups: Sequence[Group], first: int, last: int) -> list[Group]:
    """The groups' rows from `first` to `last`, both included."""
    found = []
    for group in groups:
        a, b = np.searchsorted(group.rows, (first, last + 1)).tolist()
        if a < b:
            found.append(group._replace(rows=group.rows[a:b], features=group.features[a:b]))
    return found
