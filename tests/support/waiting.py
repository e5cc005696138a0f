"""Waiting for what can only be asked: a broker, ClickHouse, nginx, a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(ready: Callable[[], Any], what: str, within_s: float, every_s: float = 0.05) -> Any:
    """What `ready` gives once it gives something. Raises AssertionError with `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(every_s)
    raise AssertionError(f"waited {within_s:.0f} s in vain for {what}")
