"""`palisade clickhouse`: what a ClickHouse server is to be told before the audit uses it."""

from __future__ import annotations

import typer

app = typer.Typer(help="The tables of the audit on a ClickHouse server, and who may use them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The tables of the audit on a ClickHouse server, and who may use them."""


@app.command()
def tables() -> None:
    """Prints the statements that make all tables and views, for clickhouse-client as the owner; each may be run again."""
    from schemas.tables import ddl_script

    typer.echo(ddl_script(), nl=False)


@app.command()
def roles() -> None:
    """Prints the statements that make roles, limits and users, for somebody who manages access; each may be run again.

    There is no password in it: nobody can connect as one of these users until you say from where and how.
    """
    from schemas.clickhouse import roles_script

    typer.echo(roles_script(), nl=False)
