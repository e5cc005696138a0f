"""Each judge lets a clean history pass and names the one event that breaks its promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from palisade.verify.finding import Verdict
from palisade.verify.history import SCHEMAS, History, table_of
from palisade.verify.invariants import INVARIANTS, judge
from tests.verify.given import (
    ACTIVATION,
    EXPIRES_MS,
    FALLBACK,
    FIRST,
    LIMIT,
    MIXED,
    ORDER_MS,
    RECORDS,
    RUN,
    T0,
    TICK,
    WHOLE,
    Row,
    changed,
    finished,
    history,
)

NAMES = [invariant.name for invariant in INVARIANTS]


def verdict(found: History, name: str) -> Verdict:
    return next(each for each in judge(found) if each.name == name)


def without(**wanted: Any) -> Callable[[list[Row]], list[Row]]:
    """Takes out the rows that have these values."""
    return lambda rows: [row for row in rows if any(row[name] != value for name, value in wanted.items())]


def also(**fields: Any) -> Callable[[list[Row]], list[Row]]:
    """Adds the first row once more with these values."""
    return lambda rows: [*rows, rows[0] | fields]


def where(change: Row, **wanted: Any) -> Callable[[list[Row]], list[Row]]:
    """Changes the rows that have these values."""
    return lambda rows: [
        row | change if all(row[name] == value for name, value in wanted.items()) else row for row in rows
    ]


def test_everything_holds_on_a_clean_history():
    verdicts = judge(history())

    assert [(each.name, each.status) for each in verdicts] == [(name, "holds") for name in NAMES], verdicts
    assert all(each.words for each in verdicts)


AT = FIRST + 40
PLANTED: list[tuple[str, str, str, Callable[[list[Row]], list[Row] | None], str]] = [
    ("I1", "an event without an outcome", "outcomes", without(partition=1, offset=AT, row=0),
     rf"palisade.predictions\[1\] offset {AT} row 0 .* has no outcome"),
    ("I1", "one event of a record that was refused as a whole, whose letter is of one row",
     "dead_letters", where({"size": 60}, partition=0, offset=FIRST + WHOLE),
     rf"palisade.predictions\[0\] offset {FIRST + WHOLE} row 1 .* has no outcome"),
    ("I1", "an event with two outcomes", "outcomes", also(partition=0, offset=AT, row=0, outcome=1),
     f"offset {AT} row 0 is both scored and dead-lettered"),
    ("I1", "an outcome of a row that the record has not", "outcomes", also(partition=0, offset=AT, row=77),
     f"offset {AT} row 77 has an outcome, but the record there has no such event"),
    ("I1", "a scored tick", "outcomes", also(partition=0, offset=FIRST + TICK, row=0),
     f"offset {FIRST + TICK} row 0 has an outcome, but the record there"),
    ("I1", "an outcome where no record lies", "records", without(partition=0, offset=AT),
     f"offset {AT} row 0 has an outcome, but no record lies there"),
    ("I1", "a record that its producer was told is stored", "sent", also(partition=0, offset=FIRST + RECORDS + 4),
     f"offset {FIRST + RECORDS + 4}: its producer was told that it is stored, but no record lies there"),
    ("I1", "a loss of which nobody was told", "lost", where({"told": False}, partition=1),
     r"\[1\] lost offsets 20 to 30 to retention, and nobody was told"),
    ("I1", "a loss of what was scored", "lost", also(first=AT, last=AT),
     f"offset {AT} counts as lost, and has an outcome"),
    ("I1", "a dead row without a letter", "dead_letters", without(partition=1, offset=FIRST + MIXED),
     f"offset {FIRST + MIXED} has dead-lettered events, but no dead letter"),
    ("I1", "a letter of a scored row", "dead_letters", also(partition=1, offset=AT),
     f"offset {AT} has a dead letter, but no dead-lettered event"),
    ("I1", "a refusal that nobody counted", "producers", where({"rejected": 1}, producer="p"),
     "producer p tried to send .* and 1 are counted as refused"),
    ("I2", "a commit over what is unfinished", "commits", where({"unfinished": 3}, group="palisade.audit"),
     "palisade.audit had committed .* while offset 3 was unfinished"),
    ("I2", "a commit before the outcome was told", "commits",
     also(group="palisade.detect", at_ms=T0 + 100, committed=FIRST + 30, partition=1),
     rf"palisade.detect had committed {FIRST + 30} of palisade.predictions\[1\], but the record at offset \d+ was told"),
    ("I2", "a commit of what never had an outcome", "outcomes", without(partition=0, offset=AT, row=0),
     f"the record at offset {AT} has no outcome at all"),
    ("I3", "another state", "states", where({"digest": "other"}, run="observed", part="spam@v1"),
     r"part spam@v1 of palisade.predictions\[0\] after offset 90 row 2 is other in the run, and spam@v1 in an unint"),
    ("I3", "two states at one place", "states", also(digest="third"), "credit@v1 .* third in the same run again"),
    ("I4", "a scored event that the audit lacks", "audit", without(table="predictions", partition=0, offset=AT, row=0),
     rf"\[0\] offset {AT} row 0 was scored .* view predictions does not have it \(1 such"),
    ("I4", "an outcome that the audit lacks", "audit", without(table="verdicts", partition=1, offset=AT, row=0),
     f"offset {AT} row 0 was told its outcome .* view verdicts does not have it"),
    ("I4", "a row of the audit that was never scored", "audit",
     also(table="predictions", offset=FIRST + MIXED, row=1, topic="palisade.predictions"),
     f"view predictions has .* offset {FIRST + MIXED} row 1, which was never scored"),
    ("I4", "a row that the view has twice", "audit", also(table="verdicts", offset=FIRST, row=0),
     f"offset {FIRST} row 0 is more than once in the audit's view verdicts"),
    ("I4", "another outcome", "audit", where({"outcome": 0}, table="verdicts", offset=FIRST + MIXED, row=1),
     f"offset {FIRST + MIXED} row 1 was dead-lettered, and the audit's view verdicts says scored"),
    ("I5", "an action without a decision", "decisions", without(action_id=LIMIT),
     f"limit of eve of credit .action {LIMIT}. was ordered at .*; a decision of it must be in the journal by then: there is none"),
    ("I5", "an action that was decided too late", "decisions", where({"at_ms": ORDER_MS + 9_000}, action_id=FALLBACK),
     "fallback of spam .* must be in the journal by then: it is only of"),
    ("I5", "an action without its signal", "signals", without(signal_id="s2"),
     "fallback of spam .* rests on the signal s2, which is not on record"),
    ("I5", "an action that the audit lacks", "audit", without(table="decisions", offset=10),
     "limit of eve .* at palisade.actions offset 10 is not in the audit's view decisions"),
    ("I5", "an action of a person who commanded nothing", "decisions", where({"actor": "person:mallory"}, offset=12),
     "is person:mallory's, of whom there is no command on record"),
    ("I6", "a signal that says two things", "signals", where({"digest": "x"}, offset=2),
     "signal s1 of credit says one thing at palisade.signals offset 0 and another at 2"),
    ("I6", "an entry that was written twice by two", "journal",
     lambda rows: [*rows, rows[-1] | {"offset": 20, "digest": "x"}], "offset 20 is entry 4, and follows entry 4"),
    ("I6", "an entry that is gone", "journal", without(entry=2), "is entry 3, and follows entry 1"),
    ("I6", "an epoch that fell", "journal", where({"epoch": 1}, entry=3), "has epoch 1, and the entry before it 2"),
    ("I6", "an action that is decided again", "decisions",
     lambda rows: [*rows, rows[0] | {"offset": 30, "entry": 9}], "action action-limit .* is decided again at .* 30"),
    ("I6", "a signal that acts twice", "decisions",
     lambda rows: [*rows, rows[0] | {"offset": 30, "entry": 9, "action_id": "new"}],
     "signal s1 leads to a second limit of credit eve at palisade.actions offset 30"),
    ("I6", "a replay that decides something new", "replayed", also(action_id="new"),
     "replay r of the inputs of journal entry 1 decides new, which is not there"),
    ("I7", "an epoch that falls", "reports", where({"epoch_applied": 2}, seq=9),
     "guard g of spam had applied epoch 3, and epoch 2 in report 9"),
    ("I7", "a limit after its end", "refused_calls",
     also(at_ms=EXPIRES_MS + 9_000, from_ms=EXPIRES_MS + 8_000, to_ms=EXPIRES_MS + 9_000),
     "refused 4 calls of eve between .* the last order of it expired at"),
    ("I7", "a limit that nobody ordered", "refused_calls", also(caller="bob"),
     "refused 4 calls of bob .* no order said so"),
    ("I7", "a fallback that nobody ordered", "orders", without(action_id=FALLBACK),
     "guard g of spam answered 5 calls with the fallback, without trouble of its own.* no order said so"),
    ("I8", "too many endpoints on fallback", "decisions",
     lambda rows: [rows[2] | {"endpoint": f"e{n}", "action_id": f"a{n}", "offset": n} for n in range(3)],
     "offset 2 .* puts endpoint e2 under action, the 3. at once, where at most 2 may be"),
    ("I8", "too many limited callers", "decisions",
     lambda rows: [rows[0] | {"caller": f"c{n}", "action_id": f"a{n}", "offset": n} for n in range(6)],
     "puts caller c5 of credit under action, the 6. at once, where at most 5 may be"),
    ("I9", "an exit", "processes", where({"asked": False}, event="exited"),
     "detect .pid 7. .* exited with status -9, and nobody asked it to"),
    ("I9", "a hang", "processes", where({"silent_s": 31.0}, event="hung"), "no progress for 31 s, more than 30"),
    ("I9", "a process that grows", "processes", where({"rss_bytes": 2_000_000_000}, event="rss"),
     "holds 2,000 MB, more than 1,500"),
    ("I10", "an edited row", "ledger", where({"row": b"other"}, position=3), "ledger actions row 3 does not have the hash"),
    ("I10", "a removed row", "ledger", without(position=2), "has position 3 where 2 must be"),
    ("I10", "rows that changed places", "ledger",
     lambda rows: [rows[0], rows[2] | {"position": 1}, rows[1] | {"position": 2}, *rows[3:]], "actions row 1 does not"),
    ("I10", "rows cut off at the end", "ledger", without(position=5), "published head at row 5, and no such row there"),
    ("I11", "a webhook that never ended", "webhooks", without(id="w2", event="delivered"),
     "webhook w2 of flip, wanted at .* was neither delivered nor superseded, given up or disabled"),
    ("I11", "a webhook given up without a reason", "webhooks", where({"reason": None}, event="given_up"),
     "webhook w3 of other was given up without a reason"),
    ("I11", "a webhook superseded by nothing", "webhooks", without(id="w2"), "w1 .* but nothing newer was wanted"),
    ("I11", "a webhook that nobody wanted", "webhooks", without(id="w3", event="wanted"),
     "webhook w3 of other was given_up at .*, and never wanted"),
    ("I12", "detection that waited for the audit", "latencies",
     lambda rows: [row | {"ms": 90.0} if T0 + 300 <= row["at_ms"] <= T0 + 320 else row for row in rows],
     r"p99 was 90.0 ms while the audit was away, and 59.0 ms else; .*\(90 ms\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "what", "table", "change", "words"), PLANTED, ids=[f"{n}-{w}" for n, w, *_ in PLANTED]
)
def test_one_planted_violation_is_named(
    name: str, what: str, table: str, change: Callable[[list[Row]], list[Row] | None], words: str
):
    found = verdict(changed(history(), table, change), name)

    assert found.status == "violated", found
    assert re.search(words, found.words), found.words


def test_every_invariant_has_a_planted_violation():
    assert {name for name, *_ in PLANTED} == set(NAMES)


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
    found = verdict(finished(history()), "I1")

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
