"""Short ways to say what is given: signals, endpoint states, commands, and a responder that keeps its journal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from responders.decide import Clock, Input, decide
from responders.journal import record
from responders.mandate import Mandate
from responders.state import RespondState
from schemas.actions import Command, Decision, InputRange, JournalEntry
from schemas.config import EndpointConfig, PolicyConfig
from schemas.signals import EndpointState, KnockingCaller, Signal

T0 = 1_700_000_000_000
ENDPOINTS = tuple("abcde")
SHIPPED = Path(__file__).parents[2] / "palisade" / "default_policy.yaml"


def policy(**changes: Any) -> PolicyConfig:
    """The shipped policy in enforce mode, with changes."""
    return PolicyConfig.model_validate(yaml.safe_load(SHIPPED.read_text()) | {"mode": "enforce"} | changes)


def mandate(*endpoints: EndpointConfig, **changes: Any) -> Mandate:
    return Mandate.of(policy(**changes), endpoints or [EndpointConfig(name=name) for name in ENDPOINTS])


def caller_signal(caller: str = "bob", endpoint: str = "a", **changes: Any) -> Signal:
    about = {"subject_kind": "caller", "subject": caller, "endpoint": endpoint}
    return signal(f"rate-{endpoint}-{caller}", **(about | changes))


def failing(endpoint: str = "a", **changes: Any) -> Signal:
    about = {"kind": "timeouts", "severity": "critical", "endpoint": endpoint, "subject": endpoint}
    return signal(f"timeouts-{endpoint}", **(about | changes))


def drifted(endpoint: str = "a", **changes: Any) -> Signal:
    about = {"kind": "feature_drift", "severity": "critical", "endpoint": endpoint, "subject": endpoint}
    return signal(f"drift-{endpoint}", **(about | changes))


def signal(incident: str, **changes: Any) -> Signal:
    fields: dict[str, Any] = {
        "incident_id": incident,
        "state": "opened",
        "seq": 0,
        "detector": "detector",
        "detector_hash": "0",
        "kind": "caller_rate",
        "endpoint": "a",
        "subject_kind": "endpoint",
        "subject": "a",
        "severity": "warning",
        "score": 10.0,
        "threshold": 2.0,
        "first_ms": T0,
        "at_ms": T0,
        "log_topic": "palisade.reports",
        "log_partition": 0,
        "log_offset": 1,
    } | changes
    if fields["subject_kind"] == "caller":
        fields.setdefault("caller_auth", "verified")
        fields.setdefault("usual_rate", 20.0)
    fields.setdefault("signal_id", f"{incident}-{fields['state']}-{fields['seq']}")
    return Signal(**fields)


def view(
    endpoint: str = "a", at_ms: int = T0, knocking: dict[str, float] | None = None, **changes: Any
) -> EndpointState:
    knocks = [
        KnockingCaller(caller=caller, caller_auth="verified", asked_per_s=asked)
        for caller, asked in (knocking or {}).items()
    ]
    fields: dict[str, Any] = {"guards_live": 1, "fallback_ok": True, "active_callers": 10, "median_caller_rate": 5.0}
    return EndpointState(endpoint=endpoint, at_ms=at_ms, knocking=knocks, **(fields | changes))


def command(kind: str, endpoint: str | None = "a", caller: str | None = None, **changes: Any) -> Command:
    fields: dict[str, Any] = {
        "command_id": f"{kind}-{endpoint}-{caller}",
        "kind": kind,
        "endpoint": endpoint,
        "caller": caller,
        "actor": "ana",
        "issued_ms": T0,
        "expires_ms": T0 + 1_800_000,
    } | changes
    return Command(**fields)


class Responder:
    """Decides and journals, one input an entry. `now_ms` moves only by `later`.

    What is said of an incident that has recovered opens another one, as detectors have it; `again` is told as it is.
    """

    def __init__(self, given: Mandate, healthy: bool = True) -> None:
        self.mandate = given
        self.now_ms = T0
        self.state = RespondState()
        self.journal: list[JournalEntry] = []
        self._offset = -1
        self._recovered: Counter[str] = Counter()
        if healthy:
            for endpoint in given.endpoints:
                self.take(view(endpoint))

    def as_told(self, given: Input) -> Input:
        """The input with the id of the incident that is open now."""
        if not isinstance(given, Signal):
            return given
        name = given.incident_id.partition(":")[0]
        if not (times := self._recovered[name]):
            return given
        signal_id = given.signal_id.partition(":")[0]
        return given.model_copy(update={"incident_id": f"{name}:{times}", "signal_id": f"{signal_id}:{times}"})

    def take(self, given: Input) -> list[Decision]:
        given = self.as_told(given)
        if isinstance(given, Signal) and given.state == "recovered":
            self._recovered[given.incident_id.partition(":")[0]] += 1
        return self.again(given)

    def again(self, given: Input) -> list[Decision]:
        self._offset += 1
        state, decisions = decide(self.state, given, self.now_ms, self.mandate)
        inputs = [InputRange(topic="palisade.signals", first=self._offset, last=self._offset)]
        self.state, entries = record(state, inputs, decisions, self.now_ms)
        self.journal += entries
        return decisions

    def later(self, ms: int, **views: Any) -> list[Decision]:
        """Time passes, then endpoints report (with `views` changed), then the clock ticks."""
        self.now_ms += ms
        decisions: list[Decision] = []
        for endpoint in self.mandate.endpoints:
            decisions += self.take(view(endpoint, self.now_ms, **views))
        return decisions + self.take(Clock())


def brief(decisions: list[Decision]) -> list[tuple[str, str, str]]:
    """(kind, reason, outcome) of each."""
    return [(decision.kind, decision.reason, decision.outcome) for decision in decisions]


def acts(decisions: list[Decision]) -> list[tuple[str, str, str]]:
    """As `brief`, without what people are told."""
    return [entry for entry in brief(decisions) if entry[0] != "notify"]
