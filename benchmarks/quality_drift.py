"""Feature drift: how often it alarms on clean data, what it misses, and how soon it speaks; beside what people use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.false_alarms import poisson_interval
from benchmarks.quality_contenders import BASELINES, BUDGET, PERIOD_ROWS, Contender, Palisade
from benchmarks.quality_data import Source
from benchmarks.stationary_rows import Rows, Stream
from detectors.budget import SHARES
from schemas.blocks import BLOCK_ROWS, UNSEEN

REAL_ORDER, RESAMPLED, CROSSED = "real_order", "resampled", "resampled_ordered_profile"
"""Rows in real order with a profile of rows in real order; both without order; rows without it, and a profile with it."""
STATED = {kind: SHARES[kind] for kind in ("feature_drift", "adaptive_drift")}
"""Shares of the endpoint's budget by kind of signal."""
BOUNDS = 0.3, 1.3
"""Alarms over the stated share of the budget, in each of the first two kinds of data."""
SERVICES = 32
"""Services side by side: numpy serves them together, as a worker with many partitions does."""
BEFORE, AFTER = 16, 80
"""Blocks of a trial before the change, and from it on: the horizon is 20,480 rows."""
SHARE_OF_ROWS = 0.05
UNITS = (1.609344, 0.3048, 2.54, 0.45359237, 25.4, 1000.0, 0.01, 60.0)
"""km in a mile, m in a foot, cm and mm in an inch, kg in a pound, thousands, percent, seconds in a minute."""
PRIOR_SHARE = 0.3


@dataclass
class Clean:
    """Alarms of one contender on clean rows of one source and kind of data."""

    contender: str
    data: str
    source: str
    rows: int = 0
    seconds: float = 0.0
    alarms: dict[str, int] = field(default_factory=dict)


def clean(source: Source, data: str, rows: int, seed: int, seen: Callable[[int], None]) -> Clean:
    """The detector's alarms in `rows` clean rows, at the default budget; `seen` is told how many rows are done."""
    contender = Palisade(source, SERVICES)
    found = Clean("palisade", data, source.name)
    for drawn in _blocks(source, data, SERVICES, rows // (BLOCK_ROWS * SERVICES), seed):
        began = process_time()
        contender.take(drawn)
        found.seconds += process_time() - began
        found.rows += BLOCK_ROWS * len(drawn)
        seen(BLOCK_ROWS * len(drawn))
    found.alarms = dict(contender.opened)
    return found


def clean_baseline(name: str, source: Source, data: str, rows: int, seed: int) -> Clean:
    """The same of a baseline, in four services of `rows` together."""
    services = 4
    contender = BASELINES[name](source, services)
    found = Clean(name, data, source.name, alarms={"feature_drift": 0})
    for drawn in _blocks(source, data, services, rows // (BLOCK_ROWS * services), seed):
        began = process_time()
        alarms = contender.take(drawn)
        found.seconds += process_time() - began
        found.rows += BLOCK_ROWS * services
        found.alarms["feature_drift"] += sum(alarms)
    return found


def _blocks(source: Source, data: str, services: int, many: int, seed: int) -> Iterator[list[Rows]]:
    rng = np.random.default_rng([seed, *f"{source.name} {data}".encode()])
    draw = source.in_order if data == REAL_ORDER else source.resampled
    streams = [draw(each) for each in rng.spawn(services)]
    for _ in range(many):
        yield [next(stream) for stream in streams]


Change = Callable[[Rows], Rows]
Plant = Callable[[Source, Rows, np.random.Generator], Change]
"""Draws a change from what came before it: `Rows` of the last clean block."""


def number(change: Callable[[npt.NDArray[np.float64], float, np.random.Generator], npt.NDArray[np.float64]]) -> Plant:
    """A change of one number, drawn among those that vary; `change` is handed its values, its sd, and chance."""

    def plant(source: Source, _: Rows, rng: np.random.Generator) -> Change:
        at = int(rng.choice([k for k, feature in enumerate(source.profile.numeric) if feature.sd > 0]))
        sd = source.profile.numeric[at].sd

        def changed(rows: Rows) -> Rows:
            numeric = rows.numeric.copy()
            numeric[:, at] = change(numeric[:, at], sd, rng)
            return replace(rows, numeric=numeric)

        return changed

    return plant


def scale(source: Source, _: Rows, rng: np.random.Generator) -> Change:
    """One number's distance from its mean grows by half."""
    at = int(rng.choice([k for k, feature in enumerate(source.profile.numeric) if feature.sd > 0]))
    mean = source.profile.numeric[at].mean

    def changed(rows: Rows) -> Rows:
        numeric = rows.numeric.copy()
        numeric[:, at] = mean + 1.5 * (numeric[:, at] - mean)
        return replace(rows, numeric=numeric)

    return changed


def unit(source: Source, before: Rows, rng: np.random.Generator) -> Change:
    """One number comes in another unit in 5 % of the rows."""
    factor = float(rng.choice(UNITS))
    return number(lambda v, _, chance: np.where(chance.random(len(v)) < SHARE_OF_ROWS, v * factor, v))(
        source, before, rng
    )


def new_category(source: Source, _: Rows, rng: np.random.Generator) -> Change:
    """5 % of the rows have a category that the profile does not know."""
    at = int(rng.integers(len(source.profile.categorical)))

    def changed(rows: Rows) -> Rows:
        categorical = rows.categorical.copy()
        categorical[rng.random(len(categorical)) < SHARE_OF_ROWS, at] = UNSEEN
        return replace(rows, categorical=categorical)

    return changed


def stuck(source: Source, before: Rows, rng: np.random.Generator) -> Change:
    """One number stays as it was last."""
    at = int(rng.choice([k for k, feature in enumerate(source.profile.numeric) if feature.sd > 0]))
    last = before.numeric[:, at][~np.isnan(before.numeric[:, at])]
    value = last[-1] if len(last) else source.profile.numeric[at].mean

    def changed(rows: Rows) -> Rows:
        numeric = rows.numeric.copy()
        numeric[:, at] = value
        return replace(rows, numeric=numeric)

    return changed


def class_prior(source: Source, _: Rows, rng: np.random.Generator) -> Change:
    """3 of 10 rows are replaced by clean rows of one class: its share grows, and what goes with it."""
    at = int(rng.integers(len(source.profile.categorical)))
    rates = np.array(source.profile.categorical[at].category_rates)
    of_class = np.flatnonzero(source.rows.categorical[:, at] == int(rng.choice(len(rates), p=rates / rates.sum())))

    def changed(rows: Rows) -> Rows:
        here = rng.random(len(rows)) < PRIOR_SHARE
        drawn = source.rows.at(rng.choice(of_class, len(rows)))
        return replace(
            rows,
            numeric=np.where(here[:, None], drawn.numeric, rows.numeric),
            categorical=np.where(here[:, None], drawn.categorical, rows.categorical),
        )

    return changed


CHANGES: dict[str, Plant] = {
    "mean +0.5 sd": number(lambda values, sd, _: values + 0.5 * sd),
    "mean +1 sd": number(lambda values, sd, _: values + sd),
    "scale x1.5": scale,
    "unit, 5 % of rows": unit,
    "new category, 5 % of rows": new_category,
    "stuck value": stuck,
    "class prior +30 %": class_prior,
}


@dataclass
class Trials:
    """What one contender made of a planted change: rows to the alarm of each trial, None where it was missed."""

    contender: str
    data: str
    source: str
    change: str
    delays: list[int | None] = field(default_factory=list)
    open_before: int = 0


def trials(source: Source, data: str, change: str, many: int, seed: int, names: Sequence[str]) -> list[Trials]:
    """`many` trials of each contender of `names` on the same rows; an incident that is open at the change and stays so is
    a miss: nobody is told anything new."""
    rng = np.random.default_rng([seed, *f"{source.name} {data} {change}".encode()])
    draw = source.unseen if data == REAL_ORDER else source.resampled
    planted = [_planted(draw(each), source, change, each) for each in rng.spawn(many)]
    steps = [[stretch[step] for stretch in planted] for step in range(BEFORE + AFTER)]
    return [_trial(name, source, data, change, steps) for name in names]


def _planted(stream: Stream, source: Source, change: str, rng: np.random.Generator) -> list[Rows]:
    blocks = [next(stream) for _ in range(BEFORE + AFTER)]
    changed = CHANGES[change](source, blocks[BEFORE - 1], rng)
    return blocks[:BEFORE] + [changed(rows) for rows in blocks[BEFORE:]]


def _trial(name: str, source: Source, data: str, change: str, steps: Sequence[list[Rows]]) -> Trials:
    many = len(steps[0])
    contender: Contender = Palisade(source, many) if name == "palisade" else BASELINES[name](source, many)
    found = Trials(name, data, source.name, change, [None] * many)
    for step, drawn in enumerate(steps):
        if step == BEFORE and isinstance(contender, Palisade):
            found.open_before = sum(contender.is_open())
        for k, alarm in enumerate(contender.take(drawn)):
            if alarm and step >= BEFORE and found.delays[k] is None:
                found.delays[k] = (step - BEFORE + 1) * BLOCK_ROWS
        if all(delay is not None for delay in found.delays):
            break
    return found


def budget_figures(found: Iterable[Clean]) -> dict[str, Any]:
    """Of one contender and kind of data: alarms over what it may say; the interval is Poisson's, 95 %."""
    every = list(found)
    rows = sum(each.rows for each in every)
    alarms = {kind: sum(each.alarms.get(kind, 0) for each in every) for kind in STATED}
    total = sum(alarms.values())
    palisade = every[0].contender == "palisade"
    allowed = rows * BUDGET.alarms_per_row * (sum(STATED.values()) if palisade else 1.0)
    return {
        "alarms": total,
        "by_kind": alarms,
        "rows": rows,
        "allowed": round(allowed, 3),
        "false_alarms_over_budget": round(total / allowed, 4),
        "interval": [round(bound / allowed, 4) for bound in poisson_interval(total)],
        "by_source": {
            each.source: round(sum(each.alarms.values()) / (allowed * each.rows / rows), 3) for each in every
        },
    }


def trial_figures(found: Iterable[Trials]) -> dict[str, Any]:
    """Of one contender and kind of data, over all changes and by change."""
    every = list(found)
    by_change = {
        change: _missed([each for each in every if each.change == change])
        for change in dict.fromkeys(each.change for each in every)
    }
    return {**_missed(every), "by_change": by_change}


def _missed(every: Sequence[Trials]) -> dict[str, Any]:
    delays = [delay for each in every for delay in each.delays]
    there = [delay for delay in delays if delay is not None]
    return {
        "missed": len(delays) - len(there),
        "of": len(delays),
        "median_delay_events": float(np.median(there)) if there else None,
        "open_before": sum(each.open_before for each in every),
    }


def drift_line(cleans: Sequence[Clean], planted: Sequence[Trials]) -> dict[str, Any]:
    """Each contender's figures, and for palisade whether both kinds of clean data are within `BOUNDS`."""
    line: dict[str, Any] = {}
    for name in ("palisade", *BASELINES):
        own = [each for each in cleans if each.contender == name]
        judged = [each for each in own if each.data != CROSSED]
        rows, alarms = sum(each.rows for each in judged), sum(sum(each.alarms.values()) for each in judged)
        data = dict.fromkeys(each.data for each in own)
        line[name] = {
            "false_alarms_over_budget": budget_figures(judged)["false_alarms_over_budget"],
            "false_alarms_per_100k": round(1e5 * alarms / rows, 5),
            **trial_figures([each for each in planted if each.contender == name]),
            "roc": None,
            "pr": None,
            "us_per_event": round(1e6 * sum(each.seconds for each in own) / sum(each.rows for each in own), 3),
            "clean": {kind: budget_figures([each for each in own if each.data == kind]) for kind in data},
            "planted": {
                kind: trial_figures([each for each in planted if (each.contender, each.data) == (name, kind)])
                for kind in dict.fromkeys(each.data for each in planted)
            },
        }
    return line


def faults_of(line: dict[str, Any]) -> list[str]:
    """What of palisade's clean runs lies outside `BOUNDS`."""
    low, high = BOUNDS
    return [
        f"feature drift, {kind}: {figures['alarms']} alarms are {figures['false_alarms_over_budget']} of the stated share, "
        f"not {low} to {high}"
        for kind, figures in line["palisade"]["clean"].items()
        if kind != CROSSED and not low <= figures["false_alarms_over_budget"] <= high
    ]


def periods(cleans: Sequence[Clean]) -> float:
    """Budget periods simulated in each of the judged kinds of data, the fewer of both."""
    rows = {
        kind: sum(e.rows for e in cleans if (e.contender, e.data) == ("palisade", kind))
        for kind in (REAL_ORDER, RESAMPLED)
    }
    return min(rows.values()) / PERIOD_ROWS
