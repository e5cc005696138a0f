"""Logging that cannot flood: each message at most once in 5 seconds."""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger("palisade_client")

QUIET_S = 5.0
_MAX_MESSAGES = 256
_last: dict[str, float] = {}


def log_fault(message: str, detail: object = "", *, trace: bool = True) -> None:
    """A warning with the current exception, if any and `trace`; the same `message` again only after 5 s."""
    now = time.monotonic()
    if now - _last.get(message, -QUIET_S) < QUIET_S:
        return
    if len(_last) >= _MAX_MESSAGES:
        _last.clear()
    _last[message] = now
    logger.warning("%s %s", message, detail, exc_info=trace and sys.exc_info()[0] is not None)
