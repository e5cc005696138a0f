"""An uninterrupted run on the same log: each record of a partition once, in order, into the log that role detect opens for it.

Saves lie between runs of records, and a run ends with a record. So where a part was saved the log is fed record by
record, until its state is the saved one, or has gone beyond that place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from detectors.base import LogPoint
from palisade.verify.columns import Place, Span
from palisade.verify.states import Saved, saved_of
from schemas.events import ProfileActivated
from schemas.wire import KIND_HEADER
from streams.detect import PartitionLog
from streams.records import Outgoing, RawHeaders, Records, header_of

CHUNK_RECORDS = 500
NOWHERE = "no state: it never stands at this place"
"""The digest of a part at a place where an uninterrupted run never has it."""


class Kept(NamedTuple):
    """A record as the log keeps it. `behind`: offsets [first, next) before it that nobody can unpack, told as lost."""

    offset: int
    at_ms: int
    key: bytes | None
    headers: RawHeaders
    value: bytes | None
    behind: Span | None = None


@dataclass(frozen=True, slots=True)
class Buried:
    """Offsets of records that the run dead-lettered: as its handling failed, or for another reason.

    Why handling failed may not lie in the log (memory, a profile that came late): what was passed over then is now.
    """

    failed: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()

    def passes_over(self, record: Kept) -> bool:
        if record.offset in self.failed:
            return True
        of_kind = header_of(record.headers, KIND_HEADER) == ProfileActivated.KIND.encode()
        return of_kind and record.offset in self.refused


@dataclass(slots=True)
class Uninterrupted:
    """Feeds `log`, that of `place`, which is cold. `saved`: the parts that another run saved; `say` is given all that the log
    leads to.

    `found`: of each saved part what this run has at its place. Of several states there, the one that was saved, else the
    last; `NOWHERE` if it has none.
    """

    place: Place
    log: PartitionLog
    saved: Mapping[str, Saved]
    buried: Buried
    say: Callable[[Iterable[Outgoing]], None]
    found: dict[str, Saved] = field(default_factory=dict)
    end: int = 0
    _seen: set[str] = field(default_factory=set)
    _near: dict[str, Saved] = field(default_factory=dict)

    async def run(self, records: Iterable[Kept]) -> None:
        """Feeds all records."""
        ahead = sorted(self.saved.items(), key=lambda each: each[1].place, reverse=True)
        for chunk in self._chunks(records, ahead):
            await self._take(chunk)
            self.end = chunk[-1].offset + 1
            if self._near:
                self._look()
        for part, saved in self.saved.items():
            self.found.setdefault(part, saved._replace(digest=NOWHERE))

    def _chunks(self, records: Iterable[Kept], ahead: list[tuple[str, Saved]]) -> Iterator[list[Kept]]:
        """Records by the hundred, one by one where parts were saved. `ahead`: parts, the nearest place last."""
        waiting: list[Kept] = []
        for record in records:
            reached = bool(ahead) and ahead[-1][1].position <= record.offset
            if waiting and (reached or self._near or len(waiting) == CHUNK_RECORDS):
                yield waiting
                waiting = []
            while ahead and ahead[-1][1].position <= record.offset:
                part, saved = ahead.pop()
                self._near[part] = saved
            waiting.append(record)
        if waiting:
            yield waiting

    async def _take(self, chunk: list[Kept]) -> None:
        start = 0
        for at, record in enumerate(chunk):
            if record.behind is not None:
                await self._feed(chunk[start:at])
                first, after = record.behind
                self.say(self.log.lost(first, after - 1, LogPoint(*self.place, record.offset, 0, record.at_ms)))
                start = at
            if self.buried.passes_over(record):
                await self._feed(chunk[start:at])
                self.say(self.log.pass_over(_records([record]), "dead-lettered in the run", 0))
                start = at + 1
        await self._feed(chunk[start:])

    async def _feed(self, chunk: list[Kept]) -> None:
        if chunk:
            self.say(await self.log.take(_records(chunk), 0, _no_pause))

    def _look(self) -> None:
        """Compares the parts whose saved place is reached with what was saved of them."""
        changed = set(self.log.dirty())
        self._seen |= changed & self._near.keys()
        for part, saved in list(self._near.items()):
            if part not in changed and not (saved.learns and part in self._seen):
                continue
            now = saved_of(self.log.snapshot(part))
            if now is None or now.place < saved.place:
                continue
            if now.place == saved.place:
                self.found[part] = now
            if now.place > saved.place or now.digest == saved.digest:
                del self._near[part]


def passed_by(letters: Collection[tuple[int, str]]) -> Buried:
    """Of dead letters of one partition, each the offset of its record and its reason."""
    failed = frozenset(offset for offset, reason in letters if reason == "handler_failed")
    return Buried(failed, frozenset(offset for offset, _ in letters) - failed)


def _records(chunk: list[Kept]) -> Records:
    offsets, times, keys, headers, values, _ = (list(column) for column in zip(*chunk, strict=True))
    return Records(values, keys, headers, offsets, times)


async def _no_pause() -> float:
    """Nobody else waits for a turn."""
    return 0.0
