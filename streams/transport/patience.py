"""Whether what a broker refused is worth asking for again."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from confluent_kafka import KafkaException

from streams.transport.seams import NOT_THERE, PASSING


class Patience:
    """Of one asker. `not_there_s`: for so long a topic may be unknown, for a broker that has just begun knows none."""

    def __init__(self, not_there_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._not_there_s = not_there_s
        self._clock = clock
        self._not_there_since: float | None = None

    def may_pass(self, error: KafkaException | TimeoutError) -> bool:
        """False where asking again mends nothing."""
        code = error.args[0].code() if isinstance(error, KafkaException) else None
        if code in NOT_THERE:
            now = self._clock()
            self._not_there_since = now if self._not_there_since is None else self._not_there_since
            return now - self._not_there_since <= self._not_there_s
        return code is None or code in PASSING

    def answered(self) -> None:
        self._not_there_since = None
