"""What a person reads of a drift: which features, how they look now, and which callers brought it."""

from __future__ import annotations

import numpy as np

from detectors.attribution import Attribution
from detectors.base import top_shares
from detectors.caller_weights import capped_totals, row_weights
from detectors.cells import CELLS, categorical_cells, numeric_cells
from detectors.drift_callers import ALL_CLAIMED, OWN_CALM, Accused, leading
from detectors.drift_resolution import Flags, odd
from detectors.drift_shelf import Part, Shelf
from schemas.blocks import Block, Floats
from schemas.events import MAX_NUMBER, CallerAuth
from schemas.signals import Evidence

TOP_FEATURES = 5


def moved_by_caller(
    block: Block, shelf: Shelf, part: Part, seen: Floats, by_feature: Floats, *, by_grid: bool
) -> Floats:
    """The mass that moved in this block by who brought it [callers of the block].

    In a cell that holds more than the profile's share, each row counts as far as the cell is over it, or `by_grid` every
    row off its grid; over the `leading` features. `seen` [features, CELLS] are the block's cell weights.
    """
    weight = row_weights([block])[0]
    excess = np.zeros(len(block))
    total = max(float(weight.sum()), 1e-300)
    for feature in leading(by_feature, TOP_FEATURES):
        if by_grid:
            excess += _odd(block, shelf, part, feature)
            continue
        shares = seen[feature] / total
        over = np.maximum(shares - shelf.expected[part.slot, feature], 0.0)
        fraction = np.divide(over, shares, out=np.zeros(CELLS), where=shares > 0)
        excess += fraction[_cells(block, shelf, part, feature)]
    return np.bincount(block.caller, excess * weight, minlength=len(block.callers)).astype(np.float64)


def shares_of(block: Block, moved: Floats) -> tuple[tuple[str, CallerAuth, float], ...]:
    """The callers who brought most of `moved` [callers of the block], as shares of all of it; at most 20."""
    auth: dict[bool, CallerAuth] = {True: "verified", False: "claimed"}
    who = [(name, auth[known]) for name, known in zip(block.callers, block.verified.tolist(), strict=True)]
    return top_shares(dict(zip(who, moved.tolist(), strict=True)))


def breadth_of(block: Block, moved: Floats) -> Evidence:
    """How many callers were present in a block, by weight, and how many brought what moved [callers of the block].

    Both are effective numbers, 1 / sum of squared shares (Hill 1973, order 2), each caller capped as in the statistic and
    all claimed ones counted as one. What moves an endpoint for everybody moves about as many as are present; a flood or
    one partner's fault moves few.
    """
    weight = np.bincount(block.caller, row_weights([block])[0], minlength=len(block.callers))
    verified = np.asarray(block.verified, dtype=bool)
    present = np.append(weight[verified], weight[~verified].sum())
    capped = capped_totals(present)
    factor = np.divide(capped, present, out=np.zeros_like(capped), where=present > 0)
    brought = np.append(moved[verified], moved[~verified].sum())
    return {"callers_moved": _effective(brought * factor), "callers_present": _effective(capped)}


def _effective(weights: Floats) -> float:
    squares = float((weights * weights).sum())
    return 0.0 if squares <= 0 else float(weights.sum()) ** 2 / squares


def evidence_of(block: Block, shelf: Shelf, part: Part, seen: Floats, by_feature: Floats, off_grid: Flags) -> Evidence:
    """The five features that moved most, as columns: observed in this block beside expected by the profile. `reasons`: by
    which test each is where it is; the steps of their grids, and the shares of rows off them, where one has a grid."""
    profile, numeric = part.profile, shelf.numeric
    weight = row_weights([block])[0]
    total = max(float(weight.sum()), 1e-300)
    top = np.argsort(-by_feature, kind="stable")[:TOP_FEATURES].tolist()
    names: list[float | int | str | None] = []
    means: list[float | int | str | None] = []
    expected_means: list[float | int | str | None] = []
    rates: dict[str, list[float | int | str | None]] = {
        key: [] for key in ("missing", "expected_missing", "unseen", "expected_unseen")
    }
    for feature in top:
        alien = float((seen[feature] * shelf.alien[part.slot, feature]).sum() / total)
        missing = float((seen[feature] * shelf.missing[part.slot, feature]).sum() / total)
        if feature < numeric:
            of_number = profile.numeric[feature]
            names.append(of_number.name)
            values = block.numeric[:, feature]
            here = (np.abs(values) <= MAX_NUMBER) & (weight > 0)  # beyond it decoding lets nothing through
            some = float(weight[here].sum())
            means.append(float((values[here] * weight[here]).sum() / some) if some > 0 else None)
            expected_means.append(of_number.mean)
            expected_unseen, expected_missing = 0.0, of_number.missing_rate
        else:
            of_category = profile.categorical[feature - numeric]
            names.append(of_category.name)
            means.append(None)
            expected_means.append(None)
            expected_unseen, expected_missing = of_category.unseen_rate, of_category.missing_rate
        for key, value in zip(rates, (missing, expected_missing, alien, expected_unseen), strict=True):
            rates[key].append(value)
    grids: Evidence = {}
    steps = {f: float(shelf.step[part.slot, f]) for f in top if f < numeric and np.isfinite(shelf.step[part.slot, f])}
    if steps:
        off = {f: float((_odd(block, shelf, part, f) * weight).sum()) / total for f in steps}
        grids = {"steps": [steps.get(f) for f in top], "observed_off_grid": [off.get(f) for f in top]}
    return {
        "features": names,
        "reasons": ["resolution" if off_grid[feature] else "distribution" for feature in top],
        **grids,
        "statistics": [float(by_feature[feature]) for feature in top],
        "observed_mean": means,
        "expected_mean": expected_means,
        "observed_missing": rates["missing"],
        "expected_missing": rates["expected_missing"],
        "observed_unseen": rates["unseen"],
        "expected_unseen": rates["expected_unseen"],
    }


def attributed_evidence(part: Part, who: Attribution) -> Evidence:
    """Whose doing it is: the answer, the callers it names, and how much of the shift is left without them."""
    keys = [part.callers.keys[k] for k in who.named]
    named: list[float | int | str | None] = ["(unauthenticated)" if key == ALL_CLAIMED else key[0] for key in keys]
    return {
        "attributed_to": who.answer,
        "attributed_callers": named,
        "attributed_shares": [float(who.shares[k]) for k in who.named],
        "left_without_them": None if np.isnan(who.left) else float(who.left),
    }


def accused_evidence(part: Part, accused: Accused) -> Evidence:
    """What a named caller moved, and its part in the shift of all."""
    features = part.profile.features
    names = [*features.numeric, *features.categorical]
    return {
        "attributed_to": accused.answer,
        "features": [names[feature] for feature in accused.features],
        "reason": "resolution" if accused.by_grid else "distribution",
        "share_of_shift": accused.share,
        "rows_unlike_before": accused.score,
        "exit_threshold": OWN_CALM,
    }


def jump_evidence(shelf: Shelf, part: Part, jumps: list[float]) -> Evidence:
    """The features whose mean jumped, by how many standard deviations of the profile, and how far counts as chance."""
    watched = shelf.watched[part.slot].tolist()
    ranked = sorted(range(len(jumps)), key=lambda k: -jumps[k] / part.jump_thresholds[k])[:TOP_FEATURES]
    return {
        "features": [part.profile.numeric[watched[k]].name for k in ranked],
        "jumps": [jumps[k] for k in ranked],
        "jumps_by_chance": [part.jump_thresholds[k] for k in ranked],
    }


def _odd(block: Block, shelf: Shelf, part: Part, feature: int) -> Flags:
    """Which rows [n] of one numeric feature are off its grid."""
    return odd(block.numeric[:, feature], shelf.origin[part.slot, feature], shelf.step[part.slot, feature])


def _cells(block: Block, shelf: Shelf, part: Part, feature: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The cell of each row [n] of one feature."""
    if feature >= shelf.numeric:
        return categorical_cells(block.categorical[:, feature - shelf.numeric]).ravel()
    values = block.numeric[:, feature][None, None]
    return numeric_cells(values, shelf.edges[part.slot, feature][None, None]).ravel()
