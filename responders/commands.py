"""People's words: commands and the kill switch. They win over the machine until their own expiry; the rails still hold.

Signatures and roles are the caller's business: what arrives here was verified.
"""

from __future__ import annotations

import math
from typing import Final

from responders.desk import Cause, Desk, Target, Terms
from responders.rails import NO_SELECTOR, Refusal, directive_is_full, fallback_health, is_fresh
from responders.state import ALL_ENDPOINTS, MACHINE, NO_ENDPOINT
from schemas.actions import MAX_TTL_MS, ActionKind, Command, KillSwitch
from schemas.ids import stable_id

MAX_HOLD_MS: Final = 86_400_000
"""A person's word that a target be left alone holds a day at most; then it must be given again."""
_ON_CALLERS: Final = frozenset({"limit", "unlimit"})


def switch(desk: Desk, given: KillSwitch) -> None:
    """The kill switch as it lies on the directives topic."""
    cause = Cause(stable_id("kill", given.issued_ms, given.actor), actor=given.actor)
    kind: ActionKind = "kill" if given.kill else "unkill"
    desk.issue(kind, "person_commanded", Target(ALL_ENDPOINTS), cause, detail=given.reason)


def obey(desk: Desk, command: Command) -> None:
    """Does what a person commands, or refuses with the rail's reason."""
    cause = Cause(command.command_id, actor=command.actor)
    if command.kind in ("kill", "unkill"):
        if command.kind == "unkill" and command.expires_ms <= desk.now_ms:
            _refuse(desk, command, Refusal("command_expired", f"at {command.expires_ms}"))
            return
        desk.issue(command.kind, "person_commanded", Target(ALL_ENDPOINTS), cause, detail=command.reason)
        return
    refusal = _misaddressed(desk, command) or _refused_by_rail(desk, command)
    if refusal is not None or command.endpoint is None:
        _refuse(desk, command, refusal or Refusal("empty_selector"))
        return
    target = Target(command.endpoint, command.caller)
    if command.kind in ("restore", "unlimit"):
        terms = Terms(expires_ms=min(command.expires_ms, desk.now_ms + MAX_HOLD_MS))
        desk.issue(command.kind, "person_commanded", target, cause, terms=terms, detail=command.reason)
        return
    expires = min(command.expires_ms, desk.now_ms + MAX_TTL_MS)
    terms = Terms(_rate(desk, command) if command.kind == "limit" else None, expires)
    desk.issue(command.kind, "person_commanded", target, cause, terms=terms, detail=_detail(command, terms))


def _refuse(desk: Desk, command: Command, refusal: Refusal) -> None:
    actor = command.actor if command.actor != MACHINE else f"claimed:{MACHINE}"
    target = Target(command.endpoint or NO_ENDPOINT, command.caller)
    cause = Cause(command.command_id, actor=actor)
    desk.issue(command.kind, refusal.reason, target, cause, "refused", detail=refusal.detail)


def _misaddressed(desk: Desk, command: Command) -> Refusal | None:
    """Empty, unknown or contradictory selectors (R10), expired words, reserved names."""
    if command.kind == "notify":
        return Refusal("command_refused", "notify is the machine's word")
    if command.actor == MACHINE:
        return Refusal("command_refused", f"{MACHINE} is the machine's own name: command under a person's")
    if command.endpoint is None or command.endpoint in NO_SELECTOR:
        return Refusal("empty_selector", "no endpoint is named")
    if command.endpoint not in desk.mandate.endpoints:
        return Refusal("unknown_endpoint", "not in the configuration")
    if command.kind in _ON_CALLERS and (command.caller is None or command.caller in NO_SELECTOR):
        return Refusal("empty_selector", "no caller is named")
    if command.kind not in _ON_CALLERS and command.caller is not None:
        return Refusal("would_widen", f"{command.kind} is for all callers, but the command names one")
    if command.expires_ms <= desk.now_ms:
        return Refusal("command_expired", f"at {command.expires_ms}")
    return None


def _refused_by_rail(desk: Desk, command: Command) -> Refusal | None:
    if command.kind not in ("fallback", "limit") or command.endpoint is None:
        return None
    if desk.state.killed:
        return Refusal("kill_switch")
    if command.kind == "fallback":
        view = desk.state.seen.views.get(command.endpoint)
        return fallback_health(view, desk.now_ms) if is_fresh(view, desk.now_ms) else None
    if command.caller in desk.mandate.allowlists[command.endpoint]:
        return Refusal("caller_allowlisted")
    if command.rate_per_s is not None and not (math.isfinite(command.rate_per_s) and command.rate_per_s >= 0):
        return Refusal("command_refused", "the rate is no number of answers a second")
    action = desk.state.action(command.endpoint, command.caller)
    if action is None:
        return (
            Refusal("caller_cap", "the directive is full") if directive_is_full(desk.state, command.endpoint) else None
        )
    if action.rate_per_s is not None and _rate(desk, command) > action.rate_per_s:
        return Refusal("would_widen", f"limited to {action.rate_per_s:g}/s now: unlimit first")
    return None


def _rate(desk: Desk, command: Command) -> float:
    """The commanded rate, never below the floor (R8); without one, what the machine would set."""
    floor = desk.mandate.policy.limit_floor.per_s
    if command.rate_per_s is not None:
        return max(floor, command.rate_per_s)
    view = desk.state.seen.views.get(command.endpoint or NO_ENDPOINT)
    return desk.mandate.limit_rate(None, 0.0 if view is None else view.median_caller_rate)


def _detail(command: Command, terms: Terms) -> str:
    notes = [command.reason] if command.reason else []
    if terms.expires_ms is not None and terms.expires_ms < command.expires_ms:
        notes.append(f"shortened to {MAX_TTL_MS // 60_000} min, the longest that an action lives")
    if command.rate_per_s is not None and terms.rate_per_s is not None and terms.rate_per_s > command.rate_per_s:
        notes.append(f"raised to the floor of {terms.rate_per_s:g}/s")
    return "; ".join(notes)
