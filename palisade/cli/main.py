"""`palisade`: one command a job. Every error says what to do; exit status 2 means that it could not run."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from palisade.cli import checks, deadletters, dev, forensics, keys, kill, profile, publish, status, topics, worker
from schemas.errors import PalisadeError

app = typer.Typer(
    help="Watches the predictions of ML endpoints on Kafka and answers attacks, faults and drift.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (checks, dev, worker, publish, status, kill):
    module.register(app)
for name, group in (
    ("topics", topics.app),
    ("keys", keys.app),
    ("profile", profile.app),
    ("forensics", forensics.app),
    ("deadletter", deadletters.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """The console script."""
    try:
        app()
    except PalisadeError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
