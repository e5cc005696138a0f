"""Delivery-order bookkeeping of one assignment: what was read, what is being worked on, what may be committed."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import monotonic
from typing import NamedTuple

from streams.transport.run import TP, Record, Run, RunLost, sizes_of

MIB = 1 << 20
ARROW_STREAM = b"\xff\xff\xff\xff"  # how an encapsulated message begins (Arrow columnar format, IPC)
# Work in a byte of Arrow against one of JSON. Between two measured ends: rows of 3 features (37 bytes) cost seven times
# as much a byte, rows of 20 (308 bytes) as much; cutting those at 256 KiB halves their throughput.
ARROW_WEIGHT = 4


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """Bounds of one topic in one worker.

    max_bytes: estimate of the bytes read and not yet finished; above it the topic alone is paused, until half of it.
    run_max: records in one run. run_bytes: their bytes, an Arrow stream's counted four times; a larger record is a run
    of its own. 2 MiB are 2,000 JSON events or 512 KiB of Arrow, 20 to 50 ms of work on the loop: a report waits that long. linger_s: how long
    a run may wait for company at low rates; above 0 it also waits while one before it is not begun, so that a handler which
    is behind gets few large runs: a record costs it a hundredth there.
    """

    max_bytes: int = 64 * MIB
    run_max: int = 2_000
    run_bytes: int = 2 * MIB
    linger_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.run_max, self.run_bytes) < 1 or not 0 <= self.linger_s <= 1:
            raise ValueError(f"limits out of range: {self}")


class PartitionState(NamedTuple):
    """Figures of one partition: runs not done; offsets: first read, next to read, first not done, next to commit, last
    committed."""

    runs: int
    first: int
    read: int
    undone: int
    safe: int | None
    committed: int | None


@dataclass(slots=True)
class _Gathering:
    """Records of a partition that wait for company since `since`, below the bounds of a run."""

    since: float
    records: list[Record] = field(default_factory=list)
    weight: int = 0
    size: int = 0
    lost: tuple[int, int] | None = None


class Ledger:
    """Everything read since one assignment or one rewind.

    A rebalance or a rewind never edits a ledger: it closes it and puts a new one in its place. What finishes late lands
    in the dead one and changes nothing, for it will be read again.

    `kept` says what a handler still needs although its runs are done: of each partition the oldest such offset, which is
    never committed over. It is asked in any thread.

    Thread-safe: the polling thread adds, the loop takes and commits, any thread finishes. `on_idle` and `on_failure` are
    called outside the lock, in the thread that finished; `on_ready`, where a run can be taken, in the one that began another.
    """

    def __init__(
        self,
        generation: int = 0,
        limits: Mapping[str, TopicLimits] | None = None,
        *,
        on_idle: Callable[[], None] = lambda: None,
        on_failure: Callable[[Run, BaseException], None] = lambda _run, _error: None,
        on_ready: Callable[[], None] = lambda: None,
        kept: Callable[[], Mapping[TP, int]] = dict,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.generation = generation
        self.closed = False
        self._limits = dict(limits or {})
        self._default = TopicLimits()
        self._on_idle = on_idle
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._kept = kept
        self._clock = clock
        self._withheld = False
        self._advanced_at: dict[TP, float] = {}  # when the oldest run of the partition was done
        self._turned_at: dict[str, float] = {}  # when an agent of the topic last began or ended a run
        self._sign_at: dict[str, float] = {}  # when the handler that is at work on the topic last gave a sign
        self._lock = threading.Lock()
        self._opened: set[Run] = set()
        self._order: dict[TP, deque[Run]] = {}  # read and not yet safe, in offset order
        self._inbox: dict[TP, deque[Run]] = {}  # not yet handed over
        self._handed: dict[TP, deque[Run]] = {}  # handed over, not yet begun
        self._begun: set[Run] = set()  # and not over
        self._gathering: dict[TP, _Gathering] = {}
        self._first: dict[TP, int] = {}
        self._read: dict[TP, int] = {}
        self._safe: dict[TP, int] = {}
        self._committed: dict[TP, int] = {}
        self._sealed: dict[TP, int] | None = None
        self._bytes: dict[str, int] = {}

    def limits(self, topic: str) -> TopicLimits:
        return self._limits.get(topic, self._default)

    # -- polling thread

    def add(self, tp: TP, records: Sequence[Record], now: float, lost: tuple[int, int] | None = None) -> bool:
        """Take records that were just read, in offset order; cut them into runs. False when the ledger is closed.

        lost: offsets before them that nobody can read any more; the run that begins with them tells of it.
        """
        limits = self.limits(tp.topic)
        with self._lock:
            if self.closed:
                return False
            gathering = self._gathering.pop(tp, None) or _Gathering(now)
            if lost is not None:
                if gathering.records:
                    self._append(tp, gathering)
                gathering = _Gathering(now, lost=lost)
            sizes = sizes_of(records)
            totals = list(accumulate(_weights(records, sizes), initial=0))
            start = 0
            while start < len(records):
                fit = bisect_right(totals, totals[start] + limits.run_bytes - gathering.weight, start) - 1
                stop = min(fit, start + limits.run_max - len(gathering.records))
                if not gathering.records:
                    stop = max(stop, start + 1)  # a larger record is a run of its own
                if stop > start:
                    gathering.records += records[start:stop]
                    gathering.weight += totals[stop] - totals[start]
                    gathering.size += sum(sizes[start:stop])
                if stop < len(records):
                    self._append(tp, gathering)
                    gathering = _Gathering(now)
                start = max(start, stop)
            full = len(gathering.records) >= limits.run_max or gathering.weight >= limits.run_bytes
            self._gathering[tp] = gathering
            if full or self._ripe(tp, now):
                self._append(tp, self._gathering.pop(tp))
            first, last = records[0].offset(), records[-1].offset()
            if first is not None and last is not None:
                self._first.setdefault(tp, first)
                self._read[tp] = last + 1
        return True

    def ripen(self, now: float) -> bool:
        """Turn what has lingered long enough into runs. True when there were any."""
        with self._lock:
            ripe = [tp for tp in self._gathering if self._ripe(tp, now)]
            for tp in ripe:
                self._append(tp, self._gathering.pop(tp))
        return bool(ripe)

    def next_ripe(self, now: float) -> float | None:
        """Seconds until `ripen` has something to do; `None` when nothing lingers."""
        with self._lock:
            waits = [wait for tp in self._gathering if (wait := self._lingers_s(tp, now)) is not None]
        return max(0.0, min(waits)) if waits else None

    def _ripe(self, tp: TP, now: float) -> bool:
        wait = self._lingers_s(tp, now)
        return wait is not None and wait <= 0

    def _lingers_s(self, tp: TP, now: float) -> float | None:
        """Seconds until what gathers waits for company no longer; None while a run before it is not begun."""
        return None if self._queues(tp) else self._gathering[tp].since + self.limits(tp.topic).linger_s - now

    def _queues(self, tp: TP) -> bool:
        """What gathers has company to wait for: a run before it is not begun."""
        return self.limits(tp.topic).linger_s > 0 and bool(self._inbox.get(tp) or self._handed.get(tp))

    def _append(self, tp: TP, gathering: _Gathering) -> None:
        run = Run(self, tp, gathering.records, gathering.since, gathering.lost, gathering.size)
        self._order.setdefault(tp, deque()).append(run)
        self._inbox.setdefault(tp, deque()).append(run)
        self._bytes[tp.topic] = self._bytes.get(tp.topic, 0) + run.size

    # -- loop

    def take(self, active: Collection[TP]) -> dict[TP, list[Run]]:
        """Runs to hand over now, of the partitions that are active."""
        with self._lock:
            if self.closed or self._withheld:
                return {}
            taken = {tp: list(self._inbox.pop(tp)) for tp in [tp for tp in self._inbox if tp in active]}
            now = self._clock()
            for tp, runs in taken.items():
                self._handed.setdefault(tp, deque()).extend(runs)
                for run in runs:
                    run.handed_at = now
            return taken

    def withhold(self) -> None:
        """Hand nothing over any more: Faust drops what no agent has begun, and it comes again from the next ledger."""
        with self._lock:
            self._withheld = True
            self._handed.clear()

    @property
    def waiting(self) -> bool:
        """Something can be taken."""
        return bool(self._inbox)

    def due(self) -> dict[TP, int]:
        """Next offset to commit, of each partition where it is above the last one committed."""
        kept = self._kept()
        with self._lock:
            if self.closed:
                return {}
            safe = self._not_kept(kept) if self._sealed is None else self._sealed
            # what is kept from the first record on leaves nothing to commit
            return {
                tp: offset for tp, offset in safe.items() if offset > max(self._committed.get(tp, -1), self._first[tp])
            }

    def seal(self) -> None:
        """What is due now is all that will ever be due: from now on handlers forget what they keep, for somebody else will
        read it."""
        kept = self._kept()
        with self._lock:
            self._sealed = self._not_kept(kept)

    def _not_kept(self, kept: Mapping[TP, int]) -> dict[TP, int]:
        return {tp: min(offset, kept.get(tp, offset)) for tp, offset in self._safe.items()}

    def committed(self, offsets: Mapping[TP, int]) -> None:
        """The broker has confirmed these offsets."""
        with self._lock:
            self._committed.update(offsets)

    # -- whoever works on a run

    @property
    def busy(self) -> int:
        """Runs that are open."""
        return len(self._opened)

    def begin(self, run: Run) -> None:
        """An agent has taken up this run. Raises RunLost when an earlier one of its partition was not begun before."""
        with self._lock:
            handed = self._handed.get(run.tp)
            if self.closed or not handed:
                return
            if handed[0] is not run:
                raise RunLost(f"{handed[0]!r} was handed over and never begun, {run!r} behind it was")
            handed.popleft()
            self._begun.add(run)
            self._turned_at[run.tp.topic] = self._sign_at[run.tp.topic] = self._clock()
            ready = run.tp in self._gathering and not self._queues(run.tp)
            if ready:
                self._append(run.tp, self._gathering.pop(run.tp))
        if ready:
            self._on_ready()

    def sign(self, run: Run) -> None:
        """The handler is still at work on this run. Called between any two pieces of work, so without the lock."""
        if run.tp.topic in self._sign_at:
            self._sign_at[run.tp.topic] = self._clock()

    def leave(self, run: Run) -> None:
        """The handler has returned; what it began may still wait to be confirmed."""
        self._sign_at.pop(run.tp.topic, None)

    def open(self, run: Run) -> None:
        with self._lock:
            if not self.closed and not run.finished:
                run.opened = True
                self._opened.add(run)

    def finish(self, run: Run) -> None:
        """Advance what may be committed: from the left of the order only, so never past an unfinished run."""
        with self._lock:
            if not self.closed and not run.finished:
                self._bytes[run.tp.topic] -= run.size
                run.finished = True
                order = self._order[run.tp]
                while order and order[0].finished:
                    self._safe[run.tp] = order.popleft().next
                    self._advanced_at[run.tp] = self._clock()
            run.finished = True
        self._release(run)

    def fail(self, run: Run, error: BaseException) -> None:
        """Give up: the run stays in the order, so nothing behind it is committed. Tells `on_failure` unless closed."""
        if not (self.closed or run.finished or run.failed):
            run.failed = True
            self._on_failure(run, error)
        self._release(run)

    def abandon(self, run: Run) -> None:
        """The work on it was cancelled: it stays unfinished and is read again. What its handler still does has no run."""
        self.leave(run)
        self._release(run)

    def _release(self, run: Run) -> None:
        with self._lock:
            was_open = run in self._opened
            self._opened.discard(run)
            if run in self._begun:
                self._begun.remove(run)
                self._turned_at[run.tp.topic] = self._clock()
            idle = was_open and not self._opened
        run.end()
        if idle:
            self._on_idle()

    # -- anybody

    def close(self) -> None:
        """Nothing of this ledger is handed over, finished or committed from now on. Frees its records."""
        with self._lock:
            self.closed = True
            over = [run for runs in self._order.values() for run in runs]
            self._opened.clear()
            self._begun.clear()
            self._sign_at.clear()
            for held in (self._order, self._inbox, self._handed, self._gathering, self._safe, self._bytes):
                held.clear()
        for run in over:
            run.end()
        self._on_idle()

    def bytes(self, topic: str) -> int:
        """Estimate of the bytes of this topic that are read and not finished; what lingers is not counted."""
        return self._bytes.get(topic, 0)

    def topics_above(self, topics: Iterable[str]) -> set[str]:
        """Topics at or above their bound."""
        return {topic for topic in topics if self.bytes(topic) >= self.limits(topic).max_bytes}

    def oldest_unfinished_s(self, now: float) -> float | None:
        """Age in seconds of the oldest run that was read and is not done; `None` when there is none."""
        with self._lock:
            heads = [runs[0].read_at for runs in self._order.values() if runs]
        return now - min(heads) if heads else None

    def oldest_ms(self) -> dict[TP, int]:
        """The broker's time of the oldest record of each partition that was read and is not done."""
        with self._lock:
            return {tp: runs[0].broker_ms for tp, runs in self._order.items() if runs}

    def stalled_s(self, now: float) -> float | None:
        """Seconds for which the oldest unfinished run of a partition has been its oldest: the worst one; `None` when all
        is done.

        Finds the run that was begun and forgotten, whatever is finished behind it, and lets a backlog that moves pass.
        """
        with self._lock:
            since = [max(runs[0].read_at, self._advanced_at.get(tp, 0.0)) for tp, runs in self._order.items() if runs]
        return now - min(since) if since else None

    def unmoved_s(self, now: float) -> float | None:
        """Seconds for which a handler that is at work has given no sign: the worst one; `None` when none is at work."""
        signs = list(self._sign_at.values())
        return now - min(signs) if signs else None

    def unbegun_s(self, now: float) -> float | None:
        """Seconds for which a run that was handed over waits while its topic's agent has none to work on: the worst one;
        `None` when there is none. It was lost on the way."""
        with self._lock:
            busy = {run.tp.topic for run in self._begun}
            since = [
                max(runs[0].handed_at, self._turned_at.get(tp.topic, 0.0))
                for tp, runs in self._handed.items()
                if runs and tp.topic not in busy
            ]
        return now - min(since) if since else None

    def state(self) -> dict[TP, PartitionState]:
        """Figures of every partition that had a record."""
        with self._lock:
            return {tp: self._state(tp, read) for tp, read in self._read.items()}

    def _state(self, tp: TP, read: int) -> PartitionState:
        runs = self._order.get(tp)
        undone = runs[0].first if runs else read
        return PartitionState(
            len(runs or ()), self._first[tp], read, undone, self._safe.get(tp), self._committed.get(tp)
        )


def _weights(records: Sequence[Record], sizes: list[int]) -> list[int]:
    """Bytes of each record as `run_bytes` counts them, of its `sizes_of`."""
    if ARROW_STREAM not in {(record.value() or b"")[: len(ARROW_STREAM)] for record in records}:
        return sizes
    return [
        size * ARROW_WEIGHT if (record.value() or b"").startswith(ARROW_STREAM) else size
        for size, record in zip(sizes, records, strict=True)
    ]
