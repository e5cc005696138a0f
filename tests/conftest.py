"""Fixtures for all tests."""

import pytest

from tests.support.kafka import embedded_broker, kafka

__all__ = ["embedded_broker", "kafka"]


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests (`pytest.mark.anyio`) run on asyncio."""
    return "asyncio"
