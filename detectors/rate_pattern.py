"""How high a caller's count of a second may be: by its own pattern, and by what callers of its endpoint do.

The endpoint's pattern is a predictive distribution: the log peak of one more caller, given the log peaks of the n callers
known, is Student-t with n - 1 degrees of freedom (Gelman et al., Bayesian Data Analysis, 3rd ed., section 3.2). One draw is
made a caller, not a second, so alpha is the budget over the callers to come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from detectors.caller_table import CallerTable, Floats, Slots

MIN_COUNT = 20.0
"""Never an alarm below so many asks in a second: real callers load a page or a batch at once."""
MIN_CALLERS = 5
OUTLYING = 4.0
WARM_UP_S = 10
OWN_AFTER_S = 60
OWN_PATTERN_AFTER_S = 3_600
OWN_PATTERN_BUCKETS = 12
"""An own pattern needs an hour, and this many buckets of 5 s in which the caller asked."""
DAYS_30_S = 30 * 86_400.0
MIN_OTHERS = 3
MAX_LIFT = 8.0
"""So many times its limit a caller may ask in a second in which all others are as far over their own peaks: what waited for
seconds while a model or a process stood still."""


@dataclass(frozen=True, slots=True)
class PatternFactors:
    """Margins over peaks already seen. `own`: over a caller's own; `crowd`: over the heaviest caller of the endpoint, to
    the lower and the upper bound of the predictive limit; `own_spread`: standard deviations of log bucket peaks."""

    own: float = 2.5
    own_pattern: float = 3.0
    own_spread: float = 4.5
    crowd_low: float = 2.0
    crowd_high: float = 5.0


def with_count_noise(peak: Floats, factor: float) -> Floats:
    """`factor` times a peak, and at least four standard deviations of a Poisson count above it."""
    return np.maximum(factor * peak, peak + 4.0 * np.sqrt(peak) + 2.0)


def predictive_peak(peaks: Floats, alpha: float, factors: PatternFactors) -> float:
    """The count of a second that one more caller exceeds with probability `alpha`, given the peaks of known callers.

    `peaks`: at least `MIN_CALLERS` counts. Those over `OUTLYING` robust standard deviations (of at least one, in logs: the
    heaviest of few real callers easily has 40 times the median) are pulled in, so that a few offenders do not hide others.
    """
    logs = np.log(np.maximum(peaks, 1.0))
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), 1.0)
    logs = np.minimum(logs, middle + OUTLYING * spread)
    count = len(logs)
    deviation = max(float(np.std(logs, ddof=1)), 0.25)
    quantile = float(stdtrit(count - 1, 1.0 - alpha))
    limit = float(np.mean(logs)) + quantile * deviation * math.sqrt(1.0 + 1.0 / count)
    heaviest = math.exp(float(np.max(logs)))
    low = float(with_count_noise(np.asarray(heaviest), factors.crowd_low))
    return min(max(math.exp(min(limit, 40.0)), low), max(factors.crowd_high * heaviest, low))


def lift_by_others(counts: Floats, peaks: Floats) -> float:
    """How far over their own peaks all others are in this second, 1 to `MAX_LIFT`: calls that waited come at once, and then the
    heaviest caller is over its limit only with everybody.

    counts, peaks [other callers]: of this second, and the highest of earlier ones. The median of their ratios, weighted by
    peaks, none by more than a third: whoever wants to hide a flood behind others needs half of what the endpoint is asked.
    """
    known = peaks > 0
    if np.count_nonzero(known) < MIN_OTHERS:
        return 1.0
    ratios, weights = counts[known] / peaks[known], np.minimum(peaks[known], peaks[known].sum() / 3.0)
    order = np.argsort(ratios, kind="stable")
    below = np.cumsum(weights[order])
    median = ratios[order[np.searchsorted(below, below[-1] / 2.0)]]
    return min(max(float(median), 1.0), MAX_LIFT)


def callers_to_come(known: int, first_hour: int, age_s: float) -> float:
    """New callers of the next 30 days: as many as are known, or at the rate seen after the first hour if that is more."""
    if age_s <= OWN_PATTERN_AFTER_S:
        return float(max(known, 1))
    later = (known - first_hour) * DAYS_30_S / max(age_s - OWN_PATTERN_AFTER_S, OWN_PATTERN_AFTER_S)
    return max(float(known), later, 1.0)


def own_limits(table: CallerTable, rows: Slots, now_ms: int, factors: PatternFactors) -> Floats:
    """The limit of each caller's own pattern; infinite where there is less than an hour of it."""
    columns = table.columns
    limits = np.full(len(rows), np.inf)
    known = (table.age_s(rows, now_ms) >= OWN_PATTERN_AFTER_S) & (columns["buckets"][rows] >= OWN_PATTERN_BUCKETS)
    if not known.any():
        return limits
    old = rows[known]
    deviation = np.sqrt(np.maximum(columns["log_var"][old].astype(np.float64), 0.0))
    usual_burst = np.exp(np.minimum(columns["log_mean"][old] + factors.own_spread * deviation, 40.0))
    season = with_count_noise(table.season_peaks(old, now_ms), factors.own_pattern)
    limits[known] = np.maximum(np.maximum(season, columns["peak"][old]), usual_burst)
    return limits


def own_floors(table: CallerTable, rows: Slots, now_ms: int, factors: PatternFactors) -> Floats:
    """What each caller may do because it did so earlier: nothing in its first minute."""
    peak = table.columns["peak"][rows].astype(np.float64)
    return np.where(table.age_s(rows, now_ms) >= OWN_AFTER_S, with_count_noise(peak, factors.own), 0.0)


def hard_limit(per_s: float | None) -> float:
    """The owner's bound on events/s as a count of one second; small bounds get the noise of a Poisson count."""
    if per_s is None:
        return math.inf
    return max(per_s, min(MIN_COUNT, per_s + 3.0 * math.sqrt(per_s) + 1.0))
