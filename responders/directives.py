"""Directives: what the state wants of each endpoint's guards, and when that must be said (again).

A guard's deadline is receipt + `ttl_ms` and never moves later within one epoch, so every renewal has an epoch of its
own (`responders.fold`), and a directive sent again repeats what is left, with the newest split of the limits. Nothing is sent about an endpoint in
observe mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from responders.state import RespondState, Sent
from schemas.actions import MAX_LIMITS, MAX_TTL_MS, CallerLimit, Directive
from schemas.signals import EndpointState

RESEND_MS: Final = 1_000
"""While something holds, its directive is sent again so often: the topic may have lost the last one."""
WHOLE_STATE_MS: Final = 20_000
"""So often the directive of each endpoint that ever had one is sent again, also where nothing holds: whoever deletes the topic
or writes an old directive to it again is corrected within 30 s."""
RELEASE_TTL_MS: Final = 60_000
"""Life of the empty directive that ends an endpoint's actions."""
MAX_DUE: Final = 1_000
"""Endpoints of one call of `due`: changed ones first, then those whose directive is oldest."""


def directive_for(state: RespondState, endpoint: str, now_ms: int) -> Directive:
    """The endpoint's whole wanted state at `now_ms`; empty where nothing enforced holds.

    A limit has its own `ttl_ms`; the route has none, so on fallback the directive lives as long as the fallback, else
    as long as its longest limit: without a responder nothing outlives its own expiry (R2, R13).
    """
    record = state.record(endpoint)
    route = record.route if record.route is not None and record.route.enforced else None
    limits = [
        CallerLimit(
            caller=caller,
            rate_per_s=action.rate_per_s or 0.0,
            ttl_ms=_ttl_ms(action.expires_ms, now_ms),
            action_id=action.action_id,
        )
        for caller, action in sorted(record.limits.items())
        if action.enforced and action.expires_ms > now_ms
    ]
    if route is not None and route.expires_ms > now_ms:
        ttl_ms = _ttl_ms(route.expires_ms, now_ms)
        route_action = route.action_id
    else:
        ttl_ms = max((limit.ttl_ms for limit in limits), default=RELEASE_TTL_MS)
        route_action = None
    guard_shares, other_share = _split(state.seen.views.get(endpoint)) if limits else ({}, 1.0)
    return Directive(
        endpoint=endpoint,
        epoch=record.epoch,
        issued_ms=now_ms,
        ttl_ms=ttl_ms,
        mode="enforce",
        route="primary" if route_action is None else "fallback",
        route_action_id=route_action,
        limits=limits[:MAX_LIMITS],
        guard_shares=guard_shares,
        other_share=other_share,
    )


def due(state: RespondState, now_ms: int) -> list[str]:
    """Endpoints whose directive must be sent now: changed since it was last sent, `RESEND_MS` old and still holding, or
    `WHOLE_STATE_MS` old. A responder that took over does not know what was sent, and says all of it.
    """
    changed: list[str] = []
    aged: list[tuple[int, str]] = []
    for name, record in state.endpoints.items():
        if not record.published_until_ms:
            continue
        last = state.seen.sent.get(name)
        if last is None or last.epoch < record.epoch:
            changed.append(name)
        elif now_ms - last.at_ms >= (RESEND_MS if record.enforced or not last.confirmed else WHOLE_STATE_MS):
            aged.append((last.at_ms, name))
    return [*changed, *(name for _, name in sorted(aged))][:MAX_DUE]


def mark_sent(state: RespondState, endpoints: Sequence[str], now_ms: int) -> RespondState:
    """The state after the directives of `endpoints` were handed to Kafka."""
    if not endpoints:
        return state
    marked = state.copy()
    for name in endpoints:
        marked.seen.sent[name] = Sent(marked.record(name).epoch, now_ms)
    return marked


def mark_failed(state: RespondState, failed: Mapping[str, int]) -> RespondState:
    """The state after Kafka did not take the directives of these endpoints (name to epoch): they are sent again soon."""
    if not failed:
        return state
    marked = state.copy()
    for name, epoch in failed.items():
        last = marked.seen.sent.get(name)
        if last is not None and last.epoch == epoch:
            marked.seen.sent[name] = replace(last, confirmed=False)
    return marked


def _split(view: EndpointState | None) -> tuple[dict[str, float], float]:
    """How much of each limit the named guards admit, and any other one.

    Live guards that are not named share what is left; else another one is new, and takes what it would get of an even
    split, so that the limit is exceeded by that at most until the next state names it.
    """
    if view is None or view.guards_live < 1:
        return {}, 1.0
    unnamed = view.guards_live - len(view.guard_shares)
    if unnamed <= 0:
        return view.guard_shares, 1.0 / (view.guards_live + 1)
    return view.guard_shares, max(0.0, 1.0 - sum(view.guard_shares.values())) / unnamed


def _ttl_ms(expires_ms: int, now_ms: int) -> int:
    return min(MAX_TTL_MS, max(1, expires_ms - now_ms))
