"""I4 and I5: the audit holds what was scored, and every action with its evidence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from palisade.verify.columns import Columns, Place, absent, by_place, key_place, keys_of, last_commits, only, within
from palisade.verify.finding import Break, Finding, earliest, moment
from palisade.verify.history import History
from palisade.verify.logs import AUDIT, SCORED, Log, logs_of
from responders.state import MACHINE
from schemas.topics import ACTIONS, DIRECTIVES, PREDICTIONS, SIGNALS, VERDICTS

ON_RECORD_MS = 5_000
"""So long after an action was ordered it must be on record."""
RESENT_MS = 5_000
"""An order that is first seen within this time of the history's beginning may be older than the history."""
SIGNAL_BEFORE_MS = 60_000
"""A signal is decided upon within this time (it may wait for its endpoint's guards to report)."""
_NAMES = ("scored", "dead-lettered")


def audit_equals_outcomes(history: History) -> Finding:
    """I4. The view `predictions` has exactly the scored events, the view `verdicts` exactly the outcomes, once each.

    Missing is what lies below the audit's committed offset (of predictions; for outcomes: of verdicts) and is not in the
    view. Extra is a row below the committed offset of detect that is no scored event, or no outcome, or there twice. In
    a finished run there is no in flight.
    """
    committed = last_commits(history["commits"], AUDIT)
    views = {
        name: by_place(only(history["audit"], table=name), ("row", "outcome"), ("offset", "row"))
        for name in ("predictions", "verdicts")
    }
    broken: list[Break] = []
    rows = judged = 0
    for log in logs_of(history):
        kept = {name: _rows_of(log, view.get(log.place)) for name, view in views.items()}
        rows += sum(len(columns["offset"]) for columns in kept.values())
        if history.run.finished:
            upto, told_upto = log.end, np.iinfo(np.int64).max
        else:
            upto = committed.get((PREDICTIONS, log.place[1]), 0)
            told_upto = committed.get((VERDICTS, log.place[1]), 0)
        of_offset = log.outcomes["offset"]
        scored = log.outcomes["outcome"] == SCORED
        due = {"predictions": scored & (of_offset < upto), "verdicts": log.outcomes["told_at"] < told_upto}
        judged += int(due["predictions"].sum()) + int(due["verdicts"].sum())
        for name, wanted, all_of_it in (
            ("predictions", log.keys[due["predictions"]], log.keys[scored]),
            ("verdicts", log.keys[due["verdicts"]], log.keys),
        ):
            broken += _difference(log, name, keys_of(kept[name], log.first), wanted, all_of_it)
        broken += _other_outcome(log, kept["verdicts"])
    idle = f"nothing lies below the committed offsets of {AUDIT}"
    return Finding(
        f"{rows:,} rows of the audit set against {judged:,} that must be there",
        earliest(broken),
        unjudged=idle if not judged else "",
    )


def _rows_of(log: Log, columns: Columns | None) -> Columns:
    if columns is None:
        return {name: np.zeros(0, dtype=np.int64) for name in ("offset", "row", "outcome")}
    return within(columns, log.first, log.end)


def _difference(log: Log, view: str, kept: Any, wanted: Any, known: Any) -> Iterator[Break]:
    """kept: keys in the view, sorted; wanted: those that must be there; known: those that may."""
    missing = absent(wanted, kept)
    if len(missing):
        offset, row = key_place(missing[0], log.first)
        what = "scored" if view == "predictions" else "told its outcome"
        yield Break(
            log.time_of(offset),
            f"{log.name} offset {offset} row {row} was {what} and read by {AUDIT}, but the audit's view {view} does not have "
            f"it ({len(missing):,} such rows)",
        )
    twice = kept[1:][kept[1:] == kept[:-1]]
    if len(twice):
        offset, row = key_place(twice[0], log.first)
        yield Break(
            log.time_of(offset), f"{log.name} offset {offset} row {row} is more than once in the audit's view {view}"
        )
    extra = absent(kept, known)
    extra = extra[extra < np.int64(log.settled - log.first) << 20]
    if len(extra):
        offset, row = key_place(extra[0], log.first)
        yield Break(
            log.time_of(offset),
            f"the audit's view {view} has {log.name} offset {offset} row {row}, which was never "
            f"{'scored' if view == 'predictions' else 'told an outcome'} ({len(extra):,} such rows)",
        )


def _other_outcome(log: Log, kept: Columns) -> Iterator[Break]:
    keys = keys_of(kept, log.first)
    rank = np.minimum(np.searchsorted(log.keys, keys), max(0, len(log.keys) - 1))
    if not len(log.keys):
        return
    differs = (log.keys[rank] == keys) & (log.outcomes["outcome"][rank] != kept["outcome"]) & (kept["outcome"] >= 0)
    if differs.any():
        at = int(np.flatnonzero(differs)[0])
        offset, row = key_place(int(keys[at]), log.first)
        told, stored = int(log.outcomes["outcome"][rank[at]]), int(kept["outcome"][at])
        yield Break(
            log.time_of(offset),
            f"{log.name} offset {offset} row {row} was {_NAMES[told]}, and the audit's view verdicts says {_NAMES[stored]}",
        )


def every_action_is_on_record(history: History) -> Finding:
    """I5. For each action that a directive orders:

    - a decision of that id was published in the journal, committed before the directive or within 5 s of it;
    - the machine's names signals that are on record with their offsets, a person's follows a command of theirs;
    - once the audit has read that entry of the journal, its view `decisions` has it.

    Orders and decisions that may be older than the history are passed over.
    """
    ordered = _first_orders(history)
    decided = _first_decisions(history)
    signals = set(history["signals"]["signal_id"].to_pylist())
    people = set(history["commands"]["actor"].to_pylist())
    begins = _beginnings(history)
    audited = _audited_decisions(history)
    read_upto = last_commits(history["commits"], AUDIT).get((ACTIONS, 0), 0)
    broken: list[Break] = []
    for action_id, (at_ms, what) in ordered.items():
        if at_ms < begins.get(DIRECTIVES, 0) + RESENT_MS:
            continue
        decision = decided.get(action_id)
        if decision is None or decision["at_ms"] > at_ms + ON_RECORD_MS + history.run.clock_ms:
            late = "there is none" if decision is None else f"it is only of {moment(decision['at_ms'])}"
            broken.append(
                Break(
                    at_ms,
                    f"{what} was ordered at {moment(at_ms)}; a decision of it must be in the journal by then: {late}",
                )
            )
            continue
        where = f"the decision of {what} at {ACTIONS} offset {decision['offset']}"
        if decision["actor"] != MACHINE:
            if "commands" in history and decision["actor"] not in people:
                broken.append(Break(at_ms, f"{where} is {decision['actor']}'s, of whom there is no command on record"))
        elif "signals" in history and decision["at_ms"] >= begins.get(SIGNALS, 0) + SIGNAL_BEFORE_MS:
            unknown = [each for each in decision["signal_ids"] or [""] if each not in signals]
            if unknown:
                broken.append(
                    Break(at_ms, f"{where} rests on the signal {unknown[0] or '(none named)'}, which is not on record")
                )
        is_due = history.run.finished or decision["offset"] < read_upto
        if audited is not None and is_due and (decision["offset"], decision["row"]) not in audited:
            broken.append(Break(at_ms, f"{where} is not in the audit's view decisions"))
    unseen = [f"the table {name}" for name in ("signals", "commands") if name not in history and ordered] + (
        [] if audited is not None else ["the audit's view decisions"]
    )
    nothing = "" if ordered else "no directive ordered anything"
    return Finding(f"{len(ordered):,} actions that were ordered", earliest(broken), tuple(unseen), nothing)


def _first_orders(history: History) -> dict[str, tuple[int, str]]:
    """Action id -> when it was first ordered, and what it is in words."""
    found: dict[str, tuple[int, str]] = {}
    for each in history["orders"].to_pylist():
        known = found.get(each["action_id"] or "")
        if each["action_id"] is not None and (known is None or each["at_ms"] < known[0]):
            what = "the fallback" if each["caller"] is None else f"the limit of {each['caller']}"
            found[each["action_id"]] = each["at_ms"], f"{what} of {each['endpoint']} (action {each['action_id']})"
    return found


def _first_decisions(history: History) -> dict[str, dict[str, Any]]:
    """Action id -> the first published decision of it."""
    found: dict[str, dict[str, Any]] = {}
    for each in only(history["decisions"], outcome="published").sort_by("offset").to_pylist():
        found.setdefault(each["action_id"], each)
    return found


def _beginnings(history: History) -> dict[str, int]:
    """Topic -> the moment before which the history has nothing of it."""
    found: dict[str, int] = {}
    for each in history["windows"].to_pylist():
        found[each["topic"]] = max(found.get(each["topic"], 0), each["from_ms"] or 0)
    return found


def _audited_decisions(history: History) -> set[Place | tuple[int, int]] | None:
    if "audit" not in history:
        return None
    kept = only(history["audit"], table="decisions")
    return set(zip(kept["offset"].to_pylist(), kept["row"].to_pylist(), strict=True))
