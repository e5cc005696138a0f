"""What is done about it: decisions and their journal, directives to serving processes, commands of people."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.signals import MAX_GUARD_SHARES, GuardShares
from schemas.wire import Column, Id, Millis, Wire, Word

_LowCardinality = Column("LowCardinality(String)")
_Json = Column("String")

ActionKind = Literal["fallback", "restore", "limit", "unlimit", "kill", "unkill", "notify"]
Mode = Literal["observe", "enforce"]
Outcome = Literal["published", "observed", "refused"]

Reason = Literal[
    # why something is done
    "inputs_left_profile",
    "outputs_left_profile",
    "endpoint_failing",
    "caller_out_of_pattern",
    "evidence_renewed",
    "signal_recovered",
    "expired",
    "configuration_changed",
    "person_commanded",
    "told_people",
    "journal_lost",
    "webhook_delivered",
    # why something is not done: the rail that refused it
    "endpoint_cap",
    "endpoint_pace",
    "caller_cap",
    "caller_not_verified",
    "caller_allowlisted",
    "fallback_not_healthy",
    "cooling_down",
    "held_for_person",
    "kill_switch",
    "empty_selector",
    "would_widen",
    "unknown_endpoint",
    "command_expired",
    "command_refused",
    "too_little_evidence",
    "few_callers",
    "mass_trip",
    # why something that was decided is not carried out
    "webhook_failing",
    "webhook_disabled",
    "webhook_given_up",
    # how the roles themselves keep up
    "reader_behind",
    "reader_lost",
    "reader_caught_up",
]

MAX_LIMITS = 1_000
"""Caller limits in one directive."""
MAX_TTL_MS = 3_600_000
"""No action lives longer without fresh evidence (R2)."""
PROBE_SHARE = 0.05
"""While an endpoint is on fallback, 1 call in 20 probes the primary."""


class Decision(Wire):
    """One thing decided: wanted, its reason, its expiry, and what became of it. `outcome` = `observed` in observe mode."""

    action_id: Id
    kind: ActionKind
    endpoint: Word
    caller: Id | None = None
    rate_per_s: float | None = None
    reason: Reason
    incident_id: Id | None = None
    signal_ids: list[str] = Field(default_factory=list, max_length=20)
    policy: Word
    policy_hash: Id
    rule: Word | None = None
    actor: Id = "palisade"
    mode: Mode
    epoch: int
    issued_ms: Millis
    expires_ms: Millis | None = None
    outcome: Outcome
    detail: str = ""


MAX_WAITING_INPUTS = 1_000
"""Inputs that an entry of the journal names as not answered yet."""


class InputRange(Wire):
    """Offsets [first, last] of one topic that an entry of the journal answers.

    `waiting`: offsets at or below `last` whose answer is still to come: signals that are decided together with those of
    the next moment. Whoever takes over decides them when they are delivered again.
    """

    topic: Word
    partition: int = 0
    first: int
    last: int
    waiting: list[int] = Field(default_factory=list, max_length=MAX_WAITING_INPUTS)


class JournalEntry(Wire):
    """One entry a batch of inputs that changed the responder's state, committed before anything is done about it."""

    KIND: ClassVar[str] = "action"

    entry: int
    epoch: int
    now_ms: Millis
    inputs: Annotated[list[InputRange], _Json]
    decisions: Annotated[list[Decision], _Json]


class CallerLimit(Wire):
    """At most `rate_per_s` answers a second for this caller, over all live guards of the endpoint: each admits its share."""

    caller: Id
    rate_per_s: float = Field(ge=0)
    ttl_ms: int = Field(gt=0, le=MAX_TTL_MS)
    action_id: Id


class Directive(Wire):
    """An endpoint's whole wanted state. Signed over its exact bytes; compacted; re-sent while it holds.

    A serving process refuses a bad signature, an unknown key, a lower `epoch`, a `ttl_ms` above the maximum. Its deadline
    is receipt + `ttl_ms`, never later than an earlier deadline of the same epoch. It admits its share of each limit:
    `guard_shares` by guard id, `other_share` for every guard that is not named there.
    """

    KIND: ClassVar[str] = "directive"

    endpoint: Word
    epoch: int = Field(ge=0)
    issued_ms: Millis
    ttl_ms: int = Field(gt=0, le=MAX_TTL_MS)
    mode: Annotated[Mode, _LowCardinality]
    route: Annotated[Literal["primary", "fallback"], _LowCardinality] = "primary"
    route_action_id: Id | None = None
    probe_share: float = Field(PROBE_SHARE, ge=0, le=1)
    limits: Annotated[list[CallerLimit], _Json] = Field(default_factory=list, max_length=MAX_LIMITS)
    guard_shares: Annotated[GuardShares, _Json] = Field(default_factory=dict, max_length=MAX_GUARD_SHARES)
    other_share: float = Field(1.0, ge=0, le=1)


class KillSwitch(Wire):
    """Stops every enforcement until a later signed `unkill`: written to each partition of the directives topic."""

    KIND: ClassVar[str] = "kill"

    kill: bool
    issued_ms: Millis
    actor: Id
    reason: str = ""


class Command(Wire):
    """A person's word, signed by an operator key. It wins over the machine until `expires_ms`."""

    KIND: ClassVar[str] = "command"

    command_id: Id
    kind: Annotated[ActionKind, _LowCardinality]
    endpoint: Word | None = None
    caller: Id | None = None
    rate_per_s: float | None = None
    actor: Id
    reason: str = ""
    issued_ms: Millis
    expires_ms: Millis
