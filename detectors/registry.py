"""The explicit list of detectors. To add one: a file, a line here, a scenario in the conformance suite, a row in the docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from detectors.base import Budget, Detector, LabelledAt, ReportEvent
from detectors.concept_drift import ConceptDrift
from detectors.endpoint_state import EndpointStates
from detectors.feature_drift import FeatureDrift
from detectors.health import Health
from detectors.learning import Learning
from detectors.odd_input import OddInput
from detectors.outlier_scores import Tier
from detectors.outliers import Outliers
from detectors.prediction_drift import PredictionDrift
from detectors.profile import Profile
from detectors.traffic import Traffic
from schemas.blocks import Block
from schemas.config import EndpointConfig, PolicyConfig

DETECTORS_OF_PREDICTIONS = ("feature_drift", "prediction_drift", "outliers", "odd_input", "learning")
DETECTORS_OF_REPORTS = ("traffic", "health")
DETECTORS_OF_LABELS = ("concept_drift",)


def block_detectors(policy: PolicyConfig) -> list[Detector[Block]]:
    """The default bank of the predictions log."""
    factor = policy.drift_critical_factor
    return [
        FeatureDrift(critical_factor=factor),
        PredictionDrift(critical_factor=factor),
        Outliers(),
        OddInput(),
        Learning(),
    ]


LINGER_MS = 900_000
"""A calmed subject is read so long at least; a longer `recover_for` needs twice its own."""


def report_detectors(
    endpoints: Mapping[str, EndpointConfig], recover_for_ms: int = 0
) -> tuple[list[Detector[ReportEvent]], EndpointStates]:
    """The default bank of the reports log, and what the responder must know of those endpoints."""
    linger_ms = max(LINGER_MS, 2 * recover_for_ms)
    return [Traffic(endpoints, linger_ms=linger_ms), Health(endpoints, linger_ms=linger_ms)], EndpointStates(endpoints)


def labelled_detectors(endpoints: Mapping[str, EndpointConfig], recover_for_ms: int = 0) -> list[Detector[LabelledAt]]:
    """The default bank of the log of labels."""
    return [ConceptDrift(endpoints, linger_ms=max(LINGER_MS, 2 * recover_for_ms))]


def fit(
    detectors: Iterable[Detector[Block]],
    part: str,
    profile: Profile,
    budget: Budget,
    *,
    learned: bool = False,
    outliers: Tier = "fast",
) -> None:
    """Tells the detectors that are judged against a profile which one holds for a part, its budget, whether it was
    learned from the log and not approved by anybody, and the tier in which its outliers are scored."""
    for detector in detectors:
        if isinstance(detector, FeatureDrift | PredictionDrift):
            detector.fit(part, profile, budget, learned=learned)
        elif isinstance(detector, Outliers):
            detector.fit(part, profile, budget, learned=learned, tier=outliers)


def names(detectors: Sequence[Detector[Block] | Detector[ReportEvent] | Detector[LabelledAt]]) -> tuple[str, ...]:
    return tuple(detector.name for detector in detectors)
