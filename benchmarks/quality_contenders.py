"""Who is compared on feature drift by `make bench-quality`: the detector as the product runs it, and what people use instead.

Each is handed full blocks of several services and says in which an alarm was raised. An alarm of the product is an
opened incident: a firing block, the first since a calm one. The baselines know no incident that lasts: every look at
which one fires is an alarm. They run with the defaults of their library or of the custom they come from, one detector a
feature, and fire as soon as one of these does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from river.drift import ADWIN, PageHinkley
from scipy.stats import chi2, kstwo

from benchmarks.quality_data import Source
from benchmarks.stationary_rows import Rows, block
from detectors.base import Budget, part_of
from detectors.feature_drift import FeatureDrift
from schemas.blocks import BLOCK_ROWS, Floats

PERIOD_ROWS = 30 * 86_400
"""A budget period: 30 days at 1 event a second."""
BUDGET = Budget(1.0, 86_400.0)
"""1 alarm a period for all detectors of an endpoint together: the product's default."""
REFERENCE_ROWS = 5_000
"""Rows of the reference that KS compares with."""
KS_LEVEL = 0.05
PSI_LIMIT, PSI_BINS, PSI_LEAST = 0.2, 10, 1e-4


class Contender(Protocol):
    def take(self, blocks: Sequence[Rows]) -> list[bool]:
        """Whether one more block of each service raised an alarm."""
        ...


class Palisade:
    """`FeatureDrift` with the profile in force; anchored and adaptive drift are incidents of their own."""

    def __init__(
        self, source: Source, services: int, kinds: Sequence[str] = ("feature_drift", "adaptive_drift")
    ) -> None:
        self._detector, self._hash, self._kinds = FeatureDrift(), source.profile.hash, tuple(kinds)
        self._names = [f"service-{k}" for k in range(services)]
        self._at = {name: k for k, name in enumerate(self._names)}
        self._first = 0
        self.opened = dict.fromkeys(self._kinds, 0)
        self._open: set[tuple[str, str]] = set()
        for name in self._names:
            self._detector.fit(part_of(name, "v1"), source.profile, BUDGET)

    def take(self, blocks: Sequence[Rows]) -> list[bool]:
        """In which service's block an incident of either kind was opened."""
        handed = [block(rows, self._hash, name, self._first) for rows, name in zip(blocks, self._names, strict=True)]
        self._first += BLOCK_ROWS
        opened = [False] * len(self._names)
        for reading in self._detector.update(handed):
            key = reading.kind, reading.endpoint
            if reading.firing and key not in self._open:
                self._open.add(key)
                self.opened[reading.kind] += 1
                opened[self._at[reading.endpoint]] = True
            elif reading.calm:
                self._open.discard(key)
        return opened

    def is_open(self) -> list[bool]:
        """Whether each service has an open incident."""
        return [any((kind, name) in self._open for kind in self._kinds) for name in self._names]


class Baseline:
    """With a state of its own for each service."""

    def __init__(self, source: Source, services: int) -> None:
        self.services, self.source = services, source

    def take(self, blocks: Sequence[Rows]) -> list[bool]:
        return [self.fires(k, rows) for k, rows in enumerate(blocks)]

    def fires(self, service: int, rows: Rows) -> bool:
        raise NotImplementedError


class RiverAdwin(Baseline):
    """river's ADWIN (delta 0.002, looks every 32 values) on each feature's values; categories by their code."""

    def __init__(self, source: Source, services: int) -> None:
        super().__init__(source, services)
        features = rows_matrix(source.rows.at(np.arange(1))).shape[1]
        self._watches = [[self.watch() for _ in range(features)] for _ in range(services)]

    @staticmethod
    def watch() -> ADWIN | PageHinkley:
        return ADWIN()

    def fires(self, service: int, rows: Rows) -> bool:
        found = False
        for watch, column in zip(self._watches[service], rows_matrix(rows).T, strict=True):
            for value in column[~np.isnan(column)].tolist():
                watch.update(value)
                found |= watch.drift_detected
        return found


class RiverPageHinkley(RiverAdwin):
    """river's Page-Hinkley (threshold 50, delta 0.005) on each feature's values standardised by the reference."""

    def __init__(self, source: Source, services: int) -> None:
        super().__init__(source, services)
        known = rows_matrix(source.rows)
        self._mean, sd = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
        self._sd = np.where(sd > 0, sd, 1.0)

    @staticmethod
    def watch() -> ADWIN | PageHinkley:
        return PageHinkley()

    def fires(self, service: int, rows: Rows) -> bool:
        found = False
        standard = (rows_matrix(rows) - self._mean) / self._sd
        for watch, column in zip(self._watches[service], standard.T, strict=True):
            for value in column[~np.isnan(column)].tolist():
                watch.update(value)
                found |= watch.drift_detected
        return found


class _Windowed(Baseline):
    """Looks at windows of `window` rows, one after the other."""

    window = BLOCK_ROWS

    def __init__(self, source: Source, services: int) -> None:
        super().__init__(source, services)
        self._waiting: list[list[Rows]] = [[] for _ in range(services)]
        self.numeric = len(source.profile.numeric)
        self.categorical = [len(feature.categories) + 2 for feature in source.profile.categorical]

    def fires(self, service: int, rows: Rows) -> bool:
        waiting = self._waiting[service]
        waiting.append(rows)
        if sum(map(len, waiting)) < self.window:
            return False
        numbers = np.concatenate([each.numeric for each in waiting])
        codes = np.concatenate([each.categorical for each in waiting])
        waiting.clear()
        return self.differs(numbers, codes)

    def differs(self, numbers: Floats, codes: np.ndarray) -> bool:  # type: ignore[type-arg]
        raise NotImplementedError


class KsWindows(_Windowed):
    """Two-sample Kolmogorov-Smirnov of each number (asymptotic) and chi-square of each category's counts against 5,000
    rows of the reference, at 0.05 over the number of features (Bonferroni), on each window by itself."""

    def __init__(self, source: Source, services: int) -> None:
        super().__init__(source, services)
        picked = np.linspace(0, len(source.rows) - 1, min(REFERENCE_ROWS, len(source.rows))).astype(np.int64)
        known = source.rows.at(picked)
        self._sorted = [np.sort(column[~np.isnan(column)]) for column in known.numeric.T]
        self._counts = _counts(known.categorical, self.categorical)
        self._level = KS_LEVEL / max(self.numeric + len(self.categorical), 1)

    def differs(self, numbers: Floats, codes: np.ndarray) -> bool:  # type: ignore[type-arg]
        for known, column in zip(self._sorted, numbers.T, strict=True):
            values = np.sort(column[~np.isnan(column)])
            if len(values) and len(known) and _ks_p(known, values) < self._level:
                return True
        for known_counts, counts in zip(self._counts, _counts(codes, self.categorical), strict=True):
            both = np.array([known_counts, counts])
            if _chi_square_p(both[:, both.sum(axis=0) > 0].astype(np.float64)) < self._level:
                return True
        return False


class KsWindows2048(KsWindows):
    window = 2048


class Psi(_Windowed):
    """Population stability index above 0.2 for some feature: ten bins of equal reference share, categories as they are,
    missing and unseen as bins of their own, empty bins as 0.0001."""

    window = 2048

    def __init__(self, source: Source, services: int) -> None:
        super().__init__(source, services)
        levels = np.linspace(0, 1, PSI_BINS + 1)[1:-1]
        present = [column[~np.isnan(column)] for column in source.rows.numeric.T]
        self._cuts = [np.unique(np.quantile(column, levels)) if len(column) else np.zeros(1) for column in present]
        self._expected = self._shares(source.rows.numeric, source.rows.categorical)

    def _shares(self, numbers: Floats, codes: np.ndarray) -> list[Floats]:  # type: ignore[type-arg]
        shares = []
        for cuts, column in zip(self._cuts, numbers.T, strict=True):
            bins = np.where(np.isnan(column), len(cuts) + 1, np.searchsorted(cuts, column, "right"))
            shares.append(np.bincount(bins, minlength=len(cuts) + 2) / len(column))
        return shares + [counts / len(codes) for counts in _counts(codes, self.categorical)]

    def differs(self, numbers: Floats, codes: np.ndarray) -> bool:  # type: ignore[type-arg]
        for expected, seen in zip(self._expected, self._shares(numbers, codes), strict=True):
            e, s = np.maximum(expected, PSI_LEAST), np.maximum(seen, PSI_LEAST)
            if float(((s - e) * np.log(s / e)).sum()) > PSI_LIMIT:
                return True
        return False


class Psi256(Psi):
    window = BLOCK_ROWS


class Never(Baseline):
    """Says nothing, ever."""

    def take(self, blocks: Sequence[Rows]) -> list[bool]:
        return [False] * len(blocks)


class Always(Baseline):
    """Raises an alarm at every block."""

    def take(self, blocks: Sequence[Rows]) -> list[bool]:
        return [True] * len(blocks)


BASELINES: dict[str, type[Baseline]] = {
    "river_adwin": RiverAdwin,
    "river_page_hinkley": RiverPageHinkley,
    "ks_256": KsWindows,
    "ks_2048": KsWindows2048,
    "psi_256": Psi256,
    "psi_2048": Psi,
    "never": Never,
    "always": Always,
}


def rows_matrix(rows: Rows) -> Floats:
    """All features as numbers [rows, features]: categories by their code, missing as NaN."""
    codes = rows.categorical.astype(np.float64)
    return np.concatenate([rows.numeric, np.where(codes == -1, np.nan, codes)], axis=1)


def _counts(codes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Rows of each category, unseen and missing first."""
    return [np.bincount(codes[:, k] + 2, minlength=size) for k, size in enumerate(sizes)]


def _chi_square_p(table: Floats) -> float:
    """The p-value of independence in a table [2, categories] (scipy's `chi2_contingency` without correction)."""
    if table.shape[1] < 2:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1))


def _ks_p(known: Floats, values: Floats) -> float:
    """The p-value of two sorted samples (scipy's `ks_2samp` with `method="asymp"`, without sorting the known one again)."""
    both = np.concatenate([known, values])
    n, m = len(known), len(values)
    apart = np.searchsorted(known, both, "right") / n - np.searchsorted(values, both, "right") / m
    return float(kstwo.sf(np.abs(apart).max(), np.round(n * m / (n + m))))
