"""Does a caller send what is odd: non-finite numbers, unknown features, hashed ids, impossible times, or no event at all?

Such rows are scored as missing or clamped, so that nobody becomes invisible by being malformed; here they count against
their caller, and so do rows that cannot be decoded and show whose they are. Clean traffic has no such rows at all, so
the threshold is a number of rows, not a budget. What is odd of everybody is no caller's fault (a service that writes what
the contract does not say, rules that do not fit it): a verified caller is named only while others are seen without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from typing import Any, Literal

import numpy as np

from detectors.base import LogPoint, Reading, Undo, part_of
from detectors.report_state import pack, unpack
from schemas.blocks import Block
from schemas.errors import StateRefused
from schemas.events import CallerAuth
from schemas.flags import RowFlag
from schemas.ids import stable_id

VERSION = 4
ODD = int(
    RowFlag.ODD_ID
    | RowFlag.NOT_FINITE
    | RowFlag.UNKNOWN_FEATURE
    | RowFlag.WRONG_FEATURE_TYPE
    | RowFlag.LATE
    | RowFlag.FUTURE
    | RowFlag.CONTROL_CHARACTERS
    | RowFlag.OUT_OF_RANGE
    | RowFlag.MALFORMED
    | RowFlag.REUSED_ID
)
"""Missing features and unseen categories are not among them: those are drift's."""
HALF_LIFE_ROWS, HALF_LIFE_MS = 2_048.0, 600_000.0
"""Of the part's rows and of the log's time, both: a few a day add up to nothing, also where nobody else sends."""
MAX_CALLERS = 64
"""Callers with odd rows that are watched of one part, verified and claimed apart: claimed ones cannot hide a verified one."""
MAX_PARTS = 4_096
SAY_EVERY_MS = 10_000
LINGER_MS = 900_000
"""A caller that fired is read on for so long after its last odd row."""


_Key = tuple[str, CallerAuth]


@dataclass(slots=True)
class _Caller:
    odd: float = 0.0
    malformed: float = 0.0
    rows: float = 0.0
    last_ms: int = 0
    first_ms: int = 0
    since_ms: int = 0
    fired: bool = False


@dataclass(slots=True)
class _Part:
    """`clean`: verified callers, and the broker's time of their newest good row; kept while some caller is watched."""

    said_ms: int
    counted_ms: int
    callers: dict[_Key, _Caller]
    clean: dict[str, int]

    def copy(self) -> _Part:
        callers = {key: replace(each) for key, each in self.callers.items()}
        return _Part(self.said_ms, self.counted_ms, callers, dict(self.clean))


class _Places:
    """The places of a part while a block is counted: odd rows only add up meanwhile, so that whoever gives way to a new caller
    is found in a heap. A crowd of made-up callers has all of them change hands in each block."""

    def __init__(self, part: _Part) -> None:
        self._callers = part.callers
        self._taken: dict[CallerAuth, int] = {"verified": 0, "claimed": 0}
        self._quiet: dict[CallerAuth, list[tuple[float, int, _Key]]] = {"verified": [], "claimed": []}
        self._admitted = 0
        for key, each in part.callers.items():
            self._add(key, each)

    def admit(self, key: _Key) -> _Caller | None:
        """A place for a caller; where its kind has none left, the weakest that never fired gives way, the oldest of equals."""
        if self._taken[key[1]] >= MAX_CALLERS:
            weakest = self._weakest(self._quiet[key[1]])
            if weakest is None:
                return None
            del self._callers[weakest]
            self._taken[key[1]] -= 1
        each = self._callers[key] = _Caller()
        self._add(key, each)
        return each

    def _add(self, key: _Key, each: _Caller) -> None:
        self._taken[key[1]] += 1
        self._admitted += 1
        if not each.fired:
            heappush(self._quiet[key[1]], (each.odd, self._admitted, key))

    def _weakest(self, quiet: list[tuple[float, int, _Key]]) -> _Key | None:
        while quiet:
            odd, admitted, key = quiet[0]
            now = self._callers[key].odd
            if now == odd:
                return heappop(quiet)[2]
            heapreplace(quiet, (now, admitted, key))
        return None


class OddInput:
    """`odd_input` of callers; `Detector[Block]`. Fires at `least` odd rows that are `share` of the caller's own.

    Of verified callers at most half of those seen since can be named, so never the only one: more are everybody.
    Rows fade with a half-life of 2,048 rows of the part and of ten minutes. A part has at most 128 callers (20 kB).
    """

    name = "odd_input"
    log: Literal["predictions", "reports"] = "predictions"

    def __init__(self, least: float = 20.0, share: float = 0.2) -> None:
        self.least = least
        self.share = share
        self.hash = stable_id(
            self.name, VERSION, str(least), str(share), ODD, str(HALF_LIFE_ROWS), str(HALF_LIFE_MS), MAX_CALLERS
        )
        self._parts: dict[str, _Part] = {}

    def update(self, batch: Sequence[Block]) -> list[Reading]:
        """A reading of each watched caller near its threshold, and of the endpoint each ten seconds."""
        readings: list[Reading] = []
        for block in batch:
            readings += self._block(block)
        return readings

    def snapshot(self, part: str) -> bytes:
        kept = self._parts.get(part)
        if kept is None:
            return b""
        rows = [
            [*key, each.odd, each.malformed, each.rows, each.last_ms, each.first_ms, each.since_ms, each.fired]
            for key, each in kept.callers.items()
        ]
        clean = [[name, ms] for name, ms in kept.clean.items()]
        values = {"said_ms": kept.said_ms, "counted_ms": kept.counted_ms, "callers": rows, "clean": clean}
        return pack(self.hash, values, {})

    def restore(self, part: str, state: bytes) -> None:
        values, _ = unpack(self.hash, state, {})
        self._parts[part] = _part_from(values)

    def undo(self, parts: Sequence[str]) -> Undo:
        """See `Reversible`."""
        held = {name: part.copy() for name in parts if (part := self._parts.get(name)) is not None}

        def back(name: str) -> None:
            if name in held:
                self._parts[name] = held[name]
            else:
                self.forget(name)

        return back

    def forget(self, part: str) -> None:
        self._parts.pop(part, None)

    def _block(self, block: Block) -> list[Reading]:
        at = LogPoint.closing(block)
        part = self._part(part_of(block.endpoint, block.version))
        readings = self._of_endpoint(block, part, at)
        odd = (block.flags & np.uint32(ODD)) != 0
        if not part.callers and not odd.any():
            return readings
        self._count(block, part, odd)
        self._note_clean(block, part, odd)
        readings += self._of_callers(block, part, at)
        if not part.callers:
            part.clean.clear()
        return readings

    def _part(self, name: str) -> _Part:
        part = self._parts.get(name)
        if part is None:
            while len(self._parts) >= MAX_PARTS:
                del self._parts[next(iter(self._parts))]
            part = self._parts[name] = _Part(-SAY_EVERY_MS, 0, {}, {})
        return part

    def _count(self, block: Block, part: _Part, odd: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        fade = 0.5 ** (len(block) / HALF_LIFE_ROWS + max(block.closed_ms - part.counted_ms, 0) / HALF_LIFE_MS)
        part.counted_ms = max(part.counted_ms, block.closed_ms)
        for each in part.callers.values():
            each.odd *= fade
            each.malformed *= fade
            each.rows *= fade
        bad = np.bincount(block.caller[odd], minlength=len(block.callers)).tolist()
        dead = (block.flags & np.uint32(RowFlag.MALFORMED)) != 0
        unread = np.bincount(block.caller[dead], minlength=len(block.callers)).tolist()
        rows = np.bincount(block.caller, minlength=len(block.callers)).tolist()
        counts = zip(block.callers, block.verified.tolist(), bad, unread, rows, strict=True)
        newest_ms = int(block.broker_ts[odd].max(initial=0))
        places = _Places(part)
        for name, known, of_bad, of_unread, of_all in counts:
            key: _Key = (name, "verified" if known else "claimed")
            watched = part.callers.get(key) or (places.admit(key) if of_bad else None)
            if watched is None:
                continue
            if of_bad:
                watched.last_ms = block.closed_ms
                watched.first_ms = watched.first_ms or block.closed_ms
            watched.odd += of_bad
            watched.malformed += of_unread
            watched.rows += of_all
            watched.since_ms = (watched.since_ms or newest_ms) if self._at_fault(watched) else 0

    def _note_clean(self, block: Block, part: _Part, odd: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        """The verified callers with a good row, newest last, at most as many as are watched."""
        newest = np.full(len(block.callers), -1, dtype=np.int64)
        np.maximum.at(newest, block.caller[~odd], block.broker_ts[~odd])
        for at in np.flatnonzero(block.verified & (newest >= 0)).tolist():
            name = block.callers[at]
            part.clean[name] = max(int(newest[at]), part.clean.pop(name, 0))
        while len(part.clean) > MAX_CALLERS:
            del part.clean[next(iter(part.clean))]

    def _at_fault(self, each: _Caller) -> bool:
        """Whether so much of what a caller sends is odd that it is, or will be, named if others do not send the like."""
        return each.odd >= 0.5 and each.odd >= self.share * each.rows

    def _named_before_ms(self, part: _Part) -> float:
        """What is odd of everybody is nobody's fault: a verified caller is named only if it was at fault before as many others
        as are had their newest good row. The broker's time of the last of those."""
        faulty = {name for (name, auth), each in part.callers.items() if auth == "verified" and self._at_fault(each)}
        clean = sorted((ms for name, ms in part.clean.items() if name not in faulty), reverse=True)
        if not faulty:
            return math.inf
        return clean[len(faulty) - 1] if len(faulty) <= len(clean) else -math.inf

    def _of_callers(self, block: Block, part: _Part, at: LogPoint) -> list[Reading]:
        readings = []
        named_before_ms = self._named_before_ms(part)
        for (name, auth), each in list(part.callers.items()):
            firing = each.odd >= self.least and each.odd >= self.share * each.rows
            firing = firing and (auth == "claimed" or each.since_ms < named_before_ms)
            each.fired |= firing
            if each.fired:
                readings.append(self._reading(block, at, name, auth, each, firing=firing))
            over = block.closed_ms - each.last_ms > LINGER_MS if each.fired else each.odd < 0.5
            if over and not firing:
                del part.callers[name, auth]
                if auth == "verified" and self._at_fault(each):
                    named_before_ms = self._named_before_ms(part)
        return readings

    def _reading(
        self, block: Block, at: LogPoint, name: str, auth: CallerAuth, each: _Caller, *, firing: bool
    ) -> Reading:
        return Reading(
            detector=self.name,
            detector_hash=self.hash,
            kind="odd_input",
            endpoint=block.endpoint,
            version=block.version,
            subject_kind="caller",
            subject=name,
            caller_auth=auth,
            score=each.odd,
            threshold=self.least,
            firing=firing,
            calm=not firing and each.odd < self.least / 2,
            severity="warning",
            at=at,
            first_ms=each.first_ms,
            shares=((name, auth, 1.0),),
            evidence={"odd_rows": each.odd, "malformed_rows": each.malformed, "rows": each.rows},
        )

    def _of_endpoint(self, block: Block, part: _Part, at: LogPoint) -> list[Reading]:
        """That the endpoint is watched, or that nothing is known of its features: at most each ten seconds."""
        if 0 <= block.closed_ms - part.said_ms < SAY_EVERY_MS:
            return []
        part.said_ms = block.closed_ms
        known = block.profile_hash != ""
        features = block.numeric.shape[1] + block.categorical.shape[1]
        reading = Reading(
            detector=self.name,
            detector_hash=self.hash,
            kind="odd_input",
            endpoint=block.endpoint,
            version=block.version,
            subject_kind="endpoint",
            subject=block.endpoint,
            score=float(((block.flags & np.uint32(ODD)) != 0).mean()),
            threshold=1.0,
            firing=False,
            calm=known,
            severity="info",
            at=at,
            first_ms=block.closed_ms,
            known=known,
            evidence={} if known else {"reason": "learning" if features else "no_profile"},
        )
        return [reading]


def _part_from(values: dict[str, Any]) -> _Part:
    try:
        callers: dict[tuple[str, CallerAuth], _Caller] = {
            (str(name), "verified" if auth == "verified" else "claimed"): _Caller(
                float(odd), float(malformed), float(rows), int(last), int(first), int(since), bool(fired)
            )
            for name, auth, odd, malformed, rows, last, first, since, fired in values["callers"]
        }
        clean = {str(name): int(ms) for name, ms in values["clean"]}
        return _Part(int(values["said_ms"]), int(values["counted_ms"]), callers, clean)
    except (KeyError, ValueError, TypeError) as error:
        raise StateRefused(f"saved state cannot be read: {error}") from error
