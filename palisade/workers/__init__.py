"""The composition root: each role as one process. A role's module is imported when it runs: none pays for another."""

from __future__ import annotations

import ctypes
import gc
import logging
from importlib import import_module
from threading import Event, Thread

from palisade.settings import Settings
from palisade.workers.common import Ports
from streams import failpoints
from streams.memory import give_back_freed

log = logging.getLogger(__name__)

ROLES = ("ingest", "detect", "respond", "audit")
COLLECT_AT = (50_000, 20, 50)
"""A run makes tens of thousands of objects that die with it and no cycles: at Python's thresholds (700, 10, 10) looking
for cycles among them is a quarter of a detect worker's time; at these, 1 %. 50,000 young objects are about 10 MB."""


M_ARENA_MAX = -8
ARENAS = 2
"""glibc gives each thread a heap of its own, up to eight a core, and librdkafka's threads free what others took: after
half an hour of outages half of a worker's heap and more was free, scattered over 16. Two stay dense, and cost less time than
runs of one kind differ by."""


def _bound_heaps() -> None:
    """Before any thread is there. Where malloc is another one (musl, macOS), nothing is done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not mallopt(M_ARENA_MAX, ARENAS):
        log.info("malloc keeps its own number of heaps: memory may grow more with outages")


def run_role(role: str, settings: Settings, name: str, ports: Ports) -> int:
    """Runs a role until SIGTERM; returns the exit status. Raises ConfigError."""
    _bound_heaps()
    Thread(target=give_back_freed, args=(Event().wait,), name="give-back", daemon=True).start()
    failpoints.name_role(role)
    module = import_module(f"palisade.workers.{role}")
    gc.freeze()  # what was imported stays for good: it is not looked through again
    gc.set_threshold(*COLLECT_AT)
    return int(module.run(settings, name, ports))
