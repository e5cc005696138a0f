"""`palisade deadletter`: what could not be decoded, and what its sender should change."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from palisade.cli.options import ConfigOption, console, reached, settings_of, table_of
from schemas.errors import PalisadeError

if TYPE_CHECKING:
    from schemas.deadletter import DeadLetter
    from streams.transport.settings import KafkaConnection

app = typer.Typer(help="Records that could not be decoded, with reasons.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Records that could not be decoded, with reasons."""


@app.command("list")
def list_(
    most: Annotated[int, typer.Option(help="of each partition")] = 100,
    reason: Annotated[str | None, typer.Option(help="only these")] = None,
    config: ConfigOption = None,
) -> None:
    """Lists the newest dead letters: where each lay, why, from whom."""
    table = table_of("where", "from", "why")
    table.columns[0].no_wrap = True  # it is copied to `show`
    for letter in _newest(reached(settings_of(config).connection), most):
        if reason is None or letter.reason == reason:
            sender = Text(f"{letter.endpoint or '-'} {letter.caller or '-'}")
            why = Text(letter.reason, "bold").append(f" {letter.detail[:100]}", "default")
            table.add_row(_where(letter), sender, why)
    console.print(table if table.row_count else "no dead letters")


@app.command()
def show(
    where: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET/ROW, as `list` prints it; /0 may be left out")],
    config: ConfigOption = None,
) -> None:
    """Explains one dead letter: what was wrong, what to change, what it began with."""
    for letter in _newest(reached(settings_of(config).connection), 100_000):
        if where in (_where(letter), _where(letter).removesuffix("/0")):
            _explain(letter)
            return
    raise PalisadeError(f"no dead letter {where}; `palisade deadletter list` shows those that are kept")


def _explain(letter: DeadLetter) -> None:
    from schemas.deadletter import EXPLAINED

    try:
        head = base64.b64decode(letter.head)
    except binascii.Error:  # no letter of ours: what it says besides is shown all the same
        head = b""
    console.print(Panel(EXPLAINED[letter.reason], title=f"{letter.reason} at {_where(letter)}"))
    console.print(Text(f"detail    {letter.detail or '-'}"))
    console.print(Text(f"endpoint  {letter.endpoint or 'not readable'}    caller  {letter.caller or 'not readable'}"))
    console.print(Text(f"headers   {letter.headers}"))
    console.print(Text(f"{letter.size:,} bytes, sha256 {letter.sha256[:16]}; the first {min(len(head), 512)}:"))
    console.print(Text(repr(head[:512])[2:-1]))


def _newest(connection: KafkaConnection, most: int) -> list[DeadLetter]:
    from pydantic import ValidationError

    from schemas.deadletter import DeadLetter
    from schemas.topics import DEAD_LETTERS
    from streams.reading import tail

    letters = []
    for message in tail(connection, DEAD_LETTERS, most):
        try:
            letters.append(DeadLetter.from_bytes(message.value() or b""))
        except ValidationError:
            continue
    return letters


def _where(letter: DeadLetter) -> str:
    return f"{letter.log_topic}/{letter.log_partition}/{letter.log_offset}/{letter.log_row}"
