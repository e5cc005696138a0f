"""What an endpoint's webhook receiver is told: the whole wanted state, as the body of a Standard Webhooks message."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.actions import MAX_LIMITS, Mode, Reason
from schemas.wire import Id, Wire, Word

WANTED_TYPE: Final = "palisade.endpoint.wanted"
MAX_BODY_BYTES: Final = 20_000
"""Standard Webhooks 1.0.0 asks for bodies below 20 kB."""

IsoTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
"""ISO 8601 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`."""


class _Part(BaseModel):
    """Frozen, unknown fields ignored, types not coerced; its version is that of the data."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class WebhookLimit(_Part):
    """At most `rate_per_s` answers a second for this caller, until `expires_at`."""

    caller: Id
    rate_per_s: float = Field(ge=0)
    expires_at: IsoTime
    action_id: Id
    reason: Reason


class WantedState(Wire):
    """What is wanted of an endpoint from now on; it takes the place of whatever was wanted before.

    `expires_at`: when the receiver must be back on the primary by itself if it hears nothing more; absent on the primary.
    `limits_left_out`: limits beyond what the body holds. A receiver refuses an `epoch` lower than one that it has seen.
    """

    endpoint: Word
    epoch: int = Field(ge=0)
    mode: Mode = "enforce"
    route: Literal["primary", "fallback"] = "primary"
    action_id: Id | None = None
    reason: Reason | None = None
    expires_at: IsoTime | None = None
    limits: list[WebhookLimit] = Field(default_factory=list, max_length=MAX_LIMITS)
    limits_left_out: int = Field(0, ge=0)


class WebhookBody(_Part):
    """The body of each message to a webhook receiver: signed as it stands, below 20 kB."""

    type: Literal["palisade.endpoint.wanted"] = WANTED_TYPE
    timestamp: IsoTime
    data: WantedState

    def to_bytes(self) -> bytes:
        """Compact JSON, UTF-8: the bytes that are signed."""
        return self.model_dump_json(exclude_none=True).encode()
