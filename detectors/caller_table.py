"""What is known of each caller of an endpoint, as columns: bounded, whatever the number of callers.

A caller is known by a 64-bit hash of its identity and of whether that identity is verified, so that somebody who only
claims an id has a history of its own. History is kept in buckets of 5 s; the newest two are not yet part of any pattern,
so that a rise does not raise the threshold that it is measured against.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.events import CallerAuth

BUCKET_MS = 5_000
MAX_CALLERS = 2_048
"""Callers of one endpoint at most: 60 bytes each in a snapshot, 123 kB in all."""
HALF_LIFE_BUCKETS = 7 * 86_400_000 / BUCKET_MS
"""Peaks fade with a half-life of seven days."""
DAY_MS = 86_400_000
PARTS_OF_DAY = 8
_SMALLEST = 64

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int64]

DTYPES: dict[str, str] = {
    "key": "<u8",
    "verified": "|u1",
    "firing": "|u1",
    "first_s": "<u4",
    "seen_s": "<u4",
    "bucket": "<i4",
    "buckets": "<u2",
    "asked": "<f4",
    "newest": "<f4",
    "pending": "<f4",
    "peak": "<f4",
    "log_mean": "<f4",
    "log_var": "<f4",
    "rate": "<f4",
    "season": "|u1",
}
"""Columns. `newest`, `pending`, `peak`: highest count of a second in this bucket, in the one before, in all earlier ones;
`log_mean`, `log_var`: of the log peaks of buckets that had any; `rate`: usual events/s; `season`: log peaks by part of the day."""


def caller_key(caller: str, auth: CallerAuth) -> int:
    """A caller's 64-bit key. Somebody who only claims to be `caller` is another one."""
    return int.from_bytes(hashlib.blake2b(f"{auth}|{caller}".encode(), digest_size=8).digest(), "little")


def _part_of_day(ms: Any) -> Any:
    return ms % DAY_MS * PARTS_OF_DAY // DAY_MS


class CallerTable:
    """Rows of callers; `slots` are row numbers. Grows by doubling up to `max_callers`, then forgets the least interesting."""

    def __init__(self, max_callers: int = MAX_CALLERS) -> None:
        self.max_callers = max_callers
        self.created = {True: 0, False: 0}
        """Callers ever added, verified and claimed."""
        self._slot: dict[int, int] = {}
        self._free: list[int] = []
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self._grow(min(_SMALLEST, max_callers))

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def capacity(self) -> int:
        return len(self.columns["key"])

    def slot_of(self, key: int) -> int | None:
        return self._slot.get(key)

    @property
    def occupied(self) -> Slots:
        """Rows in use, in order of arrival of their callers."""
        return np.fromiter(self._slot.values(), np.int64, len(self._slot))

    def add(self, key: int, auth: CallerAuth, now_ms: int) -> int | None:
        """A row for a new caller; None if there is none left (`make_room` gives some)."""
        if not self._free:
            if self.capacity >= self.max_callers:
                return None
            self._grow(min(2 * self.capacity, self.max_callers))
        slot = self._free.pop()
        for column in self.columns.values():
            column[slot] = 0
        self.columns["key"][slot] = key
        self.columns["verified"][slot] = auth == "verified"
        self.columns["first_s"][slot] = self.columns["seen_s"][slot] = now_ms // 1000
        self.columns["bucket"][slot] = now_ms // BUCKET_MS
        self._slot[key] = slot
        self.created[auth == "verified"] += 1
        return slot

    def make_room(self, now_ms: int, keep: Slots) -> Slots:
        """Forgets one caller in sixteen: low peaks, long unseen and claimed ones first; none of `keep`, none that fires."""
        rows = self.occupied
        rows = rows[(self.columns["firing"][rows] == 0) & ~np.isin(rows, keep)]
        peak = self._known_peaks(rows)
        idle_hours = self.idle_s(rows, now_ms) / 3600.0
        interest = np.log2(1.0 + peak) - idle_hours + 4.0 * self.columns["verified"][rows]
        gone: Slots = rows[np.argsort(interest, kind="stable")[: max(1, self.max_callers // 16)]]
        for slot in gone:
            del self._slot[int(self.columns["key"][slot])]
            self._free.append(int(slot))
        return gone

    def roll(self, rows: Slots, now_ms: int) -> None:
        """Closes the buckets of `rows` that ended before `now_ms`."""
        columns, bucket = self.columns, now_ms // BUCKET_MS
        rows = rows[columns["bucket"][rows] < bucket]
        if not len(rows):
            return
        passed = (bucket - columns["bucket"][rows]).astype(np.float64)
        peak = columns["peak"][rows] * 0.5 ** (passed / HALF_LIFE_BUCKETS)
        # after two or more buckets the newest one is history as well
        settled = np.where(
            passed >= 2, np.maximum(columns["pending"][rows], columns["newest"][rows]), columns["pending"][rows]
        )
        columns["peak"][rows] = np.maximum(peak, settled)
        columns["pending"][rows] = np.where(passed >= 2, 0.0, columns["newest"][rows])
        self._learn_spread(rows)
        self._learn_rate(rows, passed, now_ms)
        columns["newest"][rows] = 0.0
        columns["asked"][rows] = 0.0
        columns["bucket"][rows] = bucket

    def note(self, rows: Slots, asked: Floats, window: Floats, now_ms: int) -> None:
        """Adds what callers asked (already rolled to `now_ms`) and their counts of the last second."""
        columns = self.columns
        columns["seen_s"][rows] = np.where(asked > 0, now_ms // 1000, columns["seen_s"][rows])
        calm = rows[columns["firing"][rows] == 0]
        keep = columns["firing"][rows] == 0
        columns["asked"][calm] += asked[keep].astype(np.float32)
        columns["newest"][calm] = np.maximum(columns["newest"][calm], window[keep])

    def usual_rates(self, rows: Slots, now_ms: int) -> Floats:
        """Usual events/s; NaN for a caller of less than 10 s."""
        columns = self.columns
        age = self.age_s(rows, now_ms)
        young = columns["asked"][rows] / np.maximum(age, 1.0)
        usual = np.where(columns["rate"][rows] > 0, columns["rate"][rows], young)
        return np.where(age >= 10.0, usual, np.nan)

    def age_s(self, rows: Slots, now_ms: int) -> Floats:
        """Seconds since a caller came."""
        return now_ms // 1000 - self.columns["first_s"][rows].astype(np.float64)

    def idle_s(self, rows: Slots, now_ms: int) -> Floats:
        """Seconds since a caller last asked."""
        return now_ms // 1000 - self.columns["seen_s"][rows].astype(np.float64)

    def season_peaks(self, rows: Slots, now_ms: int) -> Floats:
        """Highest count of a second in this eighth of the day and the two beside it, never above the faded peak."""
        part = _part_of_day(now_ms)
        near = [(part - 1) % PARTS_OF_DAY, part, (part + 1) % PARTS_OF_DAY]
        season = np.exp2(self.columns["season"][rows][:, near].max(axis=1) / 8.0) - 1.0
        faded: Floats = np.minimum(season, self.columns["peak"][rows])
        return faded

    def _known_peaks(self, rows: Slots) -> Floats:
        columns = self.columns
        known: Floats = np.maximum(np.maximum(columns["peak"][rows], columns["pending"][rows]), columns["newest"][rows])
        return known.astype(np.float64)

    def _learn_spread(self, rows: Slots) -> None:
        """Mean and variance of log bucket peaks (Welford, then exponentially weighted over 1,000 buckets)."""
        columns = self.columns
        rows = rows[columns["newest"][rows] > 0]
        columns["buckets"][rows] = np.minimum(columns["buckets"][rows] + 1, 1_000)
        weight = 1.0 / columns["buckets"][rows]
        value = np.log(np.maximum(columns["newest"][rows], 1.0))
        step = value - columns["log_mean"][rows]
        columns["log_mean"][rows] += weight * step
        columns["log_var"][rows] = (1.0 - weight) * (columns["log_var"][rows] + weight * step * step)
        part = _part_of_day(columns["bucket"][rows].astype(np.int64) * BUCKET_MS)
        cell = np.minimum(np.ceil(8.0 * np.log2(1.0 + columns["newest"][rows])), 255).astype(np.uint8)
        columns["season"][rows, part] = np.maximum(columns["season"][rows, part], cell)

    def _learn_rate(self, rows: Slots, passed: Floats, now_ms: int) -> None:
        """Mean events/s since the caller came, then with a half-life of seven days; idle time counts."""
        columns = self.columns
        age_s = np.maximum(self.age_s(rows, now_ms), 1.0)
        seconds = np.minimum(passed * BUCKET_MS / 1000.0, age_s)
        share = np.minimum(1.0, seconds / np.minimum(age_s, HALF_LIFE_BUCKETS * BUCKET_MS / 1000.0))
        columns["rate"][rows] += share * (columns["asked"][rows] / seconds - columns["rate"][rows])

    def _grow(self, capacity: int) -> None:
        old = 0 if not self.columns else self.capacity
        for name, dtype in DTYPES.items():
            column = np.zeros((capacity, PARTS_OF_DAY) if name == "season" else capacity, dtype)
            if old:
                column[:old] = self.columns[name]
            self.columns[name] = column
        self._free += range(capacity - 1, old - 1, -1)

    def saved(self) -> dict[str, npt.NDArray[Any]]:
        """The rows in use, in order of arrival."""
        rows = self.occupied
        return {name: column[rows] for name, column in self.columns.items()}

    def take_back(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """What `saved` gave; ValueError if it has more rows than fit, or rows of unequal number."""
        count = len(columns["key"])
        shapes = {columns[name].shape for name in DTYPES if name != "season"}
        if count > self.max_callers or shapes != {(count,)} or columns["season"].shape != (count, PARTS_OF_DAY):
            raise ValueError(f"{count} callers do not fit a table of {self.max_callers}")
        while self.capacity < count:
            self._grow(min(2 * self.capacity, self.max_callers))
        for name, column in columns.items():
            self.columns[name][:count] = column
        self._slot = {int(key): slot for slot, key in enumerate(columns["key"])}
        if len(self._slot) != count:
            raise ValueError("a caller is saved twice")
        self._free = list(range(self.capacity - 1, count - 1, -1))
