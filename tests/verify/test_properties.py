"""The judges of rows against a plain count of the same, over random histories; and the one event, wherever it lies."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from palisade.verify.audited import audit_equals_outcomes
from palisade.verify.balance import every_event_ends_once, nothing_is_committed_unfinished
from palisade.verify.columns import only
from palisade.verify.finding import Finding
from palisade.verify.history import History, table_of
from schemas.topics import PREDICTIONS
from tests.verify.given import FIRST, FLIGHT, RECORDS, RUN, Row, changed, log_tables

FEW = settings(max_examples=30, deadline=None, derandomize=True)
SETTLED = FIRST + RECORDS - FLIGHT
SEEDS = st.integers(0, 5)


@cache
def log(seed: int) -> History:
    """The log of predictions alone."""
    found = History(log_tables(seed), RUN).without("paired")
    return found.with_tables(**{name: only(found[name], topic=PREDICTIONS) for name in ("records", "dead_letters")})


def says(found: Finding) -> str:
    return min(found.broken, key=lambda each: each.at_ms).words if found.broken else ""


@given(SEEDS)
@FEW
def test_any_clean_log_holds(seed: int):
    for judge in (every_event_ends_once, nothing_is_committed_unfinished, audit_equals_outcomes):
        assert judge(log(seed)).broken == ()


@given(SEEDS, st.integers(0, 10**6))
@FEW
def test_an_outcome_is_missed_wherever_it_lies(seed: int, pick: int):
    rows = log(seed)["outcomes"].to_pylist()
    gone = rows[pick % len(rows)]
    place = ("partition", "offset", "row")
    left = [row for row in rows if any(row[name] != gone[name] for name in place)]
    found = log(seed).with_tables(outcomes=table_of("outcomes", left))

    at = f"[{gone['partition']}] offset {gone['offset']}"
    assert at in says(every_event_ends_once(found))
    if gone["outcome"] == 0:
        assert f"{at} row {gone['row']}" in says(audit_equals_outcomes(found))
        assert f"offset {gone['offset']} has no outcome at all" in says(nothing_is_committed_unfinished(found))


@given(SEEDS, st.integers(0, 10**6))
@FEW
def test_a_row_of_the_audit_is_missed_wherever_it_lies(seed: int, pick: int):
    rows = log(seed)["audit"].to_pylist()
    gone = rows.pop(pick % len(rows))
    found = log(seed).with_tables(audit=table_of("audit", rows))

    where = f"palisade.predictions[{gone['partition']}] offset {gone['offset']} row {gone['row']}"
    assert where in says(audit_equals_outcomes(found))
    assert f"view {gone['table']}" in says(audit_equals_outcomes(found))


@given(SEEDS, st.integers(1, RECORDS - FLIGHT), st.integers(0, 100 * RECORDS))
@FEW
def test_a_commit_is_judged_by_what_was_told_until_then(seed: int, ahead: int, after_ms: int):
    """Each record comes 100 ms after the one before and is told its outcome 40 ms later; clocks may differ by a second."""
    at = 1_800_000_000_000 + after_ms
    sample = {"at_ms": at, "group": "palisade.detect", "topic": "palisade.predictions", "partition": 0,
              "committed": FIRST + ahead}  # fmt: skip
    found = log(seed).with_tables(commits=table_of("commits", [sample]))
    told_by = {row["offset"]: 1_800_000_000_000 + 100 * (row["offset"] - FIRST) + 40
               for row in log(seed)["outcomes"].to_pylist()}  # fmt: skip
    early = [offset for offset, told in told_by.items() if offset < FIRST + ahead and told > at + RUN.clock_ms]
    events = {row["offset"] for row in log(seed)["records"].to_pylist() if row["partition"] == 0 and row["rows"]}

    assert bool(says(nothing_is_committed_unfinished(found))) == bool(set(early) & events)


ACTS = st.lists(
    st.tuples(st.sampled_from(("drop", "flip", "repeat", "move", "letter")), st.integers(0, 10**6)), max_size=2
)


@given(SEEDS, ACTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_balance_agrees_with_a_plain_count(seed: int, acts: list[tuple[str, int]]):
    found = log(seed)
    for act, pick in acts:
        found = changed(
            found, "dead_letters" if act == "letter" else "outcomes", lambda rows, a=act, p=pick: _do(rows, a, p)
        )

    assert bool(says(every_event_ends_once(found))) == _is_broken(found)


def _do(rows: list[Row], act: str, pick: int) -> list[Row]:
    at = pick % len(rows)
    one = rows[at]
    match act:
        case "drop" | "letter":
            return rows[:at] + rows[at + 1 :]
        case "flip":
            return [*rows[:at], one | {"outcome": 1 - one["outcome"]}, *rows[at + 1 :]]
        case "repeat":
            return [*rows, one | {"told_at": one["told_at"] + 1}]
    return [*rows[:at], one | {"row": one["row"] + 1}, *rows[at + 1 :]]


def _is_broken(found: History) -> bool:
    """The definition, event by event."""
    told: dict[tuple[int, int], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in found["outcomes"].to_pylist():
        told[row["partition"], row["offset"]][row["row"]].add(row["outcome"])
    letters: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for row in found["dead_letters"].to_pylist():
        letters[row["partition"], row["offset"]].append((row["row"], row["size"]))
    for record in found["records"].to_pylist():
        place = record["partition"], record["offset"]
        ends = told.pop(place, {})
        dead = any(1 in outcomes for outcomes in ends.values())
        whole = dict(ends) == {0: {1}} and (0, record["size"]) in letters[place]
        expected = set(range(1 if whole else record["rows"]))
        if record["rows"] == 0 and dict(ends) == {0: {1}}:
            expected = {0}
        if any(len(outcomes) > 1 for outcomes in ends.values()) or set(ends) - expected:
            return True
        if record["offset"] < SETTLED and (expected - set(ends) or dead != bool(letters[place])):
            return True
    return bool(told)
