"""`palisade status`: what is under action, why, since when, until when. Reads Kafka alone."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from palisade.cli.options import ConfigOption, console, reached, site_of, table_of

if TYPE_CHECKING:
    from palisade.overview import Held, Overview
    from schemas.actions import Decision, KillSwitch
    from schemas.config import PalisadeConfig

MOST_SHOWN = 20
"""Actions of one endpoint that are listed; the rest is counted."""


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status(config: ConfigOption = None) -> None:
    """Shows each endpoint, what is under action, why and until when."""
    from palisade.overview import read_overview
    from responders.signing import Keyring

    site = site_of(config)
    overview = read_overview(reached(site.connection), Keyring(site.config.operator_keys))
    if overview.kill is not None:
        console.print(_killed(overview.kill))
    show(site.config, overview, time.time() * 1000)


def show(config: PalisadeConfig, overview: Overview, now_ms: float) -> None:
    """One row an endpoint."""
    table = table_of("endpoint", "guards", "asked/s", "fallback", "under action", right=("guards", "asked/s"))
    for endpoint in config.endpoints:
        state = overview.states.get(endpoint.name)
        seen = ("-", "-", "-")
        if state is not None:
            seen = (str(state.guards_live), f"{state.asked_per_s:.1f}", "works" if state.fallback_ok else "not seen")
        held = [held for (name, _), held in overview.holding.items() if name == endpoint.name]
        lines = [_line(each, now_ms) for each in held[:MOST_SHOWN]]
        if len(held) > MOST_SHOWN:
            lines.append(Text(f"and {len(held) - MOST_SHOWN:,} more"))
        if state is not None and state.killed and overview.kill is None:
            lines.append(Text("a guard has its local kill file", "red"))
        if not lines:
            lines.append(Text("nothing", "green"))
        if endpoint.webhook is not None:
            lines.append(_told(overview.webhooks.get(endpoint.name)))
        table.add_row(endpoint.name, *seen, Text("\n").join(lines))
    console.print(table)


def _line(held: Held, now_ms: float) -> Text:
    """What holds about one target, since when and for how long, and the name of the reason that began it."""
    decision = held.latest
    done = decision.outcome == "published"
    what = "fallback"
    if decision.kind == "limit":
        rate = "the floor" if decision.rate_per_s is None else f"{decision.rate_per_s:.1f}/s"
        what = f"limit {decision.caller} to {rate}"
    left_s = ((decision.expires_ms or 0) - now_ms) / 1000
    line = Text(what if done else f"would {what}", "red" if done else "yellow")
    since = datetime.fromtimestamp(held.first.issued_ms / 1000, UTC).strftime("%H:%M:%S")
    return line.append(f" since {since} UTC, for {left_s:.0f} s: {held.first.reason}", "default")


def _told(decision: Decision | None) -> Text:
    """What became of telling the endpoint's webhook receiver."""
    if decision is None:
        return Text("webhook: nothing told in the last hour")
    at = datetime.fromtimestamp(decision.issued_ms / 1000, UTC).strftime("%H:%M:%S")
    said, colour = {
        "webhook_delivered": ("delivered", "green"),
        "webhook_failing": ("FAILING since", "red"),
        "webhook_disabled": ("GONE (410) since", "red"),
        "webhook_given_up": ("GIVEN UP at", "red"),
    }[decision.reason]
    return Text(f"webhook: {said} {at} UTC, ", colour).append(decision.detail, "default")


def _killed(switch: KillSwitch) -> Text:
    when = datetime.fromtimestamp(switch.issued_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    line = Text("the kill switch is thrown: nothing is enforced", "bold red")
    reason = "".join(char if char.isprintable() else " " for char in switch.reason)
    line.append(f" ({switch.actor}, {when}{': ' + reason if reason else ''})", "default")
    return line.append("; allow it again with `palisade unkill`", "default")
