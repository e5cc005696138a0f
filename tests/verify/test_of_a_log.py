"""The judges on what the log of predictions really says: undisturbed, killed and restarted, and restarted wrongly."""

from __future__ import annotations

from functools import cache
from typing import Any

import pyarrow as pa
import pytest

from palisade.verify.finding import Verdict
from palisade.verify.history import History, Run, table_of
from palisade.verify.invariants import judge
from palisade.verify.records import Read, Reader, log_record, outcomes
from palisade.verify.replayed import reference_states
from palisade.verify.states import state_rows
from schemas.topics import PREDICTIONS, VERDICTS
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, Records
from tests.streams.log_of_predictions import ENDPOINTS, ROWS, open_log, records
from tests.streams.test_prediction_log import feed

KILLED_AT = 2_049
"""In records; the run before it is cut in two, so that some of it is told again."""


def history_of(log: PredictionLog, said: list[Outgoing]) -> History:
    """The finished history of one partition: `said` in the order in which it was written."""
    reads = [
        Read(PREDICTIONS, 0, offset, time, key, {name: value or b"" for name, value in headers or ()}, value)
        for value, key, headers, offset, time in zip(*(getattr(records(), name) for name in _LISTS), strict=True)
    ]
    written = [
        Read(out.topic, 0, at, records().timestamps[-1], out.key, dict(out.headers), out.value)
        for at, out in enumerate(said)
    ]
    reader = Reader({}, None)
    for read in written:
        reader.take(read)
    told = [found for read in written if read.topic == VERDICTS and (found := outcomes(read)) is not None]
    states = state_rows(PREDICTIONS, 0, {part: log.snapshot(part) for part in (f"{name}@v1" for name in ENDPOINTS)})
    tables: dict[str, pa.Table] = {name: table_of(name, []) for name in ("dead_letters", "journal", "decisions")}
    tables |= reader.tables() | {
        "records": table_of("records", [log_record(read) for read in reads]),
        "outcomes": pa.concat_tables(told),
        "states": table_of("states", states),
    }
    return History(tables, Run(finished=True))


_LISTS = ("values", "keys", "headers", "offsets", "timestamps")


@cache
def undisturbed() -> History:
    log = open_log()
    return history_of(log, feed(log, records(), []))


def rest_from(offset: int) -> Records:
    return records().part(offset - records().offsets[0], len(records()))


@cache
def restarted(skip: int = 0, committed: int = KILLED_AT // 2) -> History:
    """Killed when its first run was committed and its second told, but not committed; `skip` records are then passed over."""
    log = records()
    first = open_log()
    said = feed(first, log.part(0, committed), [])
    saved = {part: first.snapshot(part) for part in first.dirty()}
    start = first.restart
    said += feed(first, log.part(committed, KILLED_AT), [])
    second = open_log()
    for part, state in saved.items():
        second.restore(part, state)
    said += feed(second, rest_from(start + skip), [37], quiet_below=log.offsets[0] + committed)
    return history_of(second, said)


def verdicts(found: History) -> dict[str, Verdict]:
    both = [*found["states"].to_pylist(), *reference_states(undisturbed()["states"])]
    return {each.name: each for each in judge(found.with_tables(states=table_of("states", both)))}


def test_a_run_that_was_killed_and_restarted_is_proven():
    found = verdicts(restarted())

    assert {found[name].status for name in ("I1", "I3", "I6")} == {"holds"}, found
    assert f"{ROWS:,} events: {ROWS:,} scored" in found["I1"].words
    assert found["I3"].words == "2 digests of 2 parts"
    assert restarted()["outcomes"].num_rows > ROWS  # some were told again, the same
    assert restarted()["signals"].num_rows > 0


def test_a_restart_that_passes_over_a_record_has_another_state():
    found = verdicts(restarted(skip=300))

    assert found["I3"].status == "violated"
    assert "in an uninterrupted run on the same log" in found["I3"].words
    assert found["I1"].status == "holds"  # what was passed over had been told before the kill


@pytest.mark.parametrize("part", [f"{name}@v1" for name in ENDPOINTS])
def test_one_other_bit_of_state_is_named(part: str):
    def other(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"digest": "other"} if row["part"] == part else row

    states = table_of("states", map(other, restarted()["states"].to_pylist()))
    found = verdicts(restarted().with_tables(states=states))["I3"]

    assert found.status == "violated"
    assert f"part {part} of {PREDICTIONS}[0]" in found.words
