"""Did the outputs move? Label mix, score and confidence of a version against what its profile says that it answers.

The test is that of `feature_drift`, over a view of each block whose columns are the model's outputs: the same two
windows, thresholds from the order of the table, caps on callers' weight, and evidence. ADWIN does not look on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from detectors.base import Budget, LogPoint, Reading, Undo, part_of
from detectors.caller_weights import of_a_model, row_weights
from detectors.feature_drift import FeatureDrift
from detectors.profile import CONFIDENCE, SCORE, Profile
from schemas.blocks import ROUTE_CODES, Block, Floats
from schemas.ids import stable_id
from schemas.signals import Evidence

VERSION = 1
TOP_LABELS = 5
_REFUSED = ROUTE_CODES["refused"]
_COLUMNS = {SCORE: "value", CONFIDENCE: "confidence"}


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a part is judged against. `profile_hash`: of the profile that its blocks are decoded by; `numeric`: the block's
    fields of the outputs that are numbers."""

    profile_hash: str
    outputs: Profile
    outputs_hash: str
    numeric: tuple[str, ...]


class PredictionDrift:
    """Prediction drift of many endpoints; `Detector[Block]`, state a part (`endpoint@version`).

    Rows count that a model of the version answered (`primary`, `probe`, or a version by name) without an error: a fallback's
    answers are another model's, and during a fallback only probes speak. Fires, calms down and is `critical` as
    `feature_drift` is. A part whose profile has no outputs is `unknown`. 4 kB a part.
    """

    name = "prediction_drift"
    log: Literal["predictions", "reports"] = "predictions"

    def __init__(self, critical_factor: float = 5.0) -> None:
        self._drift = FeatureDrift(critical_factor, "prediction_drift")
        self.hash = stable_id(self.name, VERSION, self._drift.hash)
        self._references: dict[str, _Reference] = {}

    def fit(self, part: str, profile: Profile, budget: Budget, *, learned: bool = False) -> None:
        """Puts the outputs of `profile` in force for `part`, if it has any; see `FeatureDrift.fit`."""
        if profile.outputs is None:
            self.forget(part)
            return
        outputs = profile.outputs
        numeric = tuple(_COLUMNS[each.name] for each in outputs.numeric)
        self._references[part] = _Reference(profile.hash, outputs, outputs.hash, numeric)
        self._drift.fit(part, outputs, budget, learned=learned)

    def update(self, batch: Sequence[Block]) -> list[Reading]:
        """Readings of `batch`, blocks in log order: one a block of a part with outputs; else one that is not `known` a
        second."""
        views = [self._view(block) for block in batch]
        readings = self._drift.update(views)
        if all(reading.known and not reading.firing for reading in readings):
            return readings
        view_at = {(view.endpoint, view.version, LogPoint.closing(view)): view for view in views}
        return [
            reading
            if reading.known and not reading.firing
            else self._explained(reading, view_at[reading.endpoint, reading.version or "", reading.at])
            for reading in readings
        ]

    def snapshot(self, part: str) -> bytes:
        """The part's state, or b"" for a part without outputs in its profile."""
        return self._drift.snapshot(part)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back a snapshot of `part`, which must have been fitted with the same outputs; else StateRefused."""
        self._drift.restore(part, state)

    def undo(self, parts: Sequence[str]) -> Undo:
        """See `Reversible`."""
        return self._drift.undo(parts)

    def forget(self, part: str) -> None:
        """Drops the part's state and reference."""
        self._references.pop(part, None)
        self._drift.forget(part)

    def _view(self, block: Block) -> Block:
        """The block with its outputs in the place of features, and rows without an answer of a model as refused: they weigh
        nothing. A block of no such part as it is, which the test does not know."""
        reference = self._references.get(part_of(block.endpoint, block.version))
        if reference is None or block.profile_hash != reference.profile_hash:
            return block
        answered = of_a_model(block)
        return replace(
            block,
            profile_hash=reference.outputs_hash,
            numeric=_side_by_side([getattr(block, name) for name in reference.numeric], len(block)),
            categorical=block.label[:, None] if reference.outputs.categorical else np.empty((len(block), 0), np.int32),
            served_by=block.served_by if answered.all() else np.where(answered, block.served_by, _REFUSED),
        )

    def _explained(self, reading: Reading, view: Block) -> Reading:
        """Says what the test cannot know: that a profile has no outputs; which labels came how often."""
        reference = self._references.get(part_of(view.endpoint, view.version))
        evidence: dict[str, Any] = dict(reading.evidence)
        if not reading.known:
            if reference is None and view.profile_hash:
                evidence["reason"] = "no_outputs_in_profile"
            return replace(reading, evidence=evidence)
        if "features" in evidence:
            evidence["outputs"] = evidence.pop("features")
        if reading.subject_kind == "endpoint" and reference is not None and reference.outputs.categorical:
            evidence |= _label_mix(view, reference.outputs)
        return replace(reading, evidence=evidence)


def _side_by_side(columns: Sequence[Floats], rows: int) -> Floats:
    if len(columns) == 1:
        return columns[0][:, None]
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0))


def _label_mix(view: Block, outputs: Profile) -> Evidence:
    """The labels whose share in the block is furthest from the profile's, beside what the profile says."""
    (labels,) = outputs.categorical
    weight = row_weights([view])[0]
    known = (view.label >= 0) & (view.label < len(labels.categories))
    total = max(float(weight.sum()), 1e-300)
    observed = np.bincount(view.label[known], weight[known], minlength=len(labels.categories)) / total
    expected = np.array(labels.category_rates)
    top = np.argsort(-np.abs(observed - expected), kind="stable")[:TOP_LABELS].tolist()
    return {
        "labels": [labels.categories[k] for k in top],
        "observed_shares": [float(observed[k]) for k in top],
        "expected_shares": [float(expected[k]) for k in top],
    }
