"""Connections to the secured broker, each as one principal."""

from __future__ import annotations

from pathlib import Path

from palisade.settings import connection_of
from schemas.config import KafkaConfig
from streams.transport.settings import KafkaConnection
from tests.support.secured_kafka import SecuredKafka, Way


def connection_as(broker: SecuredKafka, principal: str, way: Way = "scram") -> KafkaConnection:
    """As a configuration file would describe it, without librdkafka's own lines."""
    connection = connection_of(KafkaConfig.model_validate(broker.section(principal, way)), Path())
    return connection.model_copy(update={"extra": {"log_level": 0}})
