"""Prefork servers: a forked child has none of its parent's threads, so what owns threads begins anew in it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def on_fork(owner: Any, reset: Callable[[Any], None]) -> None:
    """Calls `reset(owner)` in each forked child, before anything else of ours runs there."""
    _owners[owner] = reset


def _after_fork() -> None:
    for owner, reset in list(_owners.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
