"""`palisade kill`, `palisade unkill`, and commands of people about one endpoint."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from palisade.cli.options import ConfigOption, console, quiet, reached, site_of
from palisade.running import find_config
from schemas.errors import ConfigError, PalisadeError

if TYPE_CHECKING:
    from palisade.operate import Operator
    from schemas.actions import ActionKind, Decision

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


def operator_of(home: Path, key: Path | None) -> Operator:
    """Who orders: the key given, else that of `palisade dev`."""
    from palisade.operate import Operator
    from responders.signing import SigningKey
    from schemas.ids import clean_id

    path = key or home / "keys" / "operator.pem"
    return Operator(clean_id(f"person:{getpass.getuser()}"), SigningKey.load(path))


def kill(reason: ReasonOption = "", key: KeyOption = None, config: ConfigOption = None) -> None:
    """Stops every enforcement everywhere, now. Needs nothing but the broker; a local kill file needs not even that."""
    told = _throw(True, reason, key, config)
    console.print(
        f"[bold red]killed[/]: {told} partitions told; every Guard serves its primary until `palisade unkill`"
    )


def unkill(reason: ReasonOption = "", key: KeyOption = None, config: ConfigOption = None) -> None:
    """Allows enforcement again."""
    told = _throw(False, reason, key, config)
    console.print(f"[green]enforcement is allowed again[/]: {told} partitions told")


def _throw(kill: bool, reason: str, key: Path | None, config: Path | None) -> int:
    from palisade.operate import throw_kill_switch
    from palisade.settings import load_connection

    connection, home = load_connection(find_config(config, while_starting=True))
    return throw_kill_switch(quiet(connection), operator_of(home, key), kill=kill, reason=reason)


def _ordering(kind: ActionKind) -> Callable[..., None]:
    of_caller = kind in ("limit", "unlimit")

    def command(
        endpoint: Annotated[str, typer.Argument(help="the endpoint")],
        caller: Annotated[str | None, typer.Option(help="the caller, for limit and unlimit")] = None,
        rate: Annotated[float | None, typer.Option(help="answers a second, for limit")] = None,
        reason: ReasonOption = "",
        for_s: Annotated[float, typer.Option("--for", min=1, help="seconds until this word ends")] = 600,
        key: KeyOption = None,
        config: ConfigOption = None,
    ) -> None:
        from palisade.operate import Wanted, answer_to, order

        site = site_of(config)
        if site.config.endpoint(endpoint) is None:
            known = ", ".join(each.name for each in site.config.endpoints)
            raise ConfigError(f"there is no endpoint {endpoint!r} in the configuration; there are {known}")
        if of_caller != (caller is not None):
            raise ConfigError(
                f"{kind} needs --caller ID" if of_caller else f"{kind} is about an endpoint, not a caller"
            )
        operator = operator_of(site.home, key)
        wanted = Wanted(kind, endpoint, caller, rate)
        connection = reached(site.connection)
        given = order(connection, operator, wanted, reason=reason, for_s=for_s)
        _say_answer(answer_to(connection, given))

    command.__doc__ = f"Orders `{kind}` and waits for the answer; a person's word wins over the machine until it ends."
    return command


def _say_answer(decision: Decision | None) -> None:
    from palisade.operate import ANSWER_S
    from responders.alerts import sentence

    if decision is None:
        raise PalisadeError(f"no answer within {ANSWER_S:.0f} s: is a responder running, and does it know your key?")
    said = escape(sentence(decision))
    if decision.outcome == "refused":
        raise PalisadeError(f"refused: {sentence(decision)}")
    if decision.outcome == "observed":
        console.print(f"[yellow]only observed, since the policy's mode is observe:[/] {said}")
    else:
        console.print(f"[green]done:[/] {said}")
