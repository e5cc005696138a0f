"""What detectors conclude: signals, and what the responder must know of an endpoint."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.events import MAX_COUNT, CallerAuth
from schemas.wire import Column, Id, Millis, Wire, Word

_LowCardinality = Column("LowCardinality(String)")
_Json = Column("String")

SignalState = Literal["opened", "updated", "recovered", "unknown"]
SubjectKind = Literal["endpoint", "caller", "group", "model_version", "source"]
Severity = Literal["info", "warning", "critical"]
SEVERITY_ORDER: dict[str, int] = {"info": 0, "warning": 1, "critical": 2}

SignalKind = Literal[
    "feature_drift",
    "adaptive_drift",
    "prediction_drift",
    "concept_drift",
    "outliers",
    "caller_rate",
    "endpoint_rate",
    "silence",
    "errors",
    "timeouts",
    "latency",
    "odd_input",
    "learning",
    "unknown_endpoint",
    "unknown_version",
    "detector_failed",
    "data_lost",
    "lag",
]
MAX_SHARES = 20
MAX_GUARD_SHARES = 64
"""Guards that a split of limits names; the rest share what is left evenly."""
Evidence = dict[str, float | int | str | bool | list[float | int | str | None] | None]

GuardShares = dict[Id, Annotated[float, Field(ge=0, le=1)]]
"""How much of a limit each guard admits."""


class CallerShare(Wire):
    """How much of a signal's evidence one caller brought: 0 to 1."""

    caller: Id
    caller_auth: CallerAuth = "claimed"
    share: float


class Signal(Wire):
    """A detector's statement about a subject, at a row of one log.

    `signal_id` = H(detector hash, kind, endpoint, version, subject, its identity, state, incident, seq, severity, first_ms, topic,
    partition, offset, row): equal in each replay, and another one where a detector that lost its state says something else.
    `incident_id` is the first signal's id and stays through `opened`, `updated`, `recovered`; `seq` counts within it.
    `first_ms` is the log's time of the first evidence, `at_ms` of the row that closed the crossing block or report.
    `usual_rate` and `rate` (events/s) are given where the subject is a caller.
    """

    KIND: ClassVar[str] = "signal"

    signal_id: Id
    incident_id: Id
    state: Annotated[SignalState, _LowCardinality]
    seq: int = Field(ge=0)
    detector: Word
    detector_hash: Id
    kind: Annotated[SignalKind, _LowCardinality]
    endpoint: Word
    version: Word | None = None
    subject_kind: Annotated[SubjectKind, _LowCardinality]
    subject: Id
    caller_auth: Annotated[CallerAuth | None, _LowCardinality] = None
    severity: Annotated[Severity, _LowCardinality]
    score: float
    threshold: float
    usual_rate: float | None = None
    rate: float | None = None
    shares: Annotated[list[CallerShare], _Json] = Field(default_factory=list, max_length=MAX_SHARES)
    evidence: Annotated[Evidence, _Json] = Field(default_factory=dict)
    atlas: list[str] = Field(default_factory=list)
    first_ms: Millis
    at_ms: Millis
    log_topic: Word
    log_partition: int
    log_offset: int
    log_row: int = 0


class KnockingCaller(Wire):
    """A limited caller that still asks."""

    caller: Id
    caller_auth: CallerAuth = "claimed"
    asked_per_s: float = Field(allow_inf_nan=False)


class EndpointState(Wire):
    """What the responder must know of an endpoint: each second under action or incident, else on change and every 8 s.

    `active_callers` are the callers by name of the last minute; `median_caller_rate` is events/s of the median one.
    `good_probes` counts probes of the primary that went well since the last one that did not. `guard_shares`: how much of
    a limit each live guard is to admit, by what it was asked; they sum to at most 1, and the most asked 64 are named.
    """

    KIND: ClassVar[str] = "endpoint_state"

    endpoint: Word
    at_ms: Millis
    guards_live: int = Field(0, ge=0, le=MAX_COUNT)
    epoch_applied: int = 0
    fallback_ok: bool = False
    killed: bool = False
    live_version: Word = "default"
    asked_per_s: float = Field(0.0, allow_inf_nan=False)
    active_callers: int = Field(0, ge=0, le=MAX_COUNT)
    median_caller_rate: float = Field(0.0, allow_inf_nan=False)
    good_probes: int = 0
    knocking: Annotated[list[KnockingCaller], _Json] = Field(default_factory=list, max_length=100)
    guard_shares: Annotated[GuardShares, _Json] = Field(default_factory=dict, max_length=MAX_GUARD_SHARES)
    log_partition: int = 0
    log_offset: int = 0
