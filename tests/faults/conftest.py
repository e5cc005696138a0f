"""The fixture `ground` of a test that is marked with its faults, and which tests are run at which scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.gathered import MADE
from tests.faults.ground import NAMES, Ground, Ran, Scale


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """What the test's faults are driven on: `@pytest.mark.fault("F1")`."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "mark the test with its fault: @pytest.mark.fault('F1')"
    assert set(mark.args) <= set(NAMES)
    scale: Scale = "full" if request.config.getoption("--faults") == "full" else "short"
    made = request.node.stash[MADE] = {name: Ran() for name in mark.args}
    return Ground(tmp_path, scale, made)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A fault that is marked `shared` is made on a stage with others (`test_together*.py`), or by itself: not both."""
    away = "shared" if config.getoption("--faults") == "together" else "together"
    left = [item for item in items if item.get_closest_marker(away)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
