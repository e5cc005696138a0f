"""Does every detector keep the false-alarm rate that it states? `make bench-false-alarms`.

On two kinds of stationary data, for each airport of the flights of 2013: rows (requests) drawn one by one, and in their
real order. The detectors of predictions read blocks at a budget of 1 alarm in 100,000 rows; the profile is of the rows
themselves, and once more of the same rows without their order. `traffic` and `health` read reports of a service at the
budget of 1 alarm an hour. An alarm is a firing reading, the first of its subject since a calm one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from scipy.stats import chi2

from benchmarks.stationary_rows import (
    AIRPORTS,
    Rows,
    Stream,
    block,
    decoded,
    flights_table,
    halves,
    profile_of,
    resampled,
    weeks_in_order,
)
from benchmarks.stationary_service import Answers, ReportingGuard, flights, hours_of
from detectors.base import Budget, Detector, Reading, ReportEvent, part_of
from detectors.budget import SHARES
from detectors.feature_drift import FeatureDrift
from detectors.prediction_drift import PredictionDrift
from detectors.profile import Profile
from detectors.registry import DETECTORS_OF_REPORTS, block_detectors, fit, report_detectors
from palisade.settings import default_policy
from schemas.blocks import BLOCK_ROWS, Block
from schemas.config import EndpointConfig
from schemas.signals import SignalKind

STREAMS = 64
"""Endpoints side by side, each with data of its own."""
TIGHT = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""
HOURLY = 30 * 24.0
"""1 alarm an hour, as `false_alarms_per_30_days`."""
SERVICES = 4
"""Services of an airport, each a log of its own: the second hour of a caller is judged otherwise than its first."""
KINDS: dict[str, tuple[SignalKind, ...]] = {
    "feature_drift": ("feature_drift", "adaptive_drift"),
    "prediction_drift": ("prediction_drift",),
    "outliers": ("outliers",),
    "odd_input": (),
    "learning": (),
    "traffic": ("caller_rate", "endpoint_rate", "silence"),
    "health": ("errors", "timeouts", "latency"),
}
STATED = {detector: sum(SHARES[kind] for kind in kinds) for detector, kinds in KINDS.items()}
"""Shares of the budget that detectors state, all their kinds of signals together."""
RESAMPLED, IN_ORDER, WITHOUT_ORDER = "resampled", "real order", "resampled, profile without order"

BUDGETS = {"predictions": "1 alarm in 100,000 rows", "reports": "1 alarm an hour"}

Counts = dict[str, Counter[str]]
"""Alarms by detector and kind of signal."""


class Figures(NamedTuple):
    """What one detector said in `rows` rows, or `hours` of service. `budget`: what the endpoints allow all detectors."""

    detector: str
    data: str
    airport: str
    rows: int
    hours: float
    budget: float
    alarms: dict[str, int]

    def judged(self) -> dict[str, Any]:
        """As a line: `over_budget` with its 95 % interval; `ok` unless that lies above the stated share as a whole."""
        alarms = sum(self.alarms.values())
        low, high = poisson_interval(alarms)
        return {
            **self._asdict(),
            "budget": round(self.budget, 1),
            "alarms": alarms,
            "by_kind": self.alarms,
            "stated": STATED[self.detector],
            "over_budget": round(alarms / self.budget, 4),
            "interval": [round(low / self.budget, 4), round(high / self.budget, 4)],
            "ok": low / self.budget <= STATED[self.detector],
        }


class Alarms:
    """Counts alarms of many endpoints, by kind of signal."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._open: set[tuple[str, str, str]] = set()

    def take(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            key = (reading.endpoint, reading.kind, reading.subject)
            if reading.firing and key not in self._open:
                self._open.add(key)
                self.count[reading.kind] += 1
            elif reading.calm:
                self._open.discard(key)


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95 % interval of the mean of a Poisson count (Garwood 1936), as if alarms came independently."""
    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    return low, float(chi2.ppf(0.975, 2 * count + 2)) / 2


def fitted(detector: FeatureDrift, names: Sequence[str], profile: Profile, budget: Budget) -> FeatureDrift:
    """The detector with `profile` in force for each endpoint."""
    for name in names:
        detector.fit(part_of(name, "v1"), profile, budget)
    return detector


def of_predictions(profile: Profile, streams: Sequence[Stream], turns: Iterable[int]) -> Counts:
    """Alarms in one block of each of `streams` a turn, each stream an endpoint of its own."""
    names = [f"endpoint-{k}" for k in range(len(streams))]
    detectors, profile_hash = block_detectors(default_policy()), profile.hash
    for name in names:
        fit(detectors, part_of(name, "v1"), profile, TIGHT)
    alarms = {detector.name: Alarms() for detector in detectors}
    for turn in turns:
        drawn = [next(stream) for stream in streams]
        blocks = [block(rows, profile_hash, name, turn * BLOCK_ROWS) for rows, name in zip(drawn, names, strict=True)]
        carriers = [_by_carrier(*each) for each in zip(blocks, drawn, strict=True)]
        for detector in detectors:
            whole = isinstance(detector, FeatureDrift | PredictionDrift)
            alarms[detector.name].take(detector.update(blocks if whole else carriers))
    return {name: counted.count for name, counted in alarms.items()}


def _by_carrier(whole: Block, rows: Rows) -> Block:
    """The same block with its carriers as callers: few odd rows of a small caller may be a fifth of its own."""
    present, caller = np.unique(rows.caller, return_inverse=True)
    names = tuple(f"carrier-{k}" for k in present.tolist())
    verified, times = np.ones(len(names), np.bool_), whole.offsets * 20
    return replace(whole, caller=caller.astype(np.int32), callers=names, verified=verified, broker_ts=times)


def of_reports(detectors: Sequence[Detector[ReportEvent]], events: Iterable[ReportEvent]) -> Counts:
    """Alarms of `detectors` in one log."""
    alarms = {detector.name: Alarms() for detector in detectors}
    for event in events:
        for detector in detectors:
            alarms[detector.name].take(detector.update([event]))
    return {name: counted.count for name, counted in alarms.items()}


def predictions(airport: str, rows: int, seed: int, progress: Progress) -> Iterator[Figures]:
    """Figures of the detectors of predictions on one airport."""
    own, _ = halves(flights_table(airport))
    kinds: list[tuple[str, bool, Callable[[Rows, np.random.Generator], Stream]]] = [
        (IN_ORDER, True, weeks_in_order),
        (RESAMPLED, True, resampled),
        (WITHOUT_ORDER, False, resampled),
    ]
    profiles = {ordered: profile_of(own, seed, ordered=ordered) for ordered in (True, False)}
    for data, ordered, drawn in kinds:
        profile, rng = profiles[ordered], _rng(seed, airport, data)
        real = decoded(own, profile)
        turns = range(rows // (BLOCK_ROWS * STREAMS))
        streams = [drawn(real, rng) for _ in range(STREAMS)]
        alarms = of_predictions(profile, streams, progress.track(turns, description=f"{airport}, {data}"))
        seen = len(turns) * BLOCK_ROWS * STREAMS
        for name, count in alarms.items():
            yield Figures(name, data, airport, seen, 0.0, seen * TIGHT.alarms_per_row, dict(count))


def reports(airport: str, hours: float, seed: int, progress: Progress) -> Iterator[Figures]:
    """Figures of the detectors of reports on the timetable of one airport, `hours` over all its services."""
    times, callers = flights(airport)
    config = {airport: EndpointConfig(name=airport, false_alarms_per_30_days=HOURLY)}
    for data in (IN_ORDER, RESAMPLED):
        rng, in_order = _rng(seed, airport, data), data == IN_ORDER
        total = {name: Counter[str]() for name in DETECTORS_OF_REPORTS}
        for _ in progress.track(range(SERVICES), description=f"{airport}, service, {data}"):
            requests = hours_of(times, callers, hours / SERVICES, rng, in_order=in_order)
            guard = ReportingGuard(airport, Answers(rng, bunched=in_order))
            for name, count in of_reports(report_detectors(config)[0], guard.reports(requests)).items():
                total[name] += count
        for name, count in total.items():
            yield Figures(name, data, airport, 0, hours, hours, dict(count))


def _rng(seed: int, *words: str) -> np.random.Generator:
    return np.random.default_rng([seed, *"".join(words).encode()])


def pooled(figures: Sequence[Figures]) -> list[Figures]:
    """The same over all airports."""
    found: dict[tuple[str, str], Figures] = {}
    for each in figures:
        before = found.get((each.detector, each.data))
        found[each.detector, each.data] = (
            each._replace(airport="all")
            if before is None
            else Figures(
                each.detector,
                each.data,
                "all",
                before.rows + each.rows,
                before.hours + each.hours,
                before.budget + each.budget,
                dict(Counter(before.alarms) + Counter(each.alarms)),
            )
        )
    return list(found.values())


def summary(figures: Sequence[Figures]) -> dict[str, Any]:
    """The last line; `ok` if every detector keeps its rate on all data."""
    lines = [each.judged() for each in (*figures, *pooled(figures))]
    faults = [
        f"{line['detector']}, {line['airport']}, {line['data']}: {line['alarms']} alarms, "
        f"{line['stated'] * line['budget']:.1f} stated"
        for line in lines
        if not line["ok"]
    ]
    return {"budget": BUDGETS, "detectors": lines, "faults": faults, "ok": bool(lines) and not faults}


def main() -> int:
    """Exit status 0 if every stated rate is kept, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.false_alarms")
    parser.add_argument("--rows", type=int, default=20_000_000, help="of each kind of data, over all airports")
    parser.add_argument("--hours", type=float, default=24.0, help="of service, of each kind of data, over all airports")
    parser.add_argument("--airports", default=",".join(AIRPORTS))
    parser.add_argument("--only", choices=["predictions", "reports"])
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    airports = given.airports.split(",")
    if given.rows < len(airports) * STREAMS * BLOCK_ROWS or given.hours <= 0 or not set(airports) <= set(AIRPORTS):
        parser.error(f"at least {len(airports) * STREAMS * BLOCK_ROWS} rows and some hours, of {', '.join(AIRPORTS)}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    figures: list[Figures] = []
    try:
        with Progress(*columns, console=console) as progress:
            for airport in airports if given.only != "reports" else ():
                figures += _said(predictions(airport, given.rows // len(airports), given.seed, progress))
            for airport in airports if given.only != "predictions" else ():
                figures += _said(reports(airport, given.hours / len(airports), given.seed, progress))
    except (ImportError, ValueError) as error:
        console.print(f"could not run: {error}")
        return 2
    line = summary(figures)
    print(json.dumps(line))
    return 0 if line["ok"] else 1


def _said(figures: Iterator[Figures]) -> Iterator[Figures]:
    """Each figure as a line of its own as soon as it is there."""
    for each in figures:
        print(json.dumps(each.judged()), flush=True)
        yield each


if __name__ == "__main__":
    sys.exit(main())
