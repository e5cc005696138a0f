"""What the faults' tests made, put together at the end in whichever process each ran, and shown as a table."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.faults.ground import NAMES, Ran, save, table

MADE = pytest.StashKey[dict[str, Ran]]()
"""Of a test: what it made, by fault."""
_ALL = pytest.StashKey[dict[str, Ran]]()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Gathered(config.stash.setdefault(_ALL, {})), "gathered faults")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown" and (made := item.stash.get(MADE, None)):
        report.faults = {name: ran.told() for name, ran in made.items()}  # type: ignore[attr-defined]
    return report


class _Gathered:
    def __init__(self, results: dict[str, Ran]) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, told in getattr(report, "faults", {}).items():
            self._results.setdefault(name, Ran()).add(Ran.of(told))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_ALL]
    results = {name: found[name] for name in NAMES if name in found}
    if not results:
        return
    save(results)
    terminalreporter.section("faults x invariants")
    for row in table(results):
        terminalreporter.write_line(row)
