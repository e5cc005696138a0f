"""Incidents: when they open, are updated, recover; and that a replay gives the same ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import LogPoint, Reading
from detectors.signal_book import MAX_OPEN, UNHEARD_MS, UPDATE_EVERY_MS, SignalBook
from schemas.errors import StateRefused
from schemas.signals import Signal

RECOVER_MS = 5_000
BOTH = ("claimed", "verified")


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


def test_two_versions_that_one_tick_speaks_of_are_two_incidents() -> None:
    first, second = (
        SignalBook(RECOVER_MS).fold([reading(0, subject_kind="endpoint", subject="credit", version=version)])
        for version in ("v1", "v2")
    )

    assert first[0].log_offset == second[0].log_offset
    assert first[0].signal_id != second[0].signal_id
    assert first[0].incident_id != second[0].incident_id


@pytest.mark.parametrize("lost", [0, 1_000], ids=["from the start", "from an update on"])
def test_what_a_book_without_its_state_says_otherwise_at_the_same_row_has_another_id(lost: int) -> None:
    log = [reading(ms) for ms in range(0, 4_001, 500)]
    told = {signal.signal_id: signal for signal in SignalBook(RECOVER_MS).fold(log)}
    again = SignalBook(RECOVER_MS).fold([each for each in log if each.at.ms >= lost])

    assert {signal.log_offset for signal in again} <= {signal.log_offset for signal in told.values()}
    assert all(told.get(signal.signal_id, signal) == signal for signal in again)
    assert {signal.signal_id in told for signal in again} == {lost == 0}


@pytest.mark.parametrize("auth", BOTH)
def test_an_incident_of_a_clock_that_was_set_back_is_updated_and_recovers_as_others_do(auth: str) -> None:
    day = 86_400_000
    book = SignalBook(RECOVER_MS)
    assert states(book, reading(day, caller_auth=auth), reading(day + 1, "calm", caller_auth=auth)) == ["opened"]

    assert states(book, reading(0, caller_auth=auth), reading(UPDATE_EVERY_MS, caller_auth=auth)) == ["updated"]
    calm = [reading(ms, "calm", caller_auth=auth) for ms in (2_000, 2_000 + RECOVER_MS)]
    assert states(book, *calm) == ["recovered"]


def test_a_caller_unheard_since_a_clock_was_set_back_is_let_go_after_its_time_and_not_after_a_day() -> None:
    book = SignalBook(RECOVER_MS)
    states(book, reading(86_400_000))
    others = [reading(ms, "calm", subject="ann") for ms in (0, RECOVER_MS + UNHEARD_MS)]

    assert states(book, *others) == ["recovered"]


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
    names = [f"{number:x}".rjust(128, "m") for number in range(3 * max(MAX_OPEN.values()))]
    flood: list[dict[str, Any]] = [{"subject": name, "caller_auth": auth} for auth in BOTH for name in names]
    flood += [{"subject": name, "subject_kind": "source", "caller_auth": None} for name in names]

    opened = book.fold([reading(1_700_000_000_000, detector_hash="f" * 32, **who) for who in flood])
    book.fold([reading(1_700_000_000_001, "unknown", **who | {"subject": f"u{who['subject']}"}) for who in flood])

    assert len(opened) == sum(MAX_OPEN.values())
    assert len(book.snapshot()) < 190_000
    calm = [reading(1_700_000_000_002 + ms, "calm", subject=names[0]) for ms in (0, 9_000)]
    assert states(book, *calm) == ["recovered"]
    assert states(book, reading(1_700_000_009_100, subject=names[-1])) == ["opened"]


def test_a_book_full_of_claimed_callers_has_room_for_the_endpoint_and_for_verified_callers() -> None:
    book = SignalBook(RECOVER_MS)
    strangers = [reading(0, subject=f"s{n}", caller_auth="claimed") for n in range(2 * MAX_OPEN["claimed"])]
    assert len(book.fold(strangers)) == MAX_OPEN["claimed"]

    assert states(book, reading(1, kind="timeouts", subject_kind="endpoint", caller_auth=None)) == ["opened"]
    assert states(book, reading(2), reading(3, subject="s0", caller_auth="verified")) == ["opened", "opened"]


@pytest.mark.parametrize("auth", ["claimed", "verified"])
def test_a_caller_of_whom_nothing_is_read_any_more_recovers_at_the_next_reading(auth: str) -> None:
    book = SignalBook(RECOVER_MS)
    (opened,) = book.fold([reading(1, subject="gone", caller_auth=auth, severity="critical")])
    until = RECOVER_MS + UNHEARD_MS

    assert book.fold([reading(until, "calm", subject_kind="endpoint", caller_auth=None)]) == []
    (closed,) = book.fold([reading(until + 1, "calm", subject_kind="endpoint", caller_auth=None)])

    assert (closed.state, closed.incident_id, closed.seq) == ("recovered", opened.incident_id, 1)
    assert (closed.subject, closed.caller_auth, closed.kind, closed.severity) == (
        "gone",
        auth,
        "caller_rate",
        "critical",
    )
    assert closed.evidence["reason"] == "unheard"
    assert (closed.at_ms, closed.first_ms, closed.threshold) == (until + 1, 1, 1.0)
    assert not book.has_open


@pytest.mark.parametrize("what", ["raised", "unknown", "firing"])
def test_a_caller_that_is_still_read_of_does_not_recover_for_want_of_readings(what: str) -> None:
    book = SignalBook(RECOVER_MS)
    log = [reading(ms, what) for ms in range(0, 600_000, UNHEARD_MS)]

    assert "recovered" not in states(book, reading(0), *log)
    assert book.has_open


def test_an_endpoint_of_which_nothing_is_read_stays_as_it_was() -> None:
    book = SignalBook(RECOVER_MS)
    book.fold([reading(0, subject_kind="endpoint", caller_auth=None)])

    assert states(book, reading(10 * UNHEARD_MS, "calm", subject="other")) == []
    assert book.has_open


def test_two_incidents_that_open_at_one_row_under_one_name_have_ids_of_their_own() -> None:
    signals = SignalBook(0).fold([reading(0), reading(0, caller_auth="claimed")])

    assert len({signal.incident_id for signal in signals}) == 2


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["firing", "calm", "raised", "unknown"]),
            st.sampled_from(["mallory", "eve"]),
            st.sampled_from(BOTH),
            st.integers(0, 4_000) | st.just(RECOVER_MS + UNHEARD_MS),
        ),
        max_size=40,
    )
)
def test_a_replay_and_a_restart_anywhere_give_the_same_signals(steps: list[tuple[str, str, str, int]]) -> None:
    log, ms = [], 0
    for offset, (what, subject, auth, after) in enumerate(steps):
        ms += after
        log.append(reading(ms, what, subject=subject, caller_auth=auth, at=LogPoint("log", 0, offset, 0, ms)))
    expected = SignalBook(RECOVER_MS).fold(log)

    resumed, signals = SignalBook(RECOVER_MS), []
    for one in log:
        signals += resumed.fold([one])
        saved, resumed = resumed.snapshot(), SignalBook(RECOVER_MS)
        resumed.restore(saved)
        assert resumed.snapshot() == saved

    assert signals == expected
    by_incident: dict[str, list[Signal]] = {}
    for signal in expected:
        if signal.state != "unknown":
            by_incident.setdefault(signal.incident_id, []).append(signal)
    for incident in by_incident.values():
        assert [signal.seq for signal in incident] == list(range(len(incident)))
        assert "opened" not in [signal.state for signal in incident[1:]]
        assert "recovered" not in [signal.state for signal in incident[:-1]]
        for earlier, later in pairwise(incident):
            assert later.state != "updated" or later.at_ms - earlier.at_ms >= UPDATE_EVERY_MS


def _saved(schema: int = 3, **opened: object) -> bytes:
    none: dict[str, object] = {"claimed": {}, "verified": {}, "own": {}}
    return json.dumps({"schema": schema, "open": none | opened, "unknown": {key: [] for key in none}}).encode()


@pytest.mark.parametrize(
    "state",
    [b"", b"[]", b"{", b'{"schema":1}', b'{"schema":3,"open":[]}', b'{"schema":3,"open":{},"unknown":4}',
     _saved(own={"k": [1]}), _saved(claimed={"k": ["i", 0, "warning", 1, 1, None, ["d"]]}),
     _saved(schema=2), _saved(schema=4), b"[" * 90_000],
)  # fmt: skip
def test_what_is_no_saved_book_is_refused_and_changes_nothing(state: bytes) -> None:
    book = SignalBook(RECOVER_MS)
    book.fold([reading(0)])
    before = book.snapshot()

    with pytest.raises(StateRefused):
        book.restore(state)
    assert book.snapshot() == before
