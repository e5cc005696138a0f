"""The composition root: each role as one process. A role's module is imported when it runs: none pays for another."""

from __future__ import annotations

import gc
from importlib import import_module

from palisade.settings import Settings
from palisade.workers.common import Ports
from streams import failpoints

ROLES = ("ingest", "detect", "respond", "audit")
COLLECT_AT = (50_000, 20, 50)
"""A run makes tens of thousands of objects that die with it and no cycles: at Python's thresholds (700, 10, 10) looking
for cycles among them is a quarter of a detect worker's time; at these, 1 %. 50,000 young objects are about 10 MB."""


def run_role(role: str, settings: Settings, name: str, ports: Ports) -> int:
    """Runs a role until SIGTERM; returns the exit status. Raises ConfigError."""
    failpoints.name_role(role)
    module = import_module(f"palisade.workers.{role}")
    gc.freeze()  # what was imported stays for good: it is not looked through again
    gc.set_threshold(*COLLECT_AT)
    return int(module.run(settings, name, ports))
