"""Fixtures for all tests."""

import pytest

from tests.support.kafka import embedded_broker, kafka

__all__ = ["embedded_broker", "kafka"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("short", "full"), default="short", help="the scale of tests/faults")


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests (`pytest.mark.anyio`) run on asyncio."""
    return "asyncio"
