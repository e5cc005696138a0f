"""Did the inputs leave the training profile?

An anchored test, cell histograms over a short and a long window against the profile, sequential over blocks; over the
same windows, whether values keep to the grid that they had in the table (`drift_resolution`); and river's ADWIN on
block means, which knows only the stream itself. Thresholds come from the profile's calibration in the order of its
table, and from the endpoint's false-alarm budget.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from detectors.adwin import DELTA, FEED_ROWS, JumpWatch
from detectors.attribution import Attribution
from detectors.base import Budget, LogPoint, Reading, Undo, part_of
from detectors.budget import SHARES
from detectors.caller_weights import MIN_CAP
from detectors.cells import CELLS
from detectors.drift_blocks import Sums, feed_ready, sums
from detectors.drift_callers import OWN_CALM, OWN_LEAST, Accused, Reference
from detectors.drift_evidence import (
    accused_evidence,
    attributed_evidence,
    breadth_of,
    evidence_of,
    jump_evidence,
    moved_by_caller,
    shares_of,
)
from detectors.drift_resolution import NEAR, odd_scores
from detectors.drift_shelf import Part, Shelf, pack, unpack
from detectors.drift_steps import Windows, keep, stepped
from detectors.drift_verdicts import FIRED_SHORT, Looks, Scores, Verdicts
from detectors.drift_windows import WINDOW_ROWS, divergence, relative, scores
from detectors.profile import AIMED, GROSS_SHARE, LOOK_ROWS, RESOLUTION_SHARE, Profile
from schemas.blocks import Block, Floats, Longs
from schemas.errors import StateRefused
from schemas.events import CallerAuth
from schemas.signals import Evidence

VERSION = 7
DriftKind = Literal["feature_drift", "prediction_drift"]
CALM_BLOCKS = 2
"""Blocks within the profile's range after which what came before them leaves the long window."""
TOGETHER = 32
"""Blocks stepped at once: with 20 features their windows are 0.25 MB, which stays in the second-level cache."""
WARNING_SHARE = 0.5
"""At half the critical factor times the largest in the profile, in either window, it is a warning whatever the score: or
further out, where the profile says that chance comes so far."""
UNKNOWN_EVERY_MS = 1000
MAX_UNKNOWN_PARTS = 4096
"""Parts without a profile whose last `unknown` is remembered; above it the longest silent one is forgotten."""


class FeatureDrift:
    """Feature drift of many endpoints; `Detector[Block]`, state a part (`endpoint@version`). As `prediction_drift` it says
    the same of blocks and profiles whose columns are a model's outputs (`PredictionDrift`), and spends that kind's share.

    A block fires when its score, -ln of the chance of so far a stretch in the training table's own order, passes the
    threshold of the part's budget, or its statistic is above half of `critical_factor` times the largest in the
    profile and further out than chance comes in that budget; severity is `critical` where the short window's is above all
    of it and the block by itself is above half of it too, else `warning`. It is calm when both windows are as usual as
    95 % of the profile's blocks.
    A caller who moves it alone, or with at most four others, has readings of its own (`drift_callers`): also one whose
    rows move the endpoint by their own weight and not by the capped one, so that nobody hides behind the cap.
    20 features take about 42 kB a part, up to 60 kB while callers are over the weight cap and 80 kB while it fires.
    """

    name: str = "feature_drift"
    log: Literal["predictions", "reports"] = "predictions"

    def __init__(self, critical_factor: float = 5.0, kind: DriftKind = "feature_drift") -> None:
        self.critical_factor = critical_factor
        self.name, self.kind = kind, kind
        words = (self.name, VERSION, critical_factor, WINDOW_ROWS, CALM_BLOCKS, MIN_CAP, CELLS, DELTA, FEED_ROWS)
        shares = (SHARES[kind], SHARES["adaptive_drift"], AIMED, GROSS_SHARE, RESOLUTION_SHARE, NEAR)
        self._digest = hashlib.sha256(repr((*words, *shares)).encode()).digest()
        self.hash = self._digest.hex()
        self._shelves: dict[tuple[int, int], Shelf] = {}
        self._parts: dict[str, Part] = {}
        self._unknown_at: dict[str, int] = {}

    def fit(self, part: str, profile: Profile, budget: Budget, *, learned: bool = False) -> None:
        """Puts `profile` in force for `part`. With the same profile the state stays and only the budget is taken.
        `learned` from the log: nobody approved it, so drift from it is never more than a warning."""
        profile_hash = profile.hash
        held = self._parts.get(part)
        if held is not None and held.profile_hash == profile_hash:
            held.learned = learned
            held.set_budget(budget)
            self._shelf(held).set_budget(held.slot, profile, held.budget)
            return
        self.forget(part)
        shape = (len(profile.numeric), len(profile.categorical))
        shelf = self._shelves.get(shape)
        if shelf is None:
            shelf = self._shelves[shape] = Shelf(*shape, SHARES[self.kind])
        fitted = Part(shelf.take(profile, budget), profile, profile_hash, budget, learned)
        fitted.watches = [JumpWatch() for tail in shelf.watched[fitted.slot] if tail >= 0]
        fitted.set_budget(budget)
        self._parts[part] = fitted

    def update(self, batch: Sequence[Block]) -> list[Reading]:
        """Readings of `batch`, blocks in log order: one of its kind a block, one `adaptive_drift` whenever ADWIN
        was fed (about each 256 rows); for a part without its profile one that is not `known` a second."""
        found: list[list[Reading]] = [[] for _ in batch]
        shelved: dict[tuple[int, int], list[int]] = {}
        for at, block in enumerate(batch):
            part = self._parts.get(part_of(block.endpoint, block.version))
            if part is None or not _fits(part, block):
                found[at] = self._unknown(block)
            else:
                shelved.setdefault((len(part.profile.numeric), len(part.profile.categorical)), []).append(at)
        for shape, places in shelved.items():
            try:
                self._update_shelf(self._shelves[shape], batch, places, found)
            finally:
                self._shelves[shape].journal = None
                for at in places:
                    self._parts[part_of(batch[at].endpoint, batch[at].version)].unfed = None
        return [reading for readings in found for reading in readings]

    def snapshot(self, part: str) -> bytes:
        """The part's state (see `pack`), or b"" for a part without a profile."""
        held = self._parts.get(part)
        return b"" if held is None else pack(self._shelf(held), held, self._digest)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back a snapshot of `part`, which must have been fitted with the same profile; else StateRefused."""
        if not state:
            return
        held = self._parts.get(part)
        if held is None:
            raise StateRefused(f"{part} has no profile here: the state of its drift detector means nothing")
        unpack(self._shelf(held), held, self._digest, state)
        self._take_budget(held)

    def undo(self, parts: Sequence[str]) -> Undo:
        """See `Reversible`."""
        shelved: dict[Shelf, list[str]] = {}
        for name in parts:
            if (held := self._parts.get(name)) is not None:
                shelved.setdefault(self._shelf(held), []).append(name)
        backs: dict[str, Callable[[], None]] = {}
        for shelf, names in shelved.items():
            of_slot = shelf.undo(np.array([self._parts[name].slot for name in names]))
            for k, name in enumerate(names):
                backs[name] = partial(
                    self._back, shelf, self._parts[name], self._parts[name].undo(), partial(of_slot, k)
                )
        return lambda name: backs[name]() if name in backs else self.forget(name)

    @staticmethod
    def _back(shelf: Shelf, part: Part, of_part: Callable[[], None], of_slot: Callable[[], None]) -> None:
        of_slot()
        of_part()
        shelf.set_budget(part.slot, part.profile, part.budget)

    def forget(self, part: str) -> None:
        """Drops the part's state and profile."""
        held = self._parts.pop(part, None)
        if held is not None:
            self._shelf(held).give_back(held.slot)

    def _take_budget(self, part: Part) -> None:
        """Thresholds for the part's budget at the event rate that was measured."""
        part.set_budget(part.budget)
        self._shelf(part).set_budget(part.slot, part.profile, part.budget)

    def _shelf(self, part: Part) -> Shelf:
        return self._shelves[len(part.profile.numeric), len(part.profile.categorical)]

    def _update_shelf(
        self, shelf: Shelf, batch: Sequence[Block], places: Sequence[int], found: list[list[Reading]]
    ) -> None:
        blocks = [batch[at] for at in places]
        parts = [self._parts[part_of(block.endpoint, block.version)] for block in blocks]
        slots = np.array([part.slot for part in parts])
        measured = sums(blocks, shelf, slots)
        judged = np.flatnonzero(measured.rows)
        for first in range(0, len(judged), TOGETHER):
            left = judged[first : first + TOGETHER]
            while len(left):
                left = self._advance(shelf, blocks, parts, measured, left, [found[at] for at in places])
        for at in np.flatnonzero(measured.rows == 0).tolist():
            found[places[at]] = self._unknown(blocks[at])

    def _advance(
        self,
        shelf: Shelf,
        blocks: Sequence[Block],
        parts: Sequence[Part],
        measured: Sums,
        which: Longs,
        found: Sequence[list[Reading]],
    ) -> Longs:
        """Steps the blocks `which`, in the order of the log, and says what they say. Returns those that are to be stepped
        again: before them, one of their own part changed what they are judged by."""
        slots = np.array([parts[at].slot for at in which.tolist()])
        windows = stepped(shelf, slots, measured, which)
        looks = self._looks(shelf, slots, measured.rows[which], windows)
        last: dict[int, int] = {}
        stopped: dict[int, bool] = {}
        again: list[int] = []
        for k, at in enumerate(which.tolist()):
            block, part = blocks[at], parts[at]
            if part.slot in stopped:
                again.append(at)
                continue
            last[part.slot] = k
            verdicts, renewed = self._judged(shelf, part.slot, looks, k)
            fed = self._feed(shelf, part.slot, measured, at)
            who, accused = self._callers(block, part, shelf, verdicts, k)
            found[at].append(self._reading(block, part, shelf, measured, at, verdicts, k, who))
            found[at].extend([self._caller_reading(block, part, each) for each in accused])
            if fed:
                found[at].extend(self._adapt(block, part, shelf))
            remeasured = part.measured(len(block), int(block.broker_ts[0]), block.closed_ms)
            if remeasured:
                self._take_budget(part)  # for the part's next block
            if renewed or remeasured:
                stopped[part.slot] = renewed
        keep(shelf, windows, list(last.values()), [last[slot] for slot, anew in stopped.items() if anew])
        return np.array(again, np.int64)

    def _looks(self, shelf: Shelf, slots: Longs, rows: Floats, windows: Windows) -> Looks:
        """What the windows say after each block."""
        after, effective = windows.after, windows.effective
        by_weight = after["weight"][:, :, None, None]
        expected, seen = shelf.expected[slots][:, None], after["seen"] / by_weight
        fair = after["capped"] / by_weight if "capped" in after else None
        far, moved = divergence(seen, fair, expected, effective)
        level, scale, shape, largest = shelf.spreads(slots).at(effective)
        threshold, quiet = _at_size((shelf.threshold[slots], shelf.calm[slots]), rows)
        odd_of = {"most": shelf.most_odd[slots], "threshold": threshold, "features": far.shape[2]}
        own_found = found = Scores(
            scores(far, level, scale, shape), odd_scores(after["odd"], after.get("odd_capped"), **odd_of)
        )
        # Somebody is over the cap: does what is seen leave the profile where the fair part does not?
        if fair is not None:
            own, _ = divergence(seen, None, expected, effective)
            own_found = Scores(scores(own, level, scale, shape), odd_scores(after["odd"], None, **odd_of))
        statistic = relative(
            moved,
            expected,
            largest,
            (shelf.alien[slots][:, None], shelf.missing[slots][:, None]),
            (shelf.alien_most[slots][:, None], shelf.missing_most[slots][:, None]),
            effective,
        ).max(axis=2)
        # So far out that no training block came near is an alarm whatever the score: a tail fitted to weather has no end.
        limit = np.maximum(shelf.gross[slots], WARNING_SHARE * self.critical_factor)
        return Looks(rows, threshold, quiet, limit, found, own_found, statistic)

    @staticmethod
    def _judged(shelf: Shelf, slot: int, looks: Looks, k: int) -> tuple[Verdicts, bool]:
        """Entry and exit at the k-th block: the verdicts it is one of, and whether the part's long window begins anew."""
        recent_calm, usual = looks.calm[k]
        calm_blocks = int(shelf.calm_blocks[slot]) + 1 if recent_calm else 0
        shelf.calm_blocks[slot] = calm_blocks
        # After an alarm of the short window the long one would stay far out for thousands of rows: two usual blocks, and
        # it begins anew. An alarm of the long window alone is of what single blocks do not show: it fades by itself.
        was = int(shelf.fired[slot])
        renewed = was == FIRED_SHORT and calm_blocks >= CALM_BLOCKS and not usual
        verdicts = looks.of_short if renewed else looks.of_both
        shelf.fired[slot] = 0 if verdicts.calm[k] else max(0 if renewed else was, verdicts.out[k])
        return verdicts, renewed

    @staticmethod
    def _callers(
        block: Block, part: Part, shelf: Shelf, verdicts: Verdicts, k: int
    ) -> tuple[Attribution | None, list[Accused]]:
        """Who moves the inputs, where they moved, and the callers that are read on."""
        slot, now = part.slot, {"alarm": verdicts.alarm[k], "calm": verdicts.settled[k]}
        reference = Reference(shelf.edges[slot], shelf.expected[slot], np.stack([shelf.origin[slot], shelf.step[slot]]))
        by_feature, by_grid = verdicts.own_lead.of(k)
        return part.callers.follow(block, reference, by_feature, by_grid=by_grid, **now)

    def _caller_reading(self, block: Block, part: Part, accused: Accused) -> Reading:
        """Of a caller that moved the endpoint's inputs: how much of what it sends is not as it used to be. Who only took them
        off their grid may as well round otherwise since: that is told, and limits nobody."""
        name, auth = accused.key
        return self._endpoint_reading(
            block,
            subject_kind="caller",
            subject=name,
            caller_auth=auth,
            score=accused.score,
            threshold=OWN_LEAST,
            firing=accused.score > OWN_LEAST,
            calm=accused.score <= OWN_CALM,
            severity="info" if part.learned or accused.by_grid else "warning",
            first_ms=accused.first_ms,
            shares=((name, auth, accused.share),),
            evidence=accused_evidence(part, accused) | ({"profile": "learned"} if part.learned else {}),
        )

    def _reading(
        self,
        block: Block,
        part: Part,
        shelf: Shelf,
        measured: Sums,
        at: int,
        verdicts: Verdicts,
        k: int,
        who: Attribution | None,
    ) -> Reading:
        calm, firing, statistic = verdicts.calm[k], verdicts.firing[k], verdicts.statistic[k]
        begun = int(shelf.first_ms[part.slot])
        first_ms = begun if begun and not calm else int(block.broker_ts[0])
        shelf.first_ms[part.slot] = 0 if calm else first_ms
        own = measured.seen[at]
        # The window remembers a flood that is over: what acts on everybody must show in the block itself, whose callers
        # the breadth below speaks of.
        least = WARNING_SHARE * self.critical_factor
        gross = firing and statistic > self.critical_factor and self._alone(shelf, part.slot, measured, at) > least
        shares: tuple[tuple[str, CallerAuth, float], ...] = ()
        more: Evidence = {}
        if firing:
            by_feature, by_grid = verdicts.lead.of(k)
            moved = moved_by_caller(block, shelf, part, own, by_feature, by_grid=by_grid)
            shares = shares_of(block, moved)
            more = evidence_of(block, shelf, part, own, verdicts.by_feature[k], verdicts.off_grid[k])
            more = {**more, **breadth_of(block, moved)}
            if who is not None:
                more = {**more, **attributed_evidence(part, who)}
        return self._endpoint_reading(
            block,
            score=verdicts.score[k],
            threshold=verdicts.threshold[k],
            firing=firing,
            calm=calm,
            severity="critical" if gross and not part.learned else "warning",
            first_ms=first_ms,
            shares=shares,
            evidence={
                **more,
                "block_statistic": statistic,
                "critical_at": self.critical_factor,
                "rows": int(verdicts.rows[k]),
                **({"profile": "learned"} if part.learned else {}),
            },
        )

    @staticmethod
    def _alone(shelf: Shelf, slot: int, measured: Sums, at: int) -> float:
        """The statistic of one block without what came before it, in units of the largest in the profile."""
        weight = float(measured.weight[at])
        if weight <= 0 or measured.squares[at] <= 0:
            return 0.0
        rows = np.array([weight * weight / float(measured.squares[at])])
        expected = shelf.expected[slot][None]
        fair = measured.capped[at][None] / weight if measured.over[at] else None
        _, moved = divergence(measured.seen[at][None] / weight, fair, expected, rows)
        _, _, _, largest = shelf.spreads(np.array([slot])).at(rows[:, None])
        groups = (shelf.alien[slot][None], shelf.missing[slot][None])
        most = (shelf.alien_most[slot][None], shelf.missing_most[slot][None])
        return float(relative(moved, expected, largest[:, 0], groups, most, rows).max())

    def _feed(self, shelf: Shelf, slot: int, measured: Sums, at: int) -> bool:
        """Gathers the rows of a block for ADWIN's means; whether the part's mean is ready."""
        if self.kind == "prediction_drift":
            return False
        shelf.feed_sum[slot] += measured.value_sum[at]
        shelf.feed_weight[slot] += measured.value_weight[at]
        if not measured.value_weight[at].any():
            return False
        shelf.feed_rows[slot] += measured.rows[at]
        return feed_ready(float(shelf.feed_rows[slot]))

    def _adapt(self, block: Block, part: Part, shelf: Shelf) -> list[Reading]:
        """Feeds the gathered means to ADWIN. Never more than a warning: it forgets the training data by design."""
        slot = part.slot
        weight, total = shelf.feed_weight[slot].tolist(), shelf.feed_sum[slot].tolist()
        shelf.restart_feed(slot)
        watched = range(len(part.watches))
        jumps = part.jumps([total[k] / weight[k] if weight[k] > 0 else None for k in watched])
        score = max(jump / most for jump, most in zip(jumps, part.jump_thresholds, strict=True))
        firing = score > 1.0
        return [
            self._endpoint_reading(
                block,
                kind="adaptive_drift",
                score=score,
                threshold=1.0,
                firing=firing,
                calm=not firing,
                severity="warning",
                evidence=jump_evidence(shelf, part, jumps) if firing else {},
            )
        ]

    def _unknown(self, block: Block) -> list[Reading]:
        """`unknown` for a block that cannot be judged, at most one a second of log time a part."""
        part = part_of(block.endpoint, block.version)
        last = self._unknown_at.pop(part, None)
        if last is not None and last <= block.closed_ms < last + UNKNOWN_EVERY_MS:
            self._unknown_at[part] = last
            return []
        self._unknown_at[part] = block.closed_ms
        if len(self._unknown_at) > MAX_UNKNOWN_PARTS:
            del self._unknown_at[next(iter(self._unknown_at))]
        reason = "no_profile" if block.profile_hash == "" else "nothing_to_judge"
        if block.profile_hash == "" and block.numeric.shape[1] + block.categorical.shape[1]:
            reason = "learning"  # decoded by a schema that no profile gave
        return [self._endpoint_reading(block, known=False, evidence={"reason": reason})]

    def _endpoint_reading(
        self, block: Block, kind: DriftKind | Literal["adaptive_drift"] | None = None, **said: Any
    ) -> Reading:
        """A reading of the block's endpoint, or what else is `said`; what is not said is that of an unknown one."""
        unsaid = {"score": 0.0, "threshold": 0.0, "firing": False, "calm": False, "severity": "info"}
        unsaid |= {"subject_kind": "endpoint", "subject": block.endpoint}
        return Reading(
            detector=self.name,
            detector_hash=self.hash,
            kind=kind or self.kind,
            endpoint=block.endpoint,
            at=LogPoint.closing(block),
            version=block.version,
            **{**unsaid, "first_ms": int(block.broker_ts[0]), **said},
        )


def _fits(part: Part, block: Block) -> bool:
    """Whether the block was decoded by the profile that is in force."""
    return (
        block.profile_hash == part.profile_hash
        and block.numeric.shape[1] == len(part.profile.numeric)
        and block.categorical.shape[1] == len(part.profile.categorical)
    )


def _at_size(tables: Sequence[Floats], rows: Floats) -> list[Floats]:
    """Scores of `tables` [m, LOOK_ROWS] for blocks of `rows` [m]: on a line over ln rows. Smaller blocks look more
    often: below the first size each look has the chance of one of that size, and the score that makes up for it."""
    smaller = np.log(LOOK_ROWS[0] / np.maximum(rows, 1.0))
    inside = np.minimum(np.maximum(smaller / math.log(LOOK_ROWS[0] / LOOK_ROWS[1]), 0.0), 1.0)
    more = np.maximum(smaller, 0.0)
    return [table[:, 0] + inside * (table[:, 1] - table[:, 0]) + more for table in tables]
