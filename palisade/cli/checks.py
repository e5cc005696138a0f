"""`palisade check`: configuration and policies, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from palisade.cli.options import ConfigOption, console, settings_of

if TYPE_CHECKING:
    from schemas.config import EndpointConfig


def register(app: typer.Typer) -> None:
    app.command("check")(check)


def check(
    config: ConfigOption = None,
    policy: Annotated[list[Path] | None, typer.Option(help="check this policy file alone; may be repeated")] = None,
) -> None:
    """Checks a configuration and its policy without touching anything; names file and line of what is wrong."""
    from palisade.settings import policy_hash, read_yaml
    from responders.signing import SigningKey
    from schemas.config import PolicyConfig

    for path in policy or []:
        checked = read_yaml(path, PolicyConfig)
        console.print(
            f"[green]ok[/] {path}: policy {checked.name}, {checked.mode}, {len(checked.rules)} rules, {policy_hash(checked)[:12]}"
        )
    if policy and config is None:
        return
    settings = settings_of(config)
    if settings.config.signing_key_file is not None:
        SigningKey.load(settings.home / settings.config.signing_key_file)
    console.print(f"[green]ok[/] {len(settings.config.endpoints)} endpoints, broker {settings.config.kafka.bootstrap}")
    console.print(
        f"[green]ok[/] policy {settings.policy.name}, mode {settings.policy.mode}, {policy_hash(settings.policy)[:12]}"
    )
    for endpoint in settings.config.endpoints:
        redactor = settings.redactor(endpoint)
        mode = endpoint.mode or settings.policy.mode
        believed = (
            "signed reports" if endpoint.producer_keys else "nobody's word: callers count as claimed, none is limited"
        )
        console.print(f"   {endpoint.name}: {mode}; believes {believed}")
        for line in _hands(endpoint):
            console.print(f"   {endpoint.name}: {escape(line)}", soft_wrap=True)
        if redactor is not None:
            console.print(f"   {endpoint.name}: redacted before Kafka: {escape(redactor.described())}", soft_wrap=True)


def _hands(endpoint: EndpointConfig) -> list[str]:
    """Who carries out what is decided about an endpoint, where that is not its Guard alone."""
    if endpoint.webhook is None:
        return (
            [] if endpoint.guard else ["no Guard and no webhook: nobody carries out what is decided, whatever the mode"]
        )
    lines = [f"acts through the webhook {endpoint.webhook.url}"]
    if endpoint.guard:
        lines.append(
            "a webhook beside a Guard: both carry out what is decided, and the Guard alone reports, also whether there is a "
            "fallback; set `guard: false` if no service embeds one, else nothing is reported"
        )
    elif endpoint.webhook.fallback_health_url is None:
        lines.append("no fallback_health_url: without Guard, it is never put on fallback")
    return lines
