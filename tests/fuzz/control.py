"""Targets of the control path: what respond reads, decides, journals and orders; and what others may have left there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from responders import journal as journals
from responders.decide import Clock, decide
from responders.directives import directive_for, due, mark_sent
from responders.signing import Keyring, SigningKey
from responders.state import STATE_SCHEMA, RespondState, from_bytes, to_bytes
from schemas.actions import Command, Decision, Directive, InputRange, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.errors import StateRefused
from schemas.signals import EndpointState, Signal
from schemas.topics import ACTIONS, COMMANDS, DIRECTIVES, SIGNALS
from schemas.wire import KIND_HEADER, Wire
from streams.records import Records, header_of
from streams.respond_inputs import inputs_of
from streams.transport.run import TP
from tests.fuzz.case import START_MS, Case, Execute, Swallowed, Target
from tests.responders.given import (
    Responder,
    caller_signal,
    command,
    drifted,
    failing,
    mandate,
    view,
)

OPERATOR = SigningKey.generate()
COMMANDS_GIVEN = ("fallback", "restore", "limit", "unlimit", "kill", "unkill")


def case_of(record: Wire, key: bytes | None = b"a") -> Case:
    return Case(record.to_bytes(), key, ((KIND_HEADER, record.KIND.encode()),))


@cache
def history() -> Responder:
    """A responder after trouble, people's orders and recoveries."""
    responder = Responder(mandate())
    responder.take(failing("a"))
    responder.later(2_000)
    for name in ("bob", "eve"):
        responder.take(caller_signal(name, "b"))
    responder.later(2_000)
    for kind in COMMANDS_GIVEN:
        caller = "bob" if "limit" in kind else None
        responder.take(command(kind, None if "kill" in kind else "c", caller, command_id=kind))
    responder.later(5_000)
    responder.take(drifted("d", at_ms=responder.now_ms, first_ms=responder.now_ms))
    return responder


@cache
def control_records(topic: str) -> tuple[Case, ...]:
    """Records of a control topic, each as its writer makes it."""
    if topic == SIGNALS:
        knocking = {"bob": 30.0, "eve": 2.0}
        signals: list[Wire] = [caller_signal("bob", "b"), failing("a"), drifted("d"), view("b", knocking=knocking)]
        signals += [caller_signal("bob", "b", state="recovered", seq=2), view("a"), view("c", active_callers=0)]
        return tuple(map(case_of, signals))
    if topic == COMMANDS:
        orders = [command(kind, "a", "bob" if "limit" in kind else None) for kind in COMMANDS_GIVEN]
        return tuple(signed_command(case_of(order)) for order in orders)
    if topic == ACTIONS:
        return tuple(case_of(entry, b"journal") for entry in history().journal)
    state, now_ms = history().state, history().now_ms
    found = [case_of(directive_for(state, name, now_ms), name.encode()) for name in "abcd"]
    kill = KillSwitch(kill=True, issued_ms=START_MS, actor="ana", reason="a drill")
    return (*found, case_of(kill, b"kill"))


def signed_command(case: Case) -> Case:
    if case.value is None or header_of(case.headers, KIND_HEADER) != Command.KIND.encode():
        return case
    headers = ((KIND_HEADER, Command.KIND.encode()), *OPERATOR.headers(Command.KIND, case.value))
    return case._replace(headers=headers)


def respond() -> Target:
    """Signals, endpoint states and commands: parsed, decided one by one, journaled, made directives, saved."""
    given, operators = mandate(), Keyring([OPERATOR.public_base64])

    def make() -> Execute:
        state, now_ms, first = RespondState(), START_MS, {SIGNALS: 0, COMMANDS: 0}

        def execute(cases: Sequence[Case]) -> Hashable:
            nonlocal state, now_ms
            behaviour: set[Any] = set()
            orders = header_of(cases[0].headers, KIND_HEADER) == Command.KIND.encode()
            topic = COMMANDS if orders else SIGNALS
            offsets = list(range(first[topic], first[topic] + len(cases)))
            first[topic] += len(cases)
            records = Records(
                [case.value for case in cases], [case.key for case in cases], [list(case.headers) for case in cases],
                offsets, [case.at_ms for case in cases],
            )  # fmt: skip
            inputs, dead = inputs_of(records, TP(topic, 0), state, operators)
            behaviour |= {DeadLetter.from_bytes(record.value).reason for record in dead}
            decisions: list[Decision] = []
            for each in [*inputs.values(), Clock()]:
                now_ms += 300
                try:
                    state, decided = decide(state, each, now_ms, given)
                except ArithmeticError:  # the role passes over the one input that it is raised on
                    if isinstance(each, Clock):
                        raise
                    behaviour.add("passed over")
                else:
                    decisions += decided
            done = InputRange(topic=topic, partition=0, first=offsets[0], last=offsets[-1])
            state, entries = journals.record(state, [done], decisions, now_ms)
            for entry in entries:
                JournalEntry.from_bytes(entry.to_bytes())
            names = due(state, now_ms)
            for name in names:
                Directive.from_bytes(directive_for(state, name, now_ms).to_bytes())
            state = mark_sent(state, names, now_ms)
            if from_bytes(to_bytes(state)).epoch != state.epoch:
                raise Swallowed("the state that is read is not the one that was saved")
            return frozenset(behaviour | {(decision.kind, decision.reason, decision.outcome) for decision in decisions})

        return execute

    def seeds() -> Sequence[Case]:
        return [*control_records(SIGNALS), *control_records(COMMANDS)]

    return Target("respond", make, seeds, signed=signed_command, most=8, share=2)


def journal() -> Target:
    """Entries of the journal that somebody else wrote: refused, or replayed."""

    def make() -> Execute:
        state = RespondState()

        def execute(cases: Sequence[Case]) -> Hashable:
            nonlocal state
            entries: list[JournalEntry] = [JournalEntry.from_bytes(case.value or b"") for case in cases]
            state = journals.replay(entries, state)
            state, entry = journals.takeover(state, START_MS)
            entry.to_bytes()
            to_bytes(state)
            return frozenset((decision.kind, decision.outcome) for one in entries for decision in one.decisions)

        return execute

    return Target("journal", make, lambda: control_records(ACTIONS), declared=(ValidationError, StateRefused), most=4)


def responder_state() -> Target:
    """The responder's saved state, with a hash that fits."""

    def rehashed(case: Case) -> Case:
        head, _, body = (case.value or b"").partition(b"\n")
        head = json.dumps({"state_schema": STATE_SCHEMA, "sha256": hashlib.sha256(body).hexdigest()}).encode()
        return case._replace(value=head + b"\n" + body)

    def make() -> Execute:
        given = mandate()

        def execute(cases: Sequence[Case]) -> Hashable:
            state = from_bytes(cases[0].value or b"")
            state, _ = decide(state, Clock(), START_MS, given)
            to_bytes(state)
            return (len(state.endpoints), len(state.incidents), state.killed)

        return execute

    seeds = [Case(to_bytes(RespondState()))]
    return Target(
        "responder state", make, lambda: [*seeds, Case(to_bytes(history().state))], declared=(StateRefused,),
        signed=rehashed, most=1,
    )  # fmt: skip


def directives() -> Target:
    """Contracts of the control path that are read by `from_bytes` alone."""
    models: tuple[type[Wire], ...] = (Signal, EndpointState, Command, JournalEntry, Directive, KillSwitch, DeadLetter)

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            read = set()
            for model in models:
                for case in cases:
                    try:
                        found = model.from_bytes(case.value or b"")
                    except ValidationError:
                        continue
                    if model.from_bytes(found.to_bytes()) != found and b"null" not in found.to_bytes():
                        raise Swallowed(f"{model.__name__} is not read as it is written")
                    read.add(model.KIND)
            return frozenset(read)

        return execute

    def seeds() -> Sequence[Case]:
        return [case for topic in (SIGNALS, COMMANDS, ACTIONS, DIRECTIVES) for case in control_records(topic)]

    return Target("contracts", make, seeds, most=2)
