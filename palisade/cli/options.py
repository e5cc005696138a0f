"""What the commands share: the console, the option that names a configuration, the way to the broker.

Commands import what they work with when they run: `palisade --help` answers without Kafka, Arrow or ClickHouse clients.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palisade.running import find_config
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from palisade.settings import Settings, Site
    from schemas.config import EndpointConfig
    from streams.transport.settings import KafkaConnection

console = Console(highlight=False)
REACHED_S = 8.0
"""What a command at a terminal waits for a broker before it says that there is none."""
MOST_NAMES = 30

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="PALISADE_CONFIG",
        help="palisade.yaml; default: a running `palisade dev`, else ./palisade.yaml",
    ),
]


def settings_of(config: Path | None) -> Settings:
    """The configuration to use, checked whole. Raises ConfigError."""
    from palisade.settings import load

    return load(find_config(config))


def site_of(config: Path | None) -> Site:
    """The configuration to use, whatever its policy says. Raises ConfigError."""
    from palisade.settings import load_site

    return load_site(find_config(config))


def endpoint_of(site: Site, name: str) -> EndpointConfig:
    """The endpoint of this name. Raises ConfigError."""
    found = site.config.endpoint(name)
    if found is None:
        raise ConfigError(f"there is no endpoint {name!r} in the configuration")
    return found


def reached(connection: KafkaConnection) -> KafkaConnection:
    """The connection, quiet, once a broker has answered. Raises BrokerAway."""
    from streams.admin import cluster_of

    silent = quiet(connection)
    cluster_of(silent, REACHED_S)
    return silent


def quiet(connection: KafkaConnection) -> KafkaConnection:
    """The connection without librdkafka's own lines on standard error: what is wrong, a command says in a sentence."""
    return connection.model_copy(update={"extra": {"log_level": 0, **connection.extra}})


def table_of(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table that stays readable at 80 columns: no frame, whole words, long names folded instead of cut."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in right else "left")
    return table


def listed_names(given: list[str] | None) -> tuple[str, ...]:
    """Names of an option that is repeated, or given once as `a,b,c`."""
    return tuple(dict.fromkeys(name.strip() for each in given or () for name in each.split(",") if name.strip()))


def shown(names: tuple[str, ...]) -> str:
    """Names in one line; of more than 30 the first 30, and how many there are besides."""
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def say_error(message: str) -> None:
    """Says what is wrong on standard error, as plain text, whatever is in it."""
    Console(stderr=True).print("[bold red]error:[/]", escape(message), highlight=False, soft_wrap=True)
