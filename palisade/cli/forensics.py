"""`palisade forensics`: what happened, who did it, what the machine did about it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from palisade.cli.options import ConfigOption, console, site_of, table_of

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(help="Questions to the audit, answered from ClickHouse while everything runs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Questions to the audit, answered from ClickHouse while everything runs."""


@app.command()
def timeline(
    endpoint: Annotated[str, typer.Option(help="only of this endpoint")] = "", config: ConfigOption = None
) -> None:
    """Signals, decisions, commands and kill switches in the order in which they happened."""
    from palisade.queries import TIMELINE, ask, reader

    engine = reader(site_of(config))
    show_timeline(ask(engine, TIMELINE, {"endpoint": endpoint}), "nothing happened yet")
    engine.close()


@app.command()
def caller(
    identity: Annotated[str, typer.Argument(metavar="ID", help="the caller")], config: ConfigOption = None
) -> None:
    """What a caller asked, what it was answered, which detectors fired about it, when it was limited."""
    from palisade.queries import CALLER_EVENTS, CALLER_SUMMARY, ask, reader

    engine = reader(site_of(config))
    show_answers(ask(engine, CALLER_SUMMARY, {"caller": identity}), f"no predictions of {identity}")
    show_timeline(ask(engine, CALLER_EVENTS, {"caller": identity}), f"nothing was said or done about {identity}")
    engine.close()


def show_timeline(rows: pa.Table, empty: str) -> None:
    """Events in three columns; what strangers wrote is shown as text, never as markup."""
    found = rows.to_pylist()
    if not found:
        console.print(Text(empty, style="dim"))
        return
    clock = _Clock([row["at"] for row in found])
    table = table_of("at", "about", "what happened")
    for row in found:
        about = Text(row["endpoint"])
        if row.get("caller"):
            about.append(f" {row['caller']}")
        happened = Text(f"{row['what']}: ", "dim").append(row["happened"], "default")
        if why := row["why"].strip():
            happened.append(f", {why}", "default")
        table.add_row(clock.text(row["at"]), about, happened)
    console.print(table, clock.day())


def show_answers(rows: pa.Table, empty: str) -> None:
    """What a caller was answered: a row for each endpoint and who answered."""
    found = rows.to_pylist()
    if not found:
        console.print(Text(empty, style="dim"))
        return
    clock = _Clock([row[end] for row in found for end in ("first", "last")], digits=0)
    table = table_of(
        "endpoint",
        "answered by",
        "count",
        "first",
        "last",
        "mean ms",
        "identity",
        right=("count", "mean ms"),
    )
    for row in found:
        by = row["served_by"] if row["status"] == "ok" else f"{row['served_by']}, {row['status']}"
        latency = "" if row["mean_latency_ms"] is None else f"{row['mean_latency_ms']:.1f}"
        times = (clock.text(row["first"]), clock.text(row["last"]))
        table.add_row(Text(row["endpoint"]), Text(by), f"{row['predictions']:,}", *times, latency, row["identity"])
    console.print(table, clock.day())


class _Clock:
    """Times of one answer: the date is said once when all are of one day, else beside each."""

    def __init__(self, times: list[Any], digits: int = 3) -> None:
        self._days = {time.date() for time in times if isinstance(time, datetime)}
        self._digits = digits

    def day(self) -> Text:
        """What stands below the table: the day of its times, and their zone."""
        return Text(f"times of {next(iter(self._days))}, UTC" if len(self._days) == 1 else "times in UTC", "dim")

    def text(self, time: datetime) -> str:
        shown = time.strftime("%H:%M:%S.%f")[: 8 + (self._digits + 1 if self._digits else 0)]
        return shown if len(self._days) == 1 else f"{time.date()} {shown}"
