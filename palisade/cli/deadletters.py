"""`palisade deadletter`: what could not be decoded, and what its sender should change."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from palisade.cli.options import ConfigOption, console, reached, site_of, table_of
from schemas.errors import ConfigError, PalisadeError

if TYPE_CHECKING:
    from schemas.deadletter import DeadLetter
    from streams.transport.settings import KafkaConnection

MOST_KINDS = 20
"""Kinds that are listed, newest first; the rest is counted."""
MOST_DETAIL = 100
"""Characters of the detail that are shown: letters of one endpoint and reason that agree in them are of one kind."""

app = typer.Typer(help="Records that could not be decoded, with reasons.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Records that could not be decoded, with reasons."""


@app.command("list")
def list_(
    most: Annotated[int, typer.Option(help="of each partition")] = 10_000,
    reason: Annotated[str | None, typer.Option(help="only these")] = None,
    config: ConfigOption = None,
) -> None:
    """Lists the newest dead letters: the newest of each kind, how many there are, why, from whom."""
    letters = _newest(reached(site_of(config).connection), most)
    kinds: dict[tuple[object, ...], list[DeadLetter]] = {}
    for letter in letters:
        if reason is None or letter.reason == reason:
            kinds.setdefault((letter.reason, letter.endpoint, letter.detail[:MOST_DETAIL]), []).append(letter)
    if not kinds:
        console.print("no dead letters")
        return
    ranked = sorted(kinds.values(), key=lambda alike: alike[-1].broker_ms, reverse=True)
    table = table_of("newest at", "count", "from", "why", right=("count",))
    table.columns[0].no_wrap = True  # it is copied to `show`
    for alike in ranked[:MOST_KINDS]:
        newest = alike[-1]
        senders = {letter.caller or "-" for letter in alike}
        sender = next(iter(senders)) if len(senders) == 1 else f"{len(senders):,} callers"
        why = Text(newest.reason, "bold").append(f" {newest.detail[:MOST_DETAIL]}", "default")
        table.add_row(_where(newest), f"{len(alike):,}", Text(f"{newest.endpoint or '-'} {sender}"), why)
    console.print(table)
    if rest := ranked[MOST_KINDS:]:
        counts = Counter(alike[-1].reason for alike in rest)
        named = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
        console.print(f"and {len(rest):,} more kinds ({named}); see those of one reason with --reason", style="dim")


@app.command()
def show(
    where: Annotated[str, typer.Argument(help="TOPIC/PARTITION/OFFSET/ROW, as `list` prints it; /0 may be left out")],
    config: ConfigOption = None,
) -> None:
    """Explains one dead letter: what was wrong, what to change, what it began with."""
    for letter in _newest(reached(site_of(config).connection), 100_000):
        if where in (_where(letter), _where(letter).removesuffix("/0")):
            _explain(letter)
            return
    raise PalisadeError(f"no dead letter {where}; `palisade deadletter list` shows those that are kept")


@app.command()
def redrive(
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="NAME=VALUE: topic, partition, reason, endpoint, caller")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent, and send nothing")] = False,
    again: Annotated[bool, typer.Option("--again", help="also what was redriven before")] = False,
    signatures: Annotated[bool, typer.Option("--signatures", help="also what was refused for its signature")] = False,
    most: Annotated[int, typer.Option(help="of each partition")] = 100_000,
    config: ConfigOption = None,
) -> None:
    """Sends dead letters back to where they came from, once the cause is mended. At least one --filter."""
    from palisade import redrive as redriving

    wanted = redriving.filters_of(filters or ())
    if not wanted:
        raise ConfigError("say which: --filter reason=handler_failed, for example; more filters narrow it")
    connection = reached(site_of(config).connection)
    chosen = list(redriving.plans(redriving.read_letters(connection, most), wanted, again=again, signatures=signatures))
    if not chosen:
        console.print("no dead letters of that kind")
        return
    table = table_of("count", "from", "why dead", "what", right=("count",))
    fates = Counter((plan.letter.log_topic, plan.letter.reason, plan.refused) for plan in chosen)
    for (topic, reason, refused), count in fates.most_common():
        fate = Text(f"refused: {refused}") if refused else Text("sent again" if not dry_run else "would be sent again")
        table.add_row(f"{count:,}", topic, reason, fate)
    console.print(table)
    for plan in [plan for plan in chosen if plan.refused][:MOST_KINDS]:
        console.print(Text(f"refused {_where(plan.letter)}: {plan.refused}"), style="dim")
    if not dry_run:
        sent = redriving.redrive(connection, chosen)
        console.print(f"{sent:,} of {len(chosen):,} sent again")


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
