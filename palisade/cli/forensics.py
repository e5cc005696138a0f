"""`palisade forensics`: what happened, who did it, what the machine did about it."""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
import typer
from rich.table import Table
from rich.text import Text

from palisade.cli.options import ConfigOption, console, settings_of
from palisade.queries import CALLER_EVENTS, CALLER_SUMMARY, TIMELINE, ask, reader

app = typer.Typer(help="Questions to the audit, answered from ClickHouse while everything runs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Questions to the audit, answered from ClickHouse while everything runs."""


@app.command()
def timeline(
    endpoint: Annotated[str, typer.Option(help="only of this endpoint")] = "", config: ConfigOption = None
) -> None:
    """Signals, decisions, commands and kill switches in the order in which they happened."""
    engine = reader(settings_of(config))
    show(ask(engine, TIMELINE, {"endpoint": endpoint}), "nothing happened yet")
    engine.close()


@app.command()
def caller(
    identity: Annotated[str, typer.Argument(metavar="ID", help="the caller")], config: ConfigOption = None
) -> None:
    """What a caller asked, what it was answered, which detectors fired about it, when it was limited."""
    engine = reader(settings_of(config))
    show(ask(engine, CALLER_SUMMARY, {"caller": identity}), f"no predictions of {identity}")
    show(ask(engine, CALLER_EVENTS, {"caller": identity}), f"nothing was said or done about {identity}")
    engine.close()


def show(rows: pa.Table, empty: str) -> None:
    """Rows as a table; what strangers wrote is shown as text, never as markup."""
    if rows.num_rows == 0:
        console.print(Text(empty, style="dim"))
        return
    table = Table()
    for name in rows.column_names:
        table.add_column(name, overflow="fold")
    for row in rows.to_pylist():
        table.add_row(*(Text(_text(value)) for value in row.values()))
    console.print(table)


def _text(value: object) -> str:
    isoformat = getattr(value, "strftime", None)
    return str(isoformat("%H:%M:%S.%f")[:-3] if isoformat is not None else "" if value is None else value)
