"""What a judge says: what it looked at, the first event that breaks the promise, what it could not see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from palisade.verify.history import History

Status = Literal["holds", "violated", "not judged"]


class Break(NamedTuple):
    """An event that breaks a promise: when, and in words which event, where, what was expected."""

    at_ms: int
    words: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judge found. `seen`: what was looked at, in numbers; `unseen`: parts of the promise without evidence.

    `unjudged`: why nothing at all could be judged.
    """

    seen: str = ""
    broken: tuple[Break, ...] = ()
    unseen: tuple[str, ...] = ()
    unjudged: str = ""


@dataclass(frozen=True, slots=True)
class Invariant:
    """A promise, the tables without which nothing of it can be judged, and its judge."""

    name: str
    promise: str
    needs: tuple[str, ...]
    judge: Callable[[History], Finding]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant on one history. `words`: the first counter-example, or what was looked at, or what is missing."""

    name: str
    promise: str
    status: Status
    words: str
    unseen: tuple[str, ...] = field(default=())


def verdict_on(invariant: Invariant, history: History) -> Verdict:
    """Judges; what the history has no evidence of is not judged, and never holds."""
    missing = [name for name in invariant.needs if name not in history]
    if missing:
        return Verdict(
            invariant.name, invariant.promise, "not judged", f"the history has no table {', '.join(missing)}"
        )
    found = invariant.judge(history)
    if found.broken:
        first = min(found.broken, key=lambda each: each.at_ms)
        return Verdict(invariant.name, invariant.promise, "violated", first.words, found.unseen)
    if found.unjudged:
        return Verdict(invariant.name, invariant.promise, "not judged", found.unjudged, found.unseen)
    return Verdict(invariant.name, invariant.promise, "holds", found.seen, found.unseen)


def earliest(breaks: Iterable[Break | None]) -> tuple[Break, ...]:
    """The first of those that there are."""
    there = [each for each in breaks if each is not None]
    return (min(there, key=lambda each: each.at_ms),) if there else ()


def moment(ms: int) -> str:
    """A time in words."""
    return datetime.fromtimestamp(max(0, ms) / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def listed(names: Iterator[str] | Iterable[str], most: int = 5) -> str:
    """The first names, and how many there are besides."""
    every = sorted(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")
