"""`palisade kill`, `palisade unkill`, and commands of people about one endpoint."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from palisade.cli.options import ConfigOption, console, settings_of
from palisade.operate import Operator, order, throw_kill_switch
from palisade.settings import Settings
from responders.signing import SigningKey
from schemas.actions import ActionKind
from schemas.ids import clean_id

KeyOption = Annotated[
    Path | None, typer.Option("--key", envvar="PALISADE_OPERATOR_KEY", help="private key of an operator")
]
ReasonOption = Annotated[str, typer.Option(help="why; kept in the audit")]


def register(app: typer.Typer) -> None:
    app.command("kill")(kill)
    app.command("unkill")(unkill)
    kinds: tuple[ActionKind, ...] = ("fallback", "restore", "limit", "unlimit")
    for kind in kinds:
        app.command(kind)(_ordering(kind))


def operator_of(settings: Settings, key: Path | None) -> Operator:
    """Who orders: the key given, else that of `palisade dev`."""
    path = key or settings.home / "keys" / "operator.pem"
    return Operator(clean_id(f"person:{getpass.getuser()}"), SigningKey.load(path))


def kill(reason: ReasonOption = "", key: KeyOption = None, config: ConfigOption = None) -> None:
    """Stops every enforcement everywhere, now. Needs nothing but the broker; a local kill file needs not even that."""
    settings = settings_of(config)
    told = throw_kill_switch(settings.connection, operator_of(settings, key), kill=True, reason=reason)
    console.print(
        f"[bold red]killed[/]: {told} partitions told; every Guard serves its primary until `palisade unkill`"
    )


def unkill(reason: ReasonOption = "", key: KeyOption = None, config: ConfigOption = None) -> None:
    """Allows enforcement again."""
    settings = settings_of(config)
    told = throw_kill_switch(settings.connection, operator_of(settings, key), kill=False, reason=reason)
    console.print(f"[green]enforcement is allowed again[/]: {told} partitions told")


def _ordering(kind: ActionKind) -> Callable[..., None]:
    def command(
        endpoint: Annotated[str, typer.Argument(help="the endpoint")],
        caller: Annotated[str | None, typer.Option(help="the caller, for limit and unlimit")] = None,
        reason: ReasonOption = "",
        for_s: Annotated[float, typer.Option("--for", help="seconds until this word ends")] = 600,
        key: KeyOption = None,
        config: ConfigOption = None,
    ) -> None:
        settings = settings_of(config)
        given = order(
            settings.connection, operator_of(settings, key), kind, endpoint, caller=caller, reason=reason, for_s=for_s
        )
        console.print(f"ordered {kind} on {endpoint}{' for ' + caller if caller else ''}: {given.command_id}")

    command.__doc__ = f"Orders `{kind}`; a person's word wins over the machine until it ends."
    return command
