"""Signals, endpoint states and commands: records to what the responder decides on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ValidationError

from responders.decide import Input
from responders.signing import Keyring
from responders.state import RespondState
from schemas.actions import Command
from schemas.deadletter import DeadReason
from schemas.errors import MACHINE_ERRORS, SignatureRefused
from schemas.signals import EndpointState, Signal
from schemas.topics import COMMANDS
from schemas.wire import KIND_HEADER
from streams.deadletters import told
from streams.outgoing import dead_record
from streams.records import Outgoing, Records, header_of
from streams.transport.run import TP

log = logging.getLogger(__name__)

_PARSERS: Mapping[bytes, type[Signal] | type[EndpointState] | type[Command]] = {
    Signal.KIND.encode(): Signal,
    EndpointState.KIND.encode(): EndpointState,
    Command.KIND.encode(): Command,
}


def inputs_of(
    records: Records, tp: TP, state: RespondState, operators: Keyring
) -> tuple[dict[int, Input], list[Outgoing]]:
    """The inputs of a run that the journal does not answer yet, by number, and dead letters of those that are none.

    Commands count if one of `operators` signed them.
    """
    inputs: dict[int, Input] = {}
    dead: list[Outgoing] = []
    for index, offset in enumerate(records.offsets):
        if state.has_applied(tp.topic, tp.partition, offset):
            continue
        detail = ""
        try:
            reason, parsed = _parsed(tp, records, index, operators)
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            log.exception("%s[%d] %d cannot be read", *tp, offset)
            reason, parsed, detail = "handler_failed", None, told("reading", error)
        if parsed is not None:
            inputs[index] = parsed
        elif reason is not None:
            dead.append(dead_record(*tp, records, index, reason, detail))
    return inputs, dead


def _parsed(tp: TP, records: Records, index: int, operators: Keyring) -> tuple[DeadReason | None, Input | None]:
    value, headers = records.values[index], records.headers[index]
    kind = header_of(headers, KIND_HEADER) or b""
    model = _PARSERS.get(kind)
    if model is None or (model is Command) != (tp.topic == COMMANDS):
        return "unknown_kind", None
    if value is None:
        return "tombstone", None
    if model is Command:
        try:
            operators.verify(Command.KIND, value, headers)
        except SignatureRefused as refused:
            log.warning("a command was refused: %s", refused.reason)
            return ("unsigned_control" if refused.reason == "unsigned" else "bad_signature"), None
    try:
        return None, model.model_validate_json(value)
    except ValidationError:
        return "wrong_shape", None
