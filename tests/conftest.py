"""Fixtures for all tests."""

from tests.support.kafka import embedded_broker, kafka

__all__ = ["embedded_broker", "kafka"]
