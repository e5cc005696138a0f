"""Who causes it: one caller, a few named ones, or everybody? Pure; for shifts, spikes and excesses of any kind.

Method, leave-out: callers are taken away one by one, who brought most first, and each time it is asked how strong the
thing still is among all others, by their weight, relative to how strong it is among all. What moves everybody is as
strong without any five callers (1); what one caller does is gone without that caller (0). So a heavy caller is not blamed
for being heavy, and an innocent one not for standing beside the culprit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from schemas.blocks import Floats

MOST_NAMED = 5
"""More than five callers are not a few: then it is everybody, or nobody knows."""
LEFT_SHARE = 0.25
"""What is a quarter as strong without the named is gone without them. The weakest of five that brought equally much,
with half of the traffic between them, leaves a third."""
LEAST_OF_FIRST = 0.25
"""Of a few, each brings at least so much of what the first one brings: who stands beside a culprit is none."""
LEAST_OTHERS = 20.0
"""So many rows (asks) of others must remain to say how they are."""

Answer = Literal["one_caller", "few_callers", "everybody", "unclear"]
Left = Callable[[Sequence[int]], float | None]
"""How strong it is without the callers at these places, relative to all; None: too little is left to tell."""


class Attribution(NamedTuple):
    """The answer; the places of the `named`, who brought most first (none for `everybody` and `unclear`); the `shares` [callers]
    of what was brought; and how strong it was without those who were taken away last (NaN: nobody brought anything)."""

    answer: Answer
    named: tuple[int, ...]
    shares: Floats
    left: float


def attribute(brought: Floats, left: Left, present: int) -> Attribution:
    """Who causes what `brought` [callers] says each brought of it (below 0 counts as nothing).

    `present` callers are there in all; more than half of them are never a few, and one alone is everybody. Costs at most
    `MOST_NAMED` calls of `left`.
    """
    positive = np.maximum(np.nan_to_num(brought), 0.0)
    total = float(positive.sum())
    shares = positive / total if total > 0 else np.zeros(len(positive))
    ranked = [place for place in np.argsort(-positive, kind="stable").tolist() if positive[place] > 0]
    if not ranked:
        return Attribution("unclear", (), shares, math.nan)
    still = 1.0
    for many in range(1, min(MOST_NAMED, len(ranked), present // 2) + 1):
        found = left(ranked[:many])
        if found is None:
            return Attribution("unclear", (), shares, still)
        still = found
        if still <= LEFT_SHARE:
            if positive[ranked[many - 1]] < LEAST_OF_FIRST * positive[ranked[0]]:
                return Attribution("unclear", (), shares, still)
            return Attribution("one_caller" if many == 1 else "few_callers", tuple(ranked[:many]), shares, still)
    return Attribution("everybody", (), shares, still)


def of_excess(
    excess: Floats, totals: Floats, others: tuple[float, float] = (0.0, 0.0), least: float = LEAST_OTHERS
) -> Attribution:
    """Who causes an excess of counts: asks over what is usual, outliers over what chance brings.

    excess, totals [callers]: each one's count over what its own traffic explains (may be below 0), and what it sent in
    all. `others`: both of all callers who are not listed and cannot be named. How strong an excess is, is its part of
    what was sent; `least` is how much others must have sent to be judged.
    """
    whole, sent = float(excess.sum()) + others[0], float(totals.sum()) + others[1]

    def left(named: Sequence[int]) -> float | None:
        more, rest = whole - float(excess[list(named)].sum()), sent - float(totals[list(named)].sum())
        if rest < least or whole <= 0:
            return None
        return (more / rest) / (whole / sent)

    unlisted = len(totals) if others[1] > 0 else 0
    return attribute(excess, left, int(np.count_nonzero(totals > 0)) + unlisted)
