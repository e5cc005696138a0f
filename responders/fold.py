"""How a decision changes the state. The only place where the durable state changes: live and replayed alike.

Nothing here asks a clock, a policy or what was seen: a decision carries all it needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from responders.state import (
    MACHINE,
    MAX_ANSWERED,
    MAX_ENDED,
    MAX_HOLDERS,
    MAX_HOLDS,
    MAX_INCIDENTS,
    MAX_PACE,
    MAX_TRIP_RECORDS,
    MAX_TRIPS,
    Action,
    EndpointRecord,
    Hold,
    Incident,
    RespondState,
    TripRecord,
    target_key,
)
from schemas.actions import ActionKind, Decision, JournalEntry, Outcome, Reason

DAY_MS: Final = 86_400_000
MAX_SAID: Final = 8
"""Things said of one incident that are remembered."""

_NO_TRIPS: Final = frozenset({"unknown_endpoint", "too_little_evidence", "few_callers", "fallback_not_healthy"})
"""A fallback refused for these does not count towards a mass trip: neither weak evidence nor an endpoint without a fallback
must switch the others' protection off."""
_ACTS: Final = frozenset({"fallback", "limit"})
_RELEASES: Final = frozenset({"restore", "unlimit"})


def changes_wanted_state(kind: ActionKind, reason: Reason, outcome: Outcome) -> bool:
    """True if such a decision changes what holds on an endpoint: it has an epoch of its own."""
    return outcome != "refused" and kind != "notify" and reason != "held_for_person"


def said_key(kind: str, reason: str) -> str:
    """How an incident remembers that something was said of it."""
    return f"{kind}:{reason}"


def apply(state: RespondState, decision: Decision) -> None:
    """Changes `state` (a copy that its caller owns) by one decision."""
    state.epoch = max(state.epoch, decision.epoch)
    for signal_id in decision.signal_ids:
        state.answered.setdefault(signal_id, decision.issued_ms)
        _bound(state.answered, MAX_ANSWERED)
    if decision.kind == "notify":
        _told(state, decision)
    elif not changes_wanted_state(decision.kind, decision.reason, decision.outcome):
        _not_done(state, decision)
    elif decision.kind in ("kill", "unkill"):
        _switched(state, decision)
    elif decision.kind in _ACTS:
        _acted(state, decision)
    else:
        _released(state, decision)


def restamp(state: RespondState, entry: JournalEntry) -> None:
    """A takeover: its epoch is new, and whatever holds is stamped with it, so that older directives are refused."""
    state.epoch = max(state.epoch, entry.epoch)
    for name, record in state.endpoints.items():
        if record.enforced:
            state.endpoints[name] = replace(record, epoch=state.epoch, changed_ms=entry.now_ms)


def _told(state: RespondState, decision: Decision) -> None:
    if decision.reason == "signal_recovered":
        _recovered(state, decision)
        return
    if decision.reason == "caller_cap":
        record = state.record(decision.endpoint)
        state.endpoints[decision.endpoint] = replace(record, cap_told_ms=decision.issued_ms)
    _say(state, decision)


def _not_done(state: RespondState, decision: Decision) -> None:
    if decision.kind in _RELEASES:
        action = state.action(decision.endpoint, decision.caller)
        if action is not None and decision.actor == MACHINE:
            _put(state, decision, replace(action, release_refused=decision.reason))
        return
    if decision.kind == "fallback" and decision.incident_id and decision.reason not in _NO_TRIPS:
        _wanted(state, decision)
    _say(state, decision)


def _say(state: RespondState, decision: Decision) -> None:
    if decision.incident_id is None:
        return
    before = state.incidents.pop(decision.incident_id, None)
    said = () if before is None else before.said
    key = said_key(decision.kind, decision.reason)
    if key not in said:
        said = (*said, key)[-MAX_SAID:]
    state.incidents[decision.incident_id] = Incident(decision.endpoint, decision.issued_ms, said)
    _bound(state.incidents, MAX_INCIDENTS)


def _recovered(state: RespondState, decision: Decision) -> None:
    incident = decision.incident_id
    if incident is None:
        return
    state.incidents.pop(incident, None)
    state.ended[incident] = decision.issued_ms
    _bound(state.ended, MAX_ENDED)
    record = state.record(decision.endpoint)
    holding = [(caller, action) for caller, action in record.actions() if incident in action.holders]
    for caller, action in holding:
        left = tuple(holder for holder in action.holders if holder != incident)
        record = _with_action(record, caller, replace(action, holders=left))
    if holding:
        state.endpoints[decision.endpoint] = record


def _switched(state: RespondState, decision: Decision) -> None:
    """Kill ends every action, so that nothing comes back by itself after an unkill."""
    state.killed = decision.kind == "kill"
    if not state.killed:
        return
    for name, record in state.endpoints.items():
        if record.route is not None or record.limits:
            changed = replace(record, epoch=decision.epoch, changed_ms=decision.issued_ms)
            state.endpoints[name] = replace(changed, route=None, limits={})


def _acted(state: RespondState, decision: Decision) -> None:
    before = state.action(decision.endpoint, decision.caller)
    by_person = decision.actor != MACHINE
    expires = decision.expires_ms if decision.expires_ms is not None else decision.issued_ms
    if before is not None and decision.reason == "evidence_renewed":
        action = replace(
            before,
            mode=decision.mode,
            expires_ms=expires,
            holders=_joined(before.holders, decision.incident_id),
            rate_per_s=decision.rate_per_s,
            release_refused="",
        )
    else:
        action = Action(
            action_id=decision.action_id,
            mode=decision.mode,
            reason=decision.reason,
            actor=decision.actor,
            since_ms=decision.issued_ms,
            expires_ms=expires,
            rate_per_s=decision.rate_per_s,
            holders=() if by_person else _joined((), decision.incident_id),
            rule=decision.rule,
        )
        if not by_person:
            _tripped(state, decision)
    _put(state, decision, action)
    if by_person:
        state.holds.pop(target_key(decision.endpoint, decision.caller), None)
    elif decision.incident_id is not None:
        state.incidents.pop(decision.incident_id, None)


def _tripped(state: RespondState, decision: Decision) -> None:
    key = target_key(decision.endpoint, decision.caller)
    before = state.trips.pop(key, TripRecord())
    today = tuple(trip for trip in before.trips if trip > decision.issued_ms - DAY_MS)
    state.trips[key] = TripRecord((*today, decision.issued_ms)[-MAX_TRIPS:], before.released_ms)
    _bound(state.trips, MAX_TRIP_RECORDS)
    if decision.kind == "fallback":
        _wanted(state, decision)
        state.pace_ms = (*state.pace_ms, decision.issued_ms)[-MAX_PACE:]


def _wanted(state: RespondState, decision: Decision) -> None:
    record = state.record(decision.endpoint)
    state.endpoints[decision.endpoint] = replace(record, wanted_ms=decision.issued_ms)


def _released(state: RespondState, decision: Decision) -> None:
    key = target_key(decision.endpoint, decision.caller)
    action = state.action(decision.endpoint, decision.caller)
    if action is not None:
        _put(state, decision, None)
        if not action.by_person and decision.actor == MACHINE and key in state.trips:
            state.trips[key] = replace(state.trips[key], released_ms=decision.issued_ms)
    if decision.actor != MACHINE and decision.expires_ms is not None:
        state.holds[key] = Hold(decision.action_id, decision.actor, decision.expires_ms)
        if len(state.holds) > MAX_HOLDS:
            del state.holds[min(state.holds, key=lambda name: (state.holds[name].expires_ms, name))]


def _put(state: RespondState, decision: Decision, action: Action | None) -> None:
    """Sets what holds on the decision's target, with the epoch of a decision that changes what is wanted."""
    record = _with_action(state.record(decision.endpoint), decision.caller, action)
    if changes_wanted_state(decision.kind, decision.reason, decision.outcome):
        record = replace(record, epoch=decision.epoch, changed_ms=decision.issued_ms)
    if action is not None and action.enforced:
        record = replace(record, published_until_ms=max(record.published_until_ms, action.expires_ms))
    state.endpoints[decision.endpoint] = record


def _with_action(record: EndpointRecord, caller: str | None, action: Action | None) -> EndpointRecord:
    if caller is None:
        return replace(record, route=action)
    limits = dict(record.limits)
    if action is None:
        limits.pop(caller, None)
    else:
        limits[caller] = action
    return replace(record, limits=limits)


def _bound(kept: dict[str, Any], most: int) -> None:
    """The oldest gives way to the one that was just added."""
    if len(kept) > most:
        del kept[next(iter(kept))]


def _joined(holders: tuple[str, ...], incident: str | None) -> tuple[str, ...]:
    if incident is None or incident in holders:
        return holders
    return (*holders, incident)[-MAX_HOLDERS:]
