"""Which callers moved the inputs: cell histograms of the heaviest ones, as they usually are and since an alarm began.

Two questions, and only two yeses name a caller. Is the shift gone without these callers (`attribution`)? And did they
change, against what they themselves used to send? The second keeps a changed mix of unchanged callers from being
anybody's doing: a shift of a whole is its parts' own changes plus the change of their shares (Kitagawa 1955), and the
first must make up half of it. A caller without a past is held against `NEWCOMER_SHARE` of the training table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.attribution import LEAST_OTHERS, Answer, Attribution, attribute
from detectors.caller_weights import row_weights
from detectors.cells import CELLS, NUMERIC_BELOW, CellNumbers, categorical_cells
from detectors.drift_resolution import told_cells
from schemas.blocks import Block, Floats
from schemas.errors import StateRefused
from schemas.events import CallerAuth

MAX_CALLERS, MAX_BYTES = 8, 16_384
"""Callers whose cells are kept: eight, fewer with more than 21 features (2 kB each at 20), none with more than 170. While
an alarm lasts it takes as much once more, 2 kB for all others, and 2 kB for each accused."""
ALL_CLAIMED: tuple[str, CallerAuth] = ("", "claimed")
"""Those whom nobody authenticated count as one, here as in the statistic, and cannot be named."""
SAMPLE_EVERY = 16
"""Of calm blocks the 4th, the 8th and every 16th teach what is usual: 250 us each, so 0.5 % of what blocks cost."""
USUAL_ROWS, RECENT_ROWS, OWN_ROWS = 4_096.0, 2_048.0, 256.0
"""Rows after which the sampled past, what came since the alarm, and an accused caller's own rows have faded to 1/e."""
LEAST_USUAL_ROWS = 64.0
NEWCOMER_SHARE = 0.02
"""A caller without a past may be all that so large a part of the training table can have been, whatever that was."""
OWN_LEAST, OWN_CALM = 0.2, 0.1
"""A caller changed where one in five of its rows lies elsewhere than usual beyond chance, and is as usual again at one
in ten."""
MIX_MOST = 0.5
"""At least so much of a shift must be the named callers' own change."""
COARSE_SHARE = 0.03
SURE = 16.0
"""Strength times rows a feature: four standard errors between a shift that is there and one that is not."""
LEADING = 5
LINGER_MS = 900_000
"""A caller that was named is read on for so long after it calmed down or fell silent."""
FLOAT = np.float32

Cells32 = npt.NDArray[np.float32]
Key = tuple[str, CallerAuth]


class Reference(NamedTuple):
    """What the profile says: cell `edges` [numeric, EDGES], `expected` shares [features, CELLS], and the `grid` of values [2,
    numeric], origins and steps."""

    edges: Floats
    expected: Floats
    grid: Floats


class Sight(NamedTuple):
    """Rows of a block by caller [callers + 1, the last is all others]: cells [.., features, CELLS], weight, squares."""

    cells: Floats
    weight: Floats
    squares: Floats
    present: int


@dataclass(slots=True)
class Accused:
    """A caller that was named: its own rows since, the features it moved, and what was answered then. `by_grid`: it only took
    them off their grid."""

    key: Key
    own: Cells32
    own_weight: float
    features: tuple[int, ...]
    answer: Answer
    share: float
    first_ms: int
    heard_ms: int
    calm_since_ms: int | None = None
    score: float = 0.0
    by_grid: bool = False


@dataclass(slots=True)
class _Since:
    """What came since an alarm began: cells [callers + 1, features, CELLS], the last of all others."""

    cells: Cells32
    weight: Floats
    squares: Floats


@dataclass(slots=True)
class CallerCells:
    """State of one part. `usual` [callers, features, CELLS] of calm blocks; `since` while an alarm is not over."""

    features: int
    keys: list[Key] = field(default_factory=list)
    usual: Cells32 = field(default_factory=lambda: np.zeros((0, 0, CELLS), FLOAT))
    usual_rows: list[float] = field(default_factory=list)
    all_rows: float = 0.0
    calm_blocks: int = 0
    since: _Since | None = None
    accused: list[Accused] = field(default_factory=list)
    most: int = field(init=False)
    """Callers that are kept."""

    def __post_init__(self) -> None:
        self.most = min(MAX_CALLERS, MAX_BYTES // max(4 * self.features * CELLS, 1))
        self.usual = np.zeros((self.most, self.features, CELLS), FLOAT)

    def follow(
        self, block: Block, reference: Reference, by_feature: Floats, *, by_grid: bool, alarm: bool, calm: bool
    ) -> tuple[Attribution | None, list[Accused]]:
        """Takes a block: who moved the inputs, at an `alarm`; and the accused who sent rows, with the `score` of their
        rows now. `calm`: the alarm is over, and nothing is out. `by_feature` [features] says which moved most, `by_grid`
        that it is only values off their grid that did."""
        if self.most == 0:
            return None, []
        if calm:
            self.since = None
            self.calm_blocks += 1
        learns = calm and not self.accused and (self.calm_blocks in (4, 8) or self.calm_blocks % SAMPLE_EVERY == 0)
        gathers = not calm and (alarm or self.since is not None)
        if not (learns or gathers or self.accused):
            return None, []
        self._part_with_the_past()
        sight, expected = self._sight(block, reference), reference.expected
        if learns:
            self._learn(sight)
        if gathers:
            self._gather(sight)
        heard = self._judge(sight, expected, block.closed_ms)
        before = len(self.accused)
        found = None
        if alarm:
            shift = (leading(by_feature, LEADING), by_grid)
            found = self._attributed(expected, *shift, sight.present, block.closed_ms)
        return found, heard + self.accused[before:]

    def undo(self) -> Callable[[], None]:
        """What gives back the state of now."""
        before = [getattr(self, name) for name in _STATE]

        def back() -> None:
            for name, value in zip(_STATE, before, strict=True):
                setattr(self, name, value)

        return back

    def _part_with_the_past(self) -> None:
        """Copies of all that changes in place: `undo` keeps what it was."""
        self.keys, self.usual_rows, self.usual = list(self.keys), list(self.usual_rows), self.usual.copy()
        self.accused = [replace(each) for each in self.accused]
        if self.since is not None:
            self.since = _Since(self.since.cells.copy(), self.since.weight.copy(), self.since.squares.copy())

    def _learn(self, sight: Sight) -> None:
        many, rows = len(self.keys), float(sight.weight.sum())
        fade = math.exp(-rows / USUAL_ROWS)
        self.usual[:many] = self.usual[:many] * FLOAT(fade) + sight.cells[:many].astype(FLOAT)
        self.usual_rows = [held * fade + float(sight.weight[k]) for k, held in enumerate(self.usual_rows)]
        self.all_rows = self.all_rows * fade + rows

    def _gather(self, sight: Sight) -> None:
        if self.since is None:
            self.since = _Since(np.zeros(sight.cells.shape, FLOAT), *np.zeros((2, self.most + 1)))
        fade = math.exp(-float(sight.weight.sum()) / RECENT_ROWS)
        self.since.cells = self.since.cells * FLOAT(fade) + sight.cells.astype(FLOAT)
        self.since.weight = self.since.weight * fade + sight.weight
        self.since.squares = self.since.squares * fade * fade + sight.squares

    def _attributed(self, expected: Floats, features: list[int], by_grid: bool, present: int, ms: int) -> Attribution:
        """Who moved `features` since the alarm began, or only took them off their grid. Who is named is accused from here on."""
        unclear = Attribution("unclear", (), np.zeros(self.most), math.nan)
        if self.since is None:
            return unclear
        shift = _Shift.of(self.since, expected, features, by_grid=by_grid)
        if not shift.sure(shift.rows):
            return unclear
        found = attribute(shift.brought()[: len(self.keys)], shift.left, present)
        own, changes = 0.0, []
        for k in found.named:
            mean = shift.mean(k)
            usual = self._usual(k, shift.expected, shift.leading, mean)
            own += shift.own(k, mean - usual, self._usual_share(k))
            changes.append(_beyond(mean, usual, shift.rows_of([k]), self._usual_rows(k)))
        if found.named and not (min(changes) >= OWN_LEAST and own >= MIX_MOST * shift.strength):
            return Attribution("unclear", (), found.shares, found.left)
        for k, change in zip(found.named, changes, strict=True):
            if self.keys[k] != ALL_CLAIMED:
                self._accuse(k, shift, found, change, ms)
        return found

    def _judge(self, sight: Sight, expected: Floats, ms: int) -> list[Accused]:
        """The accused who sent rows, those rows taken in; those long calm or silent are let go."""
        heard: list[Accused] = []
        for each in list(self.accused):
            k = self.keys.index(each.key)
            if sight.weight[k] > 0:
                self._hear(each, k, sight, expected, ms)
                heard.append(each)
            each.heard_ms = min(each.heard_ms, ms)  # the broker's clock may have been set back
            each.calm_since_ms = None if each.calm_since_ms is None else min(each.calm_since_ms, ms)
            since = each.heard_ms if each.calm_since_ms is None else each.calm_since_ms
            if ms - since > LINGER_MS:
                self.accused.remove(each)
        return heard

    def _hear(self, each: Accused, k: int, sight: Sight, expected: Floats, ms: int) -> None:
        fade = math.exp(-float(sight.weight[k]) / OWN_ROWS)
        each.own = each.own * FLOAT(fade) + sight.cells[k].astype(FLOAT)
        each.own_weight = each.own_weight * fade + float(sight.weight[k])
        leading = list(each.features)
        mean = each.own[leading].astype(np.float64) / each.own_weight
        usual = self._usual(k, expected[leading], leading, mean)
        each.score = _beyond(mean, usual, each.own_weight, self._usual_rows(k))
        each.heard_ms = ms
        if each.score > OWN_CALM:
            each.calm_since_ms = None
        elif each.calm_since_ms is None:
            each.calm_since_ms = ms

    def _accuse(self, k: int, shift: _Shift, found: Attribution, change: float, ms: int) -> None:
        assert self.since is not None
        share, features = float(found.shares[k]), tuple(shift.leading)
        for each in self.accused:
            if each.key == self.keys[k]:
                each.answer, each.share, each.features = found.answer, share, features
                each.by_grid = shift.by_grid
                return
        weight = float(self.since.weight[k])
        least = min(1.0, OWN_ROWS / weight)
        own = self.since.cells[k] * FLOAT(least)
        self.accused.append(
            Accused(
                self.keys[k],
                own,
                weight * least,
                features,
                found.answer,
                share,
                ms,
                ms,
                score=change,
                by_grid=shift.by_grid,
            )
        )

    def _usual(self, k: int, expected: Floats, leading: list[int], mean: Floats) -> Floats:
        """What is usual of caller k in the leading features [leading, CELLS]: its own past; of one without a past, what
        lies nearest to its `mean` now among all that `NEWCOMER_SHARE` of the training table can have been."""
        if self.usual_rows[k] >= LEAST_USUAL_ROWS:
            return np.asarray(self.usual[k, leading].astype(np.float64) / self.usual_rows[k])
        near = np.minimum(mean, expected / NEWCOMER_SHARE)
        rest = np.maximum(1.0 - near.sum(axis=1, keepdims=True), 0.0)  # rounding may take `mean` above 1
        return np.asarray(near + rest * expected)

    def _usual_share(self, k: int) -> float:
        """Caller k's usual share of the traffic; 1 of one without a past."""
        return self.usual_rows[k] / self.all_rows if self.usual_rows[k] >= LEAST_USUAL_ROWS else 1.0

    def _usual_rows(self, k: int) -> float:
        return self.usual_rows[k] if self.usual_rows[k] >= LEAST_USUAL_ROWS else math.inf

    def _sight(self, block: Block, reference: Reference) -> Sight:
        weight = row_weights([block])[0]
        weight *= np.count_nonzero(weight) / max(float(weight.sum()), 1e-300)  # as many as there are rows, if sampled
        auth = block.verified.tolist()
        names: list[Key] = [
            (name, "verified") if known else ALL_CLAIMED for name, known in zip(block.callers, auth, strict=True)
        ]
        by_caller = np.bincount(block.caller, weight, minlength=len(names))
        heavy: dict[Key, float] = {}
        for name, some in zip(names, by_caller.tolist(), strict=True):
            heavy[name] = heavy.get(name, 0.0) + some
        self._admit(heavy)
        place = {key: k for k, key in enumerate(self.keys)}
        of_row = np.array([place.get(name, self.most) for name in names], np.int64)[block.caller]
        numeric = told_cells(block.numeric.T, reference.edges, reference.grid)
        cells: CellNumbers = np.concatenate([numeric, categorical_cells(block.categorical.T)])
        index = (of_row[None] * self.features + np.arange(self.features)[:, None]) * CELLS + cells
        size = (self.most + 1) * self.features * CELLS
        sums: Floats = np.bincount(index.ravel(), np.broadcast_to(weight, index.shape).ravel(), size).astype(np.float64)
        return Sight(
            sums.reshape(self.most + 1, self.features, CELLS),
            np.bincount(of_row, weight, self.most + 1).astype(np.float64),
            np.bincount(of_row, weight * weight, self.most + 1).astype(np.float64),
            sum(some > 0 for some in heavy.values()),
        )

    def _admit(self, heavy: dict[Key, float]) -> None:
        """Gives the heaviest callers of a block a place; the lightest by its past gives way to one heavier now."""
        total = sum(heavy.values())
        held = {each.key for each in self.accused}
        for key, weight in sorted(heavy.items(), key=lambda item: (-item[1], item[0]))[: self.most]:
            if key in self.keys or weight <= 0:
                continue
            if len(self.keys) < self.most:
                self.keys.append(key)
                self.usual_rows.append(0.0)
                continue
            free = [k for k in range(self.most) if self.keys[k] not in held and heavy.get(self.keys[k], 0.0) < weight]
            if not free:
                break
            k = min(free, key=lambda k: (self.usual_rows[k], k))
            if self.usual_rows[k] * total >= weight * self.all_rows:
                break
            self.keys[k], self.usual_rows[k], self.usual[k] = key, 0.0, 0.0
            if self.since is not None:  # what the old one sent is among all others from here on
                for array in (self.since.cells, self.since.weight, self.since.squares):
                    array[self.most] += array[k]
                    array[k] = 0.0

    def saved(self) -> bytes:
        """The state as bytes: a JSON head and its length, then float32 (little-endian)."""
        arrays = [self.usual[: len(self.keys)], *(each.own for each in self.accused)]
        since = None
        if self.since is not None:
            since = [self.since.weight.tolist(), self.since.squares.tolist()]
            arrays.append(self.since.cells)
        named = [[getattr(each, name) for name in _SAVED] for each in self.accused]
        head = json.dumps([self.keys, self.usual_rows, self.all_rows, self.calm_blocks, since, named]).encode()
        return len(head).to_bytes(4, "little") + head + b"".join(a.astype("<f4").tobytes() for a in arrays)

    @classmethod
    def load(cls, features: int, state: bytes) -> CallerCells:
        """What `saved` gave; raises StateRefused on anything else."""
        held, at = cls(features), 4 + int.from_bytes(state[:4], "little")

        def cells(many: int) -> Cells32:
            nonlocal at
            count = many * features * CELLS
            found = np.frombuffer(state, "<f4", count, at).reshape(many, features, CELLS).astype(FLOAT)
            if not np.isfinite(found).all():
                raise ValueError("a number is not finite")
            at += 4 * count
            return found

        try:
            keys, usual_rows, all_rows, calm_blocks, since, named = json.loads(state[4:at])
            held.keys, held.usual_rows = [_key(key) for key in keys], [float(rows) for rows in usual_rows]
            held.all_rows, held.calm_blocks = float(all_rows), int(calm_blocks)
            if not len(held.keys) == len(held.usual_rows) <= held.most:
                raise ValueError("it holds too many callers")
            held.usual[: len(held.keys)] = cells(len(held.keys))
            held.accused = [_accused(fields, cells(1)[0]) for fields in named]
            if any(each.key not in held.keys for each in held.accused):
                raise ValueError("an accused caller is unknown")
            if since is not None:
                weight, squares = (np.array(column, dtype=np.float64).reshape(held.most + 1) for column in since)
                held.since = _Since(cells(held.most + 1), weight, squares)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise StateRefused(f"the callers of a drift state cannot be read: {error}") from error
        if at != len(state):
            raise StateRefused("the callers of a drift state are longer than they should be")
        return held


_STATE = ("keys", "usual", "usual_rows", "all_rows", "calm_blocks", "since", "accused")
_SAVED = (
    "key", "own_weight", "features", "answer", "share", "first_ms", "heard_ms", "calm_since_ms", "score",
    "by_grid",
)  # fmt: skip


def leading(by_feature: Floats, most: int) -> list[int]:
    """The features that moved at least half as far as the first one by `by_feature` [features], first ones first."""
    ranked = np.argsort(-by_feature, kind="stable")[:most].tolist()
    return [f for f in ranked if by_feature[f] >= 0.5 * by_feature[ranked[0]]]


class _Shift(NamedTuple):
    """A shift of the leading features: deviations `moved` [leading, CELLS] of all rows since the alarm began from
    `expected`, `inverse` their weights (`by_grid` only of the cell that holds what is off the grid), `strength` their
    weighted square without what chance adds."""

    since: _Since
    leading: list[int]
    expected: Floats
    moved: Floats
    inverse: Floats
    noise: float
    strength: float
    rows: float
    by_grid: bool

    @classmethod
    def of(cls, since: _Since, expected: Floats, leading: Sequence[int], *, by_grid: bool) -> _Shift:
        some = list(leading)
        weight, squares = float(since.weight.sum()), float(since.squares.sum())
        rows = weight * weight / max(squares, 1e-300)
        usual = expected[some]
        moved = since.cells[:, some].sum(axis=0, dtype=np.float64) / max(weight, 1e-300) - usual
        inverse = 1.0 / np.maximum(usual, COARSE_SHARE)
        if by_grid:  # a season moves the other cells, and is everybody's
            inverse[:, np.arange(CELLS) != NUMERIC_BELOW] = 0.0
        noise = float((usual * (1.0 - usual) * inverse).sum())
        strength = float((moved * moved * inverse).sum()) - noise / max(rows, 1.0)
        return cls(since, some, usual, moved, inverse, noise, strength, rows, by_grid)

    def sure(self, rows: float) -> bool:
        """Whether so many rows can tell this shift from none."""
        return rows >= LEAST_OTHERS and rows * self.strength >= SURE * len(self.leading)

    def mean(self, k: int) -> Floats:
        """Cell shares [leading, CELLS] of what one caller sent."""
        cells = self.since.cells[k, self.leading].astype(np.float64)
        return np.asarray(cells / max(float(self.since.weight[k]), 1e-300))

    def brought(self) -> Floats:
        """How much of the shift each brought [callers + 1]: its rows' deviation along it, by their weight."""
        weight = np.maximum(self.since.weight, 1e-300)
        away = self.since.cells[:, self.leading].astype(np.float64) / weight[:, None, None] - self.expected
        along = (away * self.moved * self.inverse).sum(axis=(1, 2))
        return np.asarray(along * self.since.weight / max(float(self.since.weight.sum()), 1e-300))

    def own(self, k: int, change: Floats, most: float) -> float:
        """How much of the shift caller k's own `change` of cell shares [leading, CELLS] would be at its share of the
        traffic, `most` at most: what its growth adds is a change of the mix."""
        share = min(float(self.since.weight[k] / self.since.weight.sum()), most)
        return float((change * self.moved * self.inverse).sum() * share)

    def rows_of(self, callers: Sequence[int]) -> float:
        """Effective rows of callers."""
        some = list(callers)
        weight, squares = float(self.since.weight[some].sum()), float(self.since.squares[some].sum())
        return weight * weight / squares if squares > 0 else 0.0

    def left(self, named: Sequence[int]) -> float | None:
        """The shift among all others, as a part of the shift of all."""
        others = [k for k in range(len(self.since.weight)) if k not in set(named)]
        rows, weight = self.rows_of(others), float(self.since.weight[others].sum())
        if not self.sure(rows):
            return None
        mean = self.since.cells[others][:, self.leading].sum(axis=0, dtype=np.float64) / weight
        along = float(((mean - self.expected) * self.moved * self.inverse).sum())
        shared = weight / float(self.since.weight.sum()) * self.noise / rows  # the noise that both have in common
        return (along - shared) / self.strength


def _beyond(mean: Floats, usual: Floats, rows: float, usual_rows: float) -> float:
    """The largest share of rows, over features, that lies elsewhere than `usual` [features, CELLS] beyond what chance
    moves: total variation, less its mean between samples of so many rows."""
    chance = np.sqrt(usual * np.maximum(1.0 - usual, 0.0) * (1.0 / max(rows, 1.0) + 1.0 / usual_rows) / (2.0 * math.pi))
    away = np.maximum(mean - usual, 0.0).sum(axis=1) - chance.sum(axis=1)
    return float(np.maximum(away, 0.0).max())


def _key(saved: Any) -> Key:
    name, auth = saved
    return (str(name), "verified") if auth == "verified" else ALL_CLAIMED


def _accused(saved: Any, own: Cells32) -> Accused:
    key, weight, features, answer, share, first_ms, heard_ms, calm_since_ms, score, by_grid = saved
    said: Answer = "few_callers" if answer == "few_callers" else "one_caller"
    calm_since = None if calm_since_ms is None else int(calm_since_ms)
    places = tuple(int(f) for f in features)
    if not float(weight) > 0 or not places or not all(0 <= f < len(own) for f in places):
        raise ValueError("an accused caller has no rows or no features")
    return Accused(
        _key(key),
        own,
        float(weight),
        places,
        said,
        float(share),
        int(first_ms),
        int(heard_ms),
        calm_since,
        float(score),
        bool(by_grid),
    )
