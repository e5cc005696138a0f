"""Records on which handling raises: found by handling one at a time what failed together, then passed over.

What raised half-way may have left half-applied state, so nothing goes on from there: the role reads again from its saved
state, as after a crash, and this remembers across that what to handle one by one and what to pass over. How often that is
done has a bound, and before it is reached the saved state itself is doubted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from schemas.errors import PalisadeError
from streams.deadletters import told
from streams.records import Records
from streams.transport.run import TP

log = logging.getLogger(__name__)

MAX_CONDEMNED = 1_024
"""Records that are remembered; the oldest give way, and are found again if they are read again."""
SOON = 10_000
"""Failures of a partition whose offsets are no further apart than so many belong together."""
ONE_BY_ONE = 2_500
"""A record alone costs 0.4 ms, so a run of 2,000 takes 0.8 s one by one, and reading again once more takes as long. A longer
stretch that failed is narrowed first, in `PARTS` pieces: 20,000 records cost four readings and not 6 s in each of three."""
PARTS = 16
MAX_IN_VAIN = 8
"""Times in a row that a partition is read again without finding a record to pass over, for failures that belong together;
then the process ends. So each reading again settles a record for good, or is one of so many: none is for ever."""
MAX_ALONE = 8
"""Records in a row that may raise from saved state of another process before it is the state that is doubted: a newer
version that cannot live with what an older one saved raises on every record."""

Verdict = Literal["read_again", "start_cold", "end"]
"""What to do about a failure: read again from saved state; without it; or end, so that the partition moves."""


class TooManyFailures(PalisadeError):
    """Handling one partition raises again and again, on no record that could be told: this process ends."""


class Piece(NamedTuple):
    """Records to handle together; `reason`: a single one to pass over, and what it raised."""

    records: Records
    reason: str | None = None


@dataclass(slots=True)
class _Trouble:
    """Failures that belong together. `last`: the highest offset of them."""

    last: int
    in_vain: int = 0
    alone: int = 0


class Poison:
    """What is known of the partitions of one worker. Whether a record is passed over depends on the log alone: it raised
    in company, and twice alone, each time from the state that the records before it make. An error that does not come
    again condemns nothing. No clock: failures are told apart by offsets."""

    def __init__(self, *, words: bool = True) -> None:
        """words: what an error says may be kept; off where it may quote sensitive features."""
        self._words = words
        self._suspects: dict[TP, tuple[int, int]] = {}
        self._alone: dict[TP, int] = {}
        self._condemned: dict[tuple[TP, int], str] = {}
        self._trouble: dict[TP, _Trouble] = {}
        self._inherited: dict[TP, int] = {}

    def inherited(self, tp: TP, offset: int) -> None:
        """The state of a partition is another process's, up to `offset`; it proves itself by `SOON` offsets beyond."""
        self._inherited[tp] = offset

    def handled(self, tp: TP, offset: int) -> None:
        """Records up to `offset` were handled without a failure."""
        if tp in self._inherited and offset > self._inherited[tp] + SOON:
            del self._inherited[tp]

    def pieces(self, tp: TP, records: Records) -> Iterator[Piece]:
        """The records in order: all together, but in parts or one by one where they failed together, and alone where one is
        to be passed over. Parts are cut by offsets, so that any cut of the log into runs makes the same."""
        first, last = self._suspects.get(tp, (-1, -1))
        if records.offsets[0] > last:
            self._suspects.pop(tp, None)
        span = last - first + 1
        step = 1 if span <= ONE_BY_ONE else -(-span // PARTS)

        def piece_of(offset: int) -> tuple[int, str | None]:
            """Neighbours of one answer are handled together."""
            reason = self._condemned.get((tp, offset))
            if reason is not None:
                return offset, reason
            return (first + (offset - first) // step * step, None) if first <= offset <= last else (-1, None)

        if not self._condemned and tp not in self._suspects:
            yield Piece(records)
            return
        start = 0
        for key, same in groupby(map(piece_of, records.offsets)):
            stop = start + sum(1 for _ in same)
            yield Piece(records.part(start, stop), key[1])
            start = stop

    def failed(self, tp: TP, records: Records, error: Exception, step: str) -> Verdict:
        """Handling these together raised. They are suspects from now on; one that raises alone twice is passed over."""
        first, last = records.offsets[0], records.offsets[-1]
        trouble = self._troubled(tp, first, last)
        suspects = self._suspects.get(tp, (0, -1))
        if first == last and self._alone.get(tp) == first:
            log.error("%s[%d] %d raises alone and is passed over", *tp, first, exc_info=error)
            trouble.in_vain, trouble.alone = 0, trouble.alone + 1
            self._condemned[tp, first] = told(step, error, words=self._words)
            if len(self._condemned) > MAX_CONDEMNED:
                del self._condemned[next(iter(self._condemned))]
        elif first == last and suspects[0] <= first <= suspects[1]:
            log.warning("%s[%d] %d raises alone and is tried once more", *tp, first, exc_info=error)
            self._alone[tp] = first
        else:
            log.warning("%s[%d] %d to %d will be handled apart", *tp, first, last, exc_info=error)
            self._suspects[tp] = (first, last)
            self._alone.pop(tp, None)
        return self._verdict(tp, trouble)

    def failed_between(self, tp: TP, offset: int, error: Exception) -> Verdict:
        """What raised is no record's handling, but what is due when those up to `offset` are handled."""
        log.warning("%s[%d] after %d: it will be read again", *tp, offset, exc_info=error)
        return self._verdict(tp, self._troubled(tp, offset, offset))

    def _troubled(self, tp: TP, first: int, last: int) -> _Trouble:
        trouble = self._trouble.get(tp)
        if trouble is None or first > trouble.last + SOON:
            trouble = self._trouble[tp] = _Trouble(last)
        trouble.in_vain, trouble.last = trouble.in_vain + 1, max(trouble.last, last)
        return trouble

    def _verdict(self, tp: TP, trouble: _Trouble) -> Verdict:
        if trouble.in_vain >= MAX_IN_VAIN:
            return "end"
        if trouble.alone >= MAX_ALONE and self._inherited.pop(tp, None) is not None:
            return "start_cold"
        return "read_again"

    def too_many(self, tp: TP) -> TooManyFailures:
        """What ends the process, in words for whoever is paged."""
        return TooManyFailures(
            f"handling {tp.topic}[{tp.partition}] has raised {MAX_IN_VAIN} times, and no single record is to blame: the "
            "process ends, so that the partition moves to another worker. If it raises there too, look at what changed "
            "last (version, configuration); else at this machine"
        )

    def forget(self, tp: TP) -> None:
        """The partition is another worker's."""
        self._suspects.pop(tp, None)
        self._alone.pop(tp, None)
        self._trouble.pop(tp, None)
        self._inherited.pop(tp, None)
        self._condemned = {place: reason for place, reason in self._condemned.items() if place[0] != tp}
