"""The counters behind a report: constant size whatever the load, and a word when a report must not wait."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from threading import Lock
from typing import Any, Literal

from palisade_client._caller import CallerAuth

Route = Literal["primary", "probe", "fallback"]
Failure = Literal["error", "timeout"]
CallerKey = tuple[str, CallerAuth]

LATENCY_BOUNDS_MS: tuple[float, ...] = tuple(0.25 * 2 ** (k / 2) for k in range(32))
"""Upper bounds of the latency histogram, milliseconds; one more bucket takes the rest."""
MAX_REPORT_CALLERS = 100
MAX_CALLERS = 4_096
"""Callers counted one by one in an interval (about 1 MB); beyond it the lighter half is summed up, again and again."""
EARLY_ASKED = 20
"""A caller below this many calls in an interval never makes a report early."""
_SKETCH_BITS = 65_536
"""Linear counting (Whang 1990): within 2 % at 200,000 distinct callers an interval, saturates near 700,000."""
_SLOT_S, _SLOTS = 10.0, 7
_MAX_PEAKS = 4_096
"""Callers whose peak is remembered, for each ten seconds of the last minute; others count as new."""


class _Tally:
    """One caller in the open interval."""

    __slots__ = ("asked", "early_above", "refused", "served")

    def __init__(self) -> None:
        self.asked = self.served = self.refused = 0
        self.early_above: float = EARLY_ASKED


class _RouteTally:
    __slots__ = ("errors", "latency", "served", "timeouts")

    def __init__(self) -> None:
        self.served = self.errors = self.timeouts = 0
        self.latency = [0] * (len(LATENCY_BOUNDS_MS) + 1)


class _Peaks:
    """The highest `asked` of a caller in any interval of the last 60 to 70 seconds, where it was above 10."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[CallerKey, int]] = {}

    def note(self, callers: dict[CallerKey, _Tally], now: float) -> None:
        number = int(now // _SLOT_S)
        slot = self._slots.setdefault(number, {})
        for key, tally in callers.items():
            if tally.asked > EARLY_ASKED // 2 and (key in slot or len(slot) < _MAX_PEAKS):
                slot[key] = max(tally.asked, slot.get(key, 0))
        for old in [n for n in self._slots if n <= number - _SLOTS]:
            del self._slots[old]

    def highest(self, key: CallerKey) -> int:
        return max((slot.get(key, 0) for slot in self._slots.values()), default=0)


class Counts:
    """Thread-safe counters of the open interval. `ask` and `fail` say True once a report should be written early."""

    def __init__(self, version: str) -> None:
        self.in_flight = 0
        self._version = version
        self._lock = Lock()
        self._peaks = _Peaks()
        self._failed_before = False
        self._open()

    def _open(self) -> None:
        self._asked = self._refused = 0
        self._rest = [0, 0, 0, 0]  # callers, asked, served, refused
        self._callers: dict[CallerKey, _Tally] = {}
        self._routes: dict[Route, _RouteTally] = {}
        self._sketch: bytearray | None = None
        self._failed = False

    def ask(self, key: CallerKey) -> bool:
        """Counts a call that begins; True if its caller is far above what it was in the last minute."""
        with self._lock:
            self._asked += 1
            self.in_flight += 1
            tally = self._tally(key)
            tally.asked += 1
            if tally.asked <= tally.early_above:
                return False
            usual = 2.0 * self._peaks.highest(key)
            early = tally.asked > usual
            tally.early_above = math.inf if early else usual
            return early

    def refuse(self, key: CallerKey) -> None:
        """The call was refused: it has ended."""
        with self._lock:
            self.in_flight -= 1
            self._refused += 1
            self._tally(key).refused += 1

    def answer(self, key: CallerKey, route: Route | None, latency_ms: float) -> None:
        """The call has ended, answered by `route`; None if it ended in an exception or was given up by its caller."""
        with self._lock:
            self.in_flight -= 1
            self._tally(key).served += 1
            if route is not None:
                tally = self._route(route)
                tally.served += 1
                tally.latency[bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1

    def fail(self, route: Route, failure: Failure) -> bool:
        """An attempt failed; True if it is the first after an interval without any."""
        with self._lock:
            tally = self._route(route)
            if failure == "error":
                tally.errors += 1
            else:
                tally.timeouts += 1
            first = not self._failed and not self._failed_before
            self._failed = True
            return first

    def close(self, now: float) -> dict[str, Any]:
        """The fields of the report that come from counting; opens the next interval. `now` is monotonic."""
        with self._lock:
            callers, routes, rest = self._callers, self._routes, self._rest
            fields: dict[str, Any] = {"asked": self._asked, "refused": self._refused, "in_flight": self.in_flight}
            distinct = len(callers) if self._sketch is None else self._estimate()
            self._peaks.note(callers, now)
            self._failed_before = self._failed
            self._open()
        heaviest = heapq.nlargest(MAX_REPORT_CALLERS, callers.items(), key=_weight)
        if len(callers) > len(heaviest):
            shown = {key for key, _ in heaviest}
            _add_up(rest, [tally for key, tally in callers.items() if key not in shown])
        rest[0] = max(0, distinct - len(heaviest))
        names = ("rest_callers", "rest_asked", "rest_served", "rest_refused")
        return fields | {
            "distinct_callers": distinct,
            "callers": [_caller_fields(key, tally) for key, tally in heaviest],
            "routes": [self._route_fields(route, tally) for route, tally in routes.items()],
            **dict(zip(names, rest, strict=True)),
        }

    def _tally(self, key: CallerKey) -> _Tally:
        tally = self._callers.get(key)
        if tally is None:
            if len(self._callers) >= MAX_CALLERS:
                self._shrink()
            if self._sketch is not None:
                _mark(self._sketch, key)
            tally = self._callers[key] = _Tally()
        return tally

    def _route(self, route: Route) -> _RouteTally:
        tally = self._routes.get(route)
        if tally is None:
            tally = self._routes[route] = _RouteTally()
        return tally

    def _shrink(self) -> None:
        if self._sketch is None:
            self._sketch = bytearray(_SKETCH_BITS // 8)
            for key in self._callers:
                _mark(self._sketch, key)
        kept = dict(heapq.nlargest(MAX_CALLERS // 2, self._callers.items(), key=_weight))
        _add_up(self._rest, [tally for key, tally in self._callers.items() if key not in kept])
        self._callers = kept

    def _estimate(self) -> int:
        sketch = self._sketch or b""
        empty = _SKETCH_BITS - int.from_bytes(sketch, "little").bit_count()
        return round(-_SKETCH_BITS * math.log(max(1, empty) / _SKETCH_BITS))

    def _route_fields(self, route: Route, tally: _RouteTally) -> dict[str, Any]:
        counts = {"served": tally.served, "errors": tally.errors, "timeouts": tally.timeouts}
        return {"route": route, "version": self._version, **counts, "latency": tally.latency}


def _weight(item: tuple[CallerKey, _Tally]) -> int:
    return item[1].asked + item[1].served


def _mark(sketch: bytearray, key: CallerKey) -> None:
    bit = hash(key) % _SKETCH_BITS
    sketch[bit >> 3] |= 1 << (bit & 7)


def _add_up(rest: list[int], tallies: list[_Tally]) -> None:
    for tally in tallies:
        rest[1] += tally.asked
        rest[2] += tally.served
        rest[3] += tally.refused


def _caller_fields(key: CallerKey, tally: _Tally) -> dict[str, Any]:
    counts = {"asked": tally.asked, "served": tally.served, "refused": tally.refused}
    return {"caller": key[0], "caller_auth": key[1], **counts}
