"""Tables as numpy columns of one partition each: what judges compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Place = tuple[str, int]
"""Topic and partition."""
Span = tuple[int, int]
"""Offsets [first, next)."""
Columns = dict[str, npt.NDArray[Any]]

ROW_BITS = 20
"""A record has fewer rows than 2^20, and a window fewer offsets than 2^43."""
NO_COLUMNS: Columns = {}


def numbers(table: pa.Table, name: str, absent: int = -1) -> Longs:
    """A column of whole numbers or booleans as int64 [n], null as `absent`."""
    column = table[name].cast(pa.int64())
    filled = pc.fill_null(column, absent) if column.null_count else column
    found: Longs = np.asarray(filled.to_numpy(), dtype=np.int64)
    return found


def words(table: pa.Table, name: str) -> list[Any]:
    """A column of text, None where it is null."""
    return table[name].to_pylist()  # type: ignore[no-any-return]


def only(rows: pa.Table, /, **wanted: Any) -> pa.Table:
    """Rows whose columns have these values."""
    for name, value in wanted.items():
        rows = rows.filter(pc.equal(rows[name], pa.scalar(value)))
    return rows


def by_place(table: pa.Table, names: Sequence[str], order: Sequence[str] = ("offset",)) -> dict[Place, Columns]:
    """Columns of whole numbers of each partition of the table's topics, sorted (stable) by `order`."""
    found: dict[Place, Columns] = {}
    for topic in pc.unique(table["topic"]).to_pylist():
        of_topic = only(table, topic=topic)
        columns = {name: numbers(of_topic, name) for name in dict.fromkeys((*names, *order))}
        partition = numbers(of_topic, "partition")
        if (partition[1:] < partition[:-1]).any():
            ranks = np.argsort(partition, kind="stable")
            partition, columns = partition[ranks], {name: column[ranks] for name, column in columns.items()}
        there, starts = np.unique(partition, return_index=True)
        for number, first, end in zip(there, starts, [*starts[1:], len(partition)], strict=True):
            rows = {name: column[first:end] for name, column in columns.items()}
            found[str(topic), int(number)] = _sorted(rows, order)
    return found


def _sorted(rows: Columns, order: Sequence[str]) -> Columns:
    """Rows in order; as they are where they are, which most logs are."""
    tied = np.ones(max(0, len(rows[order[0]]) - 1), dtype=np.bool_)
    for name in order:
        step = np.diff(rows[name])
        if (tied & (step < 0)).any():
            ranks = np.lexsort(tuple(rows[each] for each in reversed(order)))
            return {each: column[ranks] for each, column in rows.items()}
        tied &= step == 0
    return rows


def keys_of(columns: Columns, base: int) -> Longs:
    """(offset, row) of each event of a partition as one number, in log order. `base`: the smallest offset."""
    keys: Longs = ((columns["offset"] - base) << ROW_BITS) | columns["row"]
    return keys


def absent(keys: Longs, among: Longs) -> Longs:
    """The keys that are not among others; both in order. (numpy's setdiff1d hashes: ten times as slow on these.)"""
    if not len(among):
        return keys
    rank = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    missing: Longs = keys[among[rank] != keys]
    return missing


def key_place(key: int, base: int) -> tuple[int, int]:
    """Offset and row of a key."""
    return (int(key) >> ROW_BITS) + base, int(key) & ((1 << ROW_BITS) - 1)


def within(columns: Columns, first: int, end: int) -> Columns:
    """Rows of offsets [first, end)."""
    inside = (columns["offset"] >= first) & (columns["offset"] < end)
    return columns if inside.all() else {name: column[inside] for name, column in columns.items()}


def without(spans: Iterable[Span], gone: Iterable[Span]) -> list[Span]:
    """What is left of spans; each of those that are taken away may cut one in two."""
    left = [(begin, end) for begin, end in spans if begin < end]
    for first, after in gone:
        pieces = [piece for begin, end in left for piece in ((begin, min(end, first)), (max(begin, after), end))]
        left = [(begin, end) for begin, end in pieces if begin < end]
    return left


def empty(*names: str) -> Columns:
    return {name: np.zeros(0, dtype=np.int64) for name in names}


def last_commits(table: pa.Table, group: str) -> dict[Place, int]:
    """The committed offset that was seen last of each partition of a group."""
    of_group = by_place(only(table, group=group), ("committed",), ("at_ms",))
    return {place: int(columns["committed"][-1]) for place, columns in of_group.items()}
