"""A responder whose journal is gone: what the directives that it signed still order is kept until it expires. Pure.

Directives do not say which evidence was behind an order, nor whether a person gave it. So what is taken over is held by
nothing that could recover: it ends by its expiry, by fresh evidence it is renewed, and people are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from responders.desk import Cause, Desk, Target, Terms
from responders.mandate import Mandate
from responders.state import ALL_ENDPOINTS, RespondState
from schemas.actions import Decision, Directive, Reason
from schemas.ids import stable_id

WHY: Final[Reason] = "journal_lost"


def adopt(
    state: RespondState, directives: Iterable[Directive], now_ms: int, mandate: Mandate
) -> tuple[RespondState, list[Decision]]:
    """The state after the newest directive of each endpoint is taken over, and the decisions that say so.

    Epochs go on above the highest that was ever sent: guards refuse a lower one. Without a directive nothing was lost.
    """
    newest: dict[str, Directive] = {}
    for each in directives:
        known = newest.get(each.endpoint)
        if known is None or (each.epoch, each.issued_ms) > (known.epoch, known.issued_ms):
            newest[each.endpoint] = each
    if not newest:
        return state, []
    desk = Desk(state.copy(), now_ms, mandate)
    desk.state.epoch = max(state.epoch, *(each.epoch for each in newest.values()))
    for name, directive in sorted(newest.items()):
        if name in mandate.endpoints:
            _adopt(desk, directive)
    kept = sum(decision.outcome == "published" for decision in desk.decisions)
    cause = Cause(stable_id(WHY, now_ms))
    desk.issue("notify", WHY, Target(ALL_ENDPOINTS), cause, detail=f"{kept} actions are kept until they expire")
    return desk.state, desk.decisions


def _adopt(desk: Desk, directive: Directive) -> None:
    if directive.route == "fallback" and directive.route_action_id is not None:
        _keep(desk, directive, None, directive.route_action_id, directive.ttl_ms, None)
    for limit in directive.limits:
        _keep(desk, directive, limit.caller, limit.action_id, limit.ttl_ms, limit.rate_per_s)


def _keep(
    desk: Desk, directive: Directive, caller: str | None, action_id: str, ttl_ms: int, rate: float | None
) -> None:
    target, expires = Target(directive.endpoint, caller), directive.issued_ms + ttl_ms
    if expires <= desk.now_ms or desk.full or desk.action(target) is not None:
        return
    cause = Cause(stable_id(WHY, action_id), incident_id=action_id)  # an incident that never recovers holds it
    desk.issue("fallback" if caller is None else "limit", WHY, target, cause, terms=Terms(rate, expires, action_id))
