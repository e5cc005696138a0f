"""Blocks into the windows of feature drift, many at once: of different parts side by side, of one part one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.drift_blocks import Sums
from detectors.drift_shelf import CAPPED_OF, Shelf
from detectors.drift_windows import faded
from schemas.blocks import Floats, Longs

Turn = tuple[Longs, Longs]
"""Places of blocks, no two of one part; beside each, the place of its part's block before."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Of m blocks in the order of the log, what the windows of each one's part are with it, by name as in `Shelf` [m, ...].

    What is by capped weights is missing while it equals what is by own ones: no block of these parts ever had a caller over
    the cap. `lighter` [m]: one of its part had.
    """

    slots: Longs
    after: dict[str, Floats]
    lighter: npt.NDArray[np.bool_]

    @property
    def effective(self) -> Floats:
        """Rows [m, windows] that count as one each."""
        weight = self.after["weight"]
        return weight * weight / self.after["squares"]


def stepped(shelf: Shelf, slots: Longs, measured: Sums, which: Longs) -> Windows:
    """The windows after each of the blocks `which` [m], whose parts lie in `slots` [m]. The shelf stays as it is."""
    left, over, turns = faded(measured.rows[which]), measured.over[which], _turns(slots)
    lighter = over | (shelf.lighter[slots] > 0)
    for places, before in turns[1:]:
        lighter[places] |= lighter[before]
    blocks = {name: getattr(measured, name)[which] for name in ("weight", "squares", *CAPPED_OF.values())}
    for capped, name in CAPPED_OF.items() if lighter.any() else ():
        by_block = over.reshape(-1, *[1] * (blocks[name].ndim - 1))
        blocks[capped] = (
            np.where(by_block, getattr(measured, capped)[which], blocks[name]) if over.any() else blocks[name]
        )
    held = shelf.windows(slots[turns[0][0]], capped=bool(lighter.any()))
    after: dict[str, Floats] = {}
    for name, block in blocks.items():
        fade = left.reshape(*left.shape, *[1] * (block.ndim - 1))
        new = after[name] = np.empty((len(slots), *held[name].shape[1:]))
        for turn, (places, before) in enumerate(turns):
            state = (new[before] if turn else held[name]) * fade[places]
            if name == "squares":
                state *= fade[places]
            new[places] = state + block[places][:, None]
    return Windows(slots, after, lighter)


def keep(shelf: Shelf, windows: Windows, last: Sequence[int], renewed: Sequence[int]) -> None:
    """Blocks `last`, each the last that its part has taken, become the shelf's state; where the long window is `renewed` it
    begins anew as the short one."""
    taken, some = np.array(last), list(renewed)
    heavy = taken[windows.lighter[taken]]
    for name, array in windows.after.items():
        array[some, 1:] = array[some, :1]
        places = heavy if name in CAPPED_OF else taken
        getattr(shelf, name)[windows.slots[places]] = array[places]
    shelf.lighter[windows.slots[heavy]] = 1


def _turns(slots: Longs) -> list[Turn]:
    """The first block of each part, then each one's second, and so on."""
    turns: list[tuple[list[int], list[int]]] = []
    seen: dict[int, tuple[int, int]] = {}
    for place, slot in enumerate(slots.tolist()):
        turn, before = seen.get(slot, (0, -1))
        seen[slot] = (turn + 1, place)
        if turn == len(turns):
            turns.append(([], []))
        turns[turn][0].append(place)
        turns[turn][1].append(before)
    return [(np.array(places), np.array(before)) for places, before in turns]
