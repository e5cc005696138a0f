"""What runs here: the word that `palisade dev` leaves in its folder, and the configuration that commands find by it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError

DEFAULT_FOLDER = Path("palisade-data/dev")
RUNNING = "running.json"


def announce(folder: Path, bootstrap: str | None = None) -> None:
    """Leaves word that `palisade dev` runs in `folder`; without `bootstrap`: that it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{RUNNING}.new"
    fresh.write_text(json.dumps({"pid": os.getpid(), "bootstrap": bootstrap}))
    fresh.replace(folder / RUNNING)  # a reader finds the whole of it or nothing


def find_config(given: Path | None, *, while_starting: bool = False) -> Path:
    """The configuration to use: the one given, that of a running `palisade dev` here, `./palisade.yaml`.

    Raises ConfigError if there is none, or if `palisade dev` is still starting, unless `while_starting` (the kill switch
    waits for nobody).
    """
    if given is not None:
        return given
    running = _running(DEFAULT_FOLDER)
    if running is not None:
        if running["bootstrap"] is None and not while_starting:
            raise ConfigError("`palisade dev` is still starting here: try again when it says `Palisade runs`")
        return DEFAULT_FOLDER / "palisade.yaml"
    if Path("palisade.yaml").exists():
        return Path("palisade.yaml")
    raise ConfigError("no configuration: start `palisade dev` in this folder, or name a file with --config")


def refuse_second(folder: Path) -> None:
    """Raises ConfigError if another process runs in this folder: two would share keys, state and the audit's directory."""
    running = _running(folder)
    if running is not None:
        raise ConfigError(f"`palisade dev` runs here already (pid {running['pid']}): stop it, or name another --folder")


def _running(folder: Path) -> dict[str, Any] | None:
    """What a living `palisade dev` announced in this folder."""
    try:
        said = json.loads((folder / RUNNING).read_text())
    except (OSError, ValueError):
        return None
    sound = isinstance(said, dict) and isinstance(said.get("pid"), int) and "bootstrap" in said
    return said if sound and _alive(said["pid"]) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
