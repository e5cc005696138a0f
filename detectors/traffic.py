"""Is traffic out of its pattern? Reads reports: a flood does not queue in front of its own detection.

Kinds: `caller_rate` (a caller over its own pattern, its endpoint's, or the owner's bound), `endpoint_rate` (the sum over
its own pattern, a warning), `silence` (an endpoint in use that nobody asks, or whose guards report no more, a warning).

The budget of an endpoint is split by `caller_share`, `endpoint_share` and `silence_share`. For callers, the share is spent
over the callers to come, one draw each (`rate_pattern`); margins over peaks already seen come on top.

Once an endpoint has had a signed report, unsigned ones have a state of their own beside it: the callers they name are
judged by the endpoint's pattern, as claimed ones, and nothing else is. What they taught before it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from detectors.attribution import of_excess
from detectors.base import Budget, LogPoint, Reading, ReportAt, ReportEvent, TickAt
from detectors.budget import SHARES
from detectors.caller_rates import CallerRates
from detectors.caller_table import DTYPES, MAX_CALLERS, PARTS_OF_DAY
from detectors.caller_windows import WINDOW_COLUMNS
from detectors.endpoint_rates import EndpointRates, Shares
from detectors.guards import (
    COUNTING_COLUMNS,
    MAX_ASKED,
    MAX_BESIDE_GUARDS,
    MAX_GUARDS,
    MAX_UNSIGNED_GUARDS,
    LiveGuards,
)
from detectors.rate_pattern import PatternFactors
from detectors.report_state import pack, unpack
from detectors.vouched import part_after
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.ids import stable_id
from schemas.signals import Evidence

VERSION = 4
MAX_CALLERS_TOTAL = 1 << 20
SMALLEST_TABLE = 64
UNREGISTERED_CALLERS = 256
BESIDE_CALLERS = 128
"""Callers of unsigned reports beside signed ones."""
EVENTS_PER_DAY = 86_400.0
MAX_MS = (2**32 - 1) * 1_000
"""Seconds are kept in 32 bits: until the year 2106."""

_SIDE_COLUMNS = {**DTYPES, **WINDOW_COLUMNS, **COUNTING_COLUMNS}
_RATE_COLUMNS = {f"endpoint_{name}": dtype for name, dtype in DTYPES.items()}
_BESIDE_COLUMNS = {f"beside_{name}": dtype for name, dtype in _SIDE_COLUMNS.items()}
_COLUMNS = {**_SIDE_COLUMNS, **_RATE_COLUMNS, **_BESIDE_COLUMNS}


class _Side:
    """Guards of one endpoint whose reports are signed, or those whose are not, and the callers that they name.

    Its clock is moved by its own reports and by ticks.
    """

    def __init__(self, guards: LiveGuards, callers: CallerRates) -> None:
        self.clock_ms = 0
        self.ticked_ms = 0
        self.guards = guards
        self.callers = callers

    def report(self, event: ReportAt) -> tuple[ReportAt, list[Reading]] | None:
        """The report at a time that never goes back, and readings of callers; None if it was counted before."""
        self.clock_ms = max(self.clock_ms, min(event.at.ms, MAX_MS))
        event = ReportAt(event.report, event.trusted, event.at._replace(ms=self.clock_ms))
        self._expire()
        counted = self.guards.take(event)
        return None if counted is None else (event, self.callers.report(event, counted))

    def tick(self, at: LogPoint) -> list[Reading] | None:
        """Readings of callers; None at a tick that is early or late: time moves once a second."""
        if at.ms - self.ticked_ms < 1_000 or not self.clock_ms < at.ms <= MAX_MS:
            return None
        self.clock_ms = self.ticked_ms = at.ms
        self._expire()
        return self.callers.tick(at, len(self.guards) > 0)

    def _expire(self) -> None:
        for guard in self.guards.expire(self.clock_ms):
            self.callers.windows.drop(guard)

    def saved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and columns for a snapshot."""
        guards, guard_columns = self.guards.saved(COUNTING_COLUMNS)
        callers, columns = self.callers.saved()
        return {"clock": [self.clock_ms, self.ticked_ms], "guards": guards, "callers": callers}, guard_columns | columns

    def take_back(self, values: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """What `saved` gave; KeyError, TypeError, ValueError or IndexError on anything else."""
        self.clock_ms, self.ticked_ms = values["clock"]
        self.guards.take_back(values["guards"], columns)
        self.callers.take_back(values["callers"], columns)


class _Part:
    """State of one endpoint. `signed`: the main side, and the endpoint's rates, are of signed reports."""

    def __init__(self, partition: int, signed: bool, main: _Side, rates: EndpointRates) -> None:
        self.partition = partition
        self.signed = signed
        self.main = main
        self.rates = rates
        self.beside: _Side | None = None
        """Of unsigned reports, where the main side is of signed ones."""

    def report(self, event: ReportAt) -> list[Reading]:
        taken = self.main.report(event)
        if taken is None:
            return []
        event, readings = taken
        window, asked = self.main.guards.asked, min(event.report.asked, MAX_ASKED)
        return readings + self.rates.report(event.at, asked, window, lambda: self._who(event, window))

    def tick(self, at: LogPoint) -> list[Reading]:
        readings = self.main.tick(at)
        readings = [] if readings is None else readings + self.rates.tick(at, self.main.guards.asked)
        beside = None if self.beside is None else self.beside.tick(at)
        return readings + (beside or [])

    def _who(self, event: ReportAt, window: float) -> tuple[Shares, Evidence]:
        """Shares of the callers that this report names in what the endpoint was asked; and who asked more than usual."""
        weights = self.main.callers.weights(event)
        ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
        shares = tuple((caller, auth, min(1.0, weight / max(window, weight))) for (caller, auth), weight in ranked[:20])
        asked = np.array([weight for _, weight in ranked])
        usual = self.main.callers.usual_rates([name for name, _ in ranked], event.at.ms)
        unlisted = max(window - float(asked.sum()), 0.0)
        unlisted_usual = max(self.rates.usual_rate(event.at.ms) - float(usual.sum()), 0.0)
        found = of_excess(asked - usual, asked, (unlisted - unlisted_usual, unlisted))
        named: list[float | int | str | None] = [ranked[place][0][0] for place in found.named]
        return shares, {"attributed_to": found.answer, "attributed_callers": named}


class Traffic:
    """Rates per caller and per endpoint, and silence. One part is one endpoint, at most 256 kB.

    `endpoints`: budgets and bounds; they are no part of `hash`, so that a changed bound keeps what was learned.
    `linger_ms`: how long after a caller calmed down readings of it go on (longer than any `recover_for`).
    """

    name = "traffic"
    log: Literal["predictions", "reports"] = "reports"

    def __init__(
        self,
        endpoints: Mapping[str, EndpointConfig],
        *,
        caller_share: float = SHARES["caller_rate"],
        endpoint_share: float = SHARES["endpoint_rate"],
        silence_share: float = SHARES["silence"],
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
            readings += self._report(event)
        return readings

    def snapshot(self, part: str) -> bytes:
        """The part's state; `b""` if there is none."""
        found = self._parts.get(part)
        if found is None:
            return b""
        rates, rate_columns = found.rates.saved()
        main, columns = found.main.saved()
        beside, beside_columns = (None, _empty_columns()) if found.beside is None else found.beside.saved()
        values = {
            "partition": found.partition,
            "signed": found.signed,
            "main": main,
            "rates": rates,
            "beside": beside,
        }
        columns |= {f"endpoint_{name}": column for name, column in rate_columns.items()}
        columns |= {f"beside_{name}": column for name, column in beside_columns.items()}
        return pack(self.hash, values, {name: columns[name] for name in _COLUMNS})

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

    def _report(self, event: ReportAt) -> list[Reading]:
        endpoint = event.report.endpoint
        part = part_after(self._parts, event, partial(self._new, endpoint, event.at.partition, event.trusted))
        if part is None:
            return []
        if event.trusted is part.signed:
            return part.report(event)
        if part.beside is None:
            part.beside = self._new_beside(endpoint, part)
        taken = part.beside.report(event)
        return [] if taken is None else taken[1]

    def _tick(self, at: LogPoint) -> list[Reading]:
        """Ticks of a partition move its endpoints, at most once a second each."""
        readings: list[Reading] = []
        for part in self._parts.values():
            if part.partition == at.partition:
                readings += part.tick(at)
        return readings

    def _new(self, endpoint: str, partition: int, signed: bool) -> _Part:
        alarms = self._alarms(endpoint)
        reading_of = self._reading_of(endpoint)
        rates = EndpointRates(
            alarms[1], alarms[2], self._linger_ms, self._factors, partial(reading_of, subject=endpoint)
        )
        callers = CallerRates(
            self._endpoints.get(endpoint),
            alarms[0],
            self._table_size(endpoint),
            self._linger_ms,
            self._factors,
            reading_of,
        )
        guards = LiveGuards(MAX_GUARDS if signed else MAX_UNSIGNED_GUARDS)
        return _Part(partition, signed, _Side(guards, callers), rates)

    def _new_beside(self, endpoint: str, part: _Part) -> _Side:
        callers = CallerRates(
            self._endpoints.get(endpoint),
            self._alarms(endpoint)[0],
            min(BESIDE_CALLERS, self._table_size(endpoint)),
            self._linger_ms,
            self._factors,
            self._reading_of(endpoint),
            crowd=lambda: part.main.callers.crowd_limit,
        )
        return _Side(LiveGuards(MAX_BESIDE_GUARDS), callers)

    def _alarms(self, endpoint: str) -> list[float]:
        budget = Budget.of(self._endpoints.get(endpoint), EVENTS_PER_DAY)
        return [budget.share(share).alarms_per_30_days for share in self._shares]

    def _reading_of(self, endpoint: str) -> Callable[..., Reading]:
        return partial(Reading, detector=self.name, detector_hash=self.hash, endpoint=endpoint)

    def _table_size(self, endpoint: str) -> int:
        """Callers that an endpoint may have: an equal part of 2^20 each, few for an endpoint that nobody registered."""
        most = self._max_callers if endpoint in self._endpoints else min(self._max_callers, UNREGISTERED_CALLERS)
        return max(SMALLEST_TABLE, min(most, MAX_CALLERS_TOTAL // max(len(self._endpoints), 1)))

    def _restored(self, endpoint: str, values: Mapping[str, Any], columns: dict[str, Any]) -> _Part:
        part = self._new(endpoint, int(values["partition"]), bool(values["signed"]))
        part.main.take_back(values["main"], columns)
        part.rates.take_back(values["rates"], {name: columns[f"endpoint_{name}"] for name in DTYPES})
        if values["beside"] is not None:
            part.beside = self._new_beside(endpoint, part)
            part.beside.take_back(values["beside"], {name: columns[f"beside_{name}"] for name in _SIDE_COLUMNS})
        return part


def _empty_columns() -> dict[str, Any]:
    """The columns of a side that there is not."""
    return {
        name: np.zeros((0, PARTS_OF_DAY) if name == "season" else 0, dtype) for name, dtype in _SIDE_COLUMNS.items()
    }
