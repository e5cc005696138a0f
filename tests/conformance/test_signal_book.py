"""Incidents: when they open, are updated, recover; and that a replay gives the same ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import LogPoint, Reading
from detectors.signal_book import MAX_OPEN, UPDATE_EVERY_MS, SignalBook
from schemas.errors import StateRefused

RECOVER_MS = 5_000


def reading(ms: int, what: str = "firing", **changed: object) -> Reading:
    """A reading at log time `ms`: `firing`, `calm`, `raised` (neither) or `unknown`."""
    base = Reading(
        detector="d", detector_hash="h", kind="caller_rate", endpoint="credit", subject_kind="caller",
        subject="mallory", score=2.0, threshold=1.0, firing=what == "firing", calm=what == "calm",
        severity="warning", at=LogPoint("log", 0, ms, 0, ms), first_ms=ms, known=what != "unknown",
        caller_auth="verified",
    )  # fmt: skip
    return replace(base, **changed)  # type: ignore[arg-type]


def states(book: SignalBook, *readings: Reading) -> list[str]:
    return [signal.state for signal in book.fold(readings)]


def test_the_first_firing_reading_opens_an_incident_named_after_its_signal() -> None:
    (opened,) = SignalBook(RECOVER_MS).fold([reading(0)])

    assert (opened.state, opened.seq, opened.incident_id) == ("opened", 0, opened.signal_id)
    assert (opened.log_topic, opened.log_offset, opened.at_ms) == ("log", 0, 0)


def test_calm_and_raised_readings_open_nothing() -> None:
    assert states(SignalBook(RECOVER_MS), reading(0, "calm"), reading(1, "raised")) == []


def test_an_open_incident_is_updated_at_most_once_a_second_under_the_same_id() -> None:
    signals = SignalBook(RECOVER_MS).fold([reading(ms) for ms in range(0, 3_001, 100)])

    assert [signal.at_ms for signal in signals] == [0, 1_000, 2_000, 3_000]
    assert [signal.seq for signal in signals] == [0, 1, 2, 3]
    assert len({signal.incident_id for signal in signals}) == 1
    assert len({signal.signal_id for signal in signals}) == 4


def test_worse_severity_is_said_at_once_and_better_is_not() -> None:
    signals = SignalBook(RECOVER_MS).fold([reading(0), reading(10, severity="critical"), reading(20)])

    assert [(signal.state, signal.severity) for signal in signals] == [("opened", "warning"), ("updated", "critical")]


def test_it_recovers_only_after_lasting_calm() -> None:
    book = SignalBook(RECOVER_MS)

    assert states(book, reading(0), reading(1_000, "calm"), reading(5_999, "calm")) == ["opened"]
    assert states(book, reading(6_000, "calm")) == ["recovered"]
    assert not book.has_open


@pytest.mark.parametrize("what", ["raised", "firing"])
def test_a_single_reading_that_is_not_calm_begins_the_wait_anew(what: str) -> None:
    book = SignalBook(RECOVER_MS)
    book.fold([reading(0), reading(1_000, "calm"), reading(1_500, what), reading(2_000, "calm")])

    assert states(book, reading(6_500, "calm")) == []
    assert states(book, reading(7_000, "calm")) == ["recovered"]


def test_between_the_thresholds_an_incident_stays_open_for_ever() -> None:
    book = SignalBook(RECOVER_MS)

    assert states(book, reading(0), *(reading(ms, "raised") for ms in range(1_000, 600_000, 1_000))) == ["opened"]
    assert book.has_open


def test_a_second_incident_of_a_subject_has_an_id_of_its_own() -> None:
    signals = SignalBook(0).fold([reading(0), reading(1, "calm"), reading(2)])

    assert [signal.state for signal in signals] == ["opened", "recovered", "opened"]
    assert signals[0].incident_id != signals[2].incident_id


def test_one_name_verified_and_claimed_are_two_subjects() -> None:
    assert states(SignalBook(0), reading(0), reading(0, caller_auth="claimed")) == ["opened", "opened"]


def test_unknown_is_said_once_and_again_after_something_was_known() -> None:
    book = SignalBook(RECOVER_MS)
    log = [reading(0, "unknown"), reading(9_000, "unknown"), reading(9_001, "calm"), reading(9_002, "unknown")]

    assert states(book, *log) == ["unknown", "unknown"]


def test_not_knowing_neither_closes_nor_updates_an_open_incident() -> None:
    book = SignalBook(RECOVER_MS)

    assert states(book, reading(0), reading(60_000, "unknown")) == ["opened", "unknown"]
    assert book.has_open


def test_a_flood_of_subjects_opens_a_bounded_number_of_incidents_and_state_stays_small() -> None:
    book = SignalBook(RECOVER_MS)
    names = [f"{number:x}".rjust(128, "m") for number in range(3 * MAX_OPEN)]

    opened = book.fold([reading(0, subject=name) for name in names])
    book.fold([reading(1, "unknown", subject=f"u{name}") for name in names])

    assert len(opened) == MAX_OPEN
    assert len(book.snapshot()) < 200_000
    assert states(book, reading(2, "calm", subject=names[0]), reading(9_000, "calm", subject=names[0])) == ["recovered"]
    assert states(book, reading(9_001, subject=names[-1])) == ["opened"]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["firing", "calm", "raised", "unknown"]), st.integers(0, 4_000)), max_size=40)
)
def test_a_replay_and_a_restart_anywhere_give_the_same_signals(steps: list[tuple[str, int]]) -> None:
    log, ms = [], 0
    for offset, (what, after) in enumerate(steps):
        ms += after
        log.append(reading(ms, what, at=LogPoint("log", 0, offset, 0, ms)))
    expected = SignalBook(RECOVER_MS).fold(log)

    resumed, signals = SignalBook(RECOVER_MS), []
    for one in log:
        signals += resumed.fold([one])
        saved, resumed = resumed.snapshot(), SignalBook(RECOVER_MS)
        resumed.restore(saved)

    assert signals == expected
    for earlier, later in pairwise(expected):
        if earlier.incident_id == later.incident_id and later.state == "updated" and earlier.state != "unknown":
            assert later.at_ms - earlier.at_ms >= UPDATE_EVERY_MS


@pytest.mark.parametrize(
    "state",
    [b"", b"[]", b"{", b'{"schema":1}', b'{"schema":2,"open":{"k":[1]},"unknown":[]}', b'{"schema":2,"open":[]}',
     b'{"schema":2,"open":{},"unknown":4}', json.dumps({"schema": 3, "open": {}, "unknown": []}).encode(), b"[" * 90_000],
)  # fmt: skip
def test_what_is_no_saved_book_is_refused_and_changes_nothing(state: bytes) -> None:
    book = SignalBook(RECOVER_MS)
    book.fold([reading(0)])
    before = book.snapshot()

    with pytest.raises(StateRefused):
        book.restore(state)
    assert book.snapshot() == before
