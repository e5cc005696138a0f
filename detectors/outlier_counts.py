"""How many rows of each caller were strange: of many blocks by one numpy call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.caller_weights import capped_side_by_side, over_the_cap
from schemas.blocks import ROUTE_CODES, Block, Floats, Longs
from schemas.flags import RowFlag

Bools = npt.NDArray[np.bool_]


class Counts(NamedTuple):
    """Of one block, by caller [k]: rows, strange rows [k, level], `strange` numbers of those who have some. `sums` [k, level
    + 1]: strange rows at each level, and rows, as much as each weighs in the endpoint; their totals over all callers and
    over verified ones [level + 1]. `served`: rows of all, so weighed."""

    p_values: Floats
    rows: Floats
    hits: Floats
    strange: list[int]
    sums: Floats
    total: Floats
    verified: Floats
    served: float


def counted(blocks: Sequence[Block], levels: Sequence[Floats], p_values: Sequence[Floats]) -> list[Counts]:
    """Of each block, whose rows have `p_values` [n] and are strange up to its `levels`."""
    lengths = [len(block) for block in blocks]
    starts = np.cumsum([0, *(max(len(block.callers), 1) for block in blocks)])
    size = int(starts[-1])
    caller = np.concatenate([block.caller for block in blocks]) + np.repeat(starts[:-1], lengths)
    p_value = np.concatenate(p_values)
    flags = np.concatenate([block.flags for block in blocks])
    dead = (flags & np.uint32(RowFlag.MALFORMED)) != 0  # these show nothing but whose they are
    some_dead = bool(dead.any())
    if some_dead:
        p_value[dead] = 1.0
    strange = p_value[:, None] <= np.repeat(np.stack(levels), lengths, axis=0)
    # what no model saw is not what the endpoint's inputs are
    served = np.concatenate([block.served_by for block in blocks]) != ROUTE_CODES["refused"]
    rows, hits = _tallied(caller, strange, ~dead if some_dead else None, size)
    of_served, of_hits = (rows, hits) if served.all() else _tallied(caller, strange, served & ~dead, size)
    known = np.concatenate([block.verified if len(block.callers) else np.zeros(1, np.bool_) for block in blocks])
    sums = np.concatenate([of_hits, of_served[:, None]], axis=1)
    over = _cap(sums, known, starts)
    return _of_blocks(sums, known, starts, over, (rows, hits), (p_value, np.cumsum([0, *lengths])))


def _of_blocks(
    sums: Floats, known: Bools, starts: Longs, over: Bools, tallied: tuple[Floats, Floats], judged: tuple[Floats, Longs]
) -> list[Counts]:
    """Totals of whole numbers are exact in any order; others are added block by block, in one order."""
    (rows, hits), (p_value, row_starts) = tallied, judged
    totals = np.add.reduceat(sums, starts[:-1], axis=0)
    all_known = np.logical_and.reduceat(known, starts[:-1]).tolist()
    strange = np.flatnonzero(hits.any(axis=1))
    of_block = np.searchsorted(strange, starts).tolist()
    edges, row_edges = starts.tolist(), row_starts.tolist()
    found = []
    for k, capped in enumerate(over.tolist()):
        at = slice(edges[k], edges[k + 1])
        own = sums[at]
        total = own.sum(axis=0) if capped else totals[k]
        found.append(
            Counts(
                p_value[row_edges[k] : row_edges[k + 1]],
                rows[at],
                hits[at],
                (strange[of_block[k] : of_block[k + 1]] - edges[k]).tolist(),
                own,
                total,
                total if all_known[k] else own[known[at]].sum(axis=0),
                float(np.ascontiguousarray(own[:, -1]).sum() if capped else total[-1]),
            )
        )
    return found


def _tallied(caller: Longs, strange: Bools, which: Bools | None, size: int) -> tuple[Floats, Floats]:
    """Rows [callers] and strange rows [callers, level] among those of `which` [n], all if None."""
    if which is not None:
        caller, strange = caller[which], strange[which]
    rows = np.bincount(caller, minlength=size).astype(np.float64)
    hits = [np.bincount(caller[each], minlength=size) for each in strange.T]
    return rows, np.stack(hits, axis=1).astype(np.float64)


def _cap(sums: Floats, known: Bools, starts: Longs) -> Bools:
    """Weighs callers' `sums` in place, so that none counts for more than its cap in its block; all whom nobody vouched for
    are one. Returns in which blocks somebody was over it."""
    blocks = len(starts) - 1
    block = np.repeat(np.arange(blocks), np.diff(starts))
    wide = starts + np.arange(blocks + 1)  # one place more in each block, for the claimed ones
    own = np.where(known, np.arange(len(known)) + block, wide[block + 1] - 1)
    totals = np.bincount(own, sums[:, -1], minlength=int(wide[-1])).astype(np.float64)
    over = over_the_cap(totals, wide, np.add.reduceat(totals, wide[:-1]))
    heavy = np.flatnonzero(over)
    if len(heavy) == 0:
        return over
    of_heavy, capped, cut = capped_side_by_side(totals, wide, heavy)
    factor = np.ones(len(totals))
    for k, at in enumerate(heavy.tolist()):
        n = int(wide[at + 1] - wide[at])
        whole = float(capped[k, :n].sum())
        if not cut[k] or whole <= 0:
            over[at] = False
            continue
        mine = of_heavy[k, :n]
        part = np.divide(capped[k, :n], mine, out=np.zeros(n), where=mine > 0)
        factor[wide[at] : wide[at + 1]] = part * (float(mine.sum()) / whole)
    sums *= factor[own][:, None]
    return over
