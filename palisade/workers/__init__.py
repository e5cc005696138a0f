"""The composition root: each role as one process. A role's module is imported when it runs: none pays for another."""

from __future__ import annotations

from importlib import import_module

from palisade.settings import Settings

ROLES = ("detect", "respond", "audit")


def run_role(role: str, settings: Settings, name: str, metrics_port: int | None = None) -> int:
    """Runs a role until SIGTERM; returns the exit status. Raises ConfigError."""
    module = import_module(f"palisade.workers.{role}")
    return int(module.run(settings, name, metrics_port))
