"""Options that commands share, and where they find a running `palisade dev`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from palisade.dev import find_config
from palisade.settings import Settings, load

console = Console(highlight=False)

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
    """The configuration to use. Raises ConfigError."""
    return load(find_config(config))
