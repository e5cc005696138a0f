"""What services in any language write: requests and responses that arrive apart, which role ingest makes predictions of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from schemas.events import CallerAuth, FeatureValue, Outcome, Status
from schemas.wire import Column, Id, Millis, Wire, Word

MAX_WAIT_MS = 60_000
"""A request waits so long for its response, and a response for its request, on the clock of the log ..."""
MAX_HELD_BYTES = 64 << 20
"""... and a worker holds at most so much of what waits; the oldest give way."""


class Request(Wire):
    """What a service was asked. It becomes one prediction: with its response, or as `unanswered` after 60 s.

    `request_id` is minted by the service, one for each call; never one that its caller can choose. It pairs with the
    response of the same `producer` (and endpoint, where the response names one). `caller_auth` counts as `claimed` unless
    the endpoint's configuration says `trust_requests`. `features` is an object, or a list in the order of the profile.
    """

    KIND: ClassVar[str] = "request"

    endpoint: Word
    request_id: Id
    features: Annotated[dict[str, FeatureValue] | list[FeatureValue], Column("String")]
    producer: Id = "unknown"
    model_version: Word | None = None
    artifact_digest: str | None = None
    caller: Id = "anonymous"
    caller_auth: CallerAuth = "claimed"
    ts: Millis | None = None
    weight: float = 1.0


class Response(Wire):
    """What a service answered. Without `latency_ms`, the times of response and request tell it."""

    KIND: ClassVar[str] = "response"

    request_id: Id
    endpoint: Word | None = None
    producer: Id = "unknown"
    prediction: Annotated[Outcome | None, Column("String")] = None
    status: Status = "ok"
    latency_ms: float | None = None
    model_version: Word | None = None
    served_by: Word = "primary"
    ts: Millis | None = None
