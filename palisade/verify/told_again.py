"""Part of I6: what was told is what an uninterrupted run on the same log tells."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from palisade.verify.columns import Columns, Place, by_place, keys_of, last_commits
from palisade.verify.finding import Break, moment
from palisade.verify.history import History
from palisade.verify.logs import DETECT
from schemas.topics import SIGNALS

ONCE_A_PROCESS = frozenset({"unknown_endpoint", "unknown_version", "data_lost"})
"""Kinds of signals that are told where a process meets the cause first: not of the log alone."""
_TOLD = ("row", "outcome", "flags")


def told_otherwise(history: History) -> Iterator[Break]:
    """Where the run told another outcome, other flags or another signal than `recomputed` logs lead to, or did not tell it.

    Signals are due below detect's committed offset, if the topic of signals is there whole: of a finished run, too, the last
    ticks of who ended are read by nobody.
    Outcomes that are missing, or are of nothing, are I1's.
    """
    ends = {(row["topic"], row["partition"]): row["end"] for row in history["recomputed"].to_pylist()}
    yield from _outcomes(history, ends)
    yield from _signals(history, ends)


def _outcomes(history: History, ends: dict[Place, int]) -> Iterator[Break]:
    told = by_place(history["outcomes"], (*_TOLD, "at_ms"), ("offset", "row", "at_ms"))
    again = by_place(history["reference_outcomes"], _TOLD, ("offset", "row"))
    for place in sorted(ends.keys() & told.keys() & again.keys()):
        yield from _differing(place, told[place], again[place])


def _differing(place: Place, told: Columns, again: Columns) -> Iterator[Break]:
    base = int(min(told["offset"][0], again["offset"][0]))
    theirs = keys_of(again, base)
    rank = np.minimum(np.searchsorted(theirs, keys_of(told, base)), len(theirs) - 1)
    both = theirs[rank] == keys_of(told, base)
    other = (told["outcome"] != again["outcome"][rank]) | (told["flags"] != again["flags"][rank])
    wrong = np.flatnonzero(both & other)
    if len(wrong):
        at = wrong[0]
        ours, its = (
            f"outcome {found['outcome'][k]} with flags {found['flags'][k]}"
            for found, k in ((told, at), (again, rank[at]))
        )
        yield Break(
            int(told["at_ms"][at]),
            f"{place[0]}[{place[1]}] offset {told['offset'][at]} row {told['row'][at]} was told {ours}, and in an uninterrupted "
            f"run on the same log {its} ({len(wrong):,} such events)",
        )


def _signals(history: History, ends: dict[Place, int]) -> Iterator[Break]:
    if "signals" not in history:
        return
    told: dict[str, dict[str, Any]] = {}
    for each in history["signals"].sort_by("offset").to_pylist():
        told.setdefault(each["signal_id"], each)
    again = {each["signal_id"]: each for each in history["reference_signals"].to_pylist()}
    for id_, each in told.items():
        place = each["log_topic"], each["log_partition"]
        if each["log_offset"] >= ends.get(place, 0) or each["kind"] in ONCE_A_PROCESS:
            continue
        what = f"signal {id_} of {each['endpoint']} ({each['kind']}), told at {moment(each['at_ms'])} of {place[0]}[{place[1]}]"
        if id_ not in again:
            yield Break(
                each["at_ms"],
                f"{what} offset {each['log_offset']}: an uninterrupted run on the same log does not tell it",
            )
        elif again[id_]["digest"] != each["digest"]:
            yield Break(
                each["at_ms"], f"{what} offset {each['log_offset']}: an uninterrupted run says something else by it"
            )
    yield from _untold(history, told.keys(), again)


def _untold(history: History, told: Collection[str], again: dict[str, dict[str, Any]]) -> Iterator[Break]:
    begins = (row["from_ms"] for row in history["windows"].to_pylist() if row["topic"] == SIGNALS)
    if any(begins):
        return
    committed = last_commits(history["commits"], DETECT)
    for id_, each in again.items():
        place = each["log_topic"], each["log_partition"]
        if id_ not in told and each["log_offset"] < committed.get(place, 0) and each["kind"] not in ONCE_A_PROCESS:
            yield Break(
                0,
                f"signal {id_} of {each['endpoint']} ({each['kind']}), due at {place[0]}[{place[1]}] offset {each['log_offset']} "
                f"in an uninterrupted run on the same log, is not on {SIGNALS}",
            )
