"""How processes ran: what `palisade dev` notes of its children, and the memory of those that live."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NOTES = "processes.jsonl"


class ProcessNotes:
    """Appends to the notes in `folder` which children started, and which ended by themselves. Thread-safe by its lines."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NOTES
        self._pids: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._path.write_text("")

    def started(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        self._note(name, {"pid": pid, "event": "started"})

    def exited(self, name: str, status: int, *, asked: bool = False) -> None:
        """`asked`: somebody wanted it to end."""
        self._note(name, {"pid": self._pids.get(name), "event": "exited", "status": status, "asked": asked})

    def _note(self, name: str, what: dict[str, Any]) -> None:
        with suppress(OSError), self._path.open("a") as notes:  # a full disk must not end who starts children again
            notes.write(json.dumps({"at_ms": int(time.time() * 1000), "name": name, **what}) + "\n")


def process_rows(folder: Path) -> list[dict[str, Any]] | None:
    """Rows of `processes` from the notes in `folder`, and the most memory of each process that lives; None without notes.

    A line that was cut short, as by a kill or a full disk, gives no row.
    """
    path = folder / NOTES
    if not path.exists():
        return None
    rows = [row for line in path.read_text().splitlines() if (row := _noted(line)) is not None]
    ended = {row["pid"] for row in rows if row["event"] == "exited"}
    living = {row["pid"]: row["name"] for row in rows if row["event"] == "started" and row["pid"] not in ended}
    now_ms = int(time.time() * 1000)
    for pid, name in living.items():
        most = most_rss_bytes(pid)
        if most is not None:
            rows.append({"at_ms": now_ms, "name": name, "pid": pid, "event": "rss", "rss_bytes": most})
    return rows


def _noted(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


def most_rss_bytes(pid: int) -> int | None:
    """The most resident memory that a process ever had; None where the system does not tell (Linux does)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = (line.split() for line in status.splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == "VmHWM:"), None)
