"""How much each row of a block weighs: no caller moves an endpoint's statistics alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schemas.blocks import ROUTE_CODES, STATUS_CODES, VERSION_ROUTE, Block, Floats, Longs

MIN_CAP = 0.05
"""A caller weighs at most max(5 %, 2 / active callers) of a block."""
MAX_WEIGHT = 1e6
"""Bound of a row's sampling weight, so that sums of squares stay finite."""


_OF_A_MODEL = np.zeros(256, np.bool_)
_OF_A_MODEL[[ROUTE_CODES["primary"], ROUTE_CODES["probe"], VERSION_ROUTE]] = True


def of_a_model(block: Block) -> npt.NDArray[np.bool_]:
    """Which rows [n] a model of the version answered without an error: no fallback's, no refused ones."""
    return np.asarray(_OF_A_MODEL[block.served_by] & (block.status == STATUS_CODES["ok"]))


def row_weights(blocks: Sequence[Block]) -> list[Floats]:
    """The sampling weight of each row [n] of each block; refused rows, which no model saw, weigh nothing."""
    given = np.concatenate([block.weight for block in blocks])
    # NaN compares false: an odd weight is taken as 1.
    weight = np.where(given > 0, np.minimum(given, MAX_WEIGHT), 1.0)
    weight[np.concatenate([block.served_by for block in blocks]) == ROUTE_CODES["refused"]] = 0.0
    ends = np.cumsum([len(block) for block in blocks]).tolist()
    return [weight[end - len(block) : end] for block, end in zip(blocks, ends, strict=True)]


def capped_totals(totals: Floats) -> Floats:
    """Callers' `totals` [k] with every one at most max(5 %, 2 / active callers) of their new sum.

    Water filling: the heaviest m callers are cut to cap * sum where sum = rest / (1 - m * cap), m as small as will do.
    """
    active = int(np.count_nonzero(totals))
    cap = max(MIN_CAP, 2.0 / max(active, 1))
    if cap >= 1.0:
        return totals
    heavy_first = -np.sort(-totals)
    rest = heavy_first[::-1].cumsum()[::-1]
    # m heaviest cut: the next one must be within the cap of what is then the sum.
    m = np.arange(len(totals))
    room = 1.0 - m * cap
    fits = (room > 1e-12) & (heavy_first <= cap * rest / np.maximum(room, 1e-12) * (1 + 1e-12))
    cut = int(np.argmax(fits)) if fits.any() else 0
    if cut == 0:
        return totals
    return np.asarray(np.minimum(totals, cap * rest[cut] / (1.0 - cut * cap)))


def over_the_cap(totals: Floats, starts: Longs, sums: Floats) -> npt.NDArray[np.bool_]:
    """In which of m blocks, whose callers' `totals` lie at `starts` [m + 1] and have `sums` [m], some caller is over the
    cap."""
    active = np.add.reduceat((totals > 0).astype(np.int64), starts[:-1])
    heaviest = np.maximum.reduceat(totals, starts[:-1])
    return np.asarray(heaviest > np.maximum(MIN_CAP, 2.0 / np.maximum(active, 1)) * sums)


def capped_side_by_side(totals: Floats, starts: Longs, which: Longs) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """`capped_totals` of blocks `which` [h] of those at `starts`: their totals and the capped ones [h, most callers], both
    with zeros behind a block's own, and whether anybody was cut [h]. The same bits as one by one."""
    lengths = (starts[1:] - starts[:-1])[which]
    place = np.arange(int(lengths.max()))
    inside = place < lengths[:, None]
    own = np.where(inside, totals[np.minimum(starts[which][:, None] + place, len(totals) - 1)], 0.0)
    cap = np.maximum(MIN_CAP, 2.0 / np.maximum(np.count_nonzero(own, axis=1), 1))[:, None]
    heavy_first = -np.sort(-own, axis=1)
    rest = heavy_first[:, ::-1].cumsum(axis=1)[:, ::-1]
    room = 1.0 - place * cap
    fits = (room > 1e-12) & (heavy_first <= cap * rest / np.maximum(room, 1e-12) * (1 + 1e-12)) & inside
    cut = np.argmax(fits, axis=1)
    cut[cap[:, 0] >= 1.0] = 0
    at = np.arange(len(which))
    most = cap[:, 0] * rest[at, cut] / (1.0 - cut * cap[:, 0])
    return own, np.where(cut[:, None] > 0, np.minimum(own, most[:, None]), own), cut > 0


def capped_row_weights(blocks: Sequence[Block], weights: Sequence[Floats]) -> list[Floats | None]:
    """Row weights with callers capped, of the same sum as `weights`; None where no caller is over the cap.

    All callers that nobody vouched for count as one. The test over all blocks at once is one `bincount`: only blocks
    with a caller over the cap cost more.
    """
    identities, widths = [], []
    for block in blocks:
        known = len(block.callers)
        identities.append(np.where(block.verified[block.caller], block.caller, known) if known else block.caller * 0)
        widths.append(known + 1)
    starts = np.concatenate([[0], np.cumsum(widths)])
    rows = np.repeat(starts[:-1], [len(block) for block in blocks])
    totals: Floats = np.bincount(
        np.concatenate(identities) + rows, np.concatenate(weights), minlength=int(starts[-1])
    ).astype(np.float64)
    edges = starts.tolist()
    sums = [float(totals[start:stop].sum()) for start, stop in pairwise(edges)]
    result: list[Floats | None] = [None] * len(blocks)
    heavy = np.flatnonzero(over_the_cap(totals, starts, np.array(sums)))
    if len(heavy) == 0:
        return result
    own, capped, _ = capped_side_by_side(totals, starts, heavy)
    factor = np.divide(capped, own, out=np.zeros_like(capped), where=own > 0)
    for k, at in enumerate(heavy.tolist()):
        whole = float(capped[k, : widths[at]].sum())
        result[at] = weights[at] * factor[k][identities[at]] * (sums[at] / whole)
    return result
