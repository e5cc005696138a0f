"""The state comes back from its bytes and from its journal, is bounded, and refuses what is not its own."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from responders.fold import apply
from responders.journal import record, replay, takeover
from responders.state import (
    MAX_ALL_LIMITS,
    MAX_ANSWERED,
    MAX_HOLDS,
    MAX_INCIDENTS,
    MAX_STATE_BYTES,
    MAX_TRIP_RECORDS,
    Action,
    EndpointRecord,
    Hold,
    Incident,
    RespondState,
    TripRecord,
    as_dict,
    from_bytes,
    target_key,
    to_bytes,
)
from schemas.actions import Decision, InputRange
from schemas.errors import StateRefused
from tests.responders.given import T0, Responder, caller_signal, command, drifted, failing, mandate, view


@pytest.fixture
def responder() -> Responder:
    responder = Responder(mandate())
    for given in (caller_signal(), failing("b"), drifted("c"), command("unlimit", caller="eve"), caller_signal("zoe")):
        responder.take(given)
    responder.later(1_000)
    return responder


def test_the_state_comes_back_from_its_bytes(responder: Responder) -> None:
    back = from_bytes(to_bytes(responder.state))

    assert back.durable() == responder.state.durable()
    assert back.seen.views == responder.state.seen.views


def test_the_state_comes_back_from_its_journal(responder: Responder) -> None:
    assert replay(responder.journal, RespondState()).durable() == responder.state.durable()


def test_entries_that_the_state_holds_already_change_nothing(responder: Responder) -> None:
    assert replay(responder.journal, responder.state) == responder.state


def test_a_takeover_is_an_entry_like_any_other(responder: Responder) -> None:
    taken, entry = takeover(responder.state, T0 + 5_000)

    assert (entry.decisions, entry.epoch) == ([], responder.state.epoch + 1)
    assert replay([*responder.journal, entry], RespondState()).durable() == taken.durable()


def test_inputs_that_the_journal_answers_are_known(responder: Responder) -> None:
    answered = responder.journal[-1].inputs[-1].last

    assert responder.state.has_applied("palisade.signals", 0, answered)
    assert not responder.state.has_applied("palisade.signals", 0, answered + 1)
    assert not responder.state.has_applied("palisade.commands", 0, 0)


def test_inputs_that_wait_for_their_answer_are_known_until_an_entry_no_longer_names_them(responder: Responder) -> None:
    decisions = responder.journal[-1].decisions

    def answering(state: RespondState, last: int, *waiting: int) -> RespondState:
        given = [InputRange(topic="palisade.signals", first=last, last=last, waiting=list(waiting))]
        return record(state, given, decisions, T0)[0]

    state = from_bytes(to_bytes(answering(RespondState(), 9, 7, 8)))
    assert [state.has_applied("palisade.signals", 0, offset) for offset in (6, 7, 8, 9, 10)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    state = answering(state, 9, 8)
    assert [state.has_applied("palisade.signals", 0, offset) for offset in (7, 8)] == [True, False]
    assert answering(state, 9).has_applied("palisade.signals", 0, 8)


def test_nothing_decided_makes_no_entry() -> None:
    state = RespondState()

    assert record(state, [InputRange(topic="palisade.signals", first=0, last=9)], [], T0) == (state, [])


def test_very_many_decisions_become_several_entries_whose_last_answers_the_inputs(responder: Responder) -> None:
    decisions = [decision for entry in responder.journal for decision in entry.decisions] * 400
    inputs = [InputRange(topic="palisade.signals", first=0, last=9)]

    _, entries = record(RespondState(), inputs, decisions, T0)

    assert len(entries) > 1
    assert [entry.entry for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.inputs for entry in entries] == [[]] * (len(entries) - 1) + [inputs]
    assert max(len(entry.to_bytes()) for entry in entries) < 1_000_000


def sealed(body: bytes) -> bytes:
    """Bytes of another shape under a head that fits them."""
    return json.dumps({"state_schema": 1, "sha256": sha256(body).hexdigest()}).encode() + b"\n" + body


def damaged(saved: bytes) -> list[bytes]:
    head, _, body = saved.partition(b"\n")
    envelope = json.loads(head)
    return [
        b"",
        b"\x80\x05.",
        b"[]\n{}",
        b"[" * 100_000,
        saved[:-1],
        saved.replace(b"rate-a-bob", b"rate-a-eve", 1),
        json.dumps(envelope | {"state_schema": 2}).encode() + b"\n" + body,
        head + b"\n",
        sealed(b'{"epoch":1}'),
        sealed(body.replace(b'"epoch":', b'"epoch":"x","_":', 1)),
        b" " * (MAX_STATE_BYTES + 1),
    ]


def test_what_is_not_a_saved_state_is_refused(responder: Responder) -> None:
    for saved in damaged(to_bytes(responder.state)):
        with pytest.raises(StateRefused):
            from_bytes(saved)


def test_a_full_state_stays_under_four_megabytes() -> None:
    long = "e" * 120
    actions = {
        f"{'c' * 122}{number:06d}": Action(
            "a" * 32, "enforce", "caller_out_of_pattern", "palisade", T0, T0, 1.5, ("i" * 32,) * 2, "flooding-caller"
        )
        for number in range(MAX_ALL_LIMITS)
    }
    said = ("limit:caller_not_verified", "notify:caller_not_verified")
    full = RespondState(
        endpoints={f"{long}{number:04d}": EndpointRecord() for number in range(999)}
        | {"a": EndpointRecord(limits=actions)},
        incidents={f"{number:032d}": Incident(long, T0, said * 4) for number in range(MAX_INCIDENTS)},
        answered={f"{number:032d}": T0 for number in range(MAX_ANSWERED)},
        trips={
            target_key(long, f"{'c' * 122}{number}"): TripRecord((T0,) * 8, T0) for number in range(MAX_TRIP_RECORDS)
        },
        holds={target_key(long, f"{'c' * 122}{number}"): Hold("h" * 32, "ana", T0) for number in range(MAX_HOLDS)},
    )
    full.seen.views.update({f"{number:0128d}": view(f"{number:0128d}") for number in range(1_000)})

    assert len(to_bytes(full)) < MAX_STATE_BYTES


def test_a_state_beyond_its_bound_is_refused_not_cut() -> None:
    huge = RespondState(incidents={f"{number:0128d}": Incident("a" * 128, T0) for number in range(30_000)})

    with pytest.raises(StateRefused):
        to_bytes(huge)


def test_a_flood_of_incidents_and_commands_is_bounded(responder: Responder) -> None:
    state = responder.state.copy()
    told = responder.journal[0].decisions[0]
    for number in range(MAX_INCIDENTS + 500):
        changes = {"kind": "notify", "reason": "told_people", "incident_id": f"i{number}"}
        apply(state, told.model_copy(update=changes))
    for number in range(MAX_HOLDS + 50):
        changes = {"kind": "unlimit", "reason": "person_commanded", "actor": "ana", "caller": f"u{number}"}
        apply(state, told.model_copy(update=changes | {"expires_ms": T0 + number}))
    for number in range(MAX_TRIP_RECORDS + 50):
        apply(state, told.model_copy(update={"caller": f"t{number}"}))
    for number in range(MAX_ANSWERED + 50):
        apply(state, told.model_copy(update={"signal_ids": [f"{number:032d}"]}))

    assert (len(state.incidents), len(state.holds), len(state.trips)) == (MAX_INCIDENTS, MAX_HOLDS, MAX_TRIP_RECORDS)
    assert len(state.answered) == MAX_ANSWERED


def test_a_decision_survives_the_wire_unchanged(responder: Responder) -> None:
    for entry in responder.journal:
        for decision in entry.decisions:
            assert Decision.from_bytes(decision.to_bytes()) == decision


def test_the_state_can_be_shown(responder: Responder) -> None:
    assert json.loads(json.dumps(as_dict(responder.state)))["endpoints"]["a"]["limits"]["bob"]["mode"] == "enforce"
