"""The last report of each live guard of an endpoint: what several serving processes do is judged as one sum.

A guard that has not reported for `GUARD_LIVE_MS` of log time no longer counts. Reports that a producer's retry wrote twice
are told by `(boot_id, seq)` and count once. No guard ever makes another's line give way: those beyond the bound are counted
together (the pool). Signed and unsigned reports are never handed to the same `LiveGuards`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.base import LogPoint, ReportAt
from schemas.events import Report, RouteCounts

GUARD_LIVE_MS = 3_000
MIN_INTERVAL_MS = 50
MAX_INTERVAL_MS = 5_000
WINDOW_MS = 1_000
"""Rates are counts of the last second: what was asked in any shorter time is a lower bound of it."""
MAX_GUARDS = 1_024
"""Guards of one endpoint that have a line each (47 bytes in a snapshot, and the name where names are kept); further ones
are pooled."""
MAX_UNSIGNED_GUARDS = 128
"""The same of an endpoint that nobody signs reports for: whoever invents guards there pools those of others, no more."""
MAX_BESIDE_GUARDS = 32
"""The same of unsigned reports beside signed ones, by which nothing is decided."""
POOL = 0
"""Stands for the key of a guard that has no line of its own."""
MAX_ASKED = 2**24 - 1
"""Asks of a guard, or of a caller at a guard, in one second; more are taken as so many."""
GRAIN = 256
"""Window counts are multiples of 1/256, so that sums of them are exact in any order."""
_LARGEST = 2**62

COUNTING_COLUMNS: dict[str, str] = {
    "guard_key": "<u8",
    "guard_boot": "<u4",
    "guard_seq": "<i8",
    "guard_age": "<u2",
    "guard_asked": "<u4",
}
"""Enough to count what is asked: 26 bytes a guard."""
GUARD_COLUMNS: dict[str, str] = {
    **COUNTING_COLUMNS,
    "guard_pressed": "<u4",
    "guard_in_flight": "<u4",
    "guard_epoch": "<i8",
    "guard_flags": "|u1",
    "guard_version": "<u4",
}


class Counted(NamedTuple):
    """A report that counts. `key`: its guard's, or `POOL`. `weight`: of its interval, how much has passed since the last
    one: reports that come late in a bunch are of many seconds, and no flood of one."""

    key: int
    weight: float


@dataclass(slots=True)
class GuardLine:
    """What counts of a guard's last report. `asked`, `pressed`: of its last second, by all callers, by limited ones."""

    guard: str
    boot: int
    seq: int
    at_ms: int
    asked: float
    in_flight: int
    epoch: int
    fallback_ok: bool
    killed: bool
    version: int
    pressed: float = 0.0


@dataclass(slots=True)
class _Pool:
    """Guards without a line, as one: sums of the last second, fading; the worst that any said, for 3 to 6 s.

    Reports of a guard tile time, so the time that those of a second cover, in seconds, is the number of guards.
    """

    at_ms: int
    turned_ms: int
    guards: float = 0.0
    asked: float = 0.0
    pressed: float = 0.0
    in_flight: float = 0.0
    most: list[float] = field(default_factory=lambda: [0.0, 0.0])
    epoch: list[int] = field(default_factory=lambda: [_LARGEST, _LARGEST])
    unfit: list[bool] = field(default_factory=lambda: [False, False])
    killed: list[bool] = field(default_factory=lambda: [False, False])

    def take(self, report: Report, now_ms: int, weight: float) -> None:
        self._fade(now_ms)
        seconds = interval_of(report) / WINDOW_MS
        self.guards += seconds * weight
        self.asked = _grained(self.asked + report.asked * min(1.0, 1.0 / seconds) * weight)
        self.in_flight += min(report.in_flight, MAX_ASKED) * seconds * weight
        self.most[0] = max(self.most[0], self.guards)
        self.epoch[0] = min(self.epoch[0], _bounded(report.epoch_applied))
        self.unfit[0] = self.unfit[0] or not report.fallback_ok
        self.killed[0] = self.killed[0] or report.killed

    def _fade(self, now_ms: int) -> None:
        keep = max(0.0, 1.0 - (now_ms - self.at_ms) / WINDOW_MS)
        self.at_ms = now_ms
        self.guards, self.in_flight = self.guards * keep, self.in_flight * keep
        self.asked, self.pressed = _grained(self.asked * keep), _grained(self.pressed * keep)
        if now_ms - self.turned_ms >= GUARD_LIVE_MS:
            self.turned_ms = now_ms
            self.most = [self.guards, self.most[0]]
            self.epoch = [_LARGEST, self.epoch[0]]
            self.unfit, self.killed = [False, self.unfit[0]], [False, self.killed[0]]

    @property
    def count(self) -> int:
        """Guards, rounded up to a power of two: a number that is told on change must not change with each report."""
        return 1 << max(0, round(max(self.most)) - 1).bit_length()


class LiveGuards:
    """The guards of one endpoint whose reports are signed, or those whose reports are not; at most `most` lines.

    `named`: names are kept, not only their hashes. All sums are kept as reports come: a report costs the same whatever the
    number of guards.
    """

    def __init__(self, most: int = MAX_GUARDS, *, named: bool = False) -> None:
        self._most = most
        self._named = named
        # in the order of the last reports: the one that expires first is at the front
        self._lines: dict[int, GuardLine] = {}
        self._pool: _Pool | None = None
        self._clear()

    def _clear(self) -> None:
        self._asked, self._in_flight, self._unfit, self._killed = 0.0, 0, 0, 0
        self._epochs: Counter[int] = Counter()
        self._versions: Counter[int] = Counter()

    def __len__(self) -> int:
        """Live guards; those in the pool are estimated."""
        return len(self._lines) + (self._pool.count if self._pool is not None else 0)

    def __iter__(self) -> Iterator[GuardLine]:
        return iter(self._lines.values())

    def take(self, event: ReportAt) -> Counted | None:
        """Lets a report count as its guard's last; None if it was counted before."""
        report, key, now_ms = event.report, short_hash(event.report.guard_id, 8) or 1, event.at.ms
        last = self._lines.get(key)
        boot, seq = short_hash(report.boot_id, 4), _bounded(report.seq)
        if last is None and len(self._lines) >= self._most:
            return self._take_pooled(report, event.at)
        if last is not None and last.boot == boot and seq <= last.seq:
            return None
        interval, weight = interval_of(report), 1.0
        if last is not None:
            weight = min(1.0, (now_ms - last.at_ms) / interval)
            self._tally(self._lines.pop(key), -1)
        line = self._lines[key] = GuardLine(
            guard=report.guard_id if self._named else "",
            boot=boot,
            seq=seq,
            at_ms=now_ms,
            asked=window_count(report.asked, interval, last.asked if last is not None else 0.0),
            in_flight=min(report.in_flight, MAX_ASKED),
            epoch=_bounded(report.epoch_applied),
            fallback_ok=report.fallback_ok,
            killed=report.killed,
            version=short_hash(report.live_version, 4),
            pressed=last.pressed if last is not None else 0.0,
        )
        self._tally(line, 1)
        return Counted(key, weight)

    def press(self, key: int, asked: int, interval_ms: int) -> None:
        """`asked` by limited callers of the guard `key`, in the report that was just taken."""
        if key != POOL:
            self._lines[key].pressed = window_count(asked, interval_ms, self._lines[key].pressed)
        elif self._pool is not None:
            self._pool.pressed = _grained(
                self._pool.pressed + min(asked, MAX_ASKED) * min(1.0, WINDOW_MS / interval_ms)
            )

    def expire(self, now_ms: int) -> list[int]:
        """Drops the guards that have been silent too long by `now_ms`; gives the keys of their lines."""
        gone = []
        for key, line in self._lines.items():
            if now_ms - line.at_ms <= GUARD_LIVE_MS:
                break
            gone.append(key)
        for key in gone:
            self._tally(self._lines.pop(key), -1)
        if self._pool is not None and now_ms - self._pool.at_ms > GUARD_LIVE_MS:
            self._pool = None
        return gone

    @property
    def asked(self) -> float:
        """Asks of the last second, over all live guards."""
        return self._asked + (self._pool.asked if self._pool is not None else 0.0)

    @property
    def pressed(self) -> float:
        """Asks of the last second by limited callers, over all live guards."""
        return sum(line.pressed for line in self) + (self._pool.pressed if self._pool is not None else 0.0)

    @property
    def in_flight(self) -> int:
        """Calls that are being answered, over all live guards."""
        return self._in_flight + (round(self._pool.in_flight) if self._pool is not None else 0)

    @property
    def epoch(self) -> int:
        """The least epoch that a live guard has applied; 0 if there is none."""
        pooled = [min(self._pool.epoch)] if self._pool is not None else []
        return min([*self._epochs, *pooled], default=0)

    @property
    def fallback_ok(self) -> bool:
        """All live guards found their fallback well, and there is one."""
        return len(self) > 0 and not self._unfit and not (self._pool is not None and any(self._pool.unfit))

    @property
    def killed(self) -> bool:
        """The kill switch holds at some live guard."""
        return self._killed > 0 or (self._pool is not None and any(self._pool.killed))

    def serves(self, version: str) -> bool:
        """Whether `version` is live at some guard that has a line."""
        return short_hash(version, 4) in self._versions

    def _take_pooled(self, report: Report, at: LogPoint) -> Counted:
        if self._pool is None:
            self._pool = _Pool(at.ms, at.ms)
        weight = 1.0 if at.told_ms - report.to_ms <= GUARD_LIVE_MS else 0.0
        self._pool.take(report, at.ms, weight)
        return Counted(POOL, weight)

    def _tally(self, line: GuardLine, sign: int) -> None:
        self._asked += sign * line.asked
        self._in_flight += sign * line.in_flight
        self._unfit += sign * (not line.fallback_ok)
        self._killed += sign * line.killed
        for counter, value in ((self._epochs, line.epoch), (self._versions, line.version)):
            counter[value] += sign
            if not counter[value]:
                del counter[value]

    def saved(self, names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Values and the columns `names` for a snapshot, in order."""
        lines = list(self._lines.items())
        base_ms = lines[-1][1].at_ms if lines else 0
        flags = [line.fallback_ok + 2 * line.killed for _, line in lines]
        columns = {
            "guard_key": [key for key, _ in lines],
            "guard_boot": [line.boot for _, line in lines],
            "guard_seq": [line.seq for _, line in lines],
            "guard_age": [base_ms - line.at_ms for _, line in lines],
            "guard_asked": [line.asked * GRAIN for _, line in lines],
            "guard_pressed": [line.pressed * GRAIN for _, line in lines],
            "guard_in_flight": [line.in_flight for _, line in lines],
            "guard_epoch": [line.epoch for _, line in lines],
            "guard_flags": flags,
            "guard_version": [line.version for _, line in lines],
        }
        values = {
            "base_ms": base_ms,
            "names": [line.guard for _, line in lines] if self._named else None,
            "pool": None if self._pool is None else asdict(self._pool),
        }
        return values, {name: np.array(columns[name], dtype) for name, dtype in names.items()}

    def take_back(self, values: Mapping[str, Any], columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """What `saved` gave (what no column tells is 0); KeyError, TypeError or ValueError on anything else."""
        count = len(columns["guard_key"])
        if count > self._most:
            raise ValueError(f"{count} guards, at most {self._most} have a line")
        told = {name: columns.get(name, np.zeros(count, np.int64)).tolist() for name in GUARD_COLUMNS}
        names: Sequence[str] = values["names"] if self._named else [""] * count
        base_ms = int(values["base_ms"])
        self._lines = {}
        self._clear()
        for name, key, boot, seq, age, asked, pressed, in_flight, epoch, flags, version in zip(
            names, *told.values(), strict=True
        ):
            line = GuardLine(
                name, boot, seq, base_ms - age, asked / GRAIN, in_flight, epoch, bool(flags & 1), bool(flags & 2),
                version, pressed / GRAIN,
            )  # fmt: skip
            self._lines[key] = line
            self._tally(line, 1)
        if len(self._lines) != count:
            raise ValueError("a guard is saved twice")
        self._pool = None if values["pool"] is None else _Pool(**values["pool"])


def interval_of(report: Report) -> int:
    """Milliseconds that a report covers, within 50 to 5,000 whatever it says."""
    return min(max(report.to_ms - report.from_ms, MIN_INTERVAL_MS), MAX_INTERVAL_MS)


def window_count(asked: int, interval_ms: int, before: float) -> float:
    """Asks of the last second: those of the report, and of the second before it what still lies inside.

    `before` is the last such count; it is taken as evenly spread (the sliding window counter).
    """
    asked = min(asked, MAX_ASKED)
    return _grained(asked * min(1.0, WINDOW_MS / interval_ms) + before * max(0.0, 1.0 - interval_ms / WINDOW_MS))


def calls_of(route: RouteCounts) -> int:
    """Calls that a route finished: an error or a timeout is not `served`."""
    return route.served + route.errors + route.timeouts


def short_hash(text: str, size: int) -> int:
    """The first `size` bytes of a hash of `text`, as a number."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "little")


def _grained(count: float) -> float:
    return min(round(count * GRAIN) / GRAIN, float(MAX_ASKED))


def _bounded(number: int) -> int:
    return max(-_LARGEST, min(number, _LARGEST))
