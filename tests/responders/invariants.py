"""What must hold after every input, whatever the inputs were: the rails, told again without the responder's own code.

`Watch.check` raises AssertionError with the rail's number. It keeps its own books from inputs and decisions alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from responders.decide import Input
from responders.directives import directive_for
from schemas.actions import Command, Decision, Directive, KillSwitch
from schemas.signals import EndpointState, Signal
from tests.responders.given import Responder

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
Target = tuple[str, str | None]


@dataclass
class Watch:
    """Books of a run: signals by id, what holds, when targets were released, what was said."""

    signals: dict[str, Signal] = field(default_factory=dict)
    views: dict[str, EndpointState] = field(default_factory=dict)
    active: dict[Target, Decision] = field(default_factory=dict)
    released_ms: dict[Target, int] = field(default_factory=dict)
    trips: dict[Target, list[int]] = field(default_factory=lambda: defaultdict(list))
    holds: dict[Target, int] = field(default_factory=dict)
    fallbacks_ms: list[int] = field(default_factory=list)
    wanted_ms: dict[str, int] = field(default_factory=dict)
    said: set[tuple[str, str, str]] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    killed: bool = False
    told: dict[str, Directive] = field(default_factory=dict)

    def check(self, responder: Responder, given: Input, decisions: list[Decision]) -> None:
        if isinstance(given, Signal):
            self.signals[given.signal_id] = given
        if isinstance(given, EndpointState):
            self.views[given.endpoint] = given
        for decision in decisions:
            self._check_one(responder, decision)
        self._check_what_holds(responder)
        self._check_directives(responder)
        if isinstance(given, Command | KillSwitch):
            assert decisions, "a person's word is always answered"

    def _check_one(self, responder: Responder, decision: Decision) -> None:
        target = (decision.endpoint, decision.caller)
        machine = decision.actor == "palisade"
        if decision.reason != "evidence_renewed":
            assert decision.action_id not in self.ids, "one decision, one id"
            self.ids.add(decision.action_id)
        if machine and decision.incident_id and decision.outcome == "refused":
            key = (decision.incident_id, decision.kind, decision.reason)
            assert key not in self.said, "a refusal is said once an incident and rail"
            self.said.add(key)
        no_trip = ("evidence_renewed", "unknown_endpoint", "too_little_evidence", "few_callers", "fallback_not_healthy")
        if machine and decision.kind == "fallback" and decision.incident_id and decision.reason not in no_trip:
            self.wanted_ms[decision.endpoint] = decision.issued_ms
        if decision.outcome == "refused" or decision.kind == "notify":
            if decision.reason == "signal_recovered":
                self.said = {key for key in self.said if key[0] != decision.incident_id}
            return
        if decision.kind in ("kill", "unkill"):
            self.killed = decision.kind == "kill"
            self.active = {} if self.killed else self.active
        elif decision.reason == "held_for_person":
            assert self._person_holds(target, decision.issued_ms), "only a person makes the machine propose"
        elif decision.kind in ("fallback", "limit"):
            self._check_act(responder, decision, target, machine)
        else:
            self._check_release(decision, target, machine)

    def _check_act(self, responder: Responder, decision: Decision, target: Target, machine: bool) -> None:
        assert not self.killed, "R12: nothing new after kill"
        configured = responder.mandate.endpoints.get(decision.endpoint)
        assert configured is not None, "R10: only configured endpoints"
        assert decision.expires_ms is not None
        assert decision.issued_ms < decision.expires_ms <= decision.issued_ms + HOUR_MS, "R2: everything expires"
        enforce = (configured.mode or responder.mandate.policy.mode) == "enforce"
        assert decision.outcome == ("published" if enforce else "observed"), "R1: observe publishes nothing"
        before = self.active.get(target)
        if decision.kind == "limit":
            self._check_limit(responder, decision, before, machine)
        if machine:
            assert not self._person_holds(target, decision.issued_ms), "a person's word wins"
            if before is None:
                self._check_new(responder, decision, target)
            else:
                assert decision.expires_ms >= (before.expires_ms or 0), "fresh evidence shortens nothing"
        self.active[target] = decision
        self.said = {key for key in self.said if key[0] != decision.incident_id}
        if not machine:
            self.holds.pop(target, None)

    def _check_limit(self, responder: Responder, decision: Decision, before: Decision | None, machine: bool) -> None:
        floor = responder.mandate.policy.limit_floor
        assert decision.caller is not None
        assert decision.rate_per_s is not None
        assert decision.caller not in ("", "*"), "R10: no empty selector"
        assert decision.caller not in responder.mandate.endpoints[decision.endpoint].allowlist, "R8: allowlist"
        assert decision.rate_per_s >= floor.per_s, "R8: floor"
        if before is not None:
            assert before.rate_per_s is not None
            assert decision.rate_per_s <= before.rate_per_s, "R10: an action only narrows"
        if machine and decision.signal_ids:
            signal = self.signals[decision.signal_ids[0]]
            assert signal.subject == decision.caller, "R10: the caller that the evidence names"
            if before is None:
                assert signal.caller_auth == "verified", "R6: verified callers only"
                assert decision.rate_per_s >= floor.share_of_usual * (signal.usual_rate or 0), "R8: share of its usual"

    def _check_new(self, responder: Responder, decision: Decision, target: Target) -> None:
        policy, now = responder.mandate.policy, decision.issued_ms
        signal = self.signals[decision.signal_ids[0]]
        assert signal.score >= signal.threshold, "R5: minimum evidence"
        trips = [at for at in self.trips[target] if at > now - DAY_MS]
        if target in self.released_ms and target[1] is None:
            wait = policy.durations.cool_down_s * 1000 * 2 ** min(max(len(trips) - 1, 0), 3)
            assert now >= self.released_ms[target] + wait, "R5: cool-down"
        self.trips[target].append(now)
        if decision.kind == "limit":
            limited = sum(endpoint == target[0] for endpoint, caller in self.active if caller is not None) + 1
            view = self.views.get(target[0])
            cap = max(policy.caps.callers_min, int(policy.caps.callers_share * (view.active_callers if view else 0)))
            assert limited <= cap, "R3: cap of callers"
            return
        assert len(trips) + 1 < policy.trips_before_hold, "R5: the third trip is a person's"
        on_fallback = sum(caller is None for _, caller in self.active) + 1
        assert on_fallback <= max(1, int(0.2 * len(responder.mandate.endpoints))), "R3: cap of endpoints"
        self.fallbacks_ms.append(now)
        assert sum(at > now - 60_000 for at in self.fallbacks_ms) <= 6, "R3: pace"
        tripped = sum(at > now - 300_000 for at in self.wanted_ms.values())
        assert tripped < 3 or tripped <= 0.3 * len(responder.mandate.endpoints), "R4: mass trip"
        view = self.views.get(target[0])
        assert view is not None, "R9: a healthy fallback"
        assert view.fallback_ok, "R9: a healthy fallback"
        assert abs(now - view.at_ms) <= 10_000, "R9: a fresh report"

    def _check_release(self, decision: Decision, target: Target, machine: bool) -> None:
        before = self.active.pop(target, None)
        if machine:
            assert before is not None, "only what holds is released"
            if decision.reason == "expired":
                assert (before.expires_ms or 0) <= decision.issued_ms
            if before.actor == "palisade":
                self.released_ms[target] = decision.issued_ms
            else:
                assert decision.reason in ("expired", "configuration_changed"), "a person's action is a person's to end"
        elif decision.expires_ms is not None:
            self.holds[target] = decision.expires_ms

    def _person_holds(self, target: Target, now_ms: int) -> bool:
        action = self.active.get(target)
        by_person = action is not None and action.actor != "palisade" and (action.expires_ms or 0) > now_ms
        return by_person or self.holds.get(target, 0) > now_ms

    def _check_what_holds(self, responder: Responder) -> None:
        """The state holds exactly what the decisions say: nobody is acted on without a decision on record."""
        holding = {
            (name, caller): action.expires_ms
            for name, record in responder.state.endpoints.items()
            for caller, action in record.actions()
        }
        assert holding == {target: decision.expires_ms for target, decision in self.active.items()}
        assert responder.state.killed == self.killed

    def _check_directives(self, responder: Responder) -> None:
        for name in responder.state.endpoints:
            directive = directive_for(responder.state, name, responder.now_ms)
            if self.killed:
                assert (directive.route, directive.limits) == ("primary", []), "R12: empty directives after kill"
            enforced = {target: kept for target, kept in self.active.items() if kept.mode == "enforce"}
            assert (directive.route == "fallback") <= ((name, None) in enforced)
            for limit in directive.limits:
                assert (name, limit.caller) in enforced, "a directive holds decisions only"
            before = self.told.get(name)
            if before is not None:
                assert directive.epoch >= before.epoch, "R11: epochs never fall"
                if directive.epoch == before.epoch:
                    assert _deadlines(directive) <= _deadlines(before), "R11: no deadline moves later within an epoch"
            self.told[name] = directive


def _deadlines(directive: Directive) -> set[tuple[str, float | None, int]]:
    """What a directive wants, and until when: an empty one wants nothing."""
    wanted: set[tuple[str, float | None, int]] = {
        (limit.caller, limit.rate_per_s, directive.issued_ms + limit.ttl_ms) for limit in directive.limits
    }
    if directive.route == "fallback":
        wanted.add(("", None, directive.issued_ms + directive.ttl_ms))
    return wanted
