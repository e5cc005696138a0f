"""Rows of several blocks scored together: a matrix product costs the same for one row as for 256.

Each row's bits are the same wherever it stands among the 256, so what is beside it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detectors.outlier_scores import OutlierScorer
from schemas.blocks import BLOCK_ROWS, Block, Floats


def p_values_of(blocks: Sequence[Block], scorers: Sequence[OutlierScorer | None]) -> list[Floats | None]:
    """The p-value of each row [n] of each block by its own scorer; None where there is none."""
    found: list[Floats | None] = [None] * len(blocks)
    by_scorer: dict[OutlierScorer, list[int]] = {}
    for at, scorer in enumerate(scorers):
        if scorer is not None:
            by_scorer.setdefault(scorer, []).append(at)
    for scorer, places in by_scorer.items():
        for together in _filled(places, blocks):
            some = [blocks[at] for at in together]
            numeric = np.concatenate([block.numeric for block in some])
            categorical = np.concatenate([block.categorical for block in some])
            p_values = scorer.score(numeric, categorical).p_values
            ends = np.cumsum([len(block) for block in some])[:-1]
            for at, own in zip(together, np.split(p_values, ends), strict=True):
                found[at] = own
    return found


def _filled(places: Sequence[int], blocks: Sequence[Block]) -> Iterator[list[int]]:
    """`places` in order, next to each other while their rows are at most those of a full block."""
    together: list[int] = []
    rows = 0
    for at in places:
        if together and rows + len(blocks[at]) > BLOCK_ROWS:
            yield together
            together, rows = [], 0
        together.append(at)
        rows += len(blocks[at])
    if together:
        yield together
