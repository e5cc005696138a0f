"""What each caller of an endpoint asked in the last second, over all guards: a count by guard, and the rest as one sum.

A guard's report takes the place of its earlier one. Where the counts by guard are at their bound, and for guards without a
line (`guards.POOL`), a caller's counts go into one sum that fades within a second: at a steady rate it holds a second of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.caller_table import Floats, Slots
from detectors.guards import GRAIN, MAX_ASKED, POOL, WINDOW_MS, Counted

MAX_WINDOWS = 2_048
"""Counts of callers by guard, over all guards (6 bytes each in a snapshot); each guard may have an equal part, and one at
least while guards are at most so many."""

WINDOW_COLUMNS: dict[str, str] = {
    "window_guard": "<u8",
    "window_size": "<u2",
    "window_row": "<u2",
    "window_count": "<u4",
    "rest_row": "<u2",
    "rest_count": "<u4",
    "rest_age": "<u2",
}
_NOTHING: tuple[Slots, Floats] = (np.zeros(0, np.int64), np.zeros(0))


class CallerWindows:
    """Counts by row of the callers' table."""

    def __init__(self) -> None:
        self._by_guard: dict[int, tuple[Slots, Floats]] = {}
        self._held = 0
        self._total = np.zeros(0)
        self._rest = np.zeros(0)
        self._rest_ms = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Counts by guard."""
        return self._held

    def grow(self, capacity: int) -> None:
        """The table has `capacity` rows now."""
        more = capacity - len(self._total)
        if more > 0:
            self._total, self._rest = (np.append(column, np.zeros(more)) for column in (self._total, self._rest))
            self._rest_ms = np.append(self._rest_ms, np.zeros(more, np.int64))

    def totals(self, rows: Slots, now_ms: int) -> Floats:
        """Counts of the last second of callers."""
        keep = np.maximum(0.0, 1.0 - (now_ms - self._rest_ms[rows]) / WINDOW_MS)
        counts: Floats = self._total[rows] + _grained(self._rest[rows] * keep)
        return counts

    def total(self, row: int, now_ms: int) -> float:
        """The count of the last second of one caller."""
        keep = max(0.0, 1.0 - (now_ms - int(self._rest_ms[row])) / WINDOW_MS)
        return float(self._total[row]) + min(round(float(self._rest[row]) * keep * GRAIN) / GRAIN, float(MAX_ASKED))

    def count(self, counted: Counted, rows: Slots, asked: Floats, interval_ms: int, now_ms: int) -> Floats:
        """Puts a guard's counts of callers (each once) in place of its earlier ones; gives its counts of the last second."""
        held, counts = self._taken(counted.key)
        before = np.zeros(len(self._total))
        before[held] = counts
        window = asked * min(1.0, WINDOW_MS / interval_ms) + before[rows] * max(0.0, 1.0 - interval_ms / WINDOW_MS)
        window = _grained(window)
        most = 0 if counted.key == POOL else MAX_WINDOWS // (len(self._by_guard) + 1)
        kept = np.zeros(len(rows), np.bool_)
        kept[np.argsort(-window, kind="stable")[:most]] = True
        if kept.any():
            self._put(counted.key, rows[kept], window[kept])
            if self._held > MAX_WINDOWS:
                self._thin(now_ms)
        self._add_rest(rows[~kept], window[~kept] * counted.weight, now_ms)
        return window

    def drop(self, guard: int) -> None:
        """A guard is no longer live: what it counted counts no longer."""
        self._taken(guard)

    def forget(self, rows: Slots) -> None:
        """Rows that now belong to nobody."""
        for guard, (held, counts) in list(self._by_guard.items()):
            stays = ~np.isin(held, rows)
            if not stays.all():
                self._by_guard[guard] = (held[stays], counts[stays])
                self._held -= int((~stays).sum())
        self._total[rows] = self._rest[rows] = 0.0

    def _taken(self, guard: int) -> tuple[Slots, Floats]:
        rows, counts = self._by_guard.pop(guard, _NOTHING)
        self._total[rows] -= counts
        self._held -= len(rows)
        return rows, counts

    def _put(self, guard: int, rows: Slots, counts: Floats) -> None:
        self._by_guard[guard] = (rows, counts)
        self._total[rows] += counts
        self._held += len(rows)

    def _thin(self, now_ms: int) -> None:
        """Guards have become many: each keeps half of its part, so that this is done once for many new ones."""
        most = max(1, MAX_WINDOWS // (2 * len(self._by_guard)))
        for guard, (rows, counts) in list(self._by_guard.items()):
            if len(rows) > most:
                self._taken(guard)
                order = np.argsort(-counts, kind="stable")
                self._put(guard, rows[order[:most]], counts[order[:most]])
                self._add_rest(rows[order[most:]], counts[order[most:]], now_ms)

    def _add_rest(self, rows: Slots, counts: Floats, now_ms: int) -> None:
        keep = np.maximum(0.0, 1.0 - (now_ms - self._rest_ms[rows]) / WINDOW_MS)
        self._rest[rows] = _grained(self._rest[rows] * keep + counts)
        self._rest_ms[rows] = now_ms

    def saved(self, occupied: Slots) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """The time that ages count from, and columns; rows are places in `occupied`, the rows in use."""
        place = np.zeros(len(self._total), np.int64)
        place[occupied] = np.arange(len(occupied))
        rest = occupied[self._rest[occupied] > 0]
        base_ms = int(self._rest_ms[rest].max(initial=0))
        rest = rest[base_ms - self._rest_ms[rest] < WINDOW_MS]
        held = list(self._by_guard.values())
        columns = {
            "window_guard": np.array(list(self._by_guard), "<u8"),
            "window_size": np.array([len(rows) for rows, _ in held]),
            "window_row": place[np.concatenate([_NOTHING[0], *(rows for rows, _ in held)])],
            "window_count": np.concatenate([_NOTHING[1], *(counts for _, counts in held)]) * GRAIN,
            "rest_row": place[rest],
            "rest_count": self._rest[rest] * GRAIN,
            "rest_age": base_ms - self._rest_ms[rest],
        }
        return base_ms, {name: columns[name].astype(dtype) for name, dtype in WINDOW_COLUMNS.items()}

    def take_back(self, base_ms: int, columns: Mapping[str, npt.NDArray[Any]], callers: int, capacity: int) -> None:
        """What `saved` gave, of a table whose first `callers` rows are in use; ValueError on anything else."""
        columns = {name: columns[name].astype(np.int64) for name in WINDOW_COLUMNS if name != "window_guard"} | {
            "window_guard": columns["window_guard"]
        }
        rows, rest = columns["window_row"], columns["rest_row"]
        sizes = columns["window_size"]
        if max(rows.max(initial=-1), rest.max(initial=-1)) >= callers or len(rows) > MAX_WINDOWS:
            raise ValueError("counts of callers that the table does not hold")
        if int(sizes.sum()) != len(rows) or len(sizes) != len(columns["window_guard"]):
            raise ValueError("counts of callers do not belong to as many guards")
        self.grow(capacity)
        counts, position = columns["window_count"] / GRAIN, 0
        for guard, size in zip(columns["window_guard"].tolist(), sizes.tolist(), strict=True):
            cut = slice(position, position + size)
            self._put(guard, rows[cut], counts[cut])
            position += size
        self._rest[rest] = columns["rest_count"] / GRAIN
        self._rest_ms[rest] = base_ms - columns["rest_age"]


def _grained(counts: Floats) -> Floats:
    rounded: Floats = np.minimum(np.round(counts * GRAIN) / GRAIN, float(MAX_ASKED))
    return rounded
