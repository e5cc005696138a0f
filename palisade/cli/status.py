"""`palisade status`: what is under action, why, since when, until when. Reads Kafka alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import typer
from pydantic import ValidationError
from rich.table import Table

from palisade.cli.options import ConfigOption, console, settings_of
from schemas.actions import Decision, JournalEntry
from schemas.signals import EndpointState
from schemas.topics import ACTIONS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.reading import tail
from streams.records import header_of, listed
from streams.transport.settings import KafkaConnection

LOOK_BACK = 5_000
"""Records at the end of a topic that are read: endpoint states come each 30 s at least."""


@dataclass(slots=True)
class Overview:
    """The newest state of each endpoint, and the decisions that hold."""

    states: dict[str, EndpointState] = field(default_factory=dict)
    holding: dict[tuple[str, str | None], Decision] = field(default_factory=dict)
    killed: bool = False


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status(config: ConfigOption = None) -> None:
    """Shows each endpoint, what is under action, why and until when."""
    settings = settings_of(config)
    overview = read_overview(settings.connection)
    if overview.killed:
        console.print(
            "[bold red]the kill switch is thrown: nothing is enforced[/]; allow it again with `palisade unkill`"
        )
    table = Table("endpoint", "guards", "asked/s", "fallback ok", "under action", "why", "until")
    now = time.time() * 1000
    for endpoint in settings.config.endpoints:
        state = overview.states.get(endpoint.name)
        actions = [decision for (name, _), decision in overview.holding.items() if name == endpoint.name]
        what = "\n".join(_what(decision) for decision in actions) or "[green]nothing[/]"
        why = "\n".join(decision.reason for decision in actions)
        until = "\n".join(f"{((decision.expires_ms or 0) - now) / 1000:.0f} s" for decision in actions)
        seen = (
            (str(state.guards_live), f"{state.asked_per_s:.1f}", "yes" if state.fallback_ok else "no")
            if state
            else ("-", "-", "-")
        )
        table.add_row(endpoint.name, *seen, what, why, until)
    console.print(table)


def read_overview(connection: KafkaConnection) -> Overview:
    """What the ends of the signals topic and the journal say."""
    overview = Overview()
    for message in tail(connection, SIGNALS, LOOK_BACK):
        if header_of(listed(message.headers()), KIND_HEADER) == EndpointState.KIND.encode():
            try:
                state: EndpointState = EndpointState.from_bytes(message.value() or b"")
            except ValidationError:
                continue
            overview.states[state.endpoint] = state
    now = time.time() * 1000
    for message in tail(connection, ACTIONS, LOOK_BACK):
        try:
            entry: JournalEntry = JournalEntry.from_bytes(message.value() or b"")
        except ValidationError:
            continue
        for decision in entry.decisions:
            _fold(overview, decision)
    overview.holding = {key: held for key, held in overview.holding.items() if (held.expires_ms or 0) > now}
    return overview


def _fold(overview: Overview, decision: Decision) -> None:
    if decision.outcome == "refused":
        return
    key = (decision.endpoint, decision.caller)
    if decision.kind in ("fallback", "limit"):
        overview.holding[key] = decision
    elif decision.kind in ("restore", "unlimit"):
        overview.holding.pop(key, None)
    elif decision.kind in ("kill", "unkill"):
        overview.killed = decision.kind == "kill"


def _what(decision: Decision) -> str:
    shown = "[red]" if decision.outcome == "published" else "[yellow]would: "
    if decision.kind == "limit":
        return f"{shown}limit {decision.caller} to {decision.rate_per_s:.1f}/s[/]"
    return f"{shown}fallback[/]"
