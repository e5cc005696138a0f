"""How an endpoint's false-alarm budget is split over all that may alarm, so that what the user states is a bound.

By the union bound the chance of any alarm is at most the sum of the shares. The sum stays below 1 by `RESERVE`: drift's
thresholds rest on some tens of events of one table each.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from schemas.signals import SignalKind

RESERVE: Final = 0.1
SHARES: Final[Mapping[SignalKind, float]] = MappingProxyType(
    {
        "feature_drift": 0.24,
        "adaptive_drift": 0.03,
        "prediction_drift": 0.10,
        "concept_drift": 0.05,
        "outliers": 0.10,
        "caller_rate": 0.20,
        "endpoint_rate": 0.04,
        "silence": 0.02,
        "errors": 0.04,
        "timeouts": 0.04,
        "latency": 0.04,
    }
)
"""Parts of the budget by kind of signal. What is not here takes nothing: it is certain, or says what the product lacks.

Callers' rates get much because a small share costs most there: their limit is a quantile of Student's t, which grows by a
power of the share, while drift's thresholds grow by its logarithm."""
