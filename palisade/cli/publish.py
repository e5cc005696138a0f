"""`palisade publish`: a user's own recorded predictions through the whole system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn
from rich.text import Text

from palisade.cli.options import ConfigOption, console, endpoint_of, listed_names, reached, say_error, shown, site_of
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from palisade.publish import Published
    from palisade.recorded import Recorded
    from palisade.settings import Site
    from streams.redaction import Redactor
    from streams.transport.settings import KafkaConnection


def register(app: typer.Typer) -> None:
    app.command("publish")(publish_file)


def publish_file(
    file: Annotated[Path, typer.Argument(help=".parquet, .csv, .jsonl or .arrow; one row a prediction")],
    endpoint: Annotated[str | None, typer.Option(help="whose predictions all rows are")] = None,
    caller_column: Annotated[str | None, typer.Option(help="the column that names the caller")] = None,
    time_column: Annotated[str | None, typer.Option(help="the column of event time")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="a column that is another field, such as prediction=score"),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="columns that are no features, repeated or a,b,c")] = None,
    flat_out: Annotated[
        bool, typer.Option(help="as fast as the broker takes them, instead of at recorded pace")
    ] = False,
    speed: Annotated[float, typer.Option(min=0.001, help="times the recorded pace")] = 1.0,
    fallback_works: Annotated[
        bool, typer.Option("--fallback-works", help="let the reports say that a fallback works: see what would be done")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Publishes recorded predictions, at their recorded pace or flat out, and the reports that go with them.

    Every column that no option names is a feature.
    """
    from palisade.publish import check_pace, publish
    from palisade.recorded import Mapping, read_predictions
    from responders.signing import SigningKey

    site = site_of(config)
    known = {each.name for each in site.config.endpoints}
    mapping = Mapping(endpoint, caller_column, time_column, listed_names(drop), _fields(field or []))
    recorded = read_predictions(file, mapping)
    strangers = sorted({str(name) for name in recorded.table["endpoint"].unique().to_pylist()} - known)
    if strangers:
        raise ConfigError(f"{strangers[0]!r} is no endpoint of the configuration; there are {', '.join(sorted(known))}")
    check_pace(recorded.table, recorded_pace=not flat_out)
    producer_key = site.home / "keys" / "producer.pem"
    signer = SigningKey.load(producer_key) if producer_key.exists() else None
    redactors = _redactors(site, recorded)
    connection = reached(site.connection)
    _describe(file, recorded, None if flat_out else speed)
    for name, redactor in redactors.items():
        console.print(Text(f"  {'redacted':<10} ", "dim").append(f"{name}: {redactor.described()}", "default"))
    _warn_of_misfits(recorded, connection, redactors)
    columns = (SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("publishing", total=recorded.table.num_rows)
        done = publish(
            recorded.table,
            connection,
            recorded_pace=not flat_out,
            speed=speed,
            signer=signer,
            fallback_works=fallback_works,
            redactors=redactors,
            progress=lambda rows: progress.advance(task, rows),
        )
    if signer is None:
        console.print("[yellow]no producer key: these reports are unsigned, so their callers count as claimed[/]")
    _tell(done, recorded.table.num_rows)


def _fields(given: list[str]) -> tuple[tuple[str, str], ...]:
    """FIELD=COLUMN as pairs. Raises ConfigError."""
    pairs = [tuple(map(str.strip, each.partition("=")[::2])) for each in given]
    for (name, column), each in zip(pairs, given, strict=True):
        if not name or not column:
            raise ConfigError(f"--field {each}: give it as FIELD=COLUMN, such as prediction=score")
    return tuple((name, column) for name, column in pairs)


def _describe(file: Path, recorded: Recorded, speed: float | None) -> None:
    """Which columns became what. speed: times the recorded pace, None for flat out."""
    table = recorded.table
    span = ""
    if "ts" in table.column_names and speed is not None:
        seconds = (table["ts"][-1].as_py() - table["ts"][0].as_py()) / 1000
        span = f", recorded over {_time(seconds)}, to be sent in {_time(seconds / speed)}"
    form = " in Palisade's own form" if recorded.exported else ""
    console.print(Text(f"{file}: {table.num_rows:,} rows{form}{span}"), soft_wrap=True)
    names = {"ts": "time"}
    lines = [(names.get(field, field), column) for field, column in recorded.meaning.items()]
    lines += [("features", shown(recorded.features))]
    lines += [("left out", shown(recorded.left_out))] if recorded.left_out else []
    for name, column in lines:
        console.print(Text(f"  {name:<10} ", "dim").append(column, "default"), soft_wrap=True)
    if "caller" in table.column_names and table["caller"].null_count:
        _warn(f"{table['caller'].null_count:,} rows name no caller: they count as one, `anonymous`")
    for name in recorded.doubts():
        option = {"caller": "--caller-column caller", "ts": "--time-column ts"}.get(name, f"--field {name}={name}")
        _warn(f"{name} is taken as a feature; if it is the {names.get(name, name)} of the prediction, say {option}")


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _redactors(site: Site, recorded: Recorded) -> dict[str, Redactor]:
    """What redacts the rows of each endpoint that has sensitive features. Raises ConfigError, UnusableFile."""
    from palisade.redacting import check_rules

    kinds = {field.name: field.type for field in recorded.table.schema.field("features").type}
    found = {}
    for name in recorded.table["endpoint"].unique().to_pylist():
        redactor = site.redactor(endpoint_of(site, name))
        if redactor is not None:
            check_rules(redactor, kinds, recorded.left_out)
            found[name] = redactor
    return found


def _warn_of_misfits(recorded: Recorded, connection: KafkaConnection, redactors: dict[str, Redactor]) -> None:
    """Says where the rows and the active profile of their endpoint cannot agree."""
    from confluent_kafka import KafkaException

    from palisade.fitting import active_profiles, misfits, unanswered

    table = recorded.table
    endpoints = set(table["endpoint"].unique().to_pylist())
    versions = {"default"}
    if "model_version" in table.column_names:
        versions = {name or "default" for name in table["model_version"].unique().to_pylist()}
    features = table["features"].combine_chunks()
    try:
        active = active_profiles(connection)
    except KafkaException as error:  # whoever may write predictions need not be allowed to read profiles
        _warn(f"the rows are not compared with the active profile, which cannot be read: {error.args[0].str()}")
        return
    for (endpoint, version), profile in active.items():
        if endpoint in endpoints and version in versions:
            sent = redactors[endpoint].struct(features) if endpoint in redactors else features
            for sentence in (*misfits(profile, sent), *unanswered(profile, table)):
                _warn(f"{endpoint}@{version}: {sentence}")


def _warn(sentence: str) -> None:
    console.print(Text("warning: ", "yellow").append(sentence, "default"), soft_wrap=True)


def _tell(done: Published, rows: int) -> None:
    """What became of the rows. Ends with status 1 if not all were sent."""
    console.print(f"{done.rows:,} predictions and {done.reports} reports sent in {done.seconds:.1f} s")
    if done.failed:
        left = rows - done.rows
        say_error(f"the broker did not confirm {done.failed:,} records ({done.error}); {left:,} rows were not sent")
        raise typer.Exit(1)
    console.print("rows that could not be used, if any, are in `palisade deadletter list`", style="dim")
