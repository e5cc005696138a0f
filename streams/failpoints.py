"""Named places at which a fault test may break a worker: `reach("before_commit")`.

Nothing happens unless the environment variable PALISADE_FAILPOINTS names a folder. A file ROLE.POINT in it says what happens
when a worker of that role gets there, and at the how manieth time: `kill`, `raise 3`, `hang`; at `begun` also `stick`, which
waits for ever and lets everything else go on. The file is gone when it happens, so that the process which is started in place
of this one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from pathlib import Path
from typing import Literal

Point = Literal[
    "polled",
    "begun",
    "taken",
    "published",
    "before_commit",
    "after_commit",
    "in_snapshot",
    "in_restore",
    "in_replay",
    "deciding",
    "journaled",
    "inserted",
]
"""Where a worker can be broken.

polled: the polling thread begins a round · begun: an agent has taken up a run · taken: a run is about to be handled ·
published: its outcomes are on their way, not confirmed · before_commit, after_commit: of offsets · in_snapshot: parts are
saved, their manifest is not · in_restore: some parts are taken back · in_replay: a run that was handled before, or
begins so, is handled again · deciding: respond is about to decide an input · journaled: the journal is committed, nothing is done yet ·
inserted: rows are in ClickHouse, their offsets not committed.
"""
VARIABLE = "PALISADE_FAILPOINTS"

log = logging.getLogger(__name__)


class FailpointReached(RuntimeError):
    """What `raise` raises."""


class Failpoints:
    """The points of one process. folder None: nothing ever happens."""

    def __init__(self, folder: Path | None, role: str) -> None:
        self._folder = folder
        self._role = role
        self._passed: dict[Point, int] = {}

    def reach(self, point: Point) -> None:
        """Does what is asked for this point, if anything. Raises FailpointReached."""
        if self._due(point) == "stick":
            raise ValueError(f"{self._role}.{point} says 'stick', which is for points that can wait")

    async def reach_waiting(self, point: Point) -> None:
        """The same where waiting is possible: `stick` never returns."""
        if self._due(point) == "stick":
            await asyncio.Event().wait()

    def _due(self, point: Point) -> str:
        """Does what is asked for, but waiting; says what it was."""
        if self._folder is None:
            return ""
        path = self._folder / f"{self._role}.{point}"
        try:
            what, _, nth = path.read_text().partition(" ")
        except OSError:
            return ""
        self._passed[point] = self._passed.get(point, 0) + 1
        if self._passed[point] < int(nth or 1):
            return ""
        path.unlink()
        self._passed[point] = 0
        log.error("failpoint %s: %s", path.name, what)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            while True:
                time.sleep(1)
        elif what == "raise":
            raise FailpointReached(f"{self._role}.{point}")
        elif what != "stick":
            raise ValueError(f"{path.name} says {what!r}: kill, raise or hang, and a number")
        return what


_here = Failpoints(None, "")


def name_role(role: str) -> None:
    """From here on this process is of that role, and its points may be armed by the environment."""
    global _here
    folder = os.environ.get(VARIABLE)
    _here = Failpoints(Path(folder) if folder else None, role)


def reach(point: Point) -> None:
    """This process is at that point."""
    _here.reach(point)


async def reach_waiting(point: Point) -> None:
    """This process is at that point, and may be kept there for ever."""
    await _here.reach_waiting(point)
