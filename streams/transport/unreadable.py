"""Batches that librdkafka cannot unpack are stepped over, and told as lost.

Whoever may write a topic can send a few kilobytes that unpack to more than librdkafka takes (`receive.message.max.bytes`,
100 MB; zstd makes 20,000 bytes of one). It then reports the same batch for ever and does not say where it ends. The end is
found by halving the offsets up to the log's end: a fetch from an offset of the batch fails and names its first offset; one
from behind it brings a record, or names another batch. The partition alone waits meanwhile, half a second a step, some 20
steps for a million offsets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from streams.transport.run import TP

log = logging.getLogger(__name__)
ANSWER_S = 5.0
"""A fetch that neither fails nor brings a record for so long met only markers or the end: it is behind the batch."""


@dataclass(slots=True)
class _Search:
    """The batch begins at `base` and is unread from `first` on. `bad` is of it, `good` behind it; `asked` is asked about."""

    base: int
    first: int
    bad: int
    good: int
    asked: int = -1
    since: float = 0.0


class Unreadable:
    """The searches under way. Used by the polling thread alone.

    seek(tp, offset): read on from there. end(tp): the log's end, None where nobody answers.
    """

    def __init__(self, seek: Callable[[TP, int], None], end: Callable[[TP], int | None]) -> None:
        self._seek = seek
        self._end = end
        self._open: dict[TP, _Search] = {}
        self._over: dict[TP, tuple[int, int]] = {}

    @property
    def searching(self) -> bool:
        return bool(self._open)

    def failed(self, tp: TP, base: int, position: int, now: float) -> None:
        """A fetch met the batch that begins at `base` and cannot be unpacked; `position` is the next offset to read."""
        search = self._open.get(tp)
        if search is None:
            first, end = max(base, position), self._end(tp)
            if end is None or end <= first:
                return  # it is reported again
            log.error("%s[%d] has a batch at offset %d that cannot be unpacked: looking for its end", *tp, base)
            self._open[tp] = search = _Search(base, first, first, end)
        elif search.base != base:
            self._found_good(tp, search, now)  # another one, which is met again
            return
        elif search.asked == search.bad:
            self._step_over(tp, search)
            return
        else:
            search.bad = search.asked
        self._ask(tp, search, now)

    def take(self, tp: TP, now: float) -> bool:
        """Whether records that came are to be taken; else they answered a search and come again."""
        search = self._open.get(tp)
        if search is None:
            return True
        self._found_good(tp, search, now)
        return False

    def tick(self, paused: Collection[str], now: float) -> None:
        """What is not answered in time lies behind the batch; a paused topic is not fetched, so nothing is known of it."""
        for tp, search in list(self._open.items()):
            if tp.topic in paused:
                search.since = now
            elif now - search.since >= ANSWER_S:
                self._found_good(tp, search, now)

    def lost(self, tp: TP) -> tuple[int, int] | None:
        """Offsets [first, next) that were stepped over before the records that come now; told once."""
        return self._over.pop(tp, None)

    def forget(self) -> None:
        """The partitions are read anew: what cannot be unpacked is met again."""
        self._open.clear()
        self._over.clear()

    def _found_good(self, tp: TP, search: _Search, now: float) -> None:
        if search.asked == search.bad:
            search.bad = search.first  # a failure was taken for the answer to another question
        search.good = search.asked
        self._ask(tp, search, now)

    def _ask(self, tp: TP, search: _Search, now: float) -> None:
        """Halves what is open; where nothing is, asks for the last offset again, for nothing readable may be stepped over."""
        if search.good - search.first <= 1:
            self._step_over(tp, search)
            return
        search.asked = (search.bad + search.good) // 2  # `bad` itself if `good` is the next one
        search.since = now
        self._seek(tp, search.asked)

    def _step_over(self, tp: TP, search: _Search) -> None:
        log.error("%s[%d] offsets %d to %d cannot be unpacked and are lost", *tp, search.first, search.good - 1)
        del self._open[tp]
        first, _ = self._over.get(tp, (search.first, 0))
        self._over[tp] = (first, search.good)
        self._seek(tp, search.good)
