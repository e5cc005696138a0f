"""Is this one request strange? And does one caller, or everybody, send more strange ones than anybody did?

Each row gets a conformal p-value against the profile (`outlier_scores`). The share of rows at p <= 0.01 and p <= 0.001 is
tested for each caller, against the largest share that callers of the profile's table had and against what the others send
now, and for the endpoint, against the largest share of any stretch of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from detectors.base import Budget, LogPoint, Reading, Undo, part_of
from detectors.budget import SHARES
from detectors.outlier_batches import p_values_of
from detectors.outlier_callers import COLUMNS, MAX_CALLERS, Key, WatchedCallers
from detectors.outlier_counts import Counts, counted
from detectors.outlier_scores import OutlierScorer, Tier
from detectors.outlier_shares import (
    ALTERNATIVES,
    LEVELS,
    OTHERS_TIMES,
    USABLE,
    Odds,
    UsualShares,
    evidence,
    log_ratios,
    odds,
    step,
)
from detectors.profile import Profile
from detectors.report_state import pack, unpack
from schemas.blocks import Block, Floats, Longs
from schemas.errors import StateRefused
from schemas.events import CallerAuth
from schemas.ids import stable_id

VERSION = 5
ENDPOINT_PART = 0.1
"""Of the detector's share of the false-alarm budget, a tenth is for the endpoint as a whole, the rest over all callers."""
DISPERSION = 64.0
"""Strange rows of an endpoint come together, in a storm or on a holiday: so many rows count as one."""
ABOVE = 4.0
"""Evidence is kept at most so far above the threshold: some 20 usual rows, and the caller is calm."""
SUSPECT = 3.0
"""Evidence (nats, of the strongest part of the mixture) from which on a caller's rows are noted."""
WINDOW_ROWS = 128.0
"""Half-life of what the others send now, the block at hand included: what breaks for everybody makes the rows of all
strange at once, and some ten rows are evidence enough. Below `LEAST_OTHERS` rows there are no others."""
LEAST_OTHERS = 32.0
LEAST_BESIDE = 8.0
"""Rows of others in the very block from which on they tell what everybody sends at that moment."""
OWN_ROWS = 64.0
"""Half-life, in its own rows, of the share that is told of a caller."""
QUIET_MS = 30_000
"""A caller without a strange row for so long is calm, whatever came before; its evidence stays for when it comes back."""
LINGER_MS = 900_000
"""A caller that fired is read on for so long after its last strange row."""
UNKNOWN_EVERY_MS = 1_000
MAX_UNKNOWN_PARTS = 4_096
SHOWN_OFFSETS = 8
ATLAS = ("AML.T0043", "AML.T0015")
"""Craft Adversarial Data, Evade AI Model: of one caller. What everybody sends is no attack."""


_AUTH: dict[bool, CallerAuth] = {True: "verified", False: "claimed"}
_NOBODY = np.empty(0, np.int64)


@dataclass(slots=True)
class _Part:
    """A part with its profile. `log_r` is the endpoint's. window [2, levels + 1]: strange rows at each level, and rows, of
    verified callers and of all, each capped, faded: what nobody vouched for hides no verified caller."""

    profile_hash: str
    tier: Tier
    learned: bool
    scorer: OutlierScorer
    usual: UsualShares
    shape: tuple[int, int]
    thresholds: tuple[float, float]
    callers: WatchedCallers = field(default_factory=WatchedCallers)
    window: Floats = field(default_factory=lambda: np.zeros((2, len(LEVELS) + 1)))
    log_r: Floats = field(default_factory=lambda: np.zeros((1, len(LEVELS), len(ALTERNATIVES))))
    first_ms: int = 0

    def undo(self) -> Callable[[], None]:
        """What gives back the state of now: window and log_r are never changed in place."""
        before, callers = (self.window, self.log_r, self.first_ms), self.callers.undo()

        def back() -> None:
            self.window, self.log_r, self.first_ms = before
            callers()

        return back


class _Judged(NamedTuple):
    """A block, its part, the p-value of each row [n], and where what is said of it goes."""

    block: Block
    part: _Part
    p_values: Floats
    readings: list[Reading]


class Outliers:
    """`outliers` of rows, callers and endpoints; `Detector[Block]`, state a part (endpoint@version), at most 45 kB.

    One reading of the endpoint a block, with the p-value of each row; of callers near or over their threshold, one a
    block that closes. Severity is `warning`; `info` where the profile was learned and nobody approved it. A score is the
    logarithm of a Shiryaev-Roberts statistic, its threshold that of rows in 30 days over the alarms that are allowed.
    """

    name = "outliers"
    log: Literal["predictions", "reports"] = "predictions"

    def __init__(self) -> None:
        words = (
            VERSION,
            SHARES["outliers"],
            ENDPOINT_PART,
            LEVELS,
            ALTERNATIVES,
            DISPERSION,
            ABOVE,
            WINDOW_ROWS,
            OTHERS_TIMES,
            USABLE,
        )
        self.hash = stable_id(self.name, *map(str, words))
        self._parts: dict[str, _Part] = {}
        self._scorers: dict[tuple[str, Tier], OutlierScorer] = {}
        self._unknown_at: dict[str, int] = {}

    def fit(self, part: str, profile: Profile, budget: Budget, *, learned: bool = False, tier: Tier = "fast") -> None:
        """Puts `profile` in force for `part`; with the same one in the same tier the state stays. A profile without a
        section of outliers leaves the part unknown."""
        if profile.outliers is None:
            self.forget(part)
            return
        key = (profile.hash, tier)
        held = self._parts.get(part)
        if held is not None and (held.profile_hash, held.tier) == key:
            held.learned, held.thresholds = learned, _thresholds(budget)
            return
        if key not in self._scorers:
            self._scorers[key] = OutlierScorer(profile.outliers.model, tier)
        self._parts[part] = _Part(
            *key,
            learned,
            self._scorers[key],
            profile.outliers.usual(tier),
            (len(profile.numeric), len(profile.categorical)),
            _thresholds(budget),
        )
        if held is not None:
            self._tidy()

    def update(self, batch: Sequence[Block]) -> list[Reading]:
        """Readings of `batch`, blocks in log order; for a part without its profile one that is not `known` a second."""
        parts = [self._parts.get(part_of(block.endpoint, block.version)) for block in batch]
        pairs = list(zip(batch, parts, strict=True))
        scorers = [part.scorer if part is not None and _fits(part, block) else None for block, part in pairs]
        found: list[list[Reading]] = []
        judged: list[_Judged] = []
        for (block, part), p_values in zip(pairs, p_values_of(batch, scorers), strict=True):
            if part is None or p_values is None:
                found.append(self._unknown(block, part is not None))
            else:
                found.append([])
                judged.append(_Judged(block, part, p_values, found[-1]))
        if judged:
            self._judge(judged)
        return [reading for readings in found for reading in readings]

    def snapshot(self, part: str) -> bytes:
        held = self._parts.get(part)
        if held is None:
            return b""
        callers, columns = held.callers.saved()
        values = {"profile": held.profile_hash, "callers": callers, "first_ms": held.first_ms}
        endpoint = {"window": held.window, "endpoint_log_r": held.log_r.reshape(1, -1)}
        return pack(self._hash_in(held.tier), values, {**endpoint, **columns})

    def restore(self, part: str, state: bytes) -> None:
        """Takes back a snapshot of `part`, which must have been fitted with the same profile and tier; else StateRefused."""
        if not state:
            return
        held = self._parts.get(part)
        tier: Tier = "fast" if held is None else held.tier
        values, columns = unpack(self._hash_in(tier), state, {"window": "<f8", "endpoint_log_r": "<f8", **COLUMNS})
        if held is None or values.get("profile") != held.profile_hash:
            raise StateRefused(f"{part} has no such profile here: the state of its outliers means nothing")
        window, log_r = columns.pop("window"), columns.pop("endpoint_log_r")
        callers = WatchedCallers.of(values.get("callers", []), columns)
        if (
            window.shape != held.window.shape
            or log_r.size != held.log_r.size
            or type(values.get("first_ms")) is not int
        ):
            raise StateRefused("saved outliers are of another shape")
        held.callers, held.window, held.log_r = callers, window, log_r.reshape(held.log_r.shape)
        held.first_ms = values["first_ms"]

    def undo(self, parts: Sequence[str]) -> Undo:
        """See `Reversible`."""
        backs = {name: part.undo() for name in parts if (part := self._parts.get(name)) is not None}
        return lambda name: backs[name]() if name in backs else self.forget(name)

    def forget(self, part: str) -> None:
        """Drops the part's state and profile."""
        if self._parts.pop(part, None) is not None:
            self._tidy()

    def _tidy(self) -> None:
        used = {(part.profile_hash, part.tier) for part in self._parts.values()}
        self._scorers = {key: scorer for key, scorer in self._scorers.items() if key in used}

    def _hash_in(self, tier: Tier) -> str:
        """The detector in one of its tiers."""
        return self.hash if tier == "fast" else stable_id(self.hash, tier)

    def _judge(self, judged: Sequence[_Judged]) -> None:
        """Readings of blocks that their part's profile judges: of the endpoints all together, then of callers."""
        blocks, parts, p_values, readings = zip(*judged, strict=True)
        counts = counted(blocks, [part.usual.levels for part in parts], p_values)
        after = _endpoint_evidence(parts, counts)
        scores = evidence(after).tolist()
        for k, (block, part, of_block) in enumerate(zip(blocks, parts, counts, strict=True)):
            part.log_r = after[k : k + 1]
            readings[k].append(self._of_endpoint(block, part, of_block, scores[k]))
            at, slots = self._watched(block, part, of_block)
            _slide(block, part, of_block, at, slots)
            if len(at):
                self._count_callers(block, part, of_block, at, slots)
            readings[k].extend(self._of_callers(block, part))

    @staticmethod
    def _watched(block: Block, part: _Part, counts: Counts) -> tuple[Longs, Longs]:
        """The callers of a block that are watched, or have a strange row in it and now are: places in the block, slots."""
        callers = part.callers
        if not callers.slots and not counts.strange:
            return _NOBODY, _NOBODY
        auth = [_AUTH[known] for known in block.verified.tolist()]
        if counts.strange:
            callers.admit([(block.callers[k], auth[k]) for k in counts.strange])
        slots = list(map(callers.slots.get, zip(block.callers, auth, strict=True)))
        found = [(k, slot) for k, slot in enumerate(slots) if slot is not None]
        both = np.array(found, np.int64).reshape(-1, 2)
        both = both[counts.rows[both[:, 0]] > 0]
        return both[:, 0], both[:, 1]

    @staticmethod
    def _count_callers(block: Block, part: _Part, counts: Counts, at: Longs, slots: Longs) -> None:
        """Evidence against callers at places `at` of a block, in `slots`."""
        watched, columns = part.callers, part.callers.columns
        hits, rows = counts.hits[at], counts.rows[at]
        others = OTHERS_TIMES * np.maximum(_others(part, slots), _beside(block, counts, at))
        usual = part.usual.callers_odds
        if (others > part.usual.callers).any():
            usual = odds(np.maximum(part.usual.callers, others))
        log_r = columns["log_r"][slots]
        before = log_r.max(axis=(1, 2))
        log_r = step(log_r, log_ratios(hits, rows, usual), part.thresholds[0] + ABOVE)
        columns["log_r"][slots] = log_r
        fade = 0.5 ** (rows / OWN_ROWS)
        columns["strange"][slots] = columns["strange"][slots] * fade[:, None] + hits
        columns["rows"][slots] = columns["rows"][slots] * fade + rows
        is_strange = hits.any(axis=1)
        columns["last_ms"][slots[is_strange]] = block.closed_ms
        begins = is_strange & ((before < 1.0) | (columns["first_ms"][slots] == 0))
        columns["first_ms"][slots[begins]] = int(block.broker_ts[0])
        for place in np.flatnonzero(log_r.max(axis=(1, 2)) >= SUSPECT).tolist():
            own = np.flatnonzero(block.caller == at[place])
            watched.note(int(slots[place]), counts.p_values[own], block.offsets[own])

    def _of_callers(self, block: Block, part: _Part) -> list[Reading]:
        threshold = part.thresholds[0]
        columns = part.callers.columns
        readings = []
        for key, slot, score in part.callers.suspects(threshold / 2):
            silent_ms = block.closed_ms - int(columns["last_ms"][slot])
            firing = score >= threshold and silent_ms <= QUIET_MS
            columns["fired"][slot] |= firing
            if not firing and silent_ms > LINGER_MS:
                columns["fired"][slot] = 0
                if score < SUSPECT:
                    part.callers.drop(key)
                continue
            calm = not firing and (score < threshold / 2 or silent_ms > QUIET_MS)
            readings.append(self._caller_reading(block, part, (key, slot, score), firing=firing, calm=calm))
        return readings

    def _caller_reading(
        self, block: Block, part: _Part, suspect: tuple[Key, int, float], *, firing: bool, calm: bool
    ) -> Reading:
        (name, auth), slot, score = suspect
        columns = part.callers.columns
        level = int(np.argmax(columns["log_r"][slot].max(axis=1)))
        rows = max(float(columns["rows"][slot]), 1e-9)
        recent = columns["recent_p"][slot]
        shown = recent[recent > 0]
        offsets = columns["recent_offset"][slot][(recent > 0) & (recent <= part.usual.levels[level])]
        return self._reading(
            block,
            part,
            subject_kind="caller",
            subject=name,
            caller_auth=auth,
            score=score,
            threshold=part.thresholds[0],
            firing=firing,
            calm=calm,
            first_ms=int(columns["first_ms"][slot]),
            shares=((name, auth, 1.0),),
            evidence={
                "strange_share": float(columns["strange"][slot, level]) / rows,
                "usual_share": float(part.usual.callers[level]),
                "p_at_most": float(part.usual.levels[level]),
                "median_p": float(np.median(shown)) if len(shown) else 1.0,
                "rows": rows,
                "offsets": offsets[-SHOWN_OFFSETS:].tolist(),
            },
            atlas=ATLAS,
        )

    def _of_endpoint(self, block: Block, part: _Part, counts: Counts, score: float) -> Reading:
        threshold = part.thresholds[1]
        firing, calm = score >= threshold, score < threshold / 2
        first_ms = part.first_ms if part.first_ms and not calm else int(block.broker_ts[0])
        part.first_ms = 0 if calm else first_ms
        share = [] if calm else (counts.total[:-1] / max(counts.served, 1e-9)).tolist()
        return self._reading(
            block,
            part,
            subject_kind="endpoint",
            subject=block.endpoint,
            score=score,
            threshold=threshold,
            firing=firing,
            calm=calm,
            first_ms=first_ms,
            shares=_shares(block, counts) if firing else (),
            evidence={} if calm else {"strange_shares": share, "usual_shares": list(part.usual.of_endpoint)},
            p_values=tuple(counts.p_values.astype(np.float32).tolist()),
        )

    def _reading(self, block: Block, part: _Part, **said: Any) -> Reading:
        learned = {"profile": "learned"} if part.learned and not said["calm"] else {}
        return Reading(
            detector=self.name,
            detector_hash=self._hash_in(part.tier),
            kind="outliers",
            endpoint=block.endpoint,
            version=block.version,
            severity="info" if part.learned else "warning",
            at=LogPoint.closing(block),
            **{**said, "evidence": {**said["evidence"], **learned}},
        )

    def _unknown(self, block: Block, fitted: bool) -> list[Reading]:
        """`unknown` for a block that cannot be judged, at most one a second of log time a part."""
        name = part_of(block.endpoint, block.version)
        last = self._unknown_at.pop(name, None)
        if last is not None and last <= block.closed_ms < last + UNKNOWN_EVERY_MS:
            self._unknown_at[name] = last
            return []
        self._unknown_at[name] = block.closed_ms
        if len(self._unknown_at) > MAX_UNKNOWN_PARTS:
            del self._unknown_at[next(iter(self._unknown_at))]
        features = block.numeric.shape[1] + block.categorical.shape[1]
        reason = "other_profile" if fitted else "profile_without_outliers" if block.profile_hash else "no_profile"
        if block.profile_hash == "" and features:
            reason = "learning"
        return [
            Reading(
                detector=self.name,
                detector_hash=self.hash,
                kind="outliers",
                endpoint=block.endpoint,
                version=block.version,
                subject_kind="endpoint",
                subject=block.endpoint,
                score=0.0,
                threshold=0.0,
                firing=False,
                calm=False,
                severity="info",
                at=LogPoint.closing(block),
                first_ms=int(block.broker_ts[0]),
                known=False,
                evidence={"reason": reason},
            )
        ]


def _thresholds(budget: Budget) -> tuple[float, float]:
    """Of callers, and of the endpoint: ln of the rows to an alarm."""
    share = budget.alarms_per_row * SHARES["outliers"]
    of_callers, of_endpoint = (max(-math.log(share * part), 3.0) for part in (1 - ENDPOINT_PART, ENDPOINT_PART))
    return of_callers, of_endpoint


def _fits(part: _Part, block: Block) -> bool:
    """Whether the block was decoded by the profile that is in force."""
    return block.profile_hash == part.profile_hash and part.shape == (
        block.numeric.shape[1],
        block.categorical.shape[1],
    )


def _endpoint_evidence(parts: Sequence[_Part], counts: Sequence[Counts]) -> Floats:
    """log_r of the endpoint after each of m blocks [m, levels, alternatives]: those of one part one after the other."""
    odds_of = [part.usual.endpoint_odds for part in parts]
    at = Odds(np.stack([each.strange for each in odds_of]), np.stack([each.other for each in odds_of]))
    hits, rows = np.stack([each.total[:-1] for each in counts]), np.array([each.served for each in counts])
    ratios = log_ratios(hits, rows, at) / DISPERSION
    most = np.array([part.thresholds[1] + ABOVE for part in parts])[:, None, None]
    after = np.concatenate([part.log_r for part in parts])
    turns: list[tuple[list[int], list[int]]] = []
    seen: dict[int, tuple[int, int]] = {}
    for k, part in enumerate(parts):
        turn, before = seen.get(id(part), (0, k))
        seen[id(part)] = (turn + 1, k)
        if turn == len(turns):
            turns.append(([], []))
        turns[turn][0].append(k)
        turns[turn][1].append(before)
    for places, ones_before in turns:
        after[places] = step(after[ones_before], ratios[places], most[places])
    return after


def _slide(block: Block, part: _Part, counts: Counts, at: Longs, slots: Longs) -> None:
    """The block joins what the others send: each caller at most at its cap."""
    fade = 0.5 ** (len(block) / WINDOW_ROWS)
    part.window = part.window * fade + np.stack([counts.verified, counts.total])
    if not part.callers.slots:
        return  # a slot that somebody gets is emptied first
    columns = part.callers.columns
    columns["capped_strange"] *= fade
    columns["capped_rows"] *= fade
    if len(at):
        columns["capped_strange"][slots] += counts.sums[at, :-1]
        columns["capped_rows"][slots] += counts.sums[at, -1]


def _others(part: _Part, slots: Longs) -> Floats:
    """The share of strange rows [slots, level] of everybody but the caller of each slot; to a verified caller, everybody
    are the verified ones."""
    columns = part.callers.columns
    window = part.window[(slots >= MAX_CALLERS).astype(np.int64)]
    rows = window[:, -1] - columns["capped_rows"][slots]
    hits = np.maximum(window[:, :-1] - columns["capped_strange"][slots], 0.0)
    return np.where((rows >= LEAST_OTHERS)[:, None], hits / np.maximum(rows, 1.0)[:, None], 0.0)


def _beside(block: Block, counts: Counts, at: Longs) -> Floats:
    """As `_others`, of callers at places `at` [m] of a block, in this block alone [m, level]: what breaks for everybody
    breaks at once, before any window knows it."""
    among = np.where(block.verified[at, None], counts.verified, counts.total)
    rest = np.maximum(among - counts.sums[at], 0.0)
    rows = rest[:, -1:]
    return np.where(rows >= LEAST_BESIDE, rest[:, :-1] / np.maximum(rows, 1.0), 0.0)


def _shares(block: Block, counts: Counts) -> tuple[tuple[str, Any, float], ...]:
    """Callers by their share of the block's strange rows, heaviest first, at most 20."""
    strange = counts.hits[:, -1]
    total = float(strange.sum())
    if total <= 0:
        return ()
    ranked = sorted(range(len(block.callers)), key=lambda k: (-strange[k], block.callers[k]))[:20]
    return tuple(
        (block.callers[k], "verified" if block.verified[k] else "claimed", float(strange[k]) / total)
        for k in ranked
        if strange[k]
    )
