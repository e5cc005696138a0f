"""How often `traffic` alarms on real requests, and how soon it finds a flood among them.

    python -m benchmarks.traffic_false_alarms                 # flights of 2013, an airport an endpoint, at 50 requests/s
    python -m benchmarks.traffic_false_alarms LOG.parquet     # an access log with columns ts (seconds) and client

Requests become the reports that a serving process would write: one a second, and early ones by the rule of the report.
A log's idle hours are skipped, so `silence` is judged on the flights alone. The last lines are floods put into the same
requests: delay from the first hostile request to the report that fires, without pipeline.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.stationary_service import START_MS, ReportingGuard, flights
from detectors.base import Reading
from detectors.traffic import Traffic
from schemas.config import EndpointConfig

DAY_MS = 86_400_000


def access_log(path: Path, time: str, caller: str, where: str | None) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Times in ms and callers of a log in Parquet; `where`: `column=value`."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pandas()
    if where:
        column, value = where.split("=", 1)
        table = table[table[column].astype(str) == value]
    seconds = table[time].to_numpy().astype(float)
    names = table[caller].astype(str).to_numpy() if caller in table else np.full(len(table), "all")
    # a log in whole seconds: requests of one second lie evenly in it
    whole = bool((seconds == np.floor(seconds)).all())
    order = np.argsort(seconds, kind="stable")
    seconds, names = seconds[order], names[order]
    if whole:
        _, first, count = np.unique(seconds, return_index=True, return_counts=True)
        seconds = seconds + (np.arange(len(seconds)) - np.repeat(first, count)) / np.repeat(count, count)
    offset = START_MS if seconds[0] < 1e9 else 0
    return (seconds * 1000).astype(np.int64) + offset, [str(name) for name in names]


def incidents(readings: Iterable[Reading], apart_ms: int = 600_000) -> list[Reading]:
    """The first reading of each alarm; one subject counts again after ten minutes."""
    last: dict[tuple[str, str], int] = {}
    found = []
    for reading in readings:
        key = (reading.kind, reading.subject)
        if reading.firing and reading.at.ms - last.get(key, -apart_ms) >= apart_ms:
            found.append(reading)
        if reading.firing:
            last[key] = reading.at.ms
    return found


def alarms(endpoint: str, times: npt.NDArray[np.int64], callers: list[str], config: EndpointConfig) -> list[Reading]:
    """What `traffic` says of requests."""
    traffic = Traffic({endpoint: config})
    requests = zip(times.tolist(), callers, strict=True)
    return [reading for event in ReportingGuard(endpoint).reports(requests) for reading in traffic.update([event])]


def flooded(
    times: npt.NDArray[np.int64], callers: list[str], start_ms: int, who: str, per_s: float
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The same requests with five seconds of a flood by `who`."""
    extra = start_ms + (np.arange(int(per_s * 5)) * 1000 / per_s).astype(np.int64)
    all_times = np.concatenate([times, extra])
    order = np.argsort(all_times, kind="stable")
    names = np.array([*callers, *([who] * len(extra))])
    return all_times[order], names[order].tolist()


def flood_delays(endpoint: str, times: npt.NDArray[np.int64], callers: list[str], per_s: float, trials: int) -> None:
    """Prints delays of floods by a fresh caller and by the heaviest and the lightest known one; and who else alarmed."""
    share = Counter(callers).most_common()
    random = np.random.default_rng(5)
    for who, name in (("fresh", "fresh"), ("heaviest", share[0][0]), ("lightest", share[-1][0])):
        delays, missed, others = [], 0, 0
        for _ in range(trials):
            begin = int(random.integers(max(1, len(times) - 6_000)))
            part = slice(begin, begin + 5_000)
            start = int(times[part][0]) + 40_000 + int(random.integers(1_000))
            seen, names = flooded(times[part], callers[part], start, name, per_s)
            keep = seen <= start + 5_000
            readings = alarms(endpoint, seen[keep], np.array(names)[keep].tolist(), EndpointConfig(name=endpoint))
            fired = [one for one in incidents(readings) if one.kind == "caller_rate"]
            hits = [one.at.ms - start for one in fired if one.subject == name and one.at.ms > start]
            delays += hits[:1]
            missed += not hits
            others += sum(one.subject != name or one.at.ms <= start for one in fired)
        median, worst = (int(np.median(delays)), max(delays)) if delays else (-1, -1)
        print(
            f"{endpoint}: flood {per_s:g}/s by the {who:8s} caller, {trials} trials: delay ms median {median:4d} "
            f"worst {worst:4d}, missed {missed}, others alarmed {others}"
        )


def report_false_alarms(endpoint: str, times: npt.NDArray[np.int64], callers: list[str], show: int) -> None:
    """Prints alarms per 30 days of the log's time, by kind."""
    found = incidents(alarms(endpoint, times, callers, EndpointConfig(name=endpoint)))
    days = max((times[-1] - times[0]) / DAY_MS, 1e-9)
    by_kind = Counter(one.kind for one in found)
    said = ", ".join(f"{kind} {count}" for kind, count in sorted(by_kind.items())) or "none"
    print(
        f"{endpoint}: {len(times):,} requests, {days:.2f} days, alarms: {said} ({len(found) / days * 30:.1f} per 30 days)"
    )
    for one in found[:show]:
        stamp = np.datetime64(one.at.ms, "ms")
        print(
            f"  {stamp} {one.kind} {one.subject} score {one.score:.1f} over {one.threshold:.1f} {_plain(one.evidence)}"
        )


def _plain(evidence: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in evidence.items()
    )


def main(arguments: list[str]) -> int:
    """Runs on the flights, or on the log that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--time", default="ts")
    parser.add_argument("--caller", default="client")
    parser.add_argument("--where", help="column=value")
    parser.add_argument("--show", type=int, default=20)
    parser.add_argument("--rate", type=float, default=300.0, help="of floods, requests/s")
    parser.add_argument("--trials", type=int, default=10)
    given = parser.parse_args(arguments)
    if given.log is not None:
        times, callers = access_log(given.log, given.time, given.caller, given.where)
        report_false_alarms(given.log.stem, times, callers, given.show)
        return 0
    for airport in ("EWR", "JFK", "LGA"):
        times, callers = flights(airport)
        report_false_alarms(f"flights-{airport.lower()}", times, callers, given.show)
        flood_delays(f"flights-{airport.lower()}", times, callers, given.rate, given.trials)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
