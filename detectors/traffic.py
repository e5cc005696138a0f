"""Is traffic out of its pattern? Reads reports: a flood does not queue in front of its own detection.

Kinds: `caller_rate` (a caller over its own pattern, its endpoint's, or the owner's bound), `endpoint_rate` (the sum over
its own pattern, a warning), `silence` (an endpoint in use that nobody asks, or whose guards report no more, a warning).

The budget of an endpoint is split by `caller_share`, `endpoint_share` and `silence_share`. For callers, the share is spent
over the callers to come, one draw each (`rate_pattern`); margins over peaks already seen come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from detectors.base import Budget, LogPoint, Reading, ReportAt, ReportEvent, TickAt
from detectors.caller_rates import CallerRates
from detectors.caller_table import DTYPES, MAX_CALLERS
from detectors.endpoint_rates import EndpointRates, Shares
from detectors.guards import LiveGuards
from detectors.rate_pattern import PatternFactors
from detectors.report_state import pack, unpack
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.ids import stable_id

VERSION = 2
MAX_PARTS = 4_096
"""Endpoints of one worker; reports of further ones are not judged."""
MAX_CALLERS_TOTAL = 1 << 20
SMALLEST_TABLE = 64
UNREGISTERED_CALLERS = 256
EVENTS_PER_DAY = 86_400.0
MAX_MS = (2**32 - 1) * 1_000
"""Seconds are kept in 32 bits: until the year 2106."""

_ENDPOINT_COLUMNS = {f"endpoint_{name}": dtype for name, dtype in DTYPES.items()}
_COLUMNS = {**DTYPES, "window_row": "<u2", "window_count": "<u4", **_ENDPOINT_COLUMNS}


class _Part:
    """State of one endpoint."""

    def __init__(self, partition: int, guards: LiveGuards, callers: CallerRates, rates: EndpointRates) -> None:
        self.partition = partition
        self.clock_ms = 0
        self.ticked_ms = 0
        self.guards = guards
        self.callers = callers
        self.rates = rates

    def report(self, event: ReportAt) -> list[Reading]:
        self._expire(event.at.ms)
        if not self.guards.take(event):
            return []
        readings = self.callers.report(event, LiveGuards.key_of(event))
        window = self.guards.asked
        return readings + self.rates.report(event.at, event.report.asked, window, lambda: self._shares(event, window))

    def tick(self, at: LogPoint) -> list[Reading]:
        self._expire(at.ms)
        readings = self.callers.tick(at, len(self.guards) > 0)
        return readings + self.rates.tick(at, self.guards.asked)

    def _expire(self, now_ms: int) -> None:
        for guard in self.guards.expire(now_ms):
            self.callers.drop_guard(guard)

    def _shares(self, event: ReportAt, window: float) -> Shares:
        """Shares of the callers that this report names in what the endpoint was asked."""
        weights = self.callers.weights(event)
        ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:20]
        return tuple((caller, auth, min(1.0, weight / max(window, weight))) for (caller, auth), weight in ranked)


class Traffic:
    """Rates per caller and per endpoint, and silence. One part is one endpoint, at most 200 kB.

    `endpoints`: budgets and bounds; they are no part of `hash`, so that a changed bound keeps what was learned.
    `linger_ms`: how long after a caller calmed down readings of it go on (longer than any `recover_for`).
    """

    name = "traffic"
    log: Literal["predictions", "reports"] = "reports"

    def __init__(
        self,
        endpoints: Mapping[str, EndpointConfig],
        *,
        caller_share: float = 0.25,
        endpoint_share: float = 0.1,
        silence_share: float = 0.05,
        max_callers: int = MAX_CALLERS,
        linger_ms: int = 900_000,
        factors: PatternFactors | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._shares = (caller_share, endpoint_share, silence_share)
        self._max_callers = max_callers
        self._linger_ms = linger_ms
        self._factors = factors if factors is not None else PatternFactors()
        self.hash = stable_id(self.name, VERSION, repr(self._shares), max_callers, linger_ms, repr(self._factors))
        self._parts: dict[str, _Part] = {}

    def update(self, batch: Sequence[ReportEvent]) -> list[Reading]:
        """Readings of reports and ticks in the order of their log."""
        readings: list[Reading] = []
        for event in batch:
            if isinstance(event, TickAt):
                readings += self._tick(event.at)
                continue
            part = self._parts.get(event.report.endpoint)
            if part is None:
                if len(self._parts) >= MAX_PARTS:
                    continue
                part = self._parts[event.report.endpoint] = self._new(event.report.endpoint, event.at.partition)
            part.clock_ms = max(part.clock_ms, min(event.at.ms, MAX_MS))
            readings += part.report(_at(event, part.clock_ms))
        return readings

    def snapshot(self, part: str) -> bytes:
        """The part's state; `b""` if there is none."""
        found = self._parts.get(part)
        if found is None:
            return b""
        callers, caller_columns = found.callers.saved()
        rates, rate_columns = found.rates.saved()
        values = {
            "clock": [found.partition, found.clock_ms, found.ticked_ms],
            "guards": found.guards.saved(),
            "callers": callers,
            "rates": rates,
        }
        columns = {**caller_columns, **{f"endpoint_{name}": column for name, column in rate_columns.items()}}
        return pack(self.hash, values, columns)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        self.forget(part)
        values, columns = unpack(self.hash, state, _COLUMNS)
        try:
            self._parts[part] = self._restored(part, values, columns)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise StateRefused(f"saved traffic state of {part} cannot be read: {error}") from error

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        self._parts.pop(part, None)

    def _tick(self, at: LogPoint) -> list[Reading]:
        """Ticks of a partition move its endpoints, at most once a second each."""
        readings: list[Reading] = []
        for part in self._parts.values():
            if part.partition == at.partition and at.ms - part.ticked_ms >= 1_000 and part.clock_ms < at.ms <= MAX_MS:
                part.clock_ms = part.ticked_ms = at.ms
                readings += part.tick(at)
        return readings

    def _new(self, endpoint: str, partition: int) -> _Part:
        config = self._endpoints.get(endpoint)
        budget = Budget.of(config, EVENTS_PER_DAY)
        alarms = [budget.share(share).alarms_per_30_days for share in self._shares]
        reading_of = partial(Reading, detector=self.name, detector_hash=self.hash, endpoint=endpoint)
        of_endpoint = partial(reading_of, subject=endpoint)
        callers = CallerRates(config, alarms[0], self._table_size(endpoint), self._linger_ms, self._factors, reading_of)
        rates = EndpointRates(alarms[1], alarms[2], self._linger_ms, self._factors, of_endpoint)
        return _Part(partition, LiveGuards(), callers, rates)

    def _table_size(self, endpoint: str) -> int:
        """Callers that an endpoint may have: an equal part of 2^20 each, few for an endpoint that nobody registered."""
        most = self._max_callers if endpoint in self._endpoints else min(self._max_callers, UNREGISTERED_CALLERS)
        return max(SMALLEST_TABLE, min(most, MAX_CALLERS_TOTAL // max(len(self._endpoints), 1)))

    def _restored(self, endpoint: str, values: Mapping[str, Any], columns: dict[str, Any]) -> _Part:
        partition, clock_ms, ticked_ms = values["clock"]
        part = self._new(endpoint, partition)
        part.clock_ms, part.ticked_ms = clock_ms, ticked_ms
        part.guards.take_back(values["guards"])
        rate_columns = {name: columns.pop(f"endpoint_{name}") for name in DTYPES}
        part.callers.take_back(values["callers"], columns)
        part.rates.take_back(values["rates"], rate_columns)
        return part


def _at(event: ReportAt, clock_ms: int) -> ReportAt:
    """The event at a time that never goes back."""
    if event.at.ms == clock_ms:
        return event
    return ReportAt(event.report, event.trusted, event.at._replace(ms=clock_ms))
