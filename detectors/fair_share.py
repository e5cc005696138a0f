"""Nobody moves a statistic of labels alone: who brings too many of the last ones is not counted until others come."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
import numpy.typing as npt

from detectors.caller_weights import MIN_CAP

WINDOW = 256
"""Counted labels that are looked back on; 4 kB."""
LEAST = 40
"""Below so many nobody has too many."""

Pairs = npt.NDArray[np.uint64]


class FairShare:
    """Who brought the last 256 counted labels, by two names as numbers: the source of the label, the caller of the prediction.

    Each source and each caller has at most max(5 %, 2 / those active) of them.
    """

    def __init__(self, last: Pairs | None = None) -> None:
        self._last: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        for source, caller in last.tolist() if last is not None else ():
            self._push((source, caller))

    def admits(self, source: int, caller: int) -> bool:
        """Whether a label of these two is counted; if so, it is one of the last."""
        if len(self._last) >= LEAST:
            for name, counts in zip((source, caller), self._counts, strict=True):
                active = len(counts) + (name not in counts)
                if counts[name] >= max(MIN_CAP, 2.0 / active) * len(self._last):
                    return False
        self._push((source, caller))
        return True

    def saved(self) -> Pairs:
        """[n, 2], oldest first."""
        return np.array(list(self._last), np.uint64).reshape(-1, 2)

    def _push(self, pair: tuple[int, int]) -> None:
        gone = self._last[0] if len(self._last) == WINDOW else None
        self._last.append(pair)
        for at, counts in enumerate(self._counts):
            counts[pair[at]] += 1
            if gone is not None:
                counts[gone[at]] -= 1
                if not counts[gone[at]]:
                    del counts[gone[at]]
