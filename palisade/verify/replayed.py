"""I3 and I6: state and effects are functions of the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from palisade.verify.columns import only
from palisade.verify.finding import Break, Finding, earliest, moment
from palisade.verify.history import History
from palisade.verify.told_again import told_otherwise
from schemas.topics import ACTIONS, SIGNALS

OBSERVED, REFERENCE = "observed", "reference"
_ACTS = ("fallback", "limit")
RENEWED = "evidence_renewed"
PROPOSED = "held_for_person"
"""What the machine would do while a person holds the target: nothing is done."""


def state_equals_uninterrupted(history: History) -> Finding:
    """I3. A part of detector state has the digest of the reference run's, wherever both were taken at the same place.

    The place is (log, partition, part, position in the log, row). The reference is an uninterrupted run on the same log.
    A run that took a digest twice at one place must have got the same. Of a finished run, the last place of each part that
    both know is the same, too.
    """
    places: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    broken: list[Break] = []
    for each in history["states"].to_pylist():
        place = (each["log"], each["partition"], each["part"], each["position"], each["row"])
        before = places[place].setdefault(each["run"], each["digest"])
        if before != each["digest"]:
            broken.append(_differing(place, f"the {each['run']} run", before, "the same run again", each["digest"]))
    both = {place: runs for place, runs in places.items() if {OBSERVED, REFERENCE} <= runs.keys()}
    for place, runs in sorted(both.items(), key=lambda each: each[0][3]):
        if runs[OBSERVED] != runs[REFERENCE]:
            broken.append(
                _differing(place, "the run", runs[OBSERVED], "an uninterrupted run on the same log", runs[REFERENCE])
            )
    if history.run.finished:
        broken += _ends(places)
    parts = {place[:3] for place in both}
    not_again = _not_again(history)
    nothing = (
        "no digest of an uninterrupted run on the same log: make one with --recompute, or give one with --reference"
    )
    unjudged = "" if both else "; ".join(not_again) or nothing
    return Finding(f"{len(both):,} digests of {len(parts):,} parts", earliest(broken), not_again, unjudged)


def _ends(places: dict[tuple[Any, ...], dict[str, str]]) -> Iterator[Break]:
    """Parts whose last place in the log differs between the runs."""
    last: dict[tuple[Any, ...], dict[str, tuple[int, int]]] = defaultdict(dict)
    for (log, partition, part, position, row), runs in places.items():
        for run in runs:
            before = last[log, partition, part].get(run, (position, row))
            last[log, partition, part][run] = max(before, (position, row))
    for (log, partition, part), ended in last.items():
        ours, theirs = ended.get(OBSERVED), ended.get(REFERENCE)
        if ours and theirs and ours != theirs:
            yield Break(
                min(ours, theirs)[0],
                f"part {part} of {log}[{partition}] ends at offset {ours[0]} row {ours[1]}, and in an uninterrupted run on the "
                f"same log at offset {theirs[0]} row {theirs[1]}",
            )


def _not_again(history: History) -> tuple[str, ...]:
    """What was not computed again, and why."""
    rows = history["recomputed"].to_pylist()
    return tuple(f"{row['topic']}[{row['partition']}]: {row['reason']}" for row in rows if row["reason"] is not None)


def reference_states(states: pa.Table) -> list[dict[str, Any]]:
    """The states that another run observed, as those of the reference run.

    Parts without an approved profile are left out: one place of the log knows several states of theirs, and which of them
    was saved depends on when.
    """
    return [row | {"run": REFERENCE} for row in states.to_pylist() if row["run"] == OBSERVED and not row["learns"]]


def _differing(place: tuple[Any, ...], one: str, its: str, other: str, others: str) -> Break:
    log, partition, part, position, row = place
    return Break(
        position or 0,
        f"part {part} of {log}[{partition}] after offset {position} row {row} is {its[:16]} in {one}, and {others[:16]} in "
        f"{other}",
    )


def replay_has_no_new_effect(history: History) -> Finding:
    """I6. What is said or decided again is the same, and nothing is done about it again.

    - A signal id stands for one statement: told again (detect restarted) it says the same; numbers apart, whose last
      bits may differ on another machine.
    - Entries of the journal are numbered one after the other, each number once, with epochs that never fall.
    - An action id is decided once, its renewals apart; and a signal leads to one action on a target at most.
    - A replay of the inputs of an entry (`replayed`) decides the same action ids.
    - An uninterrupted run on the same log (`recomputed`) tells the same outcomes, flags and signals; see `told_again.py`.
    """
    broken = [
        *_signals(history),
        *_entries(history),
        *_decisions(history),
        *_replays(history),
        *told_otherwise(history),
    ]
    counts = ", ".join(f"{history[name].num_rows:,} {what}" for name, what in _COUNTED)
    evidence = {
        "replayed": "what a replay by hand decides (judged on what happened)",
        "recomputed": "what detect concludes again",
    }
    unseen = tuple(what for name, what in evidence.items() if name not in history)
    said = sum(history[name].num_rows for name, _ in _COUNTED)
    return Finding(counts, earliest(broken), unseen, "" if said else "nothing was said or decided")


_COUNTED = (("signals", "signals"), ("journal", "entries"), ("decisions", "decisions"), ("replayed", "replayed ones"))


def _signals(history: History) -> Iterator[Break]:
    known: dict[str, dict[str, Any]] = {}
    for each in history["signals"].sort_by("offset").to_pylist():
        first = known.setdefault(each["signal_id"], each)
        if first["digest"] != each["digest"]:
            yield Break(
                each["at_ms"],
                f"signal {each['signal_id']} of {each['endpoint']} says one thing at {SIGNALS} offset {first['offset']} and "
                f"another at {each['offset']}",
            )


def _entries(history: History) -> Iterator[Break]:
    before: dict[str, Any] | None = None
    for each in history["journal"].sort_by("offset").to_pylist():
        at, where = each["at_ms"], f"{ACTIONS} offset {each['offset']}"
        if before is not None:
            if each["entry"] == before["entry"] and each["digest"] == before["digest"]:
                continue  # the producer's retry of one entry
            if each["entry"] != before["entry"] + 1:
                yield Break(at, f"{where} is entry {each['entry']}, and follows entry {before['entry']}")
            if each["epoch"] < before["epoch"]:
                yield Break(at, f"{where} has epoch {each['epoch']}, and the entry before it {before['epoch']}")
        before = each


def _decisions(history: History) -> Iterator[Break]:
    ids: dict[str, tuple[int, int]] = {}
    answered: dict[tuple[str, str, str, str | None], str] = {}
    for each in history["decisions"].sort_by([("offset", "ascending"), ("row", "ascending")]).to_pylist():
        if each["reason"] == RENEWED:
            continue
        where = f"{ACTIONS} offset {each['offset']}"
        entry, _ = ids.setdefault(each["action_id"], (each["entry"], each["row"]))
        if (entry, each["row"]) != (each["entry"], ids[each["action_id"]][1]):
            yield Break(
                each["at_ms"],
                f"action {each['action_id']} ({each['kind']} of {each['endpoint']}) is decided again at {where}",
            )
        if each["kind"] not in _ACTS or each["outcome"] == "refused" or each["reason"] == PROPOSED:
            continue
        for signal in each["signal_ids"] or []:
            target = (signal, each["kind"], each["endpoint"], each["caller"])
            if answered.setdefault(target, each["action_id"]) != each["action_id"]:
                yield Break(
                    each["at_ms"],
                    f"signal {signal} leads to a second {each['kind']} of {each['endpoint']} {each['caller'] or ''} at {where} "
                    f"of {moment(each['at_ms'])}: actions {answered[target]} and {each['action_id']}",
                )


def _replays(history: History) -> Iterator[Break]:
    journaled: dict[int, set[str]] = defaultdict(set)
    for each in history["decisions"].to_pylist():
        journaled[each["entry"]].add(each["action_id"])
    for replay in dict.fromkeys(history["replayed"]["replay"].to_pylist()):
        again: dict[int, set[str]] = defaultdict(set)
        for each in only(history["replayed"], replay=replay).to_pylist():
            again[each["entry"]].add(each["action_id"])
        for entry, ids in sorted(again.items()):
            if ids != journaled[entry]:
                new, gone = sorted(ids - journaled[entry]), sorted(journaled[entry] - ids)
                what = f"decides {new[0]}, which is not there" if new else f"does not decide {gone[0]}"
                yield Break(0, f"replay {replay} of the inputs of journal entry {entry} {what}")
