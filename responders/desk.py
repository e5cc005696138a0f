"""A decision being made: a copy of the state, the moment, the mandate, and what was decided so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from responders.fold import apply, changes_wanted_state, said_key
from responders.mandate import Mandate
from responders.rails import Refusal
from responders.state import MACHINE, Action, RespondState
from schemas.actions import ActionKind, Decision, Outcome, Reason
from schemas.ids import stable_id
from schemas.signals import Signal

MAX_DECISIONS: Final = 1_000
"""Decisions of one call; what is left is decided at the next. Keeps an entry of the journal under a megabyte."""
MAX_DETAIL: Final = 500
"""Characters of a decision's detail: a person's reason may be long."""
CAP_TOLD_EVERY_MS: Final = 60_000
"""People hear of a full cap of callers once a minute an endpoint, however many callers it refuses."""

_ALWAYS_DONE: Final = frozenset({"notify", "kill", "unkill"})
"""Kinds that touch no serving process or only let go: the mode does not hold them back."""


class Cause(NamedTuple):
    """What a decision answers. `id` makes its action id: equal in each replay."""

    id: str
    incident_id: str | None = None
    signal_ids: tuple[str, ...] = ()
    rule: str | None = None
    actor: str = MACHINE

    @classmethod
    def of(cls, signal: Signal, rule: str | None = None) -> Cause:
        return cls(signal.signal_id, signal.incident_id, (signal.signal_id,), rule)


class Terms(NamedTuple):
    """What holds and how long. `action_id`: of the action that is renewed; a new one otherwise."""

    rate_per_s: float | None = None
    expires_ms: int | None = None
    action_id: str | None = None


class Target(NamedTuple):
    """An endpoint's route (caller None) or one caller of it."""

    endpoint: str
    caller: str | None = None


NO_TERMS: Final = Terms()


@dataclass(slots=True)
class Desk:
    """Decisions are applied to `state` as they are issued, so that the next one is decided on what holds then."""

    state: RespondState
    now_ms: int
    mandate: Mandate
    decisions: list[Decision] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.decisions) >= MAX_DECISIONS

    def action(self, target: Target) -> Action | None:
        return self.state.action(target.endpoint, target.caller)

    def issue(
        self,
        kind: ActionKind,
        reason: Reason,
        target: Target,
        cause: Cause,
        outcome: Outcome | None = None,
        terms: Terms = NO_TERMS,
        detail: str = "",
    ) -> None:
        """Decides. Without an `outcome` it is the mode's: the only place where observe and enforce differ (R1)."""
        mode = self.mandate.mode(target.endpoint)
        if outcome is None:
            outcome = "published" if mode == "enforce" or kind in _ALWAYS_DONE else "observed"
        decision = Decision(
            action_id=terms.action_id or stable_id(cause.id, kind, reason, target.endpoint, target.caller or ""),
            kind=kind,
            endpoint=target.endpoint,
            caller=target.caller,
            rate_per_s=terms.rate_per_s,
            reason=reason,
            incident_id=cause.incident_id,
            signal_ids=list(cause.signal_ids),
            policy=self.mandate.policy.name,
            policy_hash=self.mandate.policy_hash,
            rule=cause.rule,
            actor=cause.actor,
            mode=mode,
            epoch=self.state.epoch + changes_wanted_state(kind, reason, outcome),
            issued_ms=self.now_ms,
            expires_ms=terms.expires_ms,
            outcome=outcome,
            detail=detail[:MAX_DETAIL],
        )
        apply(self.state, decision)
        self.decisions.append(decision)

    def refuse(self, kind: ActionKind, refusal: Refusal, target: Target, cause: Cause) -> None:
        """A rail refuses what the machine wants; people are told. Once an incident and rail."""
        if self.has_said(cause, kind, refusal.reason):
            return
        self.issue(kind, refusal.reason, target, cause, "refused", detail=refusal.detail)
        self.tell(refusal.reason, target, cause, refusal.detail)

    def propose(self, kind: ActionKind, hold: Refusal, target: Target, cause: Cause, terms: Terms = NO_TERMS) -> None:
        """A person holds the target: what the machine would do, for them to see. Once an incident."""
        if not self.has_said(cause, kind, hold.reason):
            self.issue(kind, hold.reason, target, cause, "observed", terms, hold.detail)

    def tell(self, reason: Reason, target: Target, cause: Cause, detail: str = "") -> None:
        """Tells people, once an incident and reason (a full cap of callers: once a minute an endpoint)."""
        if self.has_said(cause, "notify", reason):
            return
        if reason == "caller_cap":
            told = self.state.record(target.endpoint).cap_told_ms
            if told and self.now_ms < told + CAP_TOLD_EVERY_MS:
                return
        self.issue("notify", reason, target, cause, detail=detail)

    def has_said(self, cause: Cause, kind: ActionKind, reason: Reason) -> bool:
        incident = None if cause.incident_id is None else self.state.incidents.get(cause.incident_id)
        return incident is not None and said_key(kind, reason) in incident.said
