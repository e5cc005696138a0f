"""`palisade verify`: collects the history of a run, and proves the invariants on it or names what broke one."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from palisade.cli.options import ConfigOption, console, reached, settings_of, table_of
from schemas.errors import PalisadeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from palisade.verify.finding import Verdict
    from palisade.verify.history import History

app = typer.Typer(help="Proves what Palisade promises on what a run left behind.", no_args_is_help=True)
STYLES = {"holds": "green", "violated": "bold red", "not judged": "yellow"}
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

ReferenceOption = Annotated[
    Path | None, typer.Option(help="the history of an uninterrupted run on the same log, for I3")
]
FinishedOption = Annotated[bool, typer.Option("--finished", help="the run is over: nothing may be in flight")]


@app.callback()
def _group() -> None:
    """Proves what Palisade promises on what a run left behind."""


@app.command()
def run(
    config: ConfigOption = None,
    out: Annotated[Path, typer.Option(help="where the history is written")] = Path("palisade-history"),
    since: Annotated[
        str, typer.Option(help="nothing older: 30s, 10m, 2h, 7d ago, or an ISO time; default: all that Kafka keeps")
    ] = "",
    watch: Annotated[float, typer.Option(help="seconds to sample committed offsets first")] = 0.0,
    finished: FinishedOption = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="run all that Kafka keeps through the detectors again, without interruption, for I3 and I6",
        ),
    ] = False,
    reference: ReferenceOption = None,
) -> None:
    """Collects the history of a live or finished run from Kafka and the audit, and judges it. Changes nothing."""
    from palisade.verify.collect import Wanted, collect
    from palisade.verify.history import History

    settings = settings_of(config)
    reached(settings.connection)
    wanted = Wanted(_since_ms(since), watch, finished, recompute)
    with console.status("collecting") as shown:
        collect(settings, out, wanted, lambda what: shown.update(f"collecting {what}"))
    console.print(f"the history is in {out}", soft_wrap=True)
    _judge(History.load(out), reference)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a history")],
    finished: FinishedOption = False,
    reference: ReferenceOption = None,
) -> None:
    """Judges a saved history."""
    from dataclasses import replace

    from palisade.verify.history import History

    found = History.load(folder)
    if finished:
        found = History({name: found[name] for name in found.names}, replace(found.run, finished=True))
    _judge(found, reference)


def _judge(history: History, reference: Path | None) -> None:
    """Shows the verdicts; the last line is JSON. Ends with 1 if an invariant is violated."""
    from palisade.verify.history import History
    from palisade.verify.history import table_of as table_of_history
    from palisade.verify.invariants import judge
    from palisade.verify.replayed import reference_states

    if reference is not None:
        states = [*history["states"].to_pylist(), *reference_states(History.load(reference)["states"])]
        history = history.with_tables(states=table_of_history("states", states))
    verdicts = judge(history)
    _show(verdicts, history.run.notes)
    counts = {status: sum(each.status == status for each in verdicts) for status in STYLES}
    said = {each.name: each.status for each in verdicts}
    typer.echo(json.dumps({"verify": said, **{status.replace(" ", "_"): count for status, count in counts.items()}}))
    if counts["violated"]:
        raise typer.Exit(1)


def _show(verdicts: Sequence[Verdict], notes: Sequence[str]) -> None:
    table = table_of("", "promise", "verdict", "what was seen")
    for each in verdicts:
        words = Text(each.words)
        for unseen in each.unseen:
            words.append(f"\nnot seen: {unseen}", "dim")
        table.add_row(each.name, each.promise, Text(each.status, STYLES[each.status]), words)
    console.print(table)
    for note in notes:
        console.print(Text(note, "yellow"))


def _since_ms(text: str) -> int:
    """Milliseconds since the epoch of "10m" (ago) or an ISO time; 0 of nothing. Raises PalisadeError."""
    if not text:
        return 0
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    if ago:
        return int((time.time() - int(ago[1]) * UNITS_S[ago[2]]) * 1000)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise PalisadeError(f"--since {text}: 30s, 10m, 2h, 7d or a time like 2026-05-01T12:00:00+00:00") from error
