"""`palisade topics`: makes the topics."""

from __future__ import annotations

import typer

from palisade.cli.options import ConfigOption, console, reached, site_of, table_of

app = typer.Typer(help="The topics of Palisade.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The topics of Palisade."""


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
