"""Violations, each planted alone into the clean history: which invariant it breaks, and what the judge must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from palisade.verify.finding import Verdict, verdict_on
from palisade.verify.history import History
from palisade.verify.invariants import INVARIANTS
from palisade.verify.uninterrupted import NOWHERE
from schemas.topics import REQUESTS, RESPONSES
from tests.verify.given import (
    EXPIRES_MS,
    FALLBACK,
    FIRST,
    LIMIT,
    MIXED,
    ORDER_MS,
    RECORDS,
    T0,
    TICK,
    WHOLE,
    Row,
    changed,
    history,
)

Change = Callable[[list[Row]], list[Row] | None]


class Planted(NamedTuple):
    """A history with one violation of `invariant`; `words`: what is said of it, as a regular expression."""

    invariant: str
    what: str
    table: str
    change: Change
    words: str

    def history(self) -> History:
        return changed(history(), self.table, self.change)

    def verdict(self) -> Verdict:
        return next(verdict_on(each, self.history()) for each in INVARIANTS if each.name == self.invariant)

    def found(self) -> bool:
        """Whether the judge names it."""
        said = self.verdict()
        return said.status == "violated" and re.search(self.words, said.words) is not None


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


AT = FIRST + 40
_PLANTED: list[tuple[str, str, str, Change, str]] = [
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
     r"\[1\] lost offsets 20 to 30, and nobody was told"),
    ("I1", "a lost record that is scored all the same", "lost", also(first=AT, last=AT, at_ms=T0),
     f"offset {AT} counts as lost, and has an outcome"),
    ("I1", "a request of which nothing became", "paired", without(topic=REQUESTS, offset=9, row=1),
     r"palisade.requests\[1\] offset 9 of .* of its 2 events 1 ended as a prediction or a dead letter .1 such"),
    ("I1", "a response of which nothing became", "paired", without(topic=RESPONSES, offset=9),
     r"palisade.responses\[1\] offset 9 of .* of its 2 events 0 ended"),
    ("I1", "a prediction of a request that nobody sent", "records", without(topic=REQUESTS, offset=9),
     rf"prediction at offset {FIRST} comes from palisade.requests\[1\] offset 9, and no record lies there"),
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
    ("I3", "a state where an uninterrupted run never is", "states",
     where({"digest": NOWHERE}, run="reference", part="credit@v1"), "credit@v1 .* and no state: it nev in an unint"),
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
    ("I6", "an outcome that no uninterrupted run tells", "reference_outcomes",
     where({"outcome": 1}, partition=1, offset=AT, row=0),
     rf"predictions\[1\] offset {AT} row 0 was told outcome 0 with flags 0, and in an uninterrupted run .* outcome 1 with flags 0"),
    ("I6", "flags that no uninterrupted run tells", "reference_outcomes", where({"flags": 4}, partition=0, offset=AT, row=0),
     f"offset {AT} row 0 .* outcome 0 with flags 4"),
    ("I6", "a signal that no uninterrupted run tells", "reference_signals", without(signal_id="s2"),
     "signal s2 of spam .feature_drift., told at .* an uninterrupted run on the same log does not tell it"),
    ("I6", "a signal that says something else in an uninterrupted run", "reference_signals",
     where({"digest": "x"}, signal_id="s1"), "signal s1 of credit .* says something else by it"),
    ("I6", "a signal that only an uninterrupted run tells", "reference_signals", also(signal_id="s9"),
     f"signal s9 of credit .* offset {FIRST + 5} in an uninterrupted run .* is not on palisade.signals"),
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

PLANTED = tuple(Planted(*each) for each in _PLANTED)


def counted() -> dict[str, int]:
    """How many violations are planted, and how many of them the checker finds."""
    return {"planted_violations": len(PLANTED), "planted_violations_found": sum(each.found() for each in PLANTED)}
