"""Does somebody send more strange rows than anybody did? Usual shares, and a sequential test of a share above them.

At each of three levels of p-value a row is strange or not. Shiryaev-Roberts, R <- (R + 1) * L, over a mixture of levels and
alternatives as in `sequential`: while a share is at most its usual one, L is an e-value and the expected number of steps
to R >= c is at least c; rows are more than steps, so alarms are at most rows / c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.blocks import Floats, Longs

LEVELS = (0.01, 0.001, 0.0001)
"""A row is strange at a level if its p-value is at most that. Where one caller sends what is one in a thousand, the last
level still tells what nobody sent."""
ALTERNATIVES = (0.35, 0.6, 0.95)
"""The least of them is for whoever hides what he does among ordinary rows of his own."""
MARGIN = 0.1
"""On top of the largest share of any stretch: next year's is somewhat larger."""
ALL_ROWS = 1.0
USABLE = 0.55
"""A level at which shares are usually higher tells nothing: the alternatives begin above it."""
UNKNOWN_CALLERS = (ALL_ROWS, 0.3, 0.3)
"""Usual shares of callers whom the table does not tell apart: a caller may well send only what is one in a hundred (one
airline flies one long route), or three in ten of what is one in a thousand."""
CALLER_STRETCH, ENDPOINT_STRETCH = 32, 256
"""Held-out rows of a stretch whose share is looked at."""
FEW_HITS = 3
"""Of who has fewer rows than a stretch, so many strange ones are no chance: then the share of its own rows counts."""
OTHERS_TIMES = 2.0
"""A caller's usual share is at least so many times that of the others now: a storm makes everybody's rows strange."""
MAX_USUAL = 0.9


@dataclass(frozen=True)
class UsualShares:
    """Largest usual shares of strange rows at each of `LEVELS`, from `rows` held out; `of_callers` None: not known."""

    rows: int
    of_endpoint: tuple[float, ...]
    of_callers: tuple[float, ...] | None

    @cached_property
    def levels(self) -> Floats:
        """The p-values up to which a row is strange; a small table has none below 1 in its rows."""
        return np.maximum(LEVELS, 2.0 / (1 + self.rows))

    @cached_property
    def callers(self) -> Floats:
        return np.array(UNKNOWN_CALLERS if self.of_callers is None else self.of_callers)

    @cached_property
    def callers_odds(self) -> Odds:
        return odds(self.callers)

    @cached_property
    def endpoint_odds(self) -> Odds:
        return odds(np.array(self.of_endpoint))

    @classmethod
    def fit(cls, p_values: Floats, callers: Longs | None) -> UsualShares:
        """From the p-values [n] of held-out rows in the table's order, and whose each is (negative: nobody knows)."""
        bare = cls(len(p_values), (), None)
        strange = p_values[:, None] <= bare.levels
        of_callers = None
        if callers is not None and (callers >= 0).any():
            names = np.unique(callers[callers >= 0])
            each = np.stack([_largest(strange[callers == name], CALLER_STRETCH) for name in names.tolist()])
            of_callers = tuple(np.minimum(each.max(axis=0) + MARGIN, ALL_ROWS).tolist())
        largest = _largest(strange, ENDPOINT_STRETCH)
        return cls(len(p_values), tuple(np.minimum(largest + MARGIN, ALL_ROWS).tolist()), of_callers)


def _largest(strange: npt.NDArray[np.bool_], stretch: int) -> Floats:
    """The largest share [levels] of a stretch of `strange` [n, levels]. Fewer rows than one: their own share, or as if the
    others of a stretch were usual."""
    whole = len(strange) // stretch
    if whole == 0:
        hits = strange.sum(axis=0)
        return np.asarray(np.where(hits >= FEW_HITS, hits / max(len(strange), 1), hits / stretch))
    shares = strange[: whole * stretch].reshape(whole, stretch, -1).mean(axis=1)
    return np.asarray(shares.max(axis=0))


class Odds(NamedTuple):
    """What ln L gains by a strange row, and by a usual one: [..., levels, alternatives]. NaN where nothing is said."""

    strange: Floats
    other: Floats


def odds(usual: Floats) -> Odds:
    """Of usual shares [..., levels]. Nothing is said where the share is not usable, or not below the alternative."""
    base = np.clip(usual, 1e-6, MAX_USUAL)[..., None]
    share = np.array(ALTERNATIVES)
    said = (base < USABLE) & (base < share)
    strange = np.where(said, np.log(share / base), np.nan)
    return Odds(strange, np.where(said, np.log((1 - share) / (1 - base)), np.nan))


def log_ratios(strange: Floats, rows: Floats, at: Odds) -> Floats:
    """ln L [m, levels, alternatives] of `strange` [m, levels] among `rows` [m]."""
    return np.asarray(strange[..., None] * at.strange + (rows[:, None] - strange)[..., None] * at.other)


def step(log_r: Floats, ratios: Floats, most: float | Floats) -> Floats:
    """R <- (R + 1) * L in logarithms, between -`most` and `most` (of all, or of each [m, 1, 1]): evidence is gone soon after
    its cause."""
    after = np.clip(np.logaddexp(log_r, 0.0) + ratios, -most, most)
    return np.where(np.isnan(ratios), log_r, after)


def evidence(log_r: Floats) -> Floats:
    """ln of the mixture's statistic [m], of log_r [m, levels, alternatives]."""
    flat = log_r.reshape(len(log_r), -1)
    return np.asarray(np.logaddexp.reduce(flat, axis=1) - math.log(flat.shape[1]))
