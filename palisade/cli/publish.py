"""`palisade publish`: a user's own recorded predictions through the whole system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn

from palisade.cli.options import ConfigOption, console, reached, say_error, settings_of
from schemas.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command("publish")(publish_file)


def publish_file(
    file: Annotated[Path, typer.Argument(help=".parquet, .csv, .jsonl or .arrow; one row a prediction")],
    endpoint: Annotated[
        str | None, typer.Option(help="whose predictions, when the file has no column `endpoint`")
    ] = None,
    caller_column: Annotated[str | None, typer.Option(help="the column that names the caller")] = None,
    time_column: Annotated[str | None, typer.Option(help="the column of event time")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="a column that is no feature, such as the target")] = None,
    flat_out: Annotated[
        bool, typer.Option(help="as fast as the broker takes them, instead of at recorded pace")
    ] = False,
    speed: Annotated[float, typer.Option(min=0.001, help="times the recorded pace")] = 1.0,
    config: ConfigOption = None,
) -> None:
    """Publishes recorded predictions, at their recorded pace or flat out, and the reports that go with them."""
    from palisade.publish import Mapping, parse_json_features, publish, read_predictions
    from responders.signing import SigningKey

    settings = settings_of(config)
    known = {each.name for each in settings.config.endpoints}
    mapping = Mapping(endpoint, caller_column, time_column, tuple(drop or ()))
    table = parse_json_features(read_predictions(file, mapping))
    strangers = sorted({str(name) for name in table["endpoint"].unique().to_pylist()} - known)
    if strangers:
        raise ConfigError(f"{strangers[0]!r} is no endpoint of the configuration; there are {', '.join(sorted(known))}")
    producer_key = settings.home / "keys" / "producer.pem"
    signer = SigningKey.load(producer_key) if producer_key.exists() else None
    connection = reached(settings.connection)
    columns = (SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("publishing", total=table.num_rows)
        done = publish(
            table,
            connection,
            recorded_pace=not flat_out,
            speed=speed,
            signer=signer,
            progress=lambda rows: progress.advance(task, rows),
        )
    if signer is None:
        console.print("[yellow]no producer key: these reports are unsigned, so their callers count as claimed[/]")
    console.print(f"{done.rows:,} predictions and {done.reports} reports in {done.seconds:.1f} s")
    if done.failed:
        left = table.num_rows - done.rows
        say_error(f"the broker did not confirm {done.failed:,} records ({done.error}); {left:,} rows were not sent")
        raise typer.Exit(1)
