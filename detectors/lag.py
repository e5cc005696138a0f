"""Are the content detectors of an endpoint so far behind that nothing is known of what came since?

Said on the reports log, by what its ticks tell of the predictions log: traffic and health go on there meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.base import Reading, TickAt
from detectors.signal_book import signal_as
from schemas.ids import stable_id
from schemas.signals import Signal

UNKNOWN_MS = 2_000
"""So far behind, the state of content is `unknown`."""
RECOVERED_MS = 1_000
"""Below it, it is known again."""
SAY_EVERY_MS = 1_000
"""A lag that swings between both is said once in so long."""
VERSION = 1


@dataclass(slots=True)
class Lag:
    """Of one endpoint. `incident_id`: of the lag that lasts, empty while there is none; `said_ms`: the log's time of the
    last signal; `first_ms`, `most_ms`: since when the lag lasts, and the largest yet."""

    incident_id: str = ""
    said_ms: int = 0
    first_ms: int = 0
    most_ms: int = 0

    def update(self, endpoint: str, tick: TickAt) -> list[Signal]:
        """The signal that `tick` gives rise to, if any; one that tells nothing changes nothing."""
        behind_ms, at = tick.behind_ms, tick.at
        if behind_ms is None:
            return []
        lags = bool(self.incident_id)
        self.most_ms = max(self.most_ms, behind_ms) if lags else behind_ms
        if 0 <= at.ms - self.said_ms < SAY_EVERY_MS:
            return []
        if not lags and behind_ms >= UNKNOWN_MS:
            self.first_ms, self.said_ms = at.ms, at.ms
            signal = signal_as(self._reading(endpoint, tick, behind_ms), "unknown", "", 0)
            self.incident_id = signal.incident_id
            return [signal]
        if lags and behind_ms < RECOVERED_MS:
            self.said_ms = at.ms
            signal = signal_as(self._reading(endpoint, tick, behind_ms), "recovered", self.incident_id, 1)
            self.incident_id = ""
            return [signal]
        return []

    def saved(self) -> list[str | int]:
        """Its numbers, for `of`."""
        return [self.incident_id, self.said_ms, self.first_ms, self.most_ms]

    @classmethod
    def of(cls, saved: Sequence[str | int]) -> Lag:
        """What `saved` gave; raises ValueError or TypeError on anything else."""
        incident_id, said_ms, first_ms, most_ms = saved
        return cls(str(incident_id), int(said_ms), int(first_ms), int(most_ms))

    def _reading(self, endpoint: str, tick: TickAt, behind_ms: int) -> Reading:
        known = behind_ms < UNKNOWN_MS
        return Reading(
            detector="lag",
            detector_hash=stable_id("lag", VERSION, UNKNOWN_MS, RECOVERED_MS, SAY_EVERY_MS),
            kind="lag",
            endpoint=endpoint,
            subject_kind="endpoint",
            subject=endpoint,
            score=float(behind_ms),
            threshold=float(UNKNOWN_MS),
            firing=False,
            calm=known,
            known=known,
            severity="warning",
            at=tick.at,
            first_ms=self.first_ms,
            evidence={"behind_ms": behind_ms, "most_behind_ms": self.most_ms},
        )
