"""What ingest has paired, counted into reports: one an endpoint each second of the log's time, of constant size.

For endpoints without Guard alone, whose own reports would count the same calls again. Requests count when they are read,
so a flood is seen although answers lag. A request that was never answered counts as a timeout. Callers of one interval are
counted one by one up to 4,096 an endpoint (about 1 MB); beyond it the lighter half is summed up, again and again.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from responders.signing import SigningKey
from schemas.blocks import Longs
from schemas.errors import MACHINE_ERRORS
from schemas.events import (
    LATENCY_BOUNDS_MS,
    LATENCY_BUCKETS,
    MAX_REPORT_CALLERS,
    MAX_REPORT_ROUTES,
    CallerCounts,
    Prediction,
    Report,
    RouteCounts,
)
from schemas.ids import clean_id
from schemas.topics import REPORTS
from schemas.wire import CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER
from streams.ingest.predictions import Written
from streams.records import Outgoing

log = logging.getLogger(__name__)

REPORT_MS = 1_000
EARLY_MS = 250
"""Reports come at most 4 a second."""
EARLY_ASKED = 20
"""A caller below this many requests in an interval never makes a report early."""
QUIET_MS = 600_000
"""An endpoint of which nothing came for so long is not reported any more, until something comes."""
MAX_CALLERS = 4_096
MAX_PEAKS = 4_096
SLOT_MS, SLOTS = 10_000, 7
"""The highest of a caller is remembered for the last 60 to 70 seconds, of at most 4,096 callers each ten seconds."""
SKETCH_BITS = 65_536
"""Linear counting (Whang 1990) of distinct callers, once there are many: within 2 % at 200,000, saturates near 700,000."""
MAX_UNCOUNTED = 16_384
"""Rows that are counted together at most: between two looks for reports, a worker at its limit reads as many."""
UNNAMED_VERSION = Prediction.model_fields["model_version"].default
OTHER_VERSIONS = "other"
"""Takes the routes that a report has no place for."""
_ROUTES = {"probe": "probe", "fallback": "fallback"}
_BOUNDS = np.array(LATENCY_BOUNDS_MS)

Caller = tuple[str, bool]
"""A caller's id, and whether it is vouched for."""


@dataclass(slots=True)
class _Route:
    served: int = 0
    errors: int = 0
    timeouts: int = 0
    latency: Longs = field(default_factory=lambda: np.zeros(LATENCY_BUCKETS, dtype=np.int64))


@dataclass(slots=True)
class _Interval:
    """What is counted of one endpoint until its next report. callers: asked, served, refused of each."""

    from_ms: int
    asked: int = 0
    refused: int = 0
    callers: dict[Caller, list[int]] = field(default_factory=dict)
    rest: list[int] = field(default_factory=lambda: [0, 0, 0])
    routes: dict[tuple[str, str], _Route] = field(default_factory=dict)
    sketch: bytearray | None = None
    hurried: set[Caller] = field(default_factory=set)
    failed: bool = False


@dataclass(slots=True)
class _Endpoint:
    """An endpoint's open interval, and what outlives it."""

    name: str
    interval: _Interval
    seen_ms: int
    seq: int = 0
    in_flight: int = 0
    failed_before: bool = False
    version: str = UNNAMED_VERSION
    wake: bool = False
    peaks: dict[int, dict[Caller, int]] = field(default_factory=dict)

    def highest(self, caller: Caller) -> int:
        return max((slot.get(caller, 0) for slot in self.peaks.values()), default=0)


class Counts:
    """Counters of the endpoints whose requests lie on one partition."""

    def __init__(
        self,
        partition: int,
        boot_id: str,
        counted: Callable[[str], bool],
        fallback_ok: Callable[[str], bool] = lambda _endpoint: False,
        signer: SigningKey | None = None,
    ) -> None:
        """counted: whether ingest reports for an endpoint. fallback_ok: whether its fallback works now (R9)."""
        self._guard_id = f"ingest-{partition}"
        self._boot_id = boot_id
        self._counted = counted
        self._fallback_ok = fallback_ok
        self._signer = signer
        self._endpoints: dict[str, _Endpoint] = {}
        self._asked: dict[tuple[bool, bool], list[pa.Table]] = {}
        self._written: list[pa.Table] = []
        self._uncounted = 0
        self._uncounted_ms: int | None = None

    def asked(
        self, endpoint: pa.Array, caller: pa.Array, verified: pa.Array, now_ms: int, *, again: bool, waits: bool = True
    ) -> None:
        """Requests [n] that were read at `now_ms`. again: they were counted before a restart, and only wait anew.

        waits False: nothing will be written of them.
        """
        self._asked.setdefault((again, waits), []).append(_table((endpoint, caller, verified)))
        self._note(len(endpoint), now_ms)

    def written(self, many: Iterable[Written], now_ms: int) -> None:
        """Predictions that were written at `now_ms`."""
        for rows in many:
            self._written.append(_table(rows))
            self._note(len(rows.endpoint), now_ms)

    def _note(self, rows: int, now_ms: int) -> None:
        """Counting costs little more for many rows than for few, and nobody looks before a report may be due."""
        self._uncounted_ms = now_ms if self._uncounted_ms is None else self._uncounted_ms
        self._uncounted += rows
        if self._uncounted >= MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        """Counts what was noted since the last time."""
        now_ms, self._uncounted_ms, self._uncounted = self._uncounted_ms or 0, None, 0
        asked, self._asked = self._asked, {}
        written, self._written = self._written, []
        try:
            for (again, waits), tables in asked.items():
                self._count_asked(self._counted_rows(tables), now_ms, again=again, waits=waits)
            if written:
                self._count_written(self._counted_rows(written), now_ms)
        except MACHINE_ERRORS:
            raise
        except Exception:  # what cannot be counted must not keep predictions from being written
            log.exception("%s: what was read at %d is not counted whole in its reports", self._guard_id, now_ms)

    def _count_asked(self, rows: pa.Table, now_ms: int, *, again: bool, waits: bool) -> None:
        for name, who, vouched, count in _grouped(rows, "endpoint", "caller", "verified"):
            one = self._of(name, now_ms)
            one.in_flight += count if waits else 0
            if again:
                continue
            one.interval.asked += count
            key = (clean_id(who), vouched)
            tally = _tally(one.interval, key)
            tally[0] += count
            if tally[0] > EARLY_ASKED and key not in one.interval.hurried and tally[0] > 2 * one.highest(key):
                one.interval.hurried.add(key)
                one.wake = True

    def _count_written(self, rows: pa.Table, now_ms: int) -> None:
        refused = pc.equal(rows["served_by"], "refused")
        rows = rows.append_column("refused", refused)
        for name, who, vouched, turned_away, count in _grouped(rows, "endpoint", "caller", "verified", "refused"):
            one = self._of(name, now_ms)
            one.in_flight = max(0, one.in_flight - count)
            _tally(one.interval, (clean_id(who), vouched))[2 if turned_away else 1] += count
            one.interval.refused += count if turned_away else 0
        self._routes(rows.filter(pc.invert(refused)) if pc.any(refused).as_py() else rows, now_ms)

    def _routes(self, rows: pa.Table, now_ms: int) -> None:
        ms = rows["latency_ms"]
        bucket = pc.if_else(ms.is_valid(), pa.array(np.searchsorted(_BOUNDS, ms.to_numpy())), -1)
        rows = rows.append_column("bucket", bucket)
        for name, version, by, status, at, count in _grouped(
            rows, "endpoint", "version", "served_by", "status", "bucket"
        ):
            one = self._of(name, now_ms)
            if status == "unanswered":  # no response said which version it would have been
                version = one.version if version == UNNAMED_VERSION else version
            elif by != "fallback":
                one.version = clean_id(version)
            named = by if by not in ("primary", *_ROUTES) else version
            route = _route(one.interval, _ROUTES.get(by, "primary"), clean_id(named))
            if status == "ok":
                route.served += count
                if at >= 0:
                    route.latency[at] += count
            elif status == "error":
                route.errors += count
            else:
                route.timeouts += count
            if status != "ok" and not one.interval.failed:
                one.interval.failed = True
                one.wake = one.wake or not one.failed_before

    def due(self, now_ms: int) -> list[Outgoing]:
        """Reports whose second is over at `now_ms`, or that must not wait."""
        self._count()
        reports = []
        for one in list(self._endpoints.values()):
            if now_ms - one.seen_ms > QUIET_MS and not one.in_flight and not one.interval.callers:
                del self._endpoints[one.name]
                continue
            since = now_ms - one.interval.from_ms
            if since >= REPORT_MS or (one.wake and since >= EARLY_MS):
                reports += self._reported(one, now_ms)
        return reports

    def _reported(self, one: _Endpoint, now_ms: int) -> list[Outgoing]:
        """The report of an endpoint; none if it cannot be made, and the endpoint is counted anew."""
        try:
            return [self._report(one, now_ms)]
        except MACHINE_ERRORS:
            raise
        except Exception:  # it must not keep the others from being reported
            log.exception("%s: no report of %s at %d", self._guard_id, one.name, now_ms)
            del self._endpoints[one.name]
            return []

    def _counted_rows(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The rows of endpoints that are counted."""
        rows = pa.concat_tables(tables)
        names = rows["endpoint"].unique().to_pylist()
        wanted = [name for name in names if self._counted(name)]
        if len(wanted) == len(names):
            return rows
        return rows.filter(pc.is_in(rows["endpoint"], pa.array(wanted, pa.string())))

    def _of(self, name: str, now_ms: int) -> _Endpoint:
        one = self._endpoints.get(name)
        if one is None:
            one = self._endpoints[name] = _Endpoint(name, _Interval(now_ms), now_ms)
        one.seen_ms = now_ms
        return one

    def _report(self, one: _Endpoint, now_ms: int) -> Outgoing:
        interval = one.interval
        _note_peaks(one, now_ms)
        heaviest = heapq.nlargest(MAX_REPORT_CALLERS, interval.callers.items(), key=_weight)
        rest = list(interval.rest)
        shown = {key for key, _ in heaviest}
        _add_up(rest, [tally for key, tally in interval.callers.items() if key not in shown])
        distinct = len(interval.callers) if interval.sketch is None else _estimate(interval.sketch)
        report = Report(
            endpoint=one.name,
            guard_id=self._guard_id,
            boot_id=self._boot_id,
            seq=one.seq,
            from_ms=interval.from_ms,
            to_ms=now_ms,
            live_version=one.version,
            asked=interval.asked,
            refused=interval.refused,
            routes=[_route_counts(key, route) for key, route in interval.routes.items()],
            in_flight=one.in_flight,
            fallback_ok=self._fallback_ok(one.name),
            distinct_callers=distinct,
            callers=[_caller_counts(key, tally) for key, tally in heaviest],
            rest_callers=max(0, distinct - len(heaviest)),
            rest_asked=rest[0],
            rest_served=rest[1],
            rest_refused=rest[2],
        )
        one.seq += 1
        one.failed_before, one.wake = interval.failed, False
        one.interval = _Interval(now_ms)
        value = report.to_bytes()
        headers = [(KIND_HEADER, Report.KIND.encode()), (CONTENT_TYPE_HEADER, JSON_TYPE.encode())]
        if self._signer is not None:
            headers += self._signer.headers(Report.KIND, value)
        return Outgoing(REPORTS, one.name.encode(), value, tuple(headers))


def _table(columns: Sequence[pa.Array]) -> pa.Table:
    """Columns [n] of requests, or of what was written: what the former need comes first in both."""
    return pa.table(list(columns), names=list(Written._fields[: len(columns)]))


def _grouped(rows: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    """Each combination of values of these columns, and how many rows have it."""
    found = rows.select(names).group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    return list(zip(*(found.column(name).to_pylist() for name in [*names, "count_all"]), strict=True))


def _tally(interval: _Interval, key: Caller) -> list[int]:
    tally = interval.callers.get(key)
    if tally is None:
        if len(interval.callers) >= MAX_CALLERS:
            _shrink(interval)
        if interval.sketch is not None:
            _mark(interval.sketch, key)
        tally = interval.callers[key] = [0, 0, 0]
    return tally


def _shrink(interval: _Interval) -> None:
    if interval.sketch is None:
        interval.sketch = bytearray(SKETCH_BITS // 8)
        for key in interval.callers:
            _mark(interval.sketch, key)
    kept = dict(heapq.nlargest(MAX_CALLERS // 2, interval.callers.items(), key=_weight))
    _add_up(interval.rest, [tally for key, tally in interval.callers.items() if key not in kept])
    interval.callers = kept
    interval.hurried &= kept.keys()


def _weight(item: tuple[Caller, list[int]]) -> int:
    return item[1][0] + item[1][1]


def _add_up(rest: list[int], tallies: Sequence[list[int]]) -> None:
    for asked, served, refused in tallies:
        rest[0] += asked
        rest[1] += served
        rest[2] += refused


def _mark(sketch: bytearray, key: Caller) -> None:
    bit = hash(key) % SKETCH_BITS
    sketch[bit >> 3] |= 1 << (bit & 7)


def _estimate(sketch: bytearray) -> int:
    empty = SKETCH_BITS - int.from_bytes(sketch, "little").bit_count()
    return round(-SKETCH_BITS * math.log(max(1, empty) / SKETCH_BITS))


def _note_peaks(one: _Endpoint, now_ms: int) -> None:
    number = now_ms // SLOT_MS
    slot = one.peaks.setdefault(number, {})
    for key, tally in one.interval.callers.items():
        if tally[0] > EARLY_ASKED // 2 and (key in slot or len(slot) < MAX_PEAKS):
            slot[key] = max(tally[0], slot.get(key, 0))
    for old in [each for each in one.peaks if each <= number - SLOTS]:
        del one.peaks[old]


def _route(interval: _Interval, route: str, version: str) -> _Route:
    key = (route, version)
    if key not in interval.routes and len(interval.routes) >= MAX_REPORT_ROUTES - len(("primary", *_ROUTES)):
        key = (route, OTHER_VERSIONS)
    return interval.routes.setdefault(key, _Route())


def _route_counts(key: tuple[str, str], route: _Route) -> RouteCounts:
    return RouteCounts(
        route=key[0],  # type: ignore[arg-type]  # one of the three
        version=key[1],
        served=route.served,
        errors=route.errors,
        timeouts=route.timeouts,
        latency=route.latency.tolist(),
    )


def _caller_counts(key: Caller, tally: list[int]) -> CallerCounts:
    auth = "verified" if key[1] else "claimed"
    return CallerCounts(
        caller=key[0],
        caller_auth=auth,  # type: ignore[arg-type]  # one of the two
        asked=tally[0],
        served=tally[1],
        refused=tally[2],
    )
