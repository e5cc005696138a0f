"""The fixture `ground` of a test that is marked with its faults, which tests are run at which scale, and the table at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ground import NAMES, Ground, Ran, Scale, save, table

_RESULTS = pytest.StashKey[dict[str, Ran]]()


def results_of(config: pytest.Config) -> dict[str, Ran]:
    return config.stash.setdefault(_RESULTS, {})


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """What the test's faults are driven on: `@pytest.mark.fault("F1")`."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "mark the test with its fault: @pytest.mark.fault('F1')"
    assert set(mark.args) <= set(NAMES)
    results = results_of(request.config)
    scale: Scale = "full" if request.config.getoption("--faults") == "full" else "short"
    return Ground(tmp_path, scale, {name: results.setdefault(name, Ran()) for name in mark.args})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A fault that is marked `shared` is made on a stage with others (`test_together.py`), or by itself: not both."""
    away = "shared" if config.getoption("--faults") == "together" else "together"
    left = [item for item in items if item.get_closest_marker(away)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = results_of(config)
    results = {name: found[name] for name in NAMES if name in found}
    if not results:
        return
    save(results)
    terminalreporter.section("faults x invariants")
    for row in table(results):
        terminalreporter.write_line(row)
