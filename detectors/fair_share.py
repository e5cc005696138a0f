"""Nobody moves a statistic of labels alone: who brings too many of the last ones is not counted until others come."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
import numpy.typing as npt

from detectors.caller_weights import MIN_CAP

WINDOW = 256
"""Counted labels that are looked back on; 6 kB."""
LEAST = 40
"""Below so many nobody has too many."""

Names = npt.NDArray[np.uint64]


class FairShare:
    """Who brought the last 256 counted labels, by names as numbers: source of the label, caller of the prediction, prediction.

    Each source and each caller has at most max(5 %, 2 / those active) of them, and a prediction is among them once.
    """

    def __init__(self, last: Names | None = None) -> None:
        self._last: deque[tuple[int, int, int]] = deque(maxlen=WINDOW)
        self._counts: tuple[Counter[int], Counter[int], Counter[int]] = (Counter(), Counter(), Counter())
        for names in last.tolist() if last is not None else ():
            self._push(tuple(names))

    def admits(self, source: int, caller: int, prediction: int) -> bool:
        """Whether a label of these is counted; if so, it is one of the last."""
        if prediction in self._counts[2]:
            return False
        if len(self._last) >= LEAST:
            for name, counts in zip((source, caller), self._counts[:2], strict=True):
                active = len(counts) + (name not in counts)
                if counts[name] >= max(MIN_CAP, 2.0 / active) * len(self._last):
                    return False
        self._push((source, caller, prediction))
        return True

    def saved(self) -> Names:
        """[n, 3], oldest first."""
        return np.array(list(self._last), np.uint64).reshape(-1, 3)

    def _push(self, names: tuple[int, int, int]) -> None:
        gone = self._last[0] if len(self._last) == WINDOW else None
        self._last.append(names)
        for at, counts in enumerate(self._counts):
            counts[names[at]] += 1
            if gone is not None:
                counts[gone[at]] -= 1
                if not counts[gone[at]]:
                    del counts[gone[at]]
