"""What holds now, by Kafka's word alone: the newest state of each endpoint, decisions in force, the kill switch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pydantic import ValidationError

from responders.signing import Keyring
from schemas.actions import Decision, JournalEntry, KillSwitch
from schemas.errors import SignatureRefused
from schemas.signals import EndpointState
from schemas.topics import ACTIONS, DIRECTIVES, SIGNALS
from schemas.wire import KIND_HEADER
from streams.reading import read_to_end, tail
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection

LOOK_BACK = 5_000
"""Records at the end of a topic that are read: endpoint states come each 30 s at least."""


@dataclass(slots=True)
class Overview:
    """The newest state of each endpoint, and the decisions that hold. `kill`: the switch as it was thrown, if it is."""

    states: dict[str, EndpointState] = field(default_factory=dict)
    holding: dict[tuple[str, str | None], Decision] = field(default_factory=dict)
    kill: KillSwitch | None = None


def read_overview(connection: KafkaConnection, operators: Keyring) -> Overview:
    """What the ends of the signals topic, of the journal and of the directives say; records that are none are passed over.

    operators: whose kill switches count. Raises as `read_to_end`.
    """
    overview = Overview(states=_states(connection), kill=_kill(connection, operators))
    for message in tail(connection, ACTIONS, LOOK_BACK):
        try:
            entry: JournalEntry = JournalEntry.from_bytes(message.value() or b"")
        except ValidationError:
            continue
        for decision in entry.decisions:
            _fold(overview.holding, decision)
    now = time.time() * 1000
    overview.holding = {key: held for key, held in overview.holding.items() if (held.expires_ms or 0) > now}
    return overview


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


def _fold(holding: dict[tuple[str, str | None], Decision], decision: Decision) -> None:
    """A decision supersedes the one before it about the same target; a kill takes back all that is enforced."""
    if decision.outcome == "refused":
        return
    key = (decision.endpoint, decision.caller)
    if decision.kind in ("fallback", "limit"):
        holding[key] = decision
    elif decision.kind in ("restore", "unlimit"):
        holding.pop(key, None)
    elif decision.kind == "kill":
        holding.clear()
