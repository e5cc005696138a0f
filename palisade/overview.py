"""What holds now, by Kafka's word alone: the newest state of each endpoint, decisions in force, the kill switch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pydantic import ValidationError

from responders.signing import Keyring
from schemas.actions import MAX_TTL_MS, Decision, JournalEntry, KillSwitch
from schemas.errors import SignatureRefused
from schemas.signals import EndpointState
from schemas.topics import ACTIONS, DIRECTIVES, SIGNALS
from schemas.wire import KIND_HEADER
from streams.reading import read_to_end, tail
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection

LOOK_BACK = 5_000
"""Records at the end of a topic that are read first: endpoint states come each 30 s at least."""
WEBHOOK_REASONS = ("webhook_delivered", "webhook_failing", "webhook_disabled", "webhook_given_up")
FURTHER_BACK = 200_000
"""Entries of the journal that are read at most, if the first 5,000 do not reach back to what may still hold."""


@dataclass(frozen=True, slots=True)
class Held:
    """An action that holds: the decision that began it and the newest that renewed it (the same where none did)."""

    first: Decision
    latest: Decision


@dataclass(slots=True)
class Overview:
    """The newest state of each endpoint, and what holds. `kill`: the switch as it was thrown, if it is. `webhooks`: the
    newest word on the delivery to each endpoint's receiver."""

    states: dict[str, EndpointState] = field(default_factory=dict)
    holding: dict[tuple[str, str | None], Held] = field(default_factory=dict)
    webhooks: dict[str, Decision] = field(default_factory=dict)
    kill: KillSwitch | None = None


def read_overview(connection: KafkaConnection, operators: Keyring) -> Overview:
    """What the ends of the signals topic, of the journal and of the directives say; records that are none are passed over.

    operators: whose kill switches count. Raises as `read_to_end`.
    """
    overview = Overview(states=_states(connection), kill=_kill(connection, operators))
    now = time.time() * 1000
    for entry in _journal(connection, now):
        for decision in entry.decisions:
            _fold(overview.holding, decision)
            if decision.reason in WEBHOOK_REASONS:
                overview.webhooks[decision.endpoint] = decision
    overview.holding = {key: held for key, held in overview.holding.items() if (held.latest.expires_ms or 0) > now}
    return overview


def _journal(connection: KafkaConnection, now: float) -> list[JournalEntry]:
    """The journal's end, far enough back that it has all that may still hold: nothing does for over `MAX_TTL_MS`."""
    most = LOOK_BACK
    while True:
        entries, read = [], 0
        for message in tail(connection, ACTIONS, most):
            read += 1
            try:
                entries.append(JournalEntry.from_bytes(message.value() or b""))
            except ValidationError:
                continue
        oldest = min((entry.now_ms for entry in entries), default=now)
        if read < most or most >= FURTHER_BACK or oldest < now - MAX_TTL_MS:
            return entries
        most = min(most * 8, FURTHER_BACK)


def _states(connection: KafkaConnection) -> dict[str, EndpointState]:
    states = {}
    for message in tail(connection, SIGNALS, LOOK_BACK):
        if header_of(headers_of(message), KIND_HEADER) == EndpointState.KIND.encode():
            try:
                state: EndpointState = EndpointState.from_bytes(message.value() or b"")
            except ValidationError:
                continue
            states[state.endpoint] = state
    return states


def _kill(connection: KafkaConnection, operators: Keyring) -> KillSwitch | None:
    """The newest kill switch that an operator signed: each partition of the directives has it, and keeps it."""
    newest: KillSwitch | None = None
    for message in read_to_end(connection, DIRECTIVES, 0):
        headers, value = headers_of(message), message.value() or b""
        if header_of(headers, KIND_HEADER) != KillSwitch.KIND.encode():
            continue
        try:
            operators.verify(KillSwitch.KIND, value, headers)
            switch: KillSwitch = KillSwitch.from_bytes(value)
        except (SignatureRefused, ValidationError):
            continue
        if newest is None or switch.issued_ms >= newest.issued_ms:
            newest = switch
    return newest if newest is not None and newest.kill else None


def _fold(holding: dict[tuple[str, str | None], Held], decision: Decision) -> None:
    """A decision supersedes the one before it about the same target; a kill takes back all that is enforced."""
    if decision.outcome == "refused":
        return
    key = (decision.endpoint, decision.caller)
    if decision.kind in ("fallback", "limit"):
        before = holding.get(key)
        renewed = before is not None and before.first.action_id == decision.action_id
        holding[key] = Held(before.first if before is not None and renewed else decision, decision)
    elif decision.kind in ("restore", "unlimit"):
        holding.pop(key, None)
    elif decision.kind == "kill":
        holding.clear()
