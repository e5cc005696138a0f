"""Rows that wait for their counterpart, first in, first out by key: Arrow chunks, and a dictionary from key to row.

Held bytes are counted: the chunks' buffers, and what the dictionary costs. A chunk that has lost half of its rows is
written anew, so that one forgotten row holds no more than itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Longs
from streams.ingest.texts import texts

KEY_BYTES = 258
"""A key as text and its entry in the dictionary, measured, and its place in the list. Counted until its row is stored no more."""
CHUNK_BYTES = 6_000
"""Buffers, objects and alignment of a chunk, however few its rows."""


class Found(NamedTuple):
    """Rows taken out of one chunk, and for each its position among the keys that were asked for."""

    batch: pa.RecordBatch
    positions: Longs


@dataclass(slots=True, eq=False)
class _Chunk:
    """Rows of consecutive numbers from `first` to `end`, some gone. keys, number, alive, ms [n]: of the rows still stored."""

    first: int
    end: int
    batch: pa.RecordBatch
    keys: Sequence[str]
    number: Longs
    alive: npt.NDArray[np.bool_]
    ms: Longs
    left: int
    size: int

    def weigh(self) -> int:
        return int(self.batch.get_total_buffer_size()) + CHUNK_BYTES + KEY_BYTES * len(self.keys)


class Waiting:
    """Rows of one kind. A key may wait many times: the oldest is found first.

    An endpoint of None fits any: a response need not name it. `mark`: a boolean column that becomes true where a row's key
    was waiting already, for the same endpoint.
    """

    def __init__(self, mark: str | None = None) -> None:
        self._mark = mark
        self.bytes = 0
        self.rows = 0
        self._first: dict[str, int] = {}
        self._more: dict[str, list[tuple[int, str | None]]] = {}  # keys that wait more than once, oldest first
        self._chunks: list[_Chunk] = []
        self._ends = np.empty(0, dtype=np.int64)
        self._next = 0

    # -- in

    def hold(self, batch: pa.RecordBatch, keys: Sequence[str], endpoints: Sequence[str | None], ms: Longs) -> None:
        """Keeps the rows [n]. ms [n]: since when each waits."""
        n = len(keys)
        first, self._next = self._next, self._next + n
        numbers = range(first, first + n)
        chunk = _Chunk(first, first + n, batch, keys, np.arange(first, first + n), np.ones(n, dtype=np.bool_), ms, n, 0)
        self._chunks.append(chunk)
        self._ends = np.append(self._ends, first + n)
        self.rows += n
        self._weigh(chunk)
        reused = np.zeros(n, dtype=np.bool_)
        before = len(self._first)
        there = [] if self._more else list(map(self._first.setdefault, keys, numbers))
        if self._more:
            for number, key in zip(numbers, keys, strict=True):
                if key in self._more or self._first.setdefault(key, number) != number:
                    reused[number - first] = self._again(key, number, endpoints[number - first])
        elif len(self._first) - before != n:
            for at in np.flatnonzero(np.array(there) != chunk.number).tolist():
                reused[at] = self._again(keys[at], first + at, endpoints[at])
        if self._mark is not None and reused.any():
            at = batch.schema.get_field_index(self._mark)
            chunk.batch = batch.set_column(at, self._mark, pa.array(reused))

    def _again(self, key: str, number: int, endpoint: str | None) -> bool:
        """Notes one more row of a key that waits; whether one of the same endpoint does."""
        entries = self._more.get(key)
        if entries is None:
            before = self._first.pop(key)
            entries = self._more[key] = [(before, self._endpoint(before))]
        same = any(other == endpoint for _, other in entries)
        entries.append((number, endpoint))
        return same

    def _endpoint(self, number: int) -> str | None:
        chunk = self._chunks[int(np.searchsorted(self._ends, number, side="right"))]
        at = int(np.searchsorted(chunk.number, number))
        found: str | None = chunk.batch.column("endpoint")[at].as_py()
        return found

    # -- out

    def take(self, keys: Sequence[str], endpoints: Sequence[str | None]) -> list[Found]:
        """Takes out the oldest row of each key [n] whose endpoint fits; keys that wait for nothing are in no `Found`."""
        if not self.rows:
            return []
        if self._more:
            numbers = [
                self._pick(key, endpoint) if key in self._more else self._first.pop(key, -1)
                for key, endpoint in zip(keys, endpoints, strict=True)
            ]
        else:
            numbers = list(map(self._first.pop, keys, repeat(-1)))
        found, unfit = self._collect(numbers, keys, endpoints)
        if (
            unfit
        ):  # an id that several endpoints share: each of its keys is looked at again, the way that knows endpoints
            matched = {at for one in found for at in one.positions.tolist()}
            again = [
                self._pick(key, endpoint) if key in unfit and at not in matched and key in self._more else -1
                for at, (key, endpoint) in enumerate(zip(keys, endpoints, strict=True))
            ]
            found += self._collect(again, keys, endpoints)[0]
        self._tidy()
        return found

    def _pick(self, key: str, endpoint: str | None) -> int:
        """The oldest waiting row of a key that waits more than once; -1 if none fits."""
        entries = self._more[key]
        for at, (number, other) in enumerate(entries):
            if endpoint is None or other is None or other == endpoint:
                del entries[at]
                self._settle(key)
                return number
        return -1

    def _settle(self, key: str) -> None:
        """A key of one row or none needs no list."""
        entries = self._more[key]
        if len(entries) < 2:
            del self._more[key]
            for number, _ in entries:
                self._first[key] = number

    def _collect(
        self, numbers: Sequence[int], keys: Sequence[str], endpoints: Sequence[str | None]
    ) -> tuple[list[Found], set[str]]:
        """The rows of these numbers (-1: none), chunk by chunk; and the keys of those whose endpoint does not fit, which
        wait on."""
        wanted = np.array(numbers, dtype=np.int64)
        positions = np.flatnonzero(wanted >= 0)
        number = wanted[positions]
        where = np.searchsorted(self._ends, number, side="right")
        alike = endpoints.count(endpoints[0]) == len(endpoints)
        found: list[Found] = []
        unfit: set[str] = set()
        for at in np.unique(where).tolist():
            chunk = self._chunks[at]
            mine = np.flatnonzero(where == at)
            rows, place = np.searchsorted(chunk.number, number[mine]), positions[mine]
            part = chunk.batch.take(pa.array(rows))
            fits = _fits(
                part.column("endpoint"), endpoints[:1] if alike else [endpoints[one] for one in place.tolist()]
            )
            for wrong in np.flatnonzero(~fits).tolist():
                key = keys[int(place[wrong])]
                unfit.add(key)
                self._put_back(key, int(number[mine[wrong]]))
            if not fits.all():
                part, rows, place = part.filter(pa.array(fits)), rows[fits], place[fits]
            self._remove(chunk, rows)
            if len(place):
                found.append(Found(part, place))
        return found, unfit

    def _put_back(self, key: str, number: int) -> None:
        """Into the list even if it is the only one: whoever asks for its key then looks at endpoints."""
        entries = self._more.setdefault(key, [])
        if key in self._first:
            entries.append((self._first[key], self._endpoint(self._first.pop(key))))
        entries.append((number, self._endpoint(number)))
        entries.sort(key=lambda entry: entry[0])

    def expire(self, before_ms: int, most_bytes: int) -> list[pa.RecordBatch]:
        """Takes out what has waited since before `before_ms`, and the oldest while more than `most_bytes` are held."""
        found: list[pa.RecordBatch] = []
        for chunk in list(self._chunks):
            gone = chunk.alive.copy()
            if self.bytes <= most_bytes:
                gone &= chunk.ms <= before_ms
            if not gone.any():
                if chunk.left and chunk.ms[chunk.alive].min() > before_ms:
                    break
                continue
            rows = np.flatnonzero(gone)
            part = chunk.batch.take(pa.array(rows))
            for row, number in zip(rows.tolist(), chunk.number[rows].tolist(), strict=True):
                self._forget(chunk.keys[row], number)
            self._remove(chunk, rows)
            found.append(part)
        self._tidy()
        return found

    def _forget(self, key: str, number: int) -> None:
        entries = self._more.get(key)
        if entries is None:
            self._first.pop(key, None)
            return
        entries[:] = [entry for entry in entries if entry[0] != number]
        self._settle(key)

    # -- chunks

    @property
    def oldest_place(self) -> int | None:
        """The place of the oldest row that waits; None if nothing does."""
        for chunk in self._chunks:
            if chunk.left:
                return int(chunk.batch.column("place")[int(np.argmax(chunk.alive))].as_py())
        return None

    def _remove(self, chunk: _Chunk, rows: Any) -> None:
        chunk.alive[rows] = False
        chunk.left -= len(rows)
        self.rows -= len(rows)
        if 0 < chunk.left * 2 <= len(chunk.alive):
            kept = np.flatnonzero(chunk.alive)
            chunk.batch = chunk.batch.take(pa.array(kept))
            chunk.keys = [chunk.keys[row] for row in kept.tolist()]
            chunk.number, chunk.ms = chunk.number[kept], chunk.ms[kept]
            chunk.alive = np.ones(len(kept), dtype=np.bool_)
        self._weigh(chunk)

    def _weigh(self, chunk: _Chunk) -> None:
        size = chunk.weigh() if chunk.left else 0
        self.bytes += size - chunk.size
        chunk.size = size

    def _tidy(self) -> None:
        if not all(chunk.left for chunk in self._chunks):
            self._chunks = [chunk for chunk in self._chunks if chunk.left]
            self._ends = np.array([chunk.end for chunk in self._chunks], dtype=np.int64)


def _fits(held: pa.Array, asked: Sequence[str | None]) -> npt.NDArray[np.bool_]:
    """Which endpoints [n] agree with those asked for ([n], or one for all), or are not named on one side."""
    if asked.count(None) == len(asked):
        return np.ones(len(held), dtype=np.bool_)
    other = texts(asked)
    same: npt.NDArray[np.bool_] = (
        pc.equal(held, other if len(asked) > 1 else other[0]).fill_null(True).to_numpy(zero_copy_only=False)
    )
    return same
