"""An uninterrupted run stands, where a part was saved, exactly as the part that was saved: also after kills, also learning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from detectors.base import LogPoint
from detectors.learning import Learning
from palisade.verify.states import Saved, saved_of
from palisade.verify.uninterrupted import NOWHERE, Buried, Kept, Uninterrupted, passed_by
from schemas.events import ProfileActivated
from schemas.topics import PREDICTIONS
from schemas.wire import KIND_HEADER
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, Records
from tests.streams.log_of_predictions import open_log, records
from tests.streams.test_prediction_log import feed, said_by_part

CUTS = (700, 2_049, 3_111, 4_000)


def kept(what: Records, lost: tuple[int, int] | None = None) -> Iterator[Kept]:
    columns = (what.offsets, what.timestamps, what.keys, what.headers, what.values)
    for record in zip(*columns, strict=True):
        offset = record[0]
        if lost is None or not lost[0] <= offset < lost[1]:
            yield Kept(*record, lost if lost is not None and offset == lost[1] else None)


def recomputed(
    saved: dict[str, Saved],
    what: Records,
    buried: Buried | None = None,
    learning: Learning | None = None,
    lost: tuple[int, int] | None = None,
) -> tuple[Uninterrupted, list[Outgoing]]:
    said: list[Outgoing] = []
    run = Uninterrupted((PREDICTIONS, 0), open_log(learning=learning), saved, buried or Buried(), said.extend)
    asyncio.run(run.run(kept(what, lost)))
    return run, said


def parts_of(log: PredictionLog) -> dict[str, Saved]:
    found = {part: saved_of(log.snapshot(part)) for part in log.dirty()}
    return {part: saved for part, saved in found.items() if saved is not None}


@pytest.mark.parametrize("until", CUTS)
def test_it_stands_where_a_part_was_saved_as_the_part_that_was_saved(until: int):
    log = open_log()
    said = feed(log, records().part(0, until), [until // 3, until // 2])
    saved = parts_of(log)
    run, again = recomputed(saved, records())

    assert len(saved) == 2
    assert run.found == saved
    assert run.end == records().offsets[-1] + 1
    assert said_by_part(feed(open_log(), records(), [])) == said_by_part(again)
    assert said != again


def test_a_part_that_lost_a_record_is_not_where_an_uninterrupted_run_stands():
    log = open_log()
    feed(log, records().part(0, 1_000), [])
    feed(log, records().part(1_007, 2_000), [])
    saved = parts_of(log)
    run, _ = recomputed(saved, records())

    assert run.found.keys() == saved.keys()
    assert all(run.found[part].digest != saved[part].digest for part in saved)


def test_what_nobody_can_unpack_is_told_to_it_as_it_was_to_the_run():
    log, what = open_log(), records()
    lost = what.offsets[1_000], what.offsets[1_007]
    feed(log, what.part(0, 1_000), [])
    log.lost(lost[0], lost[1] - 1, LogPoint(PREDICTIONS, 0, lost[1], 0, what.timestamps[1_007]))
    feed(log, what.part(1_007, 2_000), [])
    saved = parts_of(log)

    assert recomputed(saved, what, lost=lost)[0].found == saved


def test_a_part_at_a_place_where_no_block_ends_is_named():
    log = open_log()
    feed(log, records().part(0, 1_000), [])
    between = {part: saved._replace(position=saved.position - 1) for part, saved in parts_of(log).items()}
    run, _ = recomputed(between, records())

    assert {found.digest for found in run.found.values()} == {NOWHERE}


@pytest.mark.parametrize("until", [90, 137, 300, 700, 1_111])
def test_a_version_that_learns_has_at_one_place_the_state_that_was_saved(until: int):
    what = records().part(2, len(records()))  # nobody activates a profile
    log = open_log(learning=Learning(rows=1_024, at_least_ms=1_000))
    feed(log, what.part(0, until), [until // 3, until // 2])
    saved = parts_of(log)
    run, _ = recomputed(saved, what, learning=Learning(rows=1_024, at_least_ms=1_000))

    assert saved
    assert {each.learns for each in saved.values()} == {True}
    assert run.found == saved


def test_what_the_run_could_not_handle_is_passed_over_and_a_refused_activation_too():
    what = records()
    failed = what.offsets[500]
    log = open_log()
    feed(log, what.part(1, 500), [])
    log.pass_over(what.part(500, 501), "it raised", 0)
    feed(log, what.part(501, 1_500), [])
    saved = parts_of(log)
    letters = [(failed, "handler_failed"), (what.offsets[0], "wrong_shape"), (what.offsets[9], "wrong_shape")]
    run, _ = recomputed(saved, what, passed_by(letters))
    without, _ = recomputed(saved, what)

    assert what.headers[0] is not None
    assert (KIND_HEADER, ProfileActivated.KIND.encode()) in what.headers[0]
    assert run.found == saved
    assert without.found != saved
