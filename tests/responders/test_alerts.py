"""What people read: a sentence for every reason, alerts for what concerns them, and no control characters."""

from __future__ import annotations

from typing import get_args

from responders.alerts import WHY, alert_for, sentence
from schemas.actions import Reason
from tests.responders.given import Responder, caller_signal, command, failing, mandate, view


def test_every_reason_is_explained() -> None:
    assert set(WHY) == set(get_args(Reason))


def test_a_limit_reads_as_a_sentence() -> None:
    (decision,) = Responder(mandate()).take(caller_signal())

    assert sentence(decision).startswith("caller bob of a is limited to 2 answers/s: the caller asks far more")


def test_what_is_only_observed_says_so() -> None:
    (decision,) = Responder(mandate(mode="observe")).take(failing())

    assert sentence(decision).startswith("would do (observe mode): answers of a come from its fallback")


def test_a_rails_refusal_is_an_alert_of_its_name() -> None:
    responder = Responder(mandate())
    responder.take(view(fallback_ok=False))
    refused, told = responder.take(failing())

    assert alert_for(refused) is None
    alert = alert_for(told)
    assert alert is not None
    assert (alert.name, alert.severity, alert.endpoint) == ("fallback_not_healthy", "critical", "a")
    assert sentence(refused).startswith("fallback of a is refused")


def test_the_kill_switch_is_an_alert_that_names_its_person() -> None:
    (decision,) = Responder(mandate()).take(command("kill", endpoint=None, reason="drill\x1b[31m\nnow"))
    alert = alert_for(decision)

    assert alert is not None
    assert alert.severity == "critical"
    assert alert.line().isprintable()
    assert "(ana)" in alert.line()


def test_a_recovery_is_told_quietly() -> None:
    responder = Responder(mandate())
    responder.take(caller_signal())
    told, released = responder.take(caller_signal(state="recovered", seq=1))

    alert = alert_for(told)
    assert alert is not None
    assert alert.severity == "info"
    assert alert_for(released) is None
