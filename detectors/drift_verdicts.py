"""What feature drift says of blocks that were stepped together, whichever alarms were open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.drift_resolution import Flags
from schemas.blocks import Floats

FIRED_LONG, FIRED_SHORT = 1, 2
"""Which window an alarm that is not over yet came from, at its worst."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of blocks that were stepped together: score, threshold, calm level and block statistic [m], each feature's
    score [m, features], and whether it is that of values off their grid, not of the cells [m, features]; where an alarm comes
    from, by capped and by own weights of the callers. `alarm`: by either of them; `settled`: calm by both. `out`: which window an
    alarm comes from, 0 without one."""

    score: list[float]
    threshold: list[float]
    calm: list[bool]
    firing: list[bool]
    statistic: list[float]
    by_feature: Floats
    off_grid: Flags
    lead: Lead
    own_lead: Lead
    out: list[int]
    alarm: list[bool]
    settled: list[bool]
    rows: list[float]


class Scores(NamedTuple):
    """Scores [m, windows, features] of the `cells`, and of `odd` values, those off their grid."""

    cells: Floats
    odd: Floats

    def further_out(self, renewed: npt.NDArray[np.bool_]) -> Scores:
        """Those [m, features] of the window that is further out; of the short one where the long one is `renewed` [m]."""
        return Scores(*(np.where(renewed[:, None], each[:, 0], each.max(axis=1)) for each in self))

    def lead(self, threshold: Floats, beyond: npt.NDArray[np.bool_]) -> Lead:
        """Scores [m, features] by which it is asked where an alarm comes from: of odd values only where the cells tell of
        none, nor are `beyond` [m] all. Else a few odd values would hide what everybody does."""
        by_grid = (self.odd.max(axis=1) > threshold) & (self.cells.max(axis=1) <= threshold) & ~beyond
        return Lead(np.where(by_grid[:, None], self.odd, self.cells), by_grid)


class Lead(NamedTuple):
    """Where alarms come from: by the scores [m, features] of the cells, or of odd values where it is `by_grid` [m]."""

    by_feature: Floats
    by_grid: npt.NDArray[np.bool_]

    def of(self, k: int) -> tuple[Floats, bool]:
        return self.by_feature[k], bool(self.by_grid[k])


@dataclass(frozen=True)
class Looks:
    """Of m blocks that were stepped together [m], before it is known which alarms were open: the scores that were `found`, by
    capped and by own weights, `statistic` [m, windows], and its `limit`."""

    rows: Floats
    threshold: Floats
    quiet: Floats
    limit: Floats
    found: Scores
    own_found: Scores
    statistic: Floats

    @cached_property
    def calm(self) -> list[list[bool]]:
        """Whether the short window is calm, and whether all are."""
        top = np.maximum(*self.found).max(axis=2)
        calm: list[list[bool]] = np.column_stack([top[:, 0] <= self.quiet, top.max(axis=1) <= self.quiet]).tolist()
        return calm

    @cached_property
    def of_both(self) -> Verdicts:
        """By both windows."""
        return self._verdicts(renewed=False)

    @cached_property
    def of_short(self) -> Verdicts:
        """Where the long window begins anew."""
        return self._verdicts(renewed=True)

    def _verdicts(self, *, renewed: bool) -> Verdicts:
        threshold, quiet, statistic, limit = self.threshold, self.quiet, self.statistic, self.limit
        anew = np.full(len(threshold), renewed)
        out, own_out = self.found.further_out(anew), self.own_found.further_out(anew)
        by_feature, own = np.maximum(*out), np.maximum(*own_out)
        beyond = (statistic[:, 0] if renewed else statistic.max(axis=1)) / limit
        score = np.maximum(by_feature.max(axis=1), threshold * beyond)
        firing = score > threshold
        calm = (by_feature.max(axis=1) <= quiet) & ~firing
        # Values off their grid that single blocks show, too, are gone for good when two blocks show none.
        recent = np.maximum(*self.found)[:, 0].max(axis=1)
        short = (recent > threshold) | (statistic[:, 0] > limit) | (self.found.odd[:, 0].max(axis=1) > quiet)
        return Verdicts(
            score.tolist(),
            threshold.tolist(),
            calm.tolist(),
            firing.tolist(),
            statistic[:, 0].tolist(),
            by_feature,
            out.odd > out.cells,
            out.lead(threshold, beyond > 1.0),
            own_out.lead(threshold, beyond > 1.0),
            np.where(firing, np.where(short, FIRED_SHORT, FIRED_LONG), 0).tolist(),
            (firing | (own.max(axis=1) > threshold)).tolist(),
            (calm & (own.max(axis=1) <= quiet)).tolist(),
            self.rows.tolist(),
        )
