"""Fixtures for all tests, and how they are shared among processes."""

import pytest
from hypothesis import settings

from tests.support.kafka import embedded_broker, kafka
from tests.support.lanes import pytest_runtest_setup, pytest_xdist_make_scheduler

__all__ = ["embedded_broker", "kafka", "pytest_runtest_setup", "pytest_xdist_make_scheduler"]

settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests (`pytest.mark.anyio`) run on asyncio."""
    return "asyncio"
