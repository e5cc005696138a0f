"""`palisade`: one command a job. Every error says what to do; exit status 2 means that it could not run."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from palisade.cli import (
    checks,
    clickhouse,
    deadletters,
    dev,
    feedback,
    forensics,
    keys,
    kill,
    profile,
    publish,
    status,
    topics,
    verify,
    worker,
)
from palisade.cli.options import say_error
from schemas.errors import PalisadeError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

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
    ("clickhouse", clickhouse.app),
    ("keys", keys.app),
    ("profile", profile.app),
    ("feedback", feedback.app),
    ("forensics", forensics.app),
    ("deadletter", deadletters.app),
    ("verify", verify.app),
):
    app.add_typer(group, name=name)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palisade {version('palisade')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Watches the predictions of ML endpoints on Kafka and answers attacks, faults and drift."""


def main() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = str(error) if isinstance(error, PalisadeError) else _of_a_server(error)
        if message is None:
            raise
        say_error(message)
        sys.exit(2)


def _of_a_server(error: Exception) -> str | None:
    """What to tell people when Kafka or ClickHouse failed; None if it was neither."""
    from confluent_kafka import KafkaException

    from streams.audit.engine import ClickHouseError

    match error:
        case ClickHouseError():
            return f"the audit did not answer: {error}"
        case KafkaException():
            return _of_kafka(error.args[0])
        case TimeoutError():
            return f"{error}; check kafka.bootstrap, and that the broker runs"
    return None


def _of_kafka(error: KafkaError) -> str:
    """Whether Kafka did not answer, refused, or hides a topic: it does so from a principal that may do nothing with it."""
    from confluent_kafka import KafkaError as Codes

    from streams.reading import REFUSALS

    grant = "have what its role needs granted (`palisade topics acls`), or connect as another"
    if error.code() in REFUSALS:
        # what a broker adds may be the whole request
        return f"Kafka refused ({error.name()}): this principal may not do that; {grant}"
    if error.code() in (Codes._UNKNOWN_PARTITION, Codes._UNKNOWN_TOPIC, Codes.UNKNOWN_TOPIC_OR_PART):
        made = "make the topics with `palisade topics create`"
        return f"{error.str()}: {made}; if they are there, this principal may not see them: {grant}"
    return f"Kafka did not answer: {error.str()}; check kafka.bootstrap, and that the broker runs"


if __name__ == "__main__":
    main()
