"""A log set against its outcomes: which events of a partition ended how, which did not, which should not be there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from palisade.verify.columns import (
    ROW_BITS,
    Columns,
    Flags,
    Longs,
    Place,
    by_place,
    empty,
    key_place,
    keys_of,
    last_commits,
    within,
)
from palisade.verify.history import History
from schemas.roles import group_of
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES

JUDGED = (PREDICTIONS,)
"""Logs whose every event has an outcome on the topic of verdicts."""
INGESTED = (REQUESTS, RESPONSES)
"""What ingest makes predictions of."""
DETECT, AUDIT = group_of("detect"), group_of("audit")
SCORED, DEAD = 0, 1
NEVER = np.iinfo(np.int64).max
_OUTCOME_COLUMNS = ("row", "outcome", "at_ms", "told_at")
_LETTER_COLUMNS = ("row", "size", "for_run")


@dataclass(frozen=True, slots=True)
class Log:
    """One partition of a log. Keys are (offset, row) as one number, relative to `first`; all arrays are in log order.

    `settled`: events below this offset must have ended. `records`: those that hold events, and `expected` their number
    (1 for one that was refused as a whole). `controls`: offsets of other records. `outcomes`: the first of each event.
    `torn`: keys with two different outcomes. `letters`: dead letters; None: the history has none
    of any log.
    """

    place: Place
    first: int
    end: int
    settled: int
    records: Columns
    expected: Longs
    controls: Longs
    outcomes: Columns
    keys: Longs
    torn: Longs
    letters: Columns | None

    @property
    def name(self) -> str:
        return f"{self.place[0]}[{self.place[1]}]"

    def expected_keys(self) -> Longs:
        """The key of each event that the log holds."""
        ends = np.cumsum(self.expected)
        total = int(ends[-1]) if len(ends) else 0
        ranks = np.arange(total) - np.repeat(ends - self.expected, self.expected)
        keys: Longs = (np.repeat(self.records["offset"] - self.first, self.expected) << ROW_BITS) | ranks
        return keys

    def scored_keys(self) -> Longs:
        scored: Longs = self.keys[self.outcomes["outcome"] == SCORED]
        return scored

    def at(self, key: int) -> tuple[int, int]:
        """Offset and row of a key."""
        return key_place(key, self.first)

    def time_of(self, offset: int) -> int:
        """The broker's time of the record at or before an offset."""
        rank = int(np.searchsorted(self.records["offset"], offset, side="right")) - 1
        return int(self.records["at_ms"][rank]) if rank >= 0 else 0

    def done_ms(self) -> Longs:
        """When the last event of each record was told its outcome; `NEVER` where one was not."""
        count = len(self.records["offset"])
        rank = np.searchsorted(self.records["offset"], self.outcomes["offset"])
        known = rank < count
        known[known] = self.records["offset"][rank[known]] == self.outcomes["offset"][known]
        told = np.zeros(count, dtype=np.int64)
        np.add.at(told, rank[known], 1)
        done = np.zeros(count, dtype=np.int64)
        np.maximum.at(done, rank[known], self.outcomes["at_ms"][known])
        return np.where(told >= self.expected, done, NEVER)


@lru_cache(maxsize=1)
def logs_of(history: History) -> tuple[Log, ...]:
    """Every partition of the judged logs that the history holds; of the last history they are kept for the next judge."""
    records = by_place(history["records"], ("at_ms", "rows", "size"))
    outcomes = by_place(history["outcomes"], _OUTCOME_COLUMNS, ("offset", "row", "at_ms"))
    letters = (
        by_place(history["dead_letters"], _LETTER_COLUMNS, ("offset", "row")) if "dead_letters" in history else None
    )
    windows = by_place(history["windows"], ("first", "end"), ("first",))
    committed = last_commits(history["commits"], DETECT)
    found = []
    for place in sorted({*records, *windows}):
        if place[0] not in JUDGED:
            continue
        there = records.get(place) or empty("offset", "at_ms", "rows", "size")
        if place in windows:
            first, end = int(windows[place]["first"][0]), int(windows[place]["end"][0])
        else:
            first, end = int(there["offset"][0]), int(there["offset"][-1]) + 1
        settled = end if history.run.finished else min(end, committed.get(place, first))
        told = outcomes.get(place) or empty("offset", *_OUTCOME_COLUMNS)
        of_it = None if letters is None else letters.get(place) or empty("offset", *_LETTER_COLUMNS)
        found.append(_log(place, (first, end, settled), there, told, of_it))
    return tuple(found)


def _log(
    place: Place, bounds: tuple[int, int, int], records: Columns, outcomes: Columns, letters: Columns | None
) -> Log:
    first, end, settled = bounds
    records, outcomes = _once(within(records, first, end)), within(outcomes, first, end)
    letters = None if letters is None else within(letters, first, end)
    keys, starts = np.unique(keys_of(outcomes, first), return_index=True)
    torn = _torn(keys_of(outcomes, first), outcomes["outcome"])
    outcomes = {name: column[starts] for name, column in outcomes.items()}
    holds_events = records["rows"] > 0
    controls = records["offset"][~holds_events]
    records = {name: column[holds_events] for name, column in records.items()}
    whole = _refused_whole(records, outcomes, letters)
    expected = np.where(whole, 1, records["rows"])
    return Log(place, first, end, settled, records, expected, controls, outcomes, keys, torn, letters)


def _once(records: Columns) -> Columns:
    """Without records that the history has twice."""
    starts = np.unique(records["offset"], return_index=True)[1]
    return {name: column[starts] for name, column in records.items()}


def _torn(keys: Longs, outcome: Longs) -> Longs:
    """Keys, sorted, that have different outcomes."""
    differs = (keys[1:] == keys[:-1]) & (outcome[1:] != outcome[:-1])
    return np.unique(keys[1:][differs])


def _refused_whole(records: Columns, outcomes: Columns, letters: Columns | None) -> Flags:
    """Records whose one outcome is that of all their bytes: their dead letter is as large as they are.

    Where no letters are known, or one stands for others of its run (their number is bounded), a record whose only
    outcome is a dead row 0 is taken for refused as a whole.
    """
    offsets, place_in = np.unique(outcomes["offset"], return_inverse=True)
    alone = np.bincount(place_in, minlength=len(offsets)) == 1
    dead_first = np.zeros(len(offsets), dtype=np.bool_)
    dead_first[place_in] = (outcomes["row"] == 0) & (outcomes["outcome"] == DEAD)
    candidates = np.isin(records["offset"], offsets[alone & dead_first])
    if letters is None or (letters["for_run"] == 1).any():
        return candidates
    first_rows = letters["row"] == 0
    said = (letters["offset"][first_rows] << 31) | letters["size"][first_rows]
    return candidates & np.isin((records["offset"] << 31) | records["size"], said)
