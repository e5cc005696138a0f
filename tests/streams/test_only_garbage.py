"""A caller who sends only what cannot be decoded: from the log to a limit of that caller and of nobody else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import EndpointConfig
from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS
from schemas.wire import KIND_HEADER
from streams.records import RawHeaders, Records
from tests.decode.cases import arrow_stream
from tests.responders.given import T0, Responder, mandate, view
from tests.streams.log_of_predictions import ENDPOINTS, activation, open_log
from tests.streams.test_prediction_log import feed, signals, table_of

GOOD = {"amount": 100.0, "age": 30.0, "plan": "free"}
SENT = 60
"""Malformed rows of one caller."""
Event = dict[str, Any]


def event(caller: str, **fields: Any) -> Event:
    whole = {"endpoint": "credit", "model_version": "v1", "caller": caller, "caller_auth": "verified"}
    return whole | {"features": GOOD, "prediction": 0.5} | fields


def garbage(caller: str, **fields: Any) -> Event:
    return event(caller, features="none", **fields)


def odd(caller: str) -> Event:
    """A row with a feature that the profile does not know."""
    return event(caller, features=usual(np.random.default_rng(zlib.crc32(caller.encode()))) | {"new": 1.0})


def usual(rng: np.random.Generator) -> dict[str, float | str]:
    """A row as the profile's are."""
    plan = str(rng.choice(["free", "basic", "pro"], p=[0.6, 0.3, 0.1]))
    return {"amount": float(rng.normal(100, 15)), "age": float(rng.gamma(3, 12)), "plan": plan}


def log_of(events: list[bytes], others: int = 3) -> Records:
    """`events`, between each two of them good rows of `others` callers, a tick each second."""
    rng = np.random.default_rng(3)
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    headers: list[RawHeaders] = []
    times: list[int] = []

    def add(value: bytes, ms: int, header: RawHeaders = None, key: bytes | None = b"credit") -> None:
        values.append(value)
        keys.append(key)
        headers.append(header)
        times.append(ms)

    for endpoint in ENDPOINTS:
        value, header = activation(endpoint)
        add(value, T0, header, endpoint.encode())
    for at, each in enumerate(events):
        now = T0 + at * 50
        add(each, now)
        for other in range(others):
            add(json.dumps(event(f"good-{(at * others + other) % 20}", features=usual(rng))).encode(), now)
        if at % 20 == 19:
            add(b'{"worker":"w","at_ms":1}', now, [(KIND_HEADER, b"tick")], None)
    add(b'{"worker":"w","at_ms":1}', T0 + len(events) * 50 + 10_000, [(KIND_HEADER, b"tick")], None)
    return Records(values, keys, headers, list(range(100, 100 + len(values))), times)


def limited(log: Records) -> tuple[set[str], bool]:
    """Whom the shipped policy limits in enforce mode, and whether the endpoint is on fallback."""
    responder = Responder(mandate(EndpointConfig(name="credit")), healthy=False)
    responder.take(view("credit", T0, active_callers=21))
    for signal in signals(feed(open_log(), log, [])):
        responder.take(signal.model_copy(update={"at_ms": responder.now_ms}))
        responder.later(300)
    record = responder.state.record("credit")
    return {name for name, _ in record.actions() if name is not None}, record.route is not None


@cache
def log_of_garbage() -> Records:
    return log_of([json.dumps(garbage("mallory")).encode()] * SENT)


KINDS: dict[str, bytes] = {
    "features that are none": json.dumps(garbage("mallory")).encode(),
    "a field of another type": json.dumps(event("mallory", status=7)).encode(),
    "cut short": json.dumps(event("mallory", prediction=0.25)).encode()[:-1],
    "too large": json.dumps(event("mallory", features=GOOD | {"x": "y" * 70_000})).encode(),
    "too deep": json.dumps(event("mallory")).encode()[:-1] + b',"x":' + b"[" * 40 + b"]" * 40 + b"}",
    "an array of such": json.dumps([garbage("mallory")] * 3).encode(),
    "a row of Arrow": arrow_stream([event("mallory", status="great")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_who_sends_only_garbage_is_limited_and_nobody_else(kind: str) -> None:
    log = log_of([KINDS[kind]] * SENT)

    assert limited(log) == ({"mallory"}, False)


def test_every_row_has_one_outcome_and_the_garbage_is_dead_lettered() -> None:
    out = feed(open_log(), log_of_garbage(), [])
    rows = table_of(out, b"verdict_rows")
    letters = [DeadLetter.from_bytes(record.value) for record in out if record.topic == DEAD_LETTERS]

    assert len(rows) == len({(row["offset"], row["row"]) for row in rows}) == 4 * SENT
    assert sum(row["outcome"] == 1 for row in rows) == SENT == len(letters)


def test_what_a_claimed_caller_sends_limits_nobody_of_that_name() -> None:
    """Whoever takes another one's name, without having been authenticated by the service, does not frame it."""
    framing = json.dumps(garbage("good-1", caller_auth="claimed")).encode()
    said = [signal for signal in signals(feed(open_log(), log_of([framing] * SENT), [])) if signal.subject == "good-1"]

    assert {signal.caller_auth for signal in said} <= {"claimed"}
    assert limited(log_of([framing] * SENT)) == (set(), False)


def test_nobody_is_shielded_by_others_who_claim_its_name() -> None:
    own, shield = json.dumps(garbage("mallory")).encode(), json.dumps(event("mallory", caller_auth="claimed")).encode()

    assert limited(log_of([own, shield] * SENT)) == ({"mallory"}, False)


@pytest.mark.parametrize("callers", [1, 2, 10, 30])
@pytest.mark.parametrize("broken", [garbage, odd])
@pytest.mark.parametrize("heavy", [False, True], ids=["alike", "one asks most"])
def test_what_is_odd_of_everybody_is_no_callers_fault(
    callers: int, broken: Callable[[str], Event], heavy: bool
) -> None:
    """A service that changed what it writes, or rules that do not fit it, limit none of those who call it."""
    rng = np.random.default_rng(5)
    names = [f"good-{0 if heavy and at % 10 else at % callers}" for at in range(600)]
    whole = [event(name, features=usual(rng)) for name in names[:200]]
    log = [json.dumps(each).encode() for each in whole + [broken(name) for name in names[200:]]]

    assert limited(log_of(log, others=0))[0] == set()


def test_two_who_send_garbage_do_not_shield_each_other() -> None:
    """Nor do claimed names beside them: they are anybody's to make up."""
    crowd = [garbage(f"made-up-{at}", caller_auth="claimed") for at in range(10)]
    log = [json.dumps(each).encode() for each in [garbage("mallory"), garbage("eve"), *crowd] * 30]

    assert limited(log_of(log, others=1)) == ({"mallory", "eve"}, False)


def test_a_crowd_of_names_in_what_callers_write_limits_nobody_of_them() -> None:
    named = [
        event("mallory", features={"caller": f"good-{at % 20}", "x": [["deep"]], "y": "z" * 70_000})
        for at in range(SENT)
    ]

    assert limited(log_of([json.dumps(each).encode() for each in named])) == ({"mallory"}, False)


def test_some_garbage_among_many_good_rows_is_not_held_against_a_caller() -> None:
    rng = np.random.default_rng(4)
    mixed = [garbage("busy") if at % 10 == 0 else event("busy", features=usual(rng)) for at in range(600)]

    assert limited(log_of([json.dumps(each).encode() for each in mixed], others=1)) == (set(), False)


def test_garbage_says_nothing_of_the_endpoints_inputs_and_health() -> None:
    said = signals(feed(open_log(), log_of_garbage(), []))
    kinds = {(signal.kind, signal.subject_kind) for signal in said if signal.state != "unknown"}

    assert kinds == {("odd_input", "caller")}


def test_garbage_of_others_limits_no_endpoint_that_is_not_registered() -> None:
    strange = [json.dumps(garbage("mallory", endpoint="nobody")).encode()] * SENT
    kinds = {signal.kind for signal in signals(feed(open_log(), log_of(strange), []))}

    assert "odd_input" not in kinds


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 4 * SENT), max_size=40))
def test_any_cut_of_the_log_into_runs_gives_the_same_signals(cuts: list[int]) -> None:
    assert signals(feed(open_log(), log_of_garbage(), cuts)) == signals(feed(open_log(), log_of_garbage(), []))


@pytest.mark.parametrize("killed_at", [101, 150, 177, 215])
def test_a_restart_from_saved_state_counts_each_malformed_row_once(killed_at: int) -> None:
    log = log_of_garbage()
    uninterrupted, first = open_log(), open_log()
    feed(uninterrupted, log, [])
    feed(first, log.part(0, killed_at), [])
    saved = {part: first.snapshot(part) for part in first.dirty()}
    second = open_log()
    for part, state in saved.items():
        second.restore(part, state)
    feed(second, log.part(log.offsets.index(first.restart), len(log)), [])

    assert second.snapshot("credit@v1") == uninterrupted.snapshot("credit@v1")
