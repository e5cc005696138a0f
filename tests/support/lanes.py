"""`make test PROCESSES=2`: one process runs whatever waits for brokers, processes and seconds, the other what only computes.

What waits leaves the machine idle, and a test that leans on seconds must not meet another one: all of it is one unit of work,
one test after the other. What computes stands back behind it, by its priority.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

COMPUTING = frozenset(
    ("audit", "benchmarks", "blocks", "conformance", "decode", "detectors", "fuzz", "redaction", "schemas", "verify")
)
"""Folders of tests that may run beside any other test; whatever is not named here waits."""
NICENESS = 10
"""A tenth of the share of a core that a process has by default."""


def computes(nodeid: str) -> bool:
    return nodeid.split("/")[1] in COMPUTING


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Units of work: each file that computes, and all that waits. The largest is handed out first, and that is the latter."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if computes(nodeid) else "what waits"

    return Lanes(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker that has come to what computes never goes back to what waits."""
    if "PYTEST_XDIST_WORKER" in os.environ and computes(item.nodeid):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
