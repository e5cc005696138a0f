"""The journal: decisions are on record before anything is done about them, and rebuild the state.

`record` makes the entries of a batch of inputs; commit them, then publish directives. `replay` folds entries into a
state: what comes out equals the live state but for `Seen`, which arrives again by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from responders.desk import MAX_DECISIONS
from responders.fold import apply, restamp
from responders.state import RespondState, input_key
from schemas.actions import Decision, InputRange, JournalEntry

SAVE_EVERY_MS: Final = 60_000
SAVE_EVERY_ENTRIES: Final = 1_000
"""The state is saved after so much time or so many entries, whichever comes first: it bounds a takeover's replay."""


def record(
    state: RespondState, inputs: Sequence[InputRange], decisions: Sequence[Decision], now_ms: int
) -> tuple[RespondState, list[JournalEntry]]:
    """Entries for what `inputs` led to, and the state that knows of them; none where nothing was decided.

    `state` is what `decide` gave after the last input. An entry holds at most `MAX_DECISIONS` decisions (under a
    megabyte); the inputs count as answered with the last one, so commit all entries of a call in one transaction.
    """
    if not decisions:
        return state, []
    entries: list[JournalEntry] = []
    for start in range(0, len(decisions), MAX_DECISIONS):
        last = start + MAX_DECISIONS >= len(decisions)
        part = list(decisions[start : start + MAX_DECISIONS])
        entries.append(
            JournalEntry(
                entry=state.entry + len(entries) + 1,
                epoch=state.epoch if last else part[-1].epoch,
                now_ms=now_ms,
                inputs=list(inputs) if last else [],
                decisions=part,
            )
        )
    recorded = state.copy()
    for entry in entries:
        _count(recorded, entry)
    return recorded, entries


def takeover(state: RespondState, now_ms: int) -> tuple[RespondState, JournalEntry]:
    """A new responder continues with the next epoch: the entry to commit first, and the state after it.

    Everything that holds is due again under the new epoch, so that what the old process may still send is refused.
    """
    taken = state.copy()
    taken.seen.sent.clear()
    entry = JournalEntry(entry=state.entry + 1, epoch=state.epoch + 1, now_ms=now_ms, inputs=[], decisions=[])
    restamp(taken, entry)
    _count(taken, entry)
    return taken, entry


def replay(entries: Iterable[JournalEntry], state: RespondState) -> RespondState:
    """`state` after the entries that it does not hold yet, in order."""
    replayed = state.copy()
    for entry in entries:
        if entry.entry <= replayed.entry:
            continue
        for decision in entry.decisions:
            apply(replayed, decision)
        if not entry.decisions:
            restamp(replayed, entry)
        _count(replayed, entry)
    return replayed


def _count(state: RespondState, entry: JournalEntry) -> None:
    state.entry = entry.entry
    for given in entry.inputs:
        key = input_key(given.topic, given.partition)
        state.applied[key] = max(given.last, state.applied.get(key, -1))
        state.waiting.pop(key, None)
        if given.waiting:
            state.waiting[key] = tuple(given.waiting)
