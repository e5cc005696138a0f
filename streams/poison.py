"""Records on which handling raises: found by handling one at a time what failed together, then passed over.

What raised half-way may have left half-applied state, so nothing goes on from there: the role reads again from its saved
state, as after a crash, and this remembers across that what to handle one by one and what to pass over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from streams.records import Records
from streams.transport.run import TP

log = logging.getLogger(__name__)

MAX_CONDEMNED = 1_024
"""Records that are remembered; the oldest give way, and are found again if they are read again."""


class Piece(NamedTuple):
    """Records to handle together; `reason`: a single one to pass over, and what it raised."""

    records: Records
    reason: str | None = None


class Poison:
    """What is known of the partitions of one worker. Whether a record is passed over depends on the log alone: it raised
    in company, and again alone, each time from the state that the records before it make. An error that does not come
    again condemns nothing."""

    def __init__(self) -> None:
        self._suspects: dict[TP, tuple[int, int]] = {}
        self._condemned: dict[tuple[TP, int], str] = {}

    def pieces(self, tp: TP, records: Records) -> Iterator[Piece]:
        """The records in order: all together, but one by one where they failed together or are to be passed over."""
        first, last = self._suspects.get(tp, (-1, -1))
        if records.offsets[0] > last:
            self._suspects.pop(tp, None)
        start = 0
        for index, offset in enumerate(records.offsets) if self._condemned or tp in self._suspects else ():
            reason = self._condemned.get((tp, offset))
            if reason is None and not first <= offset <= last:
                continue
            if start < index:
                yield Piece(records.part(start, index))
            yield Piece(records.part(index, index + 1), reason)
            start = index + 1
        if start < len(records):
            yield Piece(records.part(start, len(records)) if start else records)

    def failed(self, tp: TP, records: Records, error: Exception) -> None:
        """Handling these together raised. They are suspects from now on; one that raised alone is passed over."""
        first, last = records.offsets[0], records.offsets[-1]
        suspects = self._suspects.get(tp, (0, -1))
        if first == last and suspects[0] <= first <= suspects[1]:
            log.error("%s[%d] %d raises alone and is passed over", *tp, first, exc_info=error)
            self._condemned[tp, first] = f"{type(error).__name__}: {error}"
            if len(self._condemned) > MAX_CONDEMNED:
                del self._condemned[next(iter(self._condemned))]
            return
        log.warning("%s[%d] %d to %d will be handled one by one", *tp, first, last, exc_info=error)
        self._suspects[tp] = (first, last)
