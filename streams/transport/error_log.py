"""What a client of Kafka says of its errors: each code at most every few seconds, for an outage repeats one for each attempt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import monotonic

from confluent_kafka import KafkaError

from streams.transport.settings import Setting

log = logging.getLogger(__name__)
EVERY_S = 5.0
QUIET: Mapping[str, Setting] = {"log_level": 2}
"""For a client with an `ErrorLog`. librdkafka's own log says each error as often as it comes: 20 lines a second and client while
a broker is away."""


class ErrorLog:
    """Of one client; bounded by the number of codes."""

    def __init__(self, client: str, every_s: float = EVERY_S) -> None:
        self._client = client
        self._every_s = every_s
        self._said_at: dict[int, float] = {}

    def say(self, error: KafkaError) -> None:
        now, code = monotonic(), error.code()
        if now - self._said_at.get(code, -1e9) >= self._every_s:
            self._said_at[code] = now
            log.warning("kafka, %s: %s", self._client, error)
