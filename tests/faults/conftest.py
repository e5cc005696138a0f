"""The fixture `ground` of a test that is marked with its fault, and the table at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ground import NAMES, Ground, Ran, save, table

_RESULTS = pytest.StashKey[dict[str, Ran]]()


def results_of(config: pytest.Config) -> dict[str, Ran]:
    return config.stash.setdefault(_RESULTS, {})


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """What the test's fault is driven on: `@pytest.mark.fault("F1")`."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "mark the test with its fault: @pytest.mark.fault('F1')"
    assert mark.args[0] in NAMES
    scale = request.config.getoption("--faults", "short")
    return Ground(tmp_path, scale, results_of(request.config).setdefault(mark.args[0], Ran()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = results_of(config)
    results = {name: found[name] for name in NAMES if name in found}
    if not results:
        return
    save(results)
    terminalreporter.section("faults x invariants")
    for row in table(results):
        terminalreporter.write_line(row)
