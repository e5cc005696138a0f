"""Each judge lets a clean history pass and names the one event that breaks its promise."""

from __future__ import annotations

import pytest

from palisade.verify.finding import Verdict
from palisade.verify.history import SCHEMAS, History, table_of
from palisade.verify.invariants import INVARIANTS, judge
from tests.verify.given import (
    ACTIVATION,
    FIRST,
    RECORDS,
    RUN,
    Row,
    changed,
    finished,
    history,
)
from tests.verify.planted import PLANTED, Planted, where, without

NAMES = [invariant.name for invariant in INVARIANTS]


def verdict(found: History, name: str) -> Verdict:
    return next(each for each in judge(found) if each.name == name)


def test_everything_holds_on_a_clean_history():
    verdicts = judge(history())

    assert [(each.name, each.status) for each in verdicts] == [(name, "holds") for name in NAMES], verdicts
    assert all(each.words for each in verdicts)


@pytest.mark.parametrize("planted", PLANTED, ids=[f"{each.invariant}-{each.what}" for each in PLANTED])
def test_one_planted_violation_is_named(planted: Planted):
    found = planted.verdict()

    assert found.status == "violated", found
    assert planted.found(), found.words


def test_every_invariant_has_a_planted_violation():
    assert {each.invariant for each in PLANTED} == set(NAMES)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=NAMES)
def test_without_its_evidence_an_invariant_is_not_judged(invariant):
    for table in invariant.needs:
        found = verdict(history().without(table), invariant.name)

        assert found.status == "not judged"
        assert table in found.words


@pytest.mark.parametrize("name", NAMES)
def test_a_history_of_nothing_proves_nothing(name):
    idle = History({table: schema.empty_table() for table, schema in SCHEMAS.items()}, RUN)

    assert verdict(History({}), name).status == "not judged"
    assert verdict(idle, name).status == "not judged"


def test_what_the_history_cannot_show_is_said_beside_the_verdict():
    found = history().without("sent", "producers", "replayed", "views", "dead_letters")

    assert "what producers were told is stored" in " ".join(verdict(found, "I1").unseen)
    assert "dead letters" in " ".join(verdict(found, "I1").unseen)
    assert "a replay by hand" in verdict(found, "I6").unseen[0]
    assert "limits of callers" in verdict(found, "I8").unseen[0]
    assert {verdict(found, name).status for name in ("I1", "I6", "I8")} == {"holds"}


def test_in_a_finished_run_nothing_is_in_flight():
    found = verdict(finished(history().without("paired")), "I1")

    assert found.status == "violated"
    assert f"offset {FIRST + RECORDS - 10} row 0" in found.words


def test_an_activation_that_is_refused_needs_no_event():
    assert verdict(changed(history(), "dead_letters", without(offset=FIRST + ACTIVATION)), "I1").status == "violated"
    accepted = changed(history(), "dead_letters", without(offset=FIRST + ACTIVATION))
    accepted = changed(accepted, "outcomes", without(offset=FIRST + ACTIVATION))

    assert verdict(accepted, "I1").status == "holds"


def test_nothing_committed_is_nothing_judged():
    assert verdict(history().without("commits"), "I1").status == "not judged"
    assert verdict(history().without("commits"), "I4").status == "not judged"


def test_the_first_of_several_violations_is_named():
    def later_ones(rows: list[Row]) -> list[Row]:
        gone = {(1, FIRST + 60), (0, FIRST + 30), (1, FIRST + 25)}
        return [row for row in rows if (row["partition"], row["offset"]) not in gone]

    assert f"[1] offset {FIRST + 25} row 0" in verdict(changed(history(), "outcomes", later_ones), "I1").words


def test_a_guard_that_falls_back_by_itself_breaks_nothing():
    found = history().with_tables(orders=table_of("orders", []))
    found = changed(found, "reports", where({"troubles": 1}, epoch_applied=3))
    found = changed(found, "reports", where({"troubles": 1}, seq=2))
    found = found.with_tables(refused_calls=table_of("refused_calls", []))

    assert verdict(found, "I7").status == "holds"


def test_unsigned_reports_prove_nothing_against_a_guard():
    found = changed(
        history(), "reports", lambda rows: [*rows, rows[9] | {"epoch_applied": 0, "seq": 99, "signed": False}]
    )

    assert verdict(found, "I7").status == "holds"
