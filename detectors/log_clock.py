"""The log's time as timers need it: it never goes back, and it does not stand still until a clock that was wrong comes true.

Brokers' clocks differ, and are set. Where the broker's time falls a little, it is held until that has caught up. Where it
falls by more, its clock has been set back: time goes on from where it was, so that nothing that waits for its time waits
for an hour or a day that has passed already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HELD_MS = 10_000
"""Broker's time that falls by no more is that of two brokers, or of two records."""
MAX_MS = (2**32 - 1) * 1_000
"""The year 2106: detectors keep seconds in 32 bits."""


@dataclass(slots=True)
class LogClock:
    """Of one reader of one partition: a function of the records that it has seen. `seen_ms`: the broker's time that
    `now_ms` stands for."""

    now_ms: int = 0
    seen_ms: int = 0

    def at(self, broker_ms: int) -> int:
        """The time at a record, milliseconds, within 0 and `MAX_MS`."""
        broker_ms = min(max(broker_ms, 0), MAX_MS)
        fallen = self.seen_ms - broker_ms
        if 0 < fallen <= HELD_MS:
            return self.now_ms
        self.now_ms = min(self.now_ms + max(-fallen, 0), MAX_MS)
        self.seen_ms = broker_ms
        return self.now_ms

    def saved(self) -> list[int]:
        """Its numbers, for `of`."""
        return [self.now_ms, self.seen_ms]

    @classmethod
    def of(cls, saved: Sequence[int]) -> LogClock:
        """What `saved` gave; raises ValueError or TypeError on anything else."""
        now_ms, seen_ms = saved
        return cls(int(now_ms), int(seen_ms))
