"""How much each row of a block weighs: no caller moves an endpoint's statistics alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schemas.blocks import ROUTE_CODES, STATUS_CODES, VERSION_ROUTE, Block, Floats

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
    active = np.add.reduceat((totals > 0).astype(np.int64), starts[:-1])
    heaviest = np.maximum.reduceat(totals, starts[:-1])
    result: list[Floats | None] = []
    for k, weight in enumerate(weights):
        of_block = totals[starts[k] : starts[k + 1]]
        total = float(of_block.sum())
        if heaviest[k] <= max(MIN_CAP, 2.0 / max(int(active[k]), 1)) * total:
            result.append(None)
            continue
        capped = capped_totals(of_block)
        factor = np.divide(capped, of_block, out=np.zeros_like(capped), where=of_block > 0)
        result.append(weight * factor[identities[k]] * (total / float(capped.sum())))
    return result
