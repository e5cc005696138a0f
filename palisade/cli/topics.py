"""`palisade topics`: makes the topics."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from palisade.cli.options import ConfigOption, console, reached, site_of, table_of
from schemas.acls import PRINCIPAL

app = typer.Typer(help="The topics of Palisade, and who may use them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The topics of Palisade, and who may use them."""


@app.command()
def create(config: ConfigOption = None) -> None:
    """Makes what is missing with the documented partitions, retention, compaction and LogAppendTime; changes nothing."""
    from schemas.errors import ConfigError
    from schemas.topics import TOPICS
    from streams.admin import create_topics

    site = site_of(config)
    if site.config.kafka.embedded:
        raise ConfigError("the embedded broker of `palisade dev` makes its topics itself; name your own with --config")
    kafka = site.config.kafka
    outcomes = create_topics(reached(site.connection), kafka.partitions, kafka.replication)
    table = table_of("topic", "partitions", "outcome", "detail", right=("partitions",))
    by_name = {spec.name: spec for spec in TOPICS}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
        colour = {"created": "green", "exists": "dim", "differs": "yellow"}[outcome.outcome]
        partitions = str(by_name[outcome.name].partitions(kafka.partitions))
        table.add_row(outcome.name, partitions, f"[{colour}]{outcome.outcome}[/]", outcome.detail)
    console.print(table)


@app.command("acls")
def acls_(
    principal: Annotated[str, typer.Option(help="who each role is on the broker; {role} is its name")] = PRINCIPAL,
    apply: Annotated[bool, typer.Option("--apply", help="make them, as somebody who may alter the cluster")] = False,
    command_config: Annotated[str, typer.Option(help="for the printed commands")] = "admin.properties",
    config: ConfigOption = None,
) -> None:
    """Prints the kafka-acls.sh commands that grant each role what it needs and no more; or makes those ACLs.

    With --apply nothing is taken away: what the broker grants besides on these topics is shown, and the exit status is 1.
    """
    from schemas.acls import ROLE, acls, command_lines
    from schemas.errors import ConfigError
    from streams.acls import grant

    if ROLE not in principal or not principal.startswith("User:"):
        raise ConfigError(f"--principal {principal} must be User: and a name with {ROLE} in it: each role is its own")
    site = site_of(config)
    if not apply:
        for line in command_lines(principal, site.config.kafka.bootstrap, command_config):
            console.print(line, markup=False, soft_wrap=True)
        return
    outcomes = grant(reached(site.connection), acls(principal))
    table = table_of("principal", "may", "outcome")
    for outcome in outcomes:
        colour = {"created": "green", "exists": "dim", "surplus": "yellow"}[outcome.outcome]
        may = f"{outcome.operation} on {outcome.resource}"
        table.add_row(escape(outcome.principal), escape(may), f"[{colour}]{outcome.outcome}[/]")
    console.print(table)
    if any(outcome.outcome == "surplus" for outcome in outcomes):
        raise typer.Exit(1)
