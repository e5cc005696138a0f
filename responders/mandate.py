"""What the responder may do: the policy and the configured endpoints, with the numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.actions import MAX_LIMITS, MAX_TTL_MS, Mode
from schemas.config import EndpointConfig, PolicyConfig, Rule
from schemas.ids import stable_id
from schemas.signals import Signal

MAX_COOL_DOWN_DOUBLINGS = 3
"""The wait after a release doubles with each trip of the day, at most so often: it must not become an off-switch."""


@dataclass(frozen=True, slots=True)
class Mandate:
    """A policy applied to a fleet. Made once with `Mandate.of`; asked on every input."""

    policy: PolicyConfig
    policy_hash: str
    endpoints: Mapping[str, EndpointConfig]
    allowlists: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, policy: PolicyConfig, endpoints: Iterable[EndpointConfig]) -> Mandate:
        by_name = {endpoint.name: endpoint for endpoint in endpoints}
        allowlists = {name: frozenset(endpoint.allowlist) for name, endpoint in by_name.items()}
        return cls(policy, stable_id(policy.model_dump_json()), by_name, allowlists)

    def mode(self, endpoint: str) -> Mode:
        """The endpoint's own mode, else the policy's (R1)."""
        configured = self.endpoints.get(endpoint)
        return self.policy.mode if configured is None or configured.mode is None else configured.mode

    def rule_for(self, signal: Signal) -> Rule | None:
        """The first rule that matches decides."""
        said = (signal.kind, signal.subject_kind, signal.severity)
        return next((rule for rule in self.policy.rules if rule.when.matches(*said)), None)

    @property
    def action_ms(self) -> int:
        """Life of an action without fresh evidence; never above an hour (R2)."""
        return min(MAX_TTL_MS, max(1, round(self.policy.durations.action_s * 1000)))

    def cool_down_ms(self, trips_today: int) -> int:
        """Wait after the machine released a target that tripped so often today: doubled with each trip after the first."""
        doublings = min(max(trips_today - 1, 0), MAX_COOL_DOWN_DOUBLINGS)
        return round(self.policy.durations.cool_down_s * 1000) << doublings

    @property
    def endpoint_cap(self) -> int:
        """Endpoints that may be under an endpoint-wide action at once (R3)."""
        caps = self.policy.caps
        return max(caps.endpoints_min, math.floor(caps.endpoints_share * len(self.endpoints) + 1e-9))

    def caller_cap(self, active_callers: int) -> int:
        """Callers of an endpoint that may be limited at once, of so many active by name (R3)."""
        caps = self.policy.caps
        return min(MAX_LIMITS, max(caps.callers_min, math.floor(caps.callers_share * active_callers + 1e-9)))

    def limit_rate(self, usual_rate: float | None, median_rate: float) -> float:
        """Answers a second that a limited caller keeps: a share of what it usually asks, never below the floor (R8).

        A caller without a usual rate of its own has that of its endpoint's median caller. Events/s in and out.
        """
        floor = self.policy.limit_floor
        usual = median_rate if usual_rate is None or not math.isfinite(usual_rate) else usual_rate
        share = floor.share_of_usual * max(0.0, usual)
        return max(floor.per_s, share if math.isfinite(share) else 0.0)
