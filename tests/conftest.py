"""Fixtures for all tests."""

from collections.abc import Generator, Iterator

import pytest

from tests.support import told
from tests.support.kafka import embedded_broker, kafka
from tests.support.room import room_for

__all__ = ["embedded_broker", "kafka"]
pytest_plugins = ("tests.faults.gathered",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults",
        choices=("together", "short", "full"),
        default="together",
        help="tests/faults: a few of each on shared stages, the same one fault after the other, or at length",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: several workers each take a file at a time, and none is left alone with the longest."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with room_for(item):
        return (yield)


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests (`pytest.mark.anyio`) run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_log_tells_a_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All processes of a session have a secret in their environment; at its end all logs are searched for it and others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(told.VARIABLE, told.VALUE)
        yield
    assert list(told.telling_logs(tmp_path_factory.getbasetemp())) == []
