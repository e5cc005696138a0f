"""What people are told: a sentence for each decision, and an alert for those that concern them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from responders.state import ALL_ENDPOINTS, MACHINE
from schemas.actions import Decision, Reason
from schemas.signals import Severity

_DONE: Final[dict[str, str]] = {
    "fallback": "answers of {endpoint} come from its fallback",
    "restore": "{endpoint} answers with its model again",
    "limit": "caller {caller} of {endpoint} is limited to {rate:g} answers/s",
    "unlimit": "caller {caller} of {endpoint} is no longer limited",
    "kill": "KILL SWITCH: nothing is enforced anywhere until it is lifted",
    "unkill": "the kill switch is lifted; new evidence is acted on again",
    "notify": "{endpoint}{of_caller}",
}

WHY: Final[dict[Reason, str]] = {
    "inputs_left_profile": "its inputs left the profile of the training data",
    "outputs_left_profile": "what it answers left the profile of what it answered on the training data",
    "endpoint_failing": "it fails or is too slow",
    "caller_out_of_pattern": "the caller asks far more than its pattern",
    "evidence_renewed": "the evidence is fresh",
    "signal_recovered": "the cause is over",
    "expired": "the action expired without fresh evidence",
    "configuration_changed": "the configuration no longer allows it",
    "person_commanded": "a person commanded it",
    "told_people": "the policy says to tell people",
    "journal_lost": "the journal was gone, and with it who ordered this and why",
    "endpoint_cap": "as many endpoints as the cap allows are on fallback already",
    "endpoint_pace": "as many endpoints as the pace allows were put on fallback in the last minute",
    "caller_cap": "as many callers as the cap allows are limited already: this looks distributed",
    "caller_not_verified": "the caller's identity was not authenticated, so that it could be a victim's",
    "caller_allowlisted": "the caller is on the allowlist",
    "fallback_not_healthy": "no live guard says that the fallback works",
    "cooling_down": "it was released a moment ago",
    "held_for_person": "it is a person's to decide",
    "kill_switch": "the kill switch is on",
    "empty_selector": "the target names nobody, or everybody",
    "would_widen": "it would let more through than what holds now",
    "unknown_endpoint": "the endpoint is not in the configuration",
    "command_expired": "the command had expired when it was read",
    "command_refused": "the command cannot be carried out",
    "too_little_evidence": "the evidence is too weak",
    "few_callers": "too few callers bring the evidence",
    "webhook_delivered": "its webhook receiver has taken what is wanted of it",
    "webhook_failing": "its webhook receiver does not take what is wanted of it",
    "webhook_disabled": "its webhook receiver says that it is gone (410); nothing more is sent until respond starts again",
    "webhook_given_up": "its webhook receiver took nothing in days of attempts: what it holds is for a person to look at",
    "reader_behind": "a role has not read more than half of what the broker keeps; it must catch up before retention removes it",
    "reader_lost": "retention removed records that a role had not read",
    "reader_caught_up": "a role has read what it was behind with",
    "mass_trip": "so many endpoints trip at once that the monitor itself is in doubt",
}

_CRITICAL: Final = frozenset(
    {
        "mass_trip",
        "journal_lost",
        "caller_cap",
        "endpoint_cap",
        "fallback_not_healthy",
        "held_for_person",
        "webhook_failing",
        "webhook_disabled",
        "webhook_given_up",
        "reader_behind",
        "reader_lost",
    }
)
_INFO: Final = frozenset({"signal_recovered", "webhook_delivered", "reader_caught_up"})


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to tell people. `name` is a decision's reason: a bounded set. `at_ms` in ms since the epoch."""

    name: Reason
    severity: Severity
    endpoint: str
    caller: str | None
    text: str
    action_id: str
    at_ms: int

    def line(self) -> str:
        """One line of a log, without control characters whatever the reason of a person holds."""
        text = "".join(char if char.isprintable() else " " for char in self.text)
        return f"{self.severity} {self.name}: {text}"


def sentence(decision: Decision) -> str:
    """The decision in words, with its reason."""
    what = _DONE[decision.kind].format(
        endpoint="the fleet" if decision.endpoint == ALL_ENDPOINTS else decision.endpoint,
        caller=decision.caller or "(none)",
        of_caller=f", caller {decision.caller}" if decision.caller else "",
        rate=decision.rate_per_s or 0.0,
    )
    if decision.kind != "notify" and decision.outcome == "refused":
        what = f"{decision.kind} of {decision.caller or decision.endpoint} is refused"
    elif decision.kind != "notify" and decision.outcome == "observed":
        what = f"would do ({decision.mode} mode): {what}"
    why = WHY[decision.reason] if decision.actor == MACHINE else f"{WHY[decision.reason]} ({decision.actor})"
    return f"{what}: {why}" + (f" [{decision.detail}]" if decision.detail else "")


def alert_for(decision: Decision) -> Alert | None:
    """The alert that a decision is worth: `notify` and the kill switch. The rest is in the journal for who looks."""
    if decision.kind not in ("notify", "kill", "unkill"):
        return None
    severity: Severity = "warning"
    if decision.reason in _INFO:
        severity = "info"
    elif decision.reason in _CRITICAL or decision.kind == "kill":
        severity = "critical"
    return Alert(
        name=decision.reason,
        severity=severity,
        endpoint=decision.endpoint,
        caller=decision.caller,
        text=sentence(decision),
        action_id=decision.action_id,
        at_ms=decision.issued_ms,
    )
