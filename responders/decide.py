"""What to do about an input: pure, with a named reason on every decision, refusals included.

`decide` asks nothing but its arguments: no clock, no randomness, no I/O. A replay of the same inputs at the same
moments gives equal decisions with equal ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from responders.commands import obey, switch
from responders.delivery import WebhookReason
from responders.desk import Cause, Desk, Target, Terms
from responders.mandate import Mandate
from responders.rails import (
    caller_unfit,
    exceeds_entry,
    exceeds_exit,
    fallback_refusal,
    is_fresh,
    limit_refusal,
    person_holds,
    release_refusal,
)
from responders.state import ALL_ENDPOINTS, MAX_WAITING, Action, Awaited, RespondState
from schemas.actions import ActionKind, Command, Decision, KillSwitch, Reason
from schemas.ids import stable_id
from schemas.signals import EndpointState, Signal

BATCH_MS: Final = 250
"""The first caller signal of an endpoint is decided at once, those of the next `BATCH_MS` together."""
AWAIT_MS: Final = 1_500
"""A quiet endpoint reports every 8 s, one with an incident each second: a fallback waits so long for a late one."""
RENEW_SHARE: Final = 0.1
"""An action is renewed when that adds so much of its life: each renewal is a journal entry and a new epoch."""

_LEFT_PROFILE: Final[dict[str, Reason]] = {
    "feature_drift": "inputs_left_profile",
    "prediction_drift": "outputs_left_profile",
}


@dataclass(frozen=True, slots=True)
class Clock:
    """Time has passed: expiries and batches that are due. Feed one at least every 100 ms, or at `wake_ms`."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of telling an endpoint's webhook receiver what is wanted: for people, and on record."""

    endpoint: str
    reason: WebhookReason
    message_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Reader:
    """How a role keeps up with a topic that it reads: for people, and on record."""

    role: str
    topic: str
    reason: Literal["reader_behind", "reader_lost", "reader_caught_up"]
    detail: str


Input = Signal | EndpointState | Command | KillSwitch | Clock | Delivered | Reader


def decide(
    state: RespondState, given: Input, now_ms: int, mandate: Mandate, without: frozenset[str] = frozenset()
) -> tuple[RespondState, list[Decision]]:
    """The next state and what was decided, in order; at most `MAX_DECISIONS`. `state` itself is never changed.

    `now_ms` is the wall clock in ms since the epoch. Commands and kill switches must have been verified by the caller.
    `without`: endpoints for which no time passes, whatever is given of others.
    Cost: well under 1 ms an input at 1,000 endpoints.
    """
    desk = Desk(state.copy(), now_ms, mandate)
    if isinstance(given, Signal):
        _settle(desk, given.endpoint)
        _on_signal(desk, given)
    elif isinstance(given, EndpointState):
        _on_endpoint_state(desk, given)
    elif isinstance(given, Command):
        if given.endpoint is not None:
            _settle(desk, given.endpoint)
        obey(desk, given)
    elif isinstance(given, KillSwitch):
        switch(desk, given)
    elif isinstance(given, Delivered):
        cause = Cause(stable_id(given.message_id, now_ms))
        desk.issue("notify", given.reason, Target(given.endpoint), cause, detail=given.detail)
    elif isinstance(given, Reader):
        cause = Cause(stable_id(given.role, given.topic, now_ms))
        desk.issue("notify", given.reason, Target(ALL_ENDPOINTS), cause, detail=given.detail)
    else:
        for endpoint in [name for name in desk.state.endpoints if name not in without]:
            _settle(desk, endpoint)
    _give_up_waiting(desk, without)
    _open_batches(desk, without)
    return desk.state, desk.decisions


def wake_ms(state: RespondState) -> int | None:
    """When a `Clock` has something to do at the latest; None if nothing waits for time to pass."""
    expiries = [action.expires_ms for record in state.endpoints.values() for _, action in record.actions()]
    batches = [until for endpoint, until in state.seen.batch_until_ms.items() if state.seen.waiting.get(endpoint)]
    awaited = [waits.until_ms for waits in state.seen.awaiting.values()]
    return min([*expiries, *batches, *awaited], default=None)


def _on_signal(desk: Desk, signal: Signal) -> None:
    if signal.state == "unknown" or _is_over(desk.state, signal):
        return
    if signal.state == "recovered":
        _recovered(desk, signal)
        return
    if _renewed_by(desk, signal):
        return
    rule = desk.mandate.rule_for(signal)
    if rule is None:
        return
    cause = Cause.of(signal, rule.name)
    if rule.then == "notify":
        desk.tell(
            "told_people", Target(signal.endpoint, _caller_of(signal)), cause, f"{signal.kind}, {signal.severity}"
        )
    elif rule.then == "fallback":
        _fallback(desk, signal, may_wait=True)
    elif caller_unfit(signal, desk.mandate) is not None:
        _limit(desk, signal)  # refused at once: a crowd of claimed callers takes no place of those who wait
    else:
        _queue_limit(desk, signal)


def _is_over(state: RespondState, signal: Signal) -> bool:
    """Whether its incident ended, or it led to something already: a detect worker that starts again tells once more what it had
    not committed, maybe after what was done about it has run out."""
    return signal.incident_id in state.ended or signal.signal_id in state.answered


def _caller_of(signal: Signal) -> str | None:
    return signal.subject if signal.subject_kind == "caller" else None


def _on_endpoint_state(desk: Desk, view: EndpointState) -> None:
    if view.endpoint not in desk.mandate.endpoints:
        return
    desk.state.seen.views[view.endpoint] = view.model_copy(update={"knocking": []})
    _settle(desk, view.endpoint)
    awaited = desk.state.seen.awaiting.pop(view.endpoint, None)
    if awaited is not None:
        _fallback(desk, awaited.signal)
    for knock in view.knocking:
        target = Target(view.endpoint, knock.caller)
        action = desk.action(target)
        if action is None or action.by_person or knock.caller_auth != "verified":
            continue
        if knock.asked_per_s > (action.rate_per_s or 0.0):
            _renew(desk, target, action, Cause(stable_id("knock", view.endpoint, view.at_ms), rule=action.rule))


def _recovered(desk: Desk, signal: Signal) -> None:
    """Lets go of what the incident holds; what nothing else holds is released."""
    seen = desk.state.seen
    if signal.incident_id in seen.waiting.get(signal.endpoint, {}):
        waiting = seen.waiting[signal.endpoint]
        seen.waiting[signal.endpoint] = {name: waits for name, waits in waiting.items() if name != signal.incident_id}
    awaited = seen.awaiting.get(signal.endpoint)
    if awaited is not None and awaited.signal.incident_id == signal.incident_id:
        del seen.awaiting[signal.endpoint]
    record = desk.state.record(signal.endpoint)
    holds = any(signal.incident_id in action.holders for _, action in record.actions())
    if holds or signal.incident_id in desk.state.incidents:
        target = Target(signal.endpoint, _caller_of(signal))
        desk.issue("notify", "signal_recovered", target, Cause.of(signal), detail=signal.kind)
        _settle(desk, signal.endpoint)


def _renewed_by(desk: Desk, signal: Signal) -> bool:
    """True if the signal's incident holds an action already: it needs no rule to keep it."""
    caller = _caller_of(signal)
    route = Target(signal.endpoint)
    for target in (route,) if caller is None else (route, Target(signal.endpoint, caller)):
        action = desk.action(target)
        if action is not None and signal.incident_id in action.holders:
            if exceeds_exit(signal):
                _renew(desk, target, action, Cause.of(signal, action.rule))
            return True
    return False


def _renew(desk: Desk, target: Target, action: Action, cause: Cause) -> None:
    """A longer life on fresh evidence (R2), or one more incident that holds the action. Never shorter, never wider."""
    expires = max(action.expires_ms, desk.now_ms + desk.mandate.action_ms)
    joins = cause.incident_id is not None and cause.incident_id not in action.holders
    if joins or expires - action.expires_ms >= RENEW_SHARE * desk.mandate.action_ms:
        kind: ActionKind = "fallback" if target.caller is None else "limit"
        terms = Terms(action.rate_per_s, expires, action.action_id)
        desk.issue(kind, "evidence_renewed", target, cause, terms=terms)


def _fallback(desk: Desk, signal: Signal, may_wait: bool = False) -> None:
    rule = desk.mandate.rule_for(signal)
    cause = Cause.of(signal, None if rule is None else rule.name)
    target = Target(signal.endpoint)
    reason = _LEFT_PROFILE.get(signal.kind, "endpoint_failing")
    terms = Terms(expires_ms=desk.now_ms + desk.mandate.action_ms)
    hold = person_holds(desk.state, signal.endpoint, None, desk.now_ms)
    action = desk.action(target)
    if hold is not None:
        desk.propose("fallback", hold, target, cause, terms)
    elif action is not None:
        if exceeds_entry(signal):
            _renew(desk, target, action, cause)
    elif (refusal := fallback_refusal(desk.state, signal, desk.now_ms, desk.mandate)) is not None:
        unheard = not is_fresh(desk.state.seen.views.get(signal.endpoint), desk.now_ms)
        if may_wait and unheard and refusal.reason == "fallback_not_healthy":
            desk.state.seen.awaiting.setdefault(signal.endpoint, Awaited(signal, desk.now_ms + AWAIT_MS))
        else:
            desk.refuse("fallback", refusal, target, cause)
    else:
        desk.issue("fallback", reason, target, cause, terms=terms, detail=_numbers(signal))


def _give_up_waiting(desk: Desk, without: frozenset[str]) -> None:
    """Refuses the fallbacks whose guards did not report in time."""
    awaiting = desk.state.seen.awaiting
    for endpoint in [name for name, waits in awaiting.items() if waits.until_ms <= desk.now_ms and name not in without]:
        _fallback(desk, awaiting.pop(endpoint).signal)


def _queue_limit(desk: Desk, signal: Signal) -> None:
    """Waits for its batch, if one is open; the weakest gives way where too many wait."""
    seen = desk.state.seen
    if seen.batch_until_ms.get(signal.endpoint, 0) <= desk.now_ms and not seen.waiting.get(signal.endpoint):
        seen.batch_until_ms[signal.endpoint] = desk.now_ms + BATCH_MS
        _limit(desk, signal)
        return
    waiting = {**seen.waiting.get(signal.endpoint, {}), signal.incident_id: signal}
    if len(waiting) > MAX_WAITING:
        del waiting[max(waiting.values(), key=_strongest_first).incident_id]
    seen.waiting[signal.endpoint] = waiting


def _open_batches(desk: Desk, without: frozenset[str]) -> None:
    """Decides the caller signals whose wait is over, strongest first, so that a cap falls on the weakest."""
    seen = desk.state.seen
    for endpoint in [
        name for name, until in seen.batch_until_ms.items() if until <= desk.now_ms and name not in without
    ]:
        batch = sorted(seen.waiting.pop(endpoint, {}).values(), key=_strongest_first)
        if not batch:
            del seen.batch_until_ms[endpoint]
            continue
        seen.batch_until_ms[endpoint] = desk.now_ms + BATCH_MS
        while batch and not desk.full:
            _limit(desk, batch.pop(0))
        if batch:
            seen.waiting[endpoint] = {signal.incident_id: signal for signal in batch}


def _strongest_first(signal: Signal) -> tuple[float, str]:
    return (-signal.score / signal.threshold if signal.threshold > 0 else -signal.score, signal.signal_id)


def _limit(desk: Desk, signal: Signal) -> None:
    if _renewed_by(desk, signal):
        return
    rule = desk.mandate.rule_for(signal)
    cause = Cause.of(signal, None if rule is None else rule.name)
    target = Target(signal.endpoint, signal.subject)
    if (unfit := caller_unfit(signal, desk.mandate)) is not None:
        desk.refuse("limit", unfit, target, cause)
        return
    view = desk.state.seen.views.get(signal.endpoint)
    rate = desk.mandate.limit_rate(signal.usual_rate, 0.0 if view is None else view.median_caller_rate)
    terms = Terms(rate, desk.now_ms + desk.mandate.action_ms)
    hold = person_holds(desk.state, signal.endpoint, signal.subject, desk.now_ms)
    action = desk.action(target)
    if hold is not None:
        desk.propose("limit", hold, target, cause, terms)
    elif action is not None:
        if exceeds_entry(signal):
            _renew(desk, target, action, cause)
    elif (refusal := limit_refusal(desk.state, signal, desk.now_ms, desk.mandate)) is not None:
        desk.refuse("limit", refusal, target, cause)
    else:
        desk.issue("limit", "caller_out_of_pattern", target, cause, terms=terms, detail=_numbers(signal))


def _numbers(signal: Signal) -> str:
    return f"{signal.kind}: score {signal.score:g}, threshold {signal.threshold:g}"


def _settle(desk: Desk, endpoint: str) -> None:
    """Ends what is over: expired, without a mandate in the configuration, or recovered."""
    record = desk.state.record(endpoint)
    if record.route is None and not record.limits:
        return
    for caller, action in list(record.actions()):
        if desk.full:
            return
        target = Target(endpoint, caller)
        if action.expires_ms <= desk.now_ms:
            _release(desk, target, action, "expired")
        elif endpoint not in desk.mandate.endpoints or (action.enforced and desk.mandate.mode(endpoint) == "observe"):
            _release(desk, target, action, "configuration_changed")
        elif not action.by_person and not action.holders:
            _release_recovered(desk, target, action)


def _release(desk: Desk, target: Target, action: Action, reason: Reason) -> None:
    kind: ActionKind = "restore" if target.caller is None else "unlimit"
    desk.issue(kind, reason, target, Cause(action.action_id, rule=action.rule), detail=f"ends {action.action_id}")


def _release_recovered(desk: Desk, target: Target, action: Action) -> None:
    refusal = release_refusal(desk.state, target.endpoint, target.caller, desk.now_ms, desk.mandate)
    if refusal is None:
        _release(desk, target, action, "signal_recovered")
    elif refusal.reason != action.release_refused:
        kind: ActionKind = "restore" if target.caller is None else "unlimit"
        # told again once a renewal was over, too: a decision of its own with an id of its own, for a renewal has an epoch;
        # the moment would not do, inputs of one batch share it
        cause = Cause(stable_id(action.action_id, desk.state.epoch), rule=action.rule)
        desk.issue(kind, refusal.reason, target, cause, "refused", detail=refusal.detail)
        if refusal.reason == "held_for_person":
            desk.issue("notify", refusal.reason, target, cause, detail=refusal.detail)
