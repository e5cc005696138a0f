"""Room for tests that count on a machine of their own: the slow ones of the other worker of a session wait for them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def room_for(item: pytest.Item) -> Iterator[None]:
    """Held while a test runs. `alone`: no slow test of another worker runs meanwhile; all else may."""
    alone = item.get_closest_marker("alone") is not None
    if not (alone or item.get_closest_marker("slow") is not None):
        yield
        return
    folder = item.config.rootpath / ".cache"
    folder.mkdir(exist_ok=True)
    with (folder / "door.lock").open("w") as door, (folder / "room.lock").open("w") as room:
        # who waits to be alone stands in the door, so that no slow one after the other slips past
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
