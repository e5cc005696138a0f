"""How well do the detectors of content tell, at one configuration for all data? `make bench-quality`.

Feature drift: false alarms on clean data in real order and resampled, over at least 100 budget periods; the share of
planted changes missed, and events until the alarm; beside river, Kolmogorov-Smirnov windows, PSI and two dummies.
Outliers: how they are ranked, beside Mahalanobis, half-space trees, neighbours and isolation forest. The last line is one
JSON object. `DATA=folder` judges on one's own data too: tables in time order (.parquet, .csv), X and y (.npz).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.quality_contenders import BASELINES, BUDGET, PERIOD_ROWS
from benchmarks.quality_data import given_tables, names_of_sources, source_of
from benchmarks.quality_drift import (
    BOUNDS,
    CHANGES,
    CROSSED,
    REAL_ORDER,
    RESAMPLED,
    STATED,
    Clean,
    Trials,
    clean,
    clean_baseline,
    drift_line,
    faults_of,
    periods,
    trials,
)
from benchmarks.quality_outlier_sets import Labelled, labelled_sets
from benchmarks.quality_outliers import (
    CLEAN,
    CONTAMINATED,
    Ranked,
    outlier_faults,
    outlier_line,
    rank,
)
from detectors import budget as shares
from detectors import drift_alarm_tails, drift_thresholds, outlier_coordinates, outlier_scores
from detectors.registry import block_detectors
from palisade.settings import default_policy
from schemas.config import PolicyConfig
from schemas.errors import ConfigError

PERIODS, QUICK_PERIODS = 100, 4
MADE, QUICK_MADE = 9, 3
"""Made services beside the three airports. A calibration is one drawing of one table: of three, one decides the rate of all."""
TRIALS, QUICK_TRIALS = 5, 2
"""Of each change, source and kind of data: 60 of each change with the twelve sources that need no `DATA`."""
BASELINE_ROWS, QUICK_BASELINE_ROWS = 80_000, 20_000
"""Clean rows of each source and kind of data that the baselines are handed."""
CROSSED_SHARE = 0.1
"""The third kind of clean data is an extra, and shorter."""


@dataclass(frozen=True)
class Plan:
    """What is done with one source: `rows` clean ones, `trials` of each change, `baseline_rows`; `seed` of all chance."""

    source: str
    ordered: bool
    rows: int
    trials: int
    baseline_rows: int
    seed: int
    changes: tuple[str, ...]


@dataclass
class Done:
    clean: list[Clean] = field(default_factory=list)
    planted: list[Trials] = field(default_factory=list)
    ranked: list[Ranked] = field(default_factory=list)


class _Counter:
    """Rows done, in shared memory: set in each worker by the pool's initializer."""

    shared: Any = None

    @classmethod
    def take(cls, shared: Any) -> None:
        cls.shared = shared

    @classmethod
    def add(cls, rows: int) -> None:
        if cls.shared is not None:
            with cls.shared.get_lock():
                cls.shared.value += rows


def judge(plan: Plan) -> Done:
    """All that is measured of one source with one of its profiles: in a process of its own."""
    source = source_of(plan.source, plan.seed, ordered=plan.ordered)
    data = REAL_ORDER if plan.ordered else RESAMPLED
    done = Done([clean(source, data, plan.rows, plan.seed, _Counter.add)])
    if plan.ordered:
        done.clean.append(clean(source, CROSSED, int(plan.rows * CROSSED_SHARE), plan.seed, _Counter.add))
    for name in BASELINES:
        done.clean.append(clean_baseline(name, source, data, plan.baseline_rows, plan.seed))
    for change in plan.changes:
        done.planted += trials(source, data, change, plan.trials, plan.seed, ("palisade", *BASELINES))
    return done


def judge_outliers(given: Labelled, seed: int) -> Done:
    """All contenders on one set with outliers."""
    return Done(ranked=rank(given, seed))


def plans(given: argparse.Namespace, seed: int) -> list[Plan]:
    made = (QUICK_MADE if given.quick else MADE) if given.made is None else given.made
    names = names_of_sources(made) + [str(path) for path in given_tables(given.data)]
    periods = given.periods or (QUICK_PERIODS if given.quick else PERIODS)
    rows = -(-periods * PERIOD_ROWS // len(names))
    return [
        Plan(
            name,
            ordered,
            rows,
            given.trials or (QUICK_TRIALS if given.quick else TRIALS),
            QUICK_BASELINE_ROWS if given.quick else BASELINE_ROWS,
            seed,
            tuple(CHANGES),
        )
        for name in names
        for ordered in (True, False)
    ]


def run(every: Sequence[Plan], sets: Iterable[Labelled], processes: int, seed: int, console: Console) -> Done:
    """Side by side in `processes`; with the bar of rows done."""
    context = multiprocessing.get_context("spawn")
    shared = context.Value("q", 0)
    total = sum(int(plan.rows * (1 + CROSSED_SHARE * plan.ordered)) for plan in every)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    done = Done()
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(processes, context, _Counter.take, (shared,)) as pool,
    ):
        bar = progress.add_task("clean rows", total=total)
        waiting: set[Future[Done]] = {pool.submit(judge, plan) for plan in every}
        waiting |= {pool.submit(judge_outliers, each, seed) for each in sets}
        runs = len(waiting)
        while waiting:
            ready, waiting = wait(waiting, 0.5, FIRST_COMPLETED)
            for future in ready:
                found = future.result()
                done.clean += found.clean
                for each in found.clean:
                    if each.contender == "palisade":
                        console.print(f"{each.source}, {each.data}: {each.alarms} alarms in {each.rows} clean rows")
                done.planted += found.planted
                done.ranked += found.ranked
            progress.update(bar, completed=shared.value, description=f"clean rows; {len(waiting)} of {runs} runs left")
    return done


def config_hash(policy: PolicyConfig) -> str:
    """sha256 over what the detectors of content are configured by: their hashes, the shares of the budget, and the
    constants of their calibration."""
    words = {
        "detectors": {detector.name: detector.hash for detector in block_detectors(policy)},
        "budget": repr(BUDGET),
        "shares": dict(shares.SHARES),
        "calibration": constants(drift_thresholds) | constants(drift_alarm_tails),
        "outliers": constants(outlier_scores) | constants(outlier_coordinates),
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def constants(module: ModuleType) -> dict[str, str]:
    """The numbers that a module names in capitals, or tables of them."""
    kinds = int | float | tuple | dict
    return {name: repr(value) for name, value in vars(module).items() if name.isupper() and isinstance(value, kinds)}


def summary(done: Done, seed: int, wall_s: float) -> dict[str, Any]:
    line, outliers = drift_line(done.clean, done.planted), outlier_line(done.ranked)
    faults = faults_of(line) + outlier_faults(outliers)
    return {
        "config_hash": config_hash(default_policy()),
        "budget": {
            "false_alarms_per_30_days": BUDGET.alarms_per_30_days,
            "events_per_s": 1.0,
            "stated_shares": STATED,
            "bounds": list(BOUNDS),
        },
        "periods_simulated": round(periods(done.clean), 1),
        "feature_drift": line,
        "outliers": outliers,
        "seed": seed,
        "wall_s": round(wall_s),
        "faults": faults,
        "ok": not faults,
    }


def show(line: dict[str, Any], console: Console) -> None:
    """The tables that a person reads."""
    drift = line["feature_drift"]
    for kind in (REAL_ORDER, RESAMPLED):
        table = Table(
            "", "false alarms per 100k", *CHANGES, "us", title=f"feature drift, {kind}: missed %, median events"
        )
        for name, figures in drift.items():
            alarms = figures["clean"][kind]
            changes = figures["planted"][kind]["by_change"].values()
            table.add_row(
                name,
                f"{1e5 * alarms['alarms'] / alarms['rows']:.4g}",
                *(f"{100 * c['missed'] / c['of']:.0f} %, {c['median_delay_events'] or 0:.0f}" for c in changes),
                f"{figures['us_per_event']:.3g}",
            )
        console.print(table)
    for kind, figures in drift["palisade"]["clean"].items():
        console.print(
            f"palisade, {kind}: {figures['alarms']} alarms in {figures['rows'] / PERIOD_ROWS:.1f} periods, "
            f"{figures['false_alarms_over_budget']} of the stated share ({figures['interval'][0]}-{figures['interval'][1]})"
        )


def show_outliers(line: dict[str, Any], console: Console) -> None:
    """ROC and average precision of each set and contender."""
    for split in (CLEAN, CONTAMINATED):
        table = Table("set", *line, title=f"outliers, {split}: ROC, PR")
        for name in line["palisade"]["sets"][split]:
            table.add_row(name, *("{:.3f}, {:.3f}".format(*figures["sets"][split][name]) for figures in line.values()))
        means = (figures["over_mahalanobis"][split] for figures in line.values())
        table.add_row("mean over Mahalanobis", *(f"{mean['roc']:+.3f}, {mean['pr']:+.3f}" for mean in means))
        console.print(table)


def main() -> int:
    """Exit status 0 if the bounds hold, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality")
    parser.add_argument("--quick", action="store_true", help="a short look")
    parser.add_argument("--periods", type=int, help="budget periods of each kind of clean data")
    parser.add_argument("--trials", type=int, help="of each change, source and kind of data")
    parser.add_argument("--made", type=int, help="made services beside the three airports")
    parser.add_argument("--data", type=Path, help="a folder with data of your own")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console, began = Console(stderr=True, width=160), time.monotonic()
    try:
        os.environ.setdefault(
            "OPENBLAS_NUM_THREADS", "1"
        )  # of the processes to come: else waiting threads count as work
        sets = labelled_sets(given.seed, given.data, quick=given.quick)
        done = run(plans(given, given.seed), sets, given.processes, given.seed, console)
    except (ImportError, OSError, ValueError, ConfigError) as error:
        console.print(f"could not run: {error}")
        return 2
    line = summary(done, given.seed, time.monotonic() - began)
    show(line, console)
    show_outliers(line["outliers"], console)
    print(json.dumps(line))
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
