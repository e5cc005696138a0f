"""Callers with strange rows: evidence against each, in arrays over at most 64 verified and 64 claimed ones of a part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.outlier_shares import ALTERNATIVES, LEVELS, evidence
from schemas.blocks import Floats, Longs
from schemas.errors import StateRefused
from schemas.events import CallerAuth

MAX_CALLERS = 64
"""Watched of one part, verified and claimed apart: claimed ones take no place of a verified one."""
SLOTS = 2 * MAX_CALLERS
RECENT = 16
"""Rows of a suspect that are kept by p-value and offset: evidence for people."""
_SHAPE = (len(LEVELS), len(ALTERNATIVES))

Key = tuple[str, CallerAuth]

COLUMNS = {
    "log_r": "<f8",
    "strange": "<f8",
    "rows": "<f8",
    "capped_strange": "<f8",
    "capped_rows": "<f8",
    "first_ms": "<i8",
    "last_ms": "<i8",
    "fired": "|i1",
    "recent_p": "<f4",
    "recent_offset": "<i8",
}
_WIDTHS: dict[str, tuple[int, ...]] = {
    "log_r": _SHAPE,
    "strange": (len(LEVELS),),
    "capped_strange": (len(LEVELS),),
    "recent_p": (RECENT,),
    "recent_offset": (RECENT,),
}


def _empty() -> dict[str, npt.NDArray[Any]]:
    return {name: np.zeros((SLOTS, *_WIDTHS.get(name, ())), dtype) for name, dtype in COLUMNS.items()}


@dataclass(slots=True)
class WatchedCallers:
    """A part's callers, a slot each; verified ones in the first 64. 128 callers take 40 kB.

    strange [slot, level] and rows [slot] fade with the caller's own rows; the capped ones are its share of the endpoint's
    window. log_r [slot, level, alternative]. last_ms is of the last strange row, 0: none. recent_p 0: no row.
    """

    slots: dict[Key, int] = field(default_factory=dict)
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=_empty)

    def admit(self, keys: Sequence[Key]) -> None:
        """Gives each of `keys` a slot while there is one to give: a free one, that of a caller without evidence, or that of
        one caller with the least of all who did not fire."""
        new = [key for key in keys if key not in self.slots]
        for auth in ("verified", "claimed"):
            alike = [key for key in new if key[1] == auth]
            if alike:
                for key, slot in zip(alike, self._room(auth, len(alike)), strict=False):
                    for column in self.columns.values():
                        column[slot] = 0
                    self.slots[key] = slot

    def drop(self, key: Key) -> None:
        del self.slots[key]

    def suspects(self, least: float) -> list[tuple[Key, int, float]]:
        """Callers with at least so much evidence or that fired: (caller, slot, evidence), in order of slots."""
        log_r, fired = self.columns["log_r"], self.columns["fired"]
        if not self.slots or (
            float(log_r.max()) < least and not fired.any()
        ):  # the mixture is at most its largest part
            return []
        found = evidence(log_r)
        wanted = (found >= least) | (fired != 0)
        if not wanted.any():
            return []
        return [
            (key, slot, float(found[slot]))
            for key, slot in sorted(self.slots.items(), key=lambda item: item[1])
            if wanted[slot]
        ]

    def note(self, slot: int, p_values: Floats, offsets: Longs) -> None:
        """Keeps the latest rows of a suspect."""
        for name, latest in (("recent_p", p_values), ("recent_offset", offsets)):
            column = self.columns[name]
            column[slot] = np.concatenate([column[slot], latest.astype(column.dtype)])[-RECENT:]

    def undo(self) -> Callable[[], None]:
        """What gives back the state of now; a slot without a caller may hold anything."""
        slots = dict(self.slots)
        at = slice(0, 1 + max(slots.values(), default=-1))
        before = {name: column[at].copy() for name, column in self.columns.items()} if slots else {}

        def back() -> None:
            self.slots = slots
            for name, column in before.items():
                self.columns[name][at] = column

        return back

    def saved(self) -> tuple[list[list[object]], dict[str, npt.NDArray[Any]]]:
        """The callers, and the columns of their slots."""
        taken = sorted(self.slots.items(), key=lambda item: item[1])
        at = [slot for _, slot in taken]
        columns = {
            name: column[at].reshape(len(at), math.prod(column.shape[1:])) for name, column in self.columns.items()
        }
        return [[*key, slot] for key, slot in taken], columns

    @classmethod
    def of(cls, callers: Sequence[Any], columns: dict[str, npt.NDArray[Any]]) -> WatchedCallers:
        """What `saved` gave. Raises StateRefused."""
        watched = cls()
        try:
            for name, auth, slot in callers:
                known: CallerAuth = "verified" if auth == "verified" else "claimed"
                if int(slot) not in _slots_of(known):
                    raise StateRefused("a saved caller has no such place")
                watched.slots[str(name), known] = int(slot)
            if len(set(watched.slots.values())) != len(callers):
                raise StateRefused("two saved callers have one place")
            at = list(watched.slots.values())
            for name, column in columns.items():
                watched.columns[name][at] = column.reshape(len(at), *_WIDTHS.get(name, ()))
        except (ValueError, TypeError, KeyError) as error:
            raise StateRefused(f"saved callers cannot be read: {error}") from error
        return watched

    def _room(self, auth: CallerAuth, many: int) -> list[int]:
        """Up to `many` slots, taken from their callers where none is free."""
        own = _slots_of(auth)
        taken = {slot: key for key, slot in self.slots.items() if slot in own}
        room = [slot for slot in own if slot not in taken][:many]
        quiet = [slot for slot in taken if not self.columns["fired"][slot]]
        if len(room) == many or not quiet:
            return room
        strength = evidence(self.columns["log_r"][quiet]).tolist()
        last_ms = self.columns["last_ms"][quiet].tolist()
        # of equal ones, the one that was strange longest ago
        for of_slot, _, slot in sorted(zip(strength, last_ms, quiet, strict=True))[: many - len(room)]:
            self.drop(taken[slot])
            room.append(slot)
            if of_slot > 0:
                break
        return room


def _slots_of(auth: CallerAuth) -> range:
    return range(MAX_CALLERS) if auth == "verified" else range(MAX_CALLERS, SLOTS)
