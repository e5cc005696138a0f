"""The rails: what may refuse an action. Pure; each gives the first reason that refuses, or None.

Numbered as in the design's reliability rules (R1-R16). What refuses endpoint-wide actions never refuses the limit of a
verified caller: no rail may be an off-switch in an attacker's hand.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from responders.fold import DAY_MS
from responders.mandate import Mandate
from responders.state import MAX_ALL_LIMITS, MAX_PACE, Action, RespondState, TripRecord, target_key
from schemas.actions import MAX_LIMITS, Reason
from schemas.ids import clean_id
from schemas.signals import EndpointState, Signal

FRESH_MS: Final = 10_000
"""An endpoint state older than this says nothing of now (R9)."""
COUNTED_MS: Final = 90_000
"""Active callers are believed for three intervals of endpoint states; later the cap falls to its least."""
STALE_EVIDENCE_MS: Final = 60_000
"""Evidence older than this starts no endpoint-wide action (R14)."""
MASS_TRIP_MS: Final = 300_000
MASS_TRIP_SHARE: Final = 0.3
MASS_TRIP_LEAST: Final = 3
"""More than this share of endpoints (at least so many) within `MASS_TRIP_MS`: doubt the monitor (R4)."""
PACE_MS: Final = 60_000
GOOD_PROBES: Final = 10
"""Probes of the primary in a row that must go well before a failing endpoint is restored."""
EXIT_SHARE: Final = 0.5
"""A signal whose detector states no `exit_threshold` renews above this share of its threshold (hysteresis, R5)."""

NO_SELECTOR: Final = frozenset({"*", "@all", "@none", "@other"} | {clean_id(text) for text in ("", "*")})
"""What selects nobody, or everybody: refused as a target (R10)."""
ENOUGH_CALLERS: Final = 20
"""So many callers, or `BROAD_SHARE` of those present, must have moved before content moves a whole endpoint (R7)."""
BROAD_SHARE: Final = 0.65
"""What breaks for everybody moves 0.84 and more of the callers present, a flood beside ten others 0.5 and less."""
SPEAKING_SHARE: Final = 0.25
"""So large a share of the endpoint's active callers must be present: a flood in a quiet moment has the block to itself."""
UNHEARD_SHARE: Final = 1.5
UNHEARD_LEAST: Final = 5
"""More callers present than 1.5 times those that signed reports speak of, plus 5, are somebody's invention: predictions
carry no signature, so that a crowd of made-up callers must not speak for an endpoint (R7)."""
_ENDPOINT_WIDE_SUBJECTS: Final = frozenset({"endpoint", "model_version", "group"})
_OF_A_FEW: Final = frozenset({"one_caller", "few_callers"})
_ALONE_TOO_WEAK: Final = frozenset({"adaptive_drift"})


class Refusal(NamedTuple):
    """Why something is not done. `detail` holds the numbers."""

    reason: Reason
    detail: str = ""


def is_fresh(view: EndpointState | None, now_ms: int) -> bool:
    return view is not None and abs(now_ms - view.at_ms) <= FRESH_MS


def exceeds_entry(signal: Signal) -> bool:
    """Strong enough to begin an action."""
    return math.isfinite(signal.score) and signal.score >= signal.threshold


def exceeds_exit(signal: Signal) -> bool:
    """Strong enough to renew one."""
    stated = signal.evidence.get("exit_threshold")
    if isinstance(stated, int | float) and not isinstance(stated, bool):
        return signal.score >= stated
    return signal.score >= signal.threshold * EXIT_SHARE


def trips_today(state: RespondState, endpoint: str, caller: str | None, now_ms: int) -> int:
    record = state.trips.get(target_key(endpoint, caller), TripRecord())
    return sum(trip > now_ms - DAY_MS for trip in record.trips)


def person_holds(state: RespondState, endpoint: str, caller: str | None, now_ms: int) -> Refusal | None:
    """A person's action or hold on the target that has not expired: the machine may only propose."""
    action = state.action(endpoint, caller)
    if action is not None and action.by_person and action.expires_ms > now_ms:
        return Refusal("held_for_person", f"{action.actor} commands this target until {action.expires_ms}")
    hold = state.holds.get(target_key(endpoint, caller))
    if hold is not None and hold.expires_ms > now_ms:
        return Refusal("held_for_person", f"{hold.actor} wants this target left alone until {hold.expires_ms}")
    return None


def fallback_refusal(state: RespondState, signal: Signal, now_ms: int, mandate: Mandate) -> Refusal | None:
    """What refuses a new endpoint-wide action of the machine."""
    endpoint = signal.endpoint
    if endpoint not in mandate.endpoints:
        return Refusal("unknown_endpoint", "not in the configuration")
    if state.killed:
        return Refusal("kill_switch")
    return (
        _weak_evidence(signal, now_ms)
        or _few_callers(signal, state.seen.views.get(endpoint))
        or fallback_health(state.seen.views.get(endpoint), now_ms)
        or _cooling_down(state, endpoint, now_ms, mandate)
        or _tripped_too_often(state, endpoint, now_ms, mandate)
        or _mass_trip(state, endpoint, now_ms, mandate)
        or _endpoint_caps(state, now_ms, mandate)
    )


def caller_unfit(signal: Signal, mandate: Mandate) -> Refusal | None:
    """What keeps the machine from ever limiting the subject of this signal (R6, R8, R10)."""
    endpoint, caller = signal.endpoint, signal.subject
    if endpoint not in mandate.endpoints:
        return Refusal("unknown_endpoint", "not in the configuration")
    if signal.subject_kind != "caller" or caller in NO_SELECTOR:
        return Refusal("empty_selector", f"{signal.subject_kind} {caller} is no single caller")
    if signal.caller_auth != "verified":
        return Refusal("caller_not_verified", "the serving tier did not authenticate this caller itself")
    if caller in mandate.allowlists[endpoint]:
        return Refusal("caller_allowlisted")
    return None


def limit_refusal(state: RespondState, signal: Signal, now_ms: int, mandate: Mandate) -> Refusal | None:
    """What refuses a new limit of a fit caller by the machine now.

    No cool-down: it would be a minute of free flooding after each release. Flapping ends with the third trip of a day,
    which `release_refusal` holds.
    """
    if state.killed:
        return Refusal("kill_switch")
    if not exceeds_entry(signal):
        return Refusal("too_little_evidence", f"score {signal.score:g} of {signal.threshold:g}")
    return caller_caps(state, signal.endpoint, now_ms, mandate)


def fallback_health(view: EndpointState | None, now_ms: int) -> Refusal | None:
    """A fallback only when live guards say now that it works (R9)."""
    if view is None or not is_fresh(view, now_ms):
        return Refusal("fallback_not_healthy", "no live guard has reported in the last 10 s")
    if view.guards_live < 1 or not view.fallback_ok:
        return Refusal("fallback_not_healthy", f"{view.guards_live} live guards, fallback_ok {view.fallback_ok}")
    return None


def caller_caps(state: RespondState, endpoint: str, now_ms: int, mandate: Mandate) -> Refusal | None:
    """Counted in callers by name, never in traffic (R3); and what one directive and the saved state can hold."""
    view = state.seen.views.get(endpoint)
    active = 0 if view is None or now_ms - view.at_ms > COUNTED_MS else view.active_callers
    cap, limited = mandate.caller_cap(active), len(state.record(endpoint).limits)
    if limited >= cap:
        return Refusal("caller_cap", f"{limited} callers limited, cap {cap} of {active} active")
    if limits_in_all(state) >= MAX_ALL_LIMITS:
        return Refusal("caller_cap", f"{MAX_ALL_LIMITS} callers limited over all endpoints")
    return None


def directive_is_full(state: RespondState, endpoint: str) -> bool:
    return len(state.record(endpoint).limits) >= MAX_LIMITS or limits_in_all(state) >= MAX_ALL_LIMITS


def limits_in_all(state: RespondState) -> int:
    return sum(len(record.limits) for record in state.endpoints.values())


def release_refusal(
    state: RespondState, endpoint: str, caller: str | None, now_ms: int, mandate: Mandate
) -> Refusal | None:
    """What keeps a recovered action of the machine from being released now.

    A failing endpoint needs good probes. A caller that trips for the third time in a day stays limited until its
    action expires or a person releases it: flapping in and out must not pay.
    """
    action = state.action(endpoint, caller)
    if action is None:
        return None
    if caller is not None:
        trips = trips_today(state, endpoint, caller, now_ms)
        if trips >= mandate.policy.trips_before_hold:
            return Refusal(
                "held_for_person", f"trip {trips} of the day; limited until it expires or a person releases it"
            )
        return None
    return _too_few_probes(action, state.seen.views.get(endpoint), now_ms)


def _too_few_probes(action: Action, view: EndpointState | None, now_ms: int) -> Refusal | None:
    if action.reason != "endpoint_failing":
        return None
    good = view.good_probes if view is not None and is_fresh(view, now_ms) else 0
    return (
        None if good >= GOOD_PROBES else Refusal("too_little_evidence", f"{good} of {GOOD_PROBES} good probes in a row")
    )


def _weak_evidence(signal: Signal, now_ms: int) -> Refusal | None:
    if signal.subject_kind not in _ENDPOINT_WIDE_SUBJECTS:
        return Refusal("too_little_evidence", f"evidence about one {signal.subject_kind} moves no whole endpoint")
    if signal.kind in _ALONE_TOO_WEAK:
        return Refusal("too_little_evidence", f"{signal.kind} alone moves no whole endpoint")
    if not exceeds_entry(signal):
        return Refusal("too_little_evidence", f"score {signal.score:g} of {signal.threshold:g}")
    age = now_ms - signal.at_ms
    return Refusal("too_little_evidence", f"evidence is {age // 1000} s old") if age > STALE_EVIDENCE_MS else None


def _few_callers(signal: Signal, view: EndpointState | None) -> Refusal | None:
    """Content that one or a few callers bring does not act on everybody (R7): a flood or a partner's fault is theirs.

    Detectors of content state whose doing it is where they know (`attributed_to`), and how many callers were present and
    how many moved, as effective numbers (1 / sum of squared shares, Hill's number of order 2). Both must say that it is
    no few callers'.
    """
    if signal.evidence.get("attributed_to") in _OF_A_FEW:
        return Refusal(
            "few_callers", f"{signal.evidence['attributed_to']}: {signal.evidence.get('attributed_callers')}"
        )
    moved, present = signal.evidence.get("callers_moved"), signal.evidence.get("callers_present")
    if not isinstance(moved, int | float) or not isinstance(present, int | float):
        return None
    active = view.active_callers if view is not None else 0
    if present > UNHEARD_SHARE * active + UNHEARD_LEAST:
        return Refusal(
            "few_callers", f"{present:.1f} callers in the predictions, guards know of {active}: who wrote them?"
        )
    if moved >= ENOUGH_CALLERS:
        return None
    if moved >= BROAD_SHARE * present and present >= SPEAKING_SHARE * active:
        return None
    return Refusal("few_callers", f"{moved:.1f} of {present:.1f} callers moved, {active} are active")


def _cooling_down(state: RespondState, endpoint: str, now_ms: int, mandate: Mandate) -> Refusal | None:
    """An endpoint that was restored is left alone a while (R5)."""
    record = state.trips.get(target_key(endpoint, None))
    if record is None or record.released_ms == 0:
        return None
    until = record.released_ms + mandate.cool_down_ms(trips_today(state, endpoint, None, now_ms))
    return Refusal("cooling_down", f"until {until}") if now_ms < until else None


def _tripped_too_often(state: RespondState, endpoint: str, now_ms: int, mandate: Mandate) -> Refusal | None:
    trips = trips_today(state, endpoint, None, now_ms) + 1
    if trips < mandate.policy.trips_before_hold:
        return None
    return Refusal("held_for_person", f"trip {trips} of the day")


def _mass_trip(state: RespondState, endpoint: str, now_ms: int, mandate: Mandate) -> Refusal | None:
    tripped = {
        name
        for name in mandate.endpoints
        if name == endpoint or state.record(name).wanted_ms > max(0, now_ms - MASS_TRIP_MS)
    }
    if len(tripped) < MASS_TRIP_LEAST or len(tripped) <= MASS_TRIP_SHARE * len(mandate.endpoints):
        return None
    return Refusal("mass_trip", f"{len(tripped)} of {len(mandate.endpoints)} endpoints within 5 min")


def _endpoint_caps(state: RespondState, now_ms: int, mandate: Mandate) -> Refusal | None:
    on_fallback = sum(record.route is not None for record in state.endpoints.values())
    if on_fallback >= mandate.endpoint_cap:
        return Refusal("endpoint_cap", f"{on_fallback} endpoints on fallback, cap {mandate.endpoint_cap}")
    recent = sum(at > now_ms - PACE_MS for at in state.pace_ms)
    most = min(MAX_PACE, mandate.policy.caps.endpoint_actions_per_minute)
    return Refusal("endpoint_pace", f"{recent} in the last minute, most {most}") if recent >= most else None
