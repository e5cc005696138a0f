"""One scenario a detector: what the suite puts it through. A detector of the registry without one fails the suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectors.bank import Bank, place_of_block, place_of_label, place_of_report
from detectors.base import Budget, Detector, part_of
from detectors.learning import Learning
from detectors.registry import block_detectors, fit, labelled_detectors, report_detectors
from detectors.schema_vote import SCHEMA_ROWS
from palisade.settings import default_policy
from schemas.blocks import BLOCK_ROWS, Block, RowId
from schemas.config import EndpointConfig
from schemas.signals import SignalKind
from tests.conformance import logs
from tests.detectors.report_makers import START_MS

PLACES: dict[str, Any] = {
    "predictions": place_of_block,
    "reports": place_of_report,
    "labelled": place_of_label,
}
BUDGET = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""


@dataclass(frozen=True)
class Scenario:
    """`make` gives the detector, cold, ready for `parts`. `planted` changes at its event `change_at`, which must raise
    `fires` within `within` events. `lacking` is too little to know anything. `many(first, count)` names other subjects.
    `hostile` is what may come, `impossible` what decoding keeps away."""

    make: Callable[[], Detector[Any]]
    parts: tuple[str, ...]
    quiet: Callable[[], Sequence[Any]]
    planted: Callable[[], Sequence[Any]]
    change_at: int
    fires: tuple[SignalKind, ...]
    within: int
    hostile: Callable[[], Sequence[Any]]
    lacking: Callable[[], Sequence[Any]]
    many: Callable[[int, int], Sequence[Any]]
    impossible: Callable[[], Sequence[Any]] = list

    def bank(self) -> Bank[Any]:
        detector = self.make()
        return Bank([detector], PLACES[detector.log], 2_000)


def _block_detector(name: str) -> Callable[[], Detector[Any]]:
    def make() -> Detector[Any]:
        (found,) = [detector for detector in block_detectors(default_policy()) if detector.name == name]
        for endpoint in logs.ENDPOINTS:
            fit([found], part_of(endpoint, "v1"), logs.profile(), BUDGET)
        return found

    return make


def _report_detector(name: str) -> Callable[[], Detector[Any]]:
    def make() -> Detector[Any]:
        detectors, _ = report_detectors({endpoint: EndpointConfig(name=endpoint) for endpoint in logs.ENDPOINTS})
        (found,) = [detector for detector in detectors if detector.name == name]
        return found

    return make


def _concept_drift() -> Detector[Any]:
    (found,) = labelled_detectors({endpoint: EndpointConfig(name=endpoint) for endpoint in logs.ENDPOINTS})
    return found


def _learning() -> Detector[Any]:
    """Both endpoints' versions have voted on their schema."""
    learning = Learning(rows=40 * BLOCK_ROWS, at_least_ms=60_000)
    for endpoint in logs.ENDPOINTS:
        learning.admit(endpoint, "v1", START_MS)
        for at, features in enumerate(logs.rows_of_profile(SCHEMA_ROWS)):
            learning.vote(part_of(endpoint, "v1"), RowId(at - SCHEMA_ROWS, 0), features)
        learning.decide(part_of(endpoint, "v1"))
    return learning


def _unprofiled(blocks: Sequence[Block]) -> list[Block]:
    return [replace(block, profile_hash="") for block in blocks]


SCENARIOS: dict[str, Scenario] = {
    "learning": Scenario(
        make=_learning,
        parts=tuple(part_of(endpoint, "v1") for endpoint in logs.ENDPOINTS),
        quiet=logs.unprofiled_blocks,
        planted=lambda: logs.unprofiled_blocks(one_caller=True),
        change_at=2 * 40 - 2,  # the table is complete, and then it is known that one caller made it
        fires=("learning",),
        within=1,
        hostile=lambda: _unprofiled(logs.hostile_blocks()),
        lacking=lambda: logs.unprofiled_blocks()[:20],
        many=logs.blocks_of_many,
        impossible=lambda: _unprofiled(logs.impossible_blocks()),
    ),
    "odd_input": Scenario(
        make=_block_detector("odd_input"),
        parts=tuple(part_of(endpoint, "v1") for endpoint in logs.ENDPOINTS),
        quiet=logs.quiet_blocks,
        planted=logs.odd_blocks,
        change_at=logs.BLOCK_CHANGE,
        fires=("odd_input",),
        within=12,
        hostile=logs.hostile_blocks,
        lacking=lambda: [replace(logs.block(k * 256), profile_hash="") for k in range(20)],
        many=logs.blocks_of_many,
        impossible=logs.impossible_blocks,
    ),
    "outliers": Scenario(
        make=_block_detector("outliers"),
        parts=tuple(part_of(endpoint, "v1") for endpoint in logs.ENDPOINTS),
        quiet=logs.quiet_blocks,
        planted=logs.strange_blocks,
        change_at=logs.BLOCK_CHANGE,
        fires=("outliers",),
        within=14,
        hostile=logs.hostile_blocks,
        lacking=lambda: [logs.block(k * 256, version="nobody-profiled-it") for k in range(20)],
        many=logs.blocks_of_many,
        impossible=logs.impossible_blocks,
    ),
    "feature_drift": Scenario(
        make=_block_detector("feature_drift"),
        parts=tuple(part_of(endpoint, "v1") for endpoint in logs.ENDPOINTS),
        quiet=logs.quiet_blocks,
        planted=logs.planted_blocks,
        change_at=logs.BLOCK_CHANGE,
        fires=("feature_drift",),
        within=2,
        hostile=logs.hostile_blocks,
        lacking=lambda: [logs.block(k * 256, version="nobody-profiled-it") for k in range(20)],
        many=logs.blocks_of_many,
        impossible=logs.impossible_blocks,
    ),
    "prediction_drift": Scenario(
        make=_block_detector("prediction_drift"),
        parts=tuple(part_of(endpoint, "v1") for endpoint in logs.ENDPOINTS),
        quiet=logs.quiet_blocks,
        planted=logs.constant_blocks,
        change_at=logs.BLOCK_CHANGE,
        fires=("prediction_drift",),
        within=2,
        hostile=logs.hostile_blocks,
        lacking=lambda: [logs.block(k * 256, version="nobody-profiled-it") for k in range(20)],
        many=logs.blocks_of_many,
        impossible=logs.impossible_blocks,
    ),
    "traffic": Scenario(
        make=_report_detector("traffic"),
        parts=logs.ENDPOINTS,
        quiet=logs.quiet_reports,
        planted=logs.planted_reports,
        change_at=3 * logs.REPORT_CHANGE,
        fires=("caller_rate",),
        within=3,
        hostile=logs.hostile_reports,
        lacking=lambda: logs.quiet_reports()[:24],
        many=logs.reports_of_many,
    ),
    "health": Scenario(
        make=_report_detector("health"),
        parts=logs.ENDPOINTS,
        quiet=logs.quiet_reports,
        planted=logs.planted_reports,
        change_at=3 * (logs.REPORT_CHANGE + 8),
        fires=("errors",),
        within=6,
        hostile=logs.hostile_reports,
        lacking=lambda: logs.quiet_reports()[:24],
        many=logs.reports_of_many,
    ),
    "concept_drift": Scenario(
        make=_concept_drift,
        parts=logs.ENDPOINTS,
        quiet=logs.quiet_labels,
        planted=logs.planted_labels,
        change_at=logs.LABEL_CHANGE,
        fires=("concept_drift",),
        within=200,
        hostile=logs.hostile_labels,
        lacking=lambda: logs.quiet_labels()[:500],
        many=logs.labels_of_many,
    ),
}
