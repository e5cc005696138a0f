"""What arrives: predictions and reports; and what the log itself carries: ticks and profile activations."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.wire import Column, Id, Millis, Wire, Word

MAX_RECORD_BYTES = 1_048_576
"""A larger record is dead-lettered unread: one record must not cost a worker its memory."""
MAX_EVENT_BYTES = 65_536
"""A single JSON event; arrays and Arrow batches may fill a whole record."""
MAX_JSON_DEPTH = 16
MAX_ROWS_PER_RECORD = 10_000
MAX_FEATURES = 2_048
MAX_NUMBER = 1e30
"""A number beyond it is no measurement: taken as missing, the oddity noted against its caller."""
MAX_COUNT = 2**62
"""Counts of a report. A larger one is refused, so that no sum of them overflows."""
MAX_REPORT_CALLERS = 100
MAX_REPORT_ROUTES = 24
MAX_BEHIND_MS = 10**13
"""Three hundred years: what wrong clocks give is cut here."""

LATENCY_BOUNDS_MS: tuple[float, ...] = tuple(0.25 * 2 ** (k / 2) for k in range(32))
"""Upper bounds of the report's latency histogram, milliseconds (0.25 ms to 11.6 s); one more bucket takes the rest."""
LATENCY_BUCKETS = len(LATENCY_BOUNDS_MS) + 1

CallerAuth = Literal["verified", "claimed"]
Status = Literal["ok", "error", "timeout", "unanswered"]
Route = Literal["primary", "probe", "fallback"]
FeatureValue = float | int | str | bool | None | list[float | int | None]
Outcome = float | int | str | bool | list[float | int] | dict[str, float | int]

_LowCardinality = Column("LowCardinality(String)")


class Prediction(Wire):
    """One answer of an endpoint: the unit of every rate that Palisade states.

    `features` is an object, or a list in the order of the endpoint's profile. `served_by` says who answered: `primary`,
    `probe`, `fallback`, a version, or `refused`. `prediction` is what was answered: a number, a boolean, a label as text,
    an object of probabilities by label, or a list of numbers. `weight` is 1 / sampling rate. `ts` is event time; without it
    the broker's time stands in.

    Of what ingest wrote, `origin` names the row of the request and `answer` that of the response, as
    `topic/partition/offset/row`: a request is one prediction, so of two with one origin (a worker was cut off while it
    wrote) one counts. `reused_id`: another request of this id was still open, which is an oddity of its caller.
    """

    KIND: ClassVar[str] = "prediction"

    endpoint: Word
    features: Annotated[dict[str, FeatureValue] | list[FeatureValue], Column("String")]
    producer: Id = "unknown"
    seq: int = 0
    request_id: Id = "none"
    model_version: Word = "default"
    artifact_digest: str | None = None
    caller: Id = "anonymous"
    caller_auth: Annotated[CallerAuth, _LowCardinality] = "claimed"
    ts: Millis | None = None
    latency_ms: float | None = None
    status: Annotated[Status, _LowCardinality] = "ok"
    served_by: Word = "primary"
    prediction: Annotated[Outcome | None, Column("String")] = None
    weight: float = 1.0
    origin: str | None = None
    answer: str | None = None
    reused_id: bool = False


class RouteCounts(Wire):
    """What one route of one version did in a report's interval."""

    route: Route
    version: Word = "default"
    served: int = Field(0, ge=0, le=MAX_COUNT)
    errors: int = Field(0, ge=0, le=MAX_COUNT)
    timeouts: int = Field(0, ge=0, le=MAX_COUNT)
    latency: list[Annotated[int, Field(ge=0, le=MAX_COUNT)]] = Field(default_factory=list, max_length=LATENCY_BUCKETS)


class CallerCounts(Wire):
    """What one caller did in a report's interval: `asked = served + refused + still in flight`."""

    caller: Id
    caller_auth: CallerAuth = "claimed"
    asked: int = Field(0, ge=0, le=MAX_COUNT)
    served: int = Field(0, ge=0, le=MAX_COUNT)
    refused: int = Field(0, ge=0, le=MAX_COUNT)


class LoadedVersion(Wire):
    """A model version in the serving process, and the digest of its artifact."""

    version: Word
    digest: str | None = None


class Report(Wire):
    """What a serving process did in the last interval; of constant size whatever the load.

    Written each second; sooner (at most 4 a second) once a caller's `asked` in the open interval passes 20 and twice its
    highest of the last minute, or at the first error or timeout after none. `callers` are the heaviest 100, `rest_*`
    sums the others. `seq` counts reports of one `boot_id`, so a gap is seen.
    """

    KIND: ClassVar[str] = "report"

    endpoint: Word
    guard_id: Id
    boot_id: Id
    seq: int = Field(ge=0, le=MAX_COUNT)
    from_ms: Millis
    to_ms: Millis
    epoch_applied: int = Field(0, ge=0, le=MAX_COUNT)
    killed: bool = False
    live_version: Word = "default"
    versions: list[LoadedVersion] = Field(default_factory=list, max_length=16)
    asked: int = Field(0, ge=0, le=MAX_COUNT)
    refused: int = Field(0, ge=0, le=MAX_COUNT)
    routes: list[RouteCounts] = Field(default_factory=list, max_length=MAX_REPORT_ROUTES)
    dropped: int = Field(0, ge=0, le=MAX_COUNT)
    in_flight: int = Field(0, ge=0, le=MAX_COUNT)
    breaker: Annotated[Literal["none", "closed", "open", "half_open"], _LowCardinality] = "none"
    fallback_ok: bool = False
    directive_refused: str | None = None
    distinct_callers: int = Field(0, ge=0, le=MAX_COUNT)
    callers: list[CallerCounts] = Field(default_factory=list, max_length=MAX_REPORT_CALLERS)
    rest_callers: int = Field(0, ge=0, le=MAX_COUNT)
    rest_asked: int = Field(0, ge=0, le=MAX_COUNT)
    rest_served: int = Field(0, ge=0, le=MAX_COUNT)
    rest_refused: int = Field(0, ge=0, le=MAX_COUNT)


class Tick(Wire):
    """The clock of a partition of the log, written by the detect worker that owns it; its time is the broker's.

    `behind_ms`, on reports alone: how far that worker is behind on the same partition of predictions, from the broker's
    time of the last record handled there to that of its own newest tick there; 0 once it has read that tick. Absent
    while it does not know, or does not own that partition.
    """

    KIND: ClassVar[str] = "tick"

    worker: Id
    at_ms: Millis
    behind_ms: int | None = Field(None, ge=0, le=MAX_BEHIND_MS)


class ProfileActivated(Wire):
    """From this record on, the endpoint's version is judged against the profile of this hash. Signed by an operator."""

    KIND: ClassVar[str] = "profile_activated"

    endpoint: Word
    version: Word
    profile_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    actor: str = "unknown"
    at_ms: Millis = 0
