"""`palisade`: one command a job. Every error says what to do; exit status 2 means that it could not run."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from confluent_kafka import KafkaException
from rich.console import Console
from rich.markup import escape

from palisade.cli import checks, deadletters, dev, forensics, keys, kill, profile, publish, status, topics, worker
from schemas.errors import PalisadeError
from streams.audit.engine import ClickHouseError

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
        _fail(str(error))
    except ClickHouseError as error:
        _fail(f"the audit did not answer: {error}")
    except KafkaException as error:
        _fail(f"Kafka did not answer: {error.args[0].str()}; check kafka.bootstrap, and that the broker runs")
    except TimeoutError as error:
        _fail(f"{error}; check kafka.bootstrap, and that the broker runs")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    """Says what is wrong as plain text, whatever is in it, and ends with status 2."""
    Console(stderr=True).print("[bold red]error:[/]", escape(message), highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
