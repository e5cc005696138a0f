"""How soon does feature drift see planted changes, and what does it say of weeks that its profile never saw?

    python -m benchmarks.drift_delays [--airports EWR,JFK,LGA] [--seed 0] [--only between|delays]

Profile of every second week; both are measured on the weeks between, at a budget of 1 alarm in 30 days at 50 rows/s.
One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.false_alarms import Alarms, fitted
from benchmarks.stationary_rows import AIRPORTS, Rows, block, decoded, flights_table, halves, profile_of
from detectors.base import Budget
from detectors.feature_drift import FeatureDrift
from detectors.profile import Profile
from schemas.blocks import BLOCK_ROWS, UNSEEN, Floats

TRIALS = 40
BEFORE, AFTER = 16, 80
MONTHLY = Budget(1.0, 50 * 86_400.0)
"""1 alarm in 30 days at 50 rows/s."""

Change = Callable[[Rows, Profile, np.random.Generator], Rows]


def on_feature(name: str, change: Callable[[Floats, float, np.random.Generator], Floats]) -> Change:
    """A change of one numeric feature: `change` is handed its values, its standard deviation, and chance."""

    def changed(rows: Rows, profile: Profile, rng: np.random.Generator) -> Rows:
        at = [feature.name for feature in profile.numeric].index(name)
        numeric = rows.numeric.copy()
        numeric[:, at] = change(numeric[:, at], profile.numeric[at].sd, rng)
        return replace(rows, numeric=numeric)

    return changed


def new_category(share: float) -> Change:
    """A carrier that the profile never saw, in `share` of the rows."""

    def changed(rows: Rows, _: Profile, rng: np.random.Generator) -> Rows:
        categorical = rows.categorical.copy()
        categorical[rng.random(len(categorical)) < share, 0] = UNSEEN
        return replace(rows, categorical=categorical)

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
    profile_hash, rng = profile.hash, np.random.default_rng(seed)
    length = (BEFORE + AFTER + BEFORE) * BLOCK_ROWS
    starts = rng.integers(0, len(rows) - length, TRIALS)
    names = [f"trial-{k}" for k in range(TRIALS)]
    detector = fitted(FeatureDrift(), names, profile, MONTHLY)
    fired: dict[str, int] = {}
    critical: dict[str, int] = {}
    calm: dict[str, int] = {}
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


def between(profile: Profile, rows: Rows, first: int) -> dict[str, object]:
    """Alarms in one pass over all weeks between, from week number `first` on."""
    weeks = np.roll(np.unique(rows.week), -first)
    in_order = np.concatenate([np.flatnonzero(rows.week == each) for each in weeks])
    blocks = len(in_order) // BLOCK_ROWS
    detector, alarms = fitted(FeatureDrift(), ["between"], profile, MONTHLY), Alarms()
    for k in range(blocks):
        here = rows.at(in_order[k * BLOCK_ROWS : (k + 1) * BLOCK_ROWS])
        alarms.take(detector.update([block(here, profile.hash, "between", k * BLOCK_ROWS)]))
    budget = blocks * BLOCK_ROWS * MONTHLY.alarms_per_row
    return {"from_week": int(weeks[0]), "rows": blocks * BLOCK_ROWS, "budget": round(budget, 4), **alarms.count}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.drift_delays")
    parser.add_argument("--airports", default=",".join(AIRPORTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["between", "delays"])
    given = parser.parse_args()
    for airport in given.airports.split(","):
        own, others = halves(flights_table(airport))
        profile = profile_of(own, given.seed)
        rows = decoded(others, profile)
        if given.only != "delays":
            for first in range(0, 26, 6):
                print(json.dumps({"airport": airport, "what": "weeks between", **between(profile, rows, first)}))
        if given.only != "between":
            for name, change in CHANGES.items():
                print(json.dumps({"airport": airport, "what": name, **delays(profile, rows, change, given.seed)}))


if __name__ == "__main__":
    main()
