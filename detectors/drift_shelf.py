"""The state of feature drift: arrays over parts, all of one number of features, and a part's state as bytes."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from detectors.adwin import JumpWatch
from detectors.base import Budget
from detectors.budget import SHARES
from detectors.cells import CELLS, EDGES, alien_cells, missing_cells, padded_edges
from detectors.drift_callers import CallerCells
from detectors.drift_thresholds import ADAPTIVE_FEATURES
from detectors.drift_windows import WINDOW_ROWS, Spreads
from detectors.profile import LOOK_ROWS, SPAN_ROWS, Profile
from schemas.blocks import Floats, Longs
from schemas.errors import StateRefused

STATE_MAGIC = b"pfd4"
MEASURE_MS, DAY_MS = 3_600_000, 86_400_000
LEAST_PER_DAY = 24.0
"""A row an hour: what is rarer is not what a budget of alarms a month is for."""
_HEAD = struct.Struct("<4s32s32s4H?")
_SLOT = struct.Struct("<Bqqdqqd")
_DIGEST = 32
_WINDOWS = len(WINDOW_ROWS)


@dataclass(slots=True)
class Part:
    """What a part has beside its arrays. `counted` rows came since `since_ms`; `per_day` is 0 until it is measured."""

    slot: int
    profile: Profile
    profile_hash: str
    budget: Budget
    learned: bool = False
    since_ms: int = 0
    counted: int = 0
    per_day: float = 0.0
    watches: list[JumpWatch] = field(default_factory=list)
    jump_thresholds: list[float] = field(default_factory=list)
    callers: CallerCells = field(init=False)
    unfed: list[Callable[[], None]] | None = None
    """What gives back to ADWIN the state before its first mean since `undo`, while that is wanted: few blocks bring one."""

    def __post_init__(self) -> None:
        self.callers = CallerCells(len(self.profile.numeric) + len(self.profile.categorical))

    def set_budget(self, budget: Budget) -> None:
        """Thresholds of ADWIN's jumps for `budget`, an equal share a feature; a measured rate stays."""
        if budget.assumed and self.per_day > 0:
            budget = replace(budget, events_per_day=self.per_day)
        self.budget = budget
        tails = self.profile.calibration.adaptive
        rate = budget.alarms_per_row * SHARES["adaptive_drift"] / max(len(tails), 1)
        # at least one scale: of a quiet endpoint the level may be that of no jump at all
        self.jump_thresholds = [
            max(tail.jump + tail.scale * max(math.log(tail.rate / rate), 0.0), tail.scale) for tail in tails
        ]

    def undo(self) -> Callable[[], None]:
        """What gives back the state of now."""
        counts, callers = (self.since_ms, self.counted, self.per_day, self.budget), self.callers.undo()
        unfed: list[Callable[[], None]] = []
        self.unfed = unfed

        def back() -> None:
            self.since_ms, self.counted, self.per_day, budget = counts
            self.set_budget(budget)
            callers()
            for each in unfed:
                each()

        return back

    def jumps(self, means: Sequence[float | None]) -> list[float]:
        """What ADWIN says of each watched feature's mean (None: no rows)."""
        if self.unfed is not None and not self.unfed:
            self.unfed += [watch.undo() for watch in self.watches]
        fed = zip(self.watches, means, strict=True)
        return [0.0 if mean is None else watch.update(mean) for watch, mean in fed]

    def measured(self, rows: int, first_ms: int, ms: int) -> bool:
        """Counts a block of `rows`; whether with it the event rate is measured: once, over the first hour of the log."""
        if not self.budget.assumed or self.per_day > 0:
            return False
        self.since_ms = min(self.since_ms or first_ms, ms)
        self.counted += rows
        if ms - self.since_ms < MEASURE_MS:
            return False
        self.per_day = max(self.counted * DAY_MS / (ms - self.since_ms), LEAST_PER_DAY)
        return True


class Shelf:
    """Arrays over the slots of parts with `numeric` and `categorical` features; the first axis is the slot. `share`: of the
    budget, for the anchored test.

    Of the profile: edges [numeric, EDGES]; expected, alien, missing [features, CELLS] (the latter two 0 or 1); table
    and profile_rows as in `Spreads`; alien_most, missing_most [features]; watched [ADAPTIVE_FEATURES] numeric features
    that ADWIN watches (-1 = none), their mean and sd; threshold, calm [LOOK_ROWS]; gross, a number; origin, step, most_odd
    [numeric]: the grid of values (step inf = none) and how many events off it, in a window, are too many.
    Of the stream: seen, capped [windows, features, CELLS]; odd, odd_capped [windows, numeric]; weight, squares [windows] and
    feed_sum, feed_weight [ADAPTIVE_FEATURES], feed_rows; fired, calm_blocks, first_ms. `capped` and `odd_capped` mean
    something once `lighter` is 1: until a caller was over the cap they are what `seen` and `odd` are.
    """

    edges: Floats
    expected: Floats
    alien: Floats
    missing: Floats
    table: Floats
    profile_rows: Floats
    alien_most: Floats
    missing_most: Floats
    watched: Longs
    mean: Floats
    sd: Floats
    threshold: Floats
    calm: Floats
    gross: Floats
    origin: Floats
    step: Floats
    most_odd: Floats
    seen: Floats
    capped: Floats
    odd: Floats
    odd_capped: Floats
    weight: Floats
    squares: Floats
    feed_sum: Floats
    feed_weight: Floats
    feed_rows: Floats
    lighter: Longs
    fired: Longs
    calm_blocks: Longs
    first_ms: Longs

    def __init__(self, numeric: int, categorical: int, share: float) -> None:
        self.numeric, self.categorical, self._share = numeric, categorical, share
        f, a = numeric + categorical, ADAPTIVE_FEATURES
        floats: dict[str, tuple[int, ...]] = {
            "edges": (numeric, EDGES),
            **dict.fromkeys(("expected", "alien", "missing"), (f, CELLS)),
            "table": (4, f, len(SPAN_ROWS)),
            **dict.fromkeys(("profile_rows", "feed_rows", "gross"), ()),
            **dict.fromkeys(("alien_most", "missing_most"), (f,)),
            **dict.fromkeys(("mean", "sd", "feed_sum", "feed_weight"), (a,)),
            **dict.fromkeys(("threshold", "calm"), (len(LOOK_ROWS),)),
            **dict.fromkeys(("origin", "step", "most_odd"), (numeric,)),
            **dict.fromkeys(("seen", "capped"), (_WINDOWS, f, CELLS)),
            **dict.fromkeys(("odd", "odd_capped"), (_WINDOWS, numeric)),
            **dict.fromkeys(("weight", "squares"), (_WINDOWS,)),
        }
        self._names = (*floats, "watched", "lighter", "fired", "calm_blocks", "first_ms")
        for name, shape in floats.items():
            setattr(self, name, np.zeros((0, *shape)))
        self.watched = np.zeros((0, a), np.int64)
        self.lighter, self.fired, self.calm_blocks, self.first_ms = (np.zeros(0, np.int64) for _ in range(4))
        self._free: list[int] = []
        self.journal: list[tuple[Longs, dict[str, Floats]]] | None = None
        """What windows were before they were stepped, while somebody may want it back."""

    def take(self, profile: Profile, budget: Budget) -> int:
        """A slot of its own for `profile`, with empty windows."""
        if not self._free:
            held = len(self.fired)
            for name in self._names:
                array = getattr(self, name)
                # Doubled, so that a thousand endpoints are copied ten times, not a thousand.
                setattr(self, name, np.concatenate([array, np.zeros((max(held, 1), *array.shape[1:]), array.dtype)]))
            self._free = list(range(len(self.fired) - 1, held - 1, -1))
        slot = self._free.pop()
        for name in self._names:
            getattr(self, name)[slot] = 0
        self.step[slot] = np.inf
        for k, feature in enumerate(profile.numeric):
            self.edges[slot, k] = padded_edges(np.array(feature.edges))
            if feature.resolution is not None:
                self.origin[slot, k], self.step[slot, k] = feature.resolution.origin, feature.resolution.step
        self.expected[slot] = profile.probabilities()
        self.alien[slot] = alien_cells([len(feature.edges) for feature in profile.numeric], self.categorical)
        self.missing[slot] = missing_cells(self.numeric, self.categorical)
        spreads = profile.calibration.spreads
        self.table[slot] = Spreads.of(spreads, profile.rows).table[0]
        self.profile_rows[slot] = profile.rows
        self.alien_most[slot] = [spread.alien_largest for spread in spreads]
        self.missing_most[slot] = [spread.missing_largest for spread in spreads]
        self.watched[slot], self.sd[slot] = -1, 1.0
        for k, tail in enumerate(profile.calibration.adaptive[:ADAPTIVE_FEATURES]):
            watched = profile.numeric[tail.feature]
            self.watched[slot, k], self.mean[slot, k], self.sd[slot, k] = tail.feature, watched.mean, watched.sd or 1.0
        self.set_budget(slot, profile, budget)
        return slot

    def set_budget(self, slot: int, profile: Profile, budget: Budget) -> None:
        """Thresholds of the anchored test for `budget`."""
        rate = budget.alarms_per_row * self._share
        self.threshold[slot], self.calm[slot] = profile.calibration.thresholds(rate)
        self.gross[slot] = profile.calibration.gross_limit(rate)
        brings = [np.inf if each.resolution is None else each.resolution.brings for each in profile.numeric]
        self.most_odd[slot] = np.multiply(profile.calibration.resolution_limit(rate), brings)

    def give_back(self, slot: int) -> None:
        """Frees a slot."""
        self._free.append(slot)

    def restart_feed(self, slot: int) -> None:
        """Begins a new mean for ADWIN."""
        self.feed_sum[slot] = self.feed_weight[slot] = self.feed_rows[slot] = 0.0

    def undo(self, slots: Longs) -> Callable[[int], None]:
        """What gives back to the k-th of `slots` its state of now."""
        before = {name: getattr(self, name)[slots] for name in _NUMBERS}
        journal: list[tuple[Longs, dict[str, Floats]]] = []
        self.journal = journal

        def back(k: int) -> None:
            for taken, states in [
                *journal[::-1],
                (slots[k : k + 1], {name: of[k : k + 1] for name, of in before.items()}),
            ]:
                for place in np.flatnonzero(taken == slots[k]).tolist():
                    for name, state in states.items():
                        getattr(self, name)[slots[k]] = state[place]

        return back

    def windows(self, slots: Longs, *, capped: bool) -> dict[str, Floats]:
        """The windows of `slots` (all different) by name, also by capped weights if asked. Noted for `undo`, if that is
        wanted: copies of all windows before each batch would cost as much as stepping them."""
        held = {name: getattr(self, name)[slots] for name in ("weight", "squares", *CAPPED_OF.values())}
        if capped:
            held |= {name: getattr(self, name)[slots] for name in CAPPED_OF}
        if self.journal is not None:
            self.journal.append((slots, dict(held)))
        lighter = self.lighter[slots] > 0
        for name, own in CAPPED_OF.items() if capped and not lighter.all() else ():
            by_slot = lighter.reshape(-1, *[1] * (held[own].ndim - 1))
            held[name] = np.where(by_slot, held[name], held[own])
        return held

    def spreads(self, slots: Longs) -> Spreads:
        """The spread tables of `slots`."""
        return Spreads(self.table[slots], self.profile_rows[slots])


_STREAM = ("seen", "capped", "odd", "odd_capped", "weight", "squares", "feed_sum", "feed_weight")
_NUMBERS = ("feed_sum", "feed_weight", "feed_rows", "lighter", "fired", "calm_blocks", "first_ms")
CAPPED_OF = {"capped": "seen", "odd_capped": "odd"}
"""What is by capped weights, and what the same is by own weights."""


def pack(shelf: Shelf, part: Part, parameters: bytes) -> bytes:
    """A part's state: magic, parameters, profile, shape, numbers (little-endian), ADWIN windows, callers, sha256.

    What is by capped weights is left out until a caller was over the cap, so that 20 features stay within 32 kB.
    """
    slot = part.slot
    same = not shelf.lighter[slot]
    shape = (_WINDOWS, shelf.numeric, shelf.categorical, len(part.watches))
    pieces = [
        _HEAD.pack(STATE_MAGIC, parameters, bytes.fromhex(part.profile_hash), *shape, same),
        _SLOT.pack(
            int(shelf.fired[slot]),
            int(shelf.calm_blocks[slot]),
            int(shelf.first_ms[slot]),
            float(shelf.feed_rows[slot]),
            part.since_ms,
            part.counted,
            part.per_day,
        ),
    ]
    names = [name for name in _STREAM if not (same and name in CAPPED_OF)]
    pieces += [getattr(shelf, name)[slot].astype("<f8").tobytes() for name in names]
    for state in (*(watch.save() for watch in part.watches), part.callers.saved()):
        pieces += [len(state).to_bytes(4, "little"), state]
    body = b"".join(pieces)
    return body + hashlib.sha256(body).digest()


def unpack(shelf: Shelf, part: Part, parameters: bytes, state: bytes) -> None:
    """Takes back what `pack` gave; raises StateRefused on anything else and then leaves the part as it was."""
    body, digest = state[:-_DIGEST], state[-_DIGEST:]
    if len(body) < _HEAD.size + _SLOT.size or hashlib.sha256(body).digest() != digest:
        raise StateRefused("the drift state is not what was saved")
    magic, saved_parameters, profile, windows, numeric, categorical, watches, same = _HEAD.unpack_from(body)
    if magic != STATE_MAGIC or saved_parameters != parameters:
        raise StateRefused("the drift state is of another version or of other parameters")
    if profile.hex() != part.profile_hash:
        raise StateRefused("the drift state is of another profile")
    if (windows, numeric, categorical, watches) != (_WINDOWS, shelf.numeric, shelf.categorical, len(part.watches)):
        raise StateRefused("the drift state has another shape")
    slot, at = part.slot, _HEAD.size
    fired, calm_blocks, first_ms, feed_rows, *measure = _SLOT.unpack_from(body, at)
    at += _SLOT.size
    numbers: dict[str, Floats] = {}
    for name in _STREAM:
        if same and name in CAPPED_OF:
            continue
        shape = getattr(shelf, name).shape[1:]
        size = 8 * math.prod(shape)
        if at + size > len(body):
            raise StateRefused("the drift state is cut short")
        numbers[name] = np.frombuffer(body, "<f8", math.prod(shape), at).reshape(shape)
        at += size
    if not all(bool(np.isfinite(array).all()) for array in numbers.values()):
        raise StateRefused("the drift state holds a number that is not finite")
    restored = []
    for _ in part.watches:
        size = int.from_bytes(body[at : at + 4], "little")
        restored.append(JumpWatch.load(body[at + 4 : at + 4 + size]))
        at += 4 + size
    callers = CallerCells.load(part.callers.features, body[at + 4 :])
    if at + 4 + int.from_bytes(body[at : at + 4], "little") != len(body):
        raise StateRefused("the drift state is longer than it should be")
    for name in _STREAM:
        getattr(shelf, name)[slot] = numbers[CAPPED_OF.get(name, name) if same else name]
    shelf.lighter[slot] = not same
    shelf.fired[slot], shelf.calm_blocks[slot], shelf.first_ms[slot] = fired, calm_blocks, first_ms
    shelf.feed_rows[slot] = feed_rows
    part.since_ms, part.counted, part.per_day = measure
    part.watches, part.callers = restored, callers
