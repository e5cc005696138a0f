"""When a webhook message is sent, and again, and given up: pure, with time and chance handed in.

Level-triggered: an endpoint has one message, its newest state. A newer one takes the place of an older one that is still
undelivered. Times in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from responders.webhooks import Message

RETRY_S: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Waits after the first failure, the second, ...: the schedule of Standard Webhooks; after the last one it is given up."""
URGENT_S: Final = 10.0
"""The longest of these waits while something holds, or may hold at the receiver: an action that lives for ten minutes is of
no use in thirty."""
RELEASE_TRIES: Final = 360
"""Urgent attempts to say that nothing holds any more: an hour of them, and no receiver holds anything for longer (R2)."""
JITTER: Final = 0.2
"""A wait is longer by up to this share of it, so that many receivers behind one balancer are not asked at once."""
SLOWER: Final = 6.0
"""A receiver that answers 429, 502 or 504 is asked so many times less often, at least each `MAX_SLOW_S` while it is
urgent."""
MAX_SLOW_S: Final = 120.0
MAX_RETRY_AFTER_S: Final = 300.0
"""The longest `Retry-After` that is believed: a receiver must not be able to switch its own protection off for good."""
REFRESH_S: Final = 60.0
"""What holds is told again so often, under the same id: to a receiver that forgot it, and to find out that one is gone."""
FIRST_DEADLINE_S: Final = 2.0
"""The first attempt of a message may take so long: a flip is worth a second one soon. Also what an attempt still gets
once its message is superseded."""
DEADLINE_S: Final = 15.0
"""Each later attempt."""

WebhookReason = Literal["webhook_delivered", "webhook_failing", "webhook_disabled", "webhook_given_up"]
Fault = Literal["blocked", "unresolved", "unreachable", "tls", "timeout", "no_http"]
"""Why there was no answer: the address is not allowed, the name has none, nobody is there, the certificate or handshake is
bad, it took too long, what came is no HTTP."""
SLOW_DOWN: Final = frozenset({429, 502, 504})
GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt led to: a status, or the fault that kept it from one. `retry_after_s`: as the receiver asked."""

    status: int | None = None
    fault: Fault | None = None
    retry_after_s: float | None = None
    detail: str = ""

    @property
    def taken(self) -> bool:
        """Only 2xx is; a redirect is not followed."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def outcome(self) -> str:
        """For metrics: one of few words."""
        if self.fault is not None:
            return self.fault
        return "delivered" if self.taken else f"http_{(self.status or 0) // 100}xx"

    def __str__(self) -> str:
        if self.fault is None:
            return f"answered {self.status}"
        return f"{self.fault}: {self.detail}" if self.detail else self.fault


@dataclass(frozen=True, slots=True)
class News:
    """What people should hear of a delivery; `since_s`: since when the message or one before it is undelivered."""

    kind: WebhookReason
    message: Message
    attempts: int
    since_s: float
    last: Answer


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where one endpoint's webhook stands. Made anew when a responder takes over.

    `attempts`: failed ones of `message`. `next_s`: of the next attempt (infinite: none is due). `not_before_s`: as the
    receiver asked; it holds for newer messages too. `undelivered_since_s`: no message was taken since then. `told`: the
    actions that people were last told are carried out.
    """

    message: Message | None = None
    attempts: int = 0
    next_s: float = math.inf
    not_before_s: float = -math.inf
    undelivered_since_s: float | None = None
    last: Answer | None = None
    failing_told: bool = False
    disabled: bool = False
    told: tuple[str, ...] | None = None

    @property
    def deadline_s(self) -> float:
        """How long the next attempt may take."""
        return FIRST_DEADLINE_S if self.attempts == 0 else DEADLINE_S


def want(delivery: Delivery, message: Message, now_s: float) -> Delivery:
    """A newer state: due at once, unless the receiver asked to wait. An older one, or the same, changes nothing.

    An action after a release that people know to be undelivered is a fault of its own: they hear of it again.
    """
    before = delivery.message
    if delivery.disabled or (before is not None and message.epoch <= before.epoch):
        return delivery
    if delivery.failing_told and message.holds and before is not None and not before.holds:
        delivery = replace(delivery, failing_told=False, undelivered_since_s=now_s)
    since = now_s if delivery.undelivered_since_s is None else delivery.undelivered_since_s
    return replace(
        delivery,
        message=message,
        attempts=0,
        next_s=max(now_s, delivery.not_before_s),
        undelivered_since_s=since,
    )


def answered(
    delivery: Delivery, sent: Message, answer: Answer, now_s: float, draw: float
) -> tuple[Delivery, News | None]:
    """After an attempt with `sent`, which may have been superseded meanwhile. draw: uniform in [0, 1)."""
    current = delivery.message is not None and delivery.message.id == sent.id
    if answer.taken:
        return _taken(delivery, sent, answer, current, now_s + REFRESH_S * (1.0 + JITTER * draw))
    since = delivery.undelivered_since_s if delivery.undelivered_since_s is not None else now_s
    failed = replace(delivery, last=answer, undelivered_since_s=since)
    if answer.status == GONE:
        gone = replace(failed, next_s=math.inf, disabled=True)
        return gone, News("webhook_disabled", sent, delivery.attempts + 1, since, answer)
    asked = min(answer.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
    if asked > 0.0:
        failed = replace(failed, not_before_s=now_s + asked)
    if not current:
        return replace(failed, next_s=max(failed.next_s, failed.not_before_s)), None
    urgent = bool(sent.holds) or (delivery.told != () and delivery.attempts < RELEASE_TRIES)
    wait = _wait_s(delivery.attempts, urgent, answer, draw)
    if wait is None:
        news = News("webhook_given_up", sent, delivery.attempts + 1, since, answer)
        return replace(failed, attempts=delivery.attempts + 1, next_s=math.inf), news
    next_s = max(now_s + wait, failed.not_before_s)
    return replace(failed, attempts=delivery.attempts + 1, next_s=next_s), None


def overdue(delivery: Delivery, now_s: float, alert_after_s: float) -> tuple[Delivery, News | None]:
    """Tells once that the receiver takes nothing for `alert_after_s`."""
    if now_s < alarm_s(delivery, alert_after_s) or delivery.message is None or delivery.undelivered_since_s is None:
        return delivery, None
    last = delivery.last or Answer(fault="timeout")
    news = News("webhook_failing", delivery.message, delivery.attempts, delivery.undelivered_since_s, last)
    return replace(delivery, failing_told=True), news


def alarm_s(delivery: Delivery, alert_after_s: float) -> float:
    """When `overdue` has something to tell; infinite if nothing is undelivered, or it is told."""
    if delivery.undelivered_since_s is None or delivery.failing_told or delivery.disabled:
        return math.inf
    return delivery.undelivered_since_s + alert_after_s


def _taken(
    delivery: Delivery, sent: Message, answer: Answer, current: bool, refresh_s: float
) -> tuple[Delivery, News | None]:
    if not current:
        return replace(delivery, last=answer, told=sent.holds), None
    since = delivery.undelivered_since_s or 0.0
    changed = sent.holds != delivery.told or delivery.failing_told
    news = News("webhook_delivered", sent, delivery.attempts + 1, since, answer) if changed else None
    done = replace(delivery, attempts=0, undelivered_since_s=None, last=answer, failing_told=False)
    return replace(done, told=sent.holds, next_s=refresh_s if sent.holds else math.inf), news


def _wait_s(failures: int, urgent: bool, answer: Answer, draw: float) -> float | None:
    """Seconds until the next attempt after one more failure; None: given up."""
    if failures >= len(RETRY_S) and not urgent:
        return None
    wait = RETRY_S[min(failures, len(RETRY_S) - 1)]
    slowly = answer.status in SLOW_DOWN
    if slowly:
        wait *= SLOWER
    if urgent:
        wait = min(wait, MAX_SLOW_S if slowly else URGENT_S)
    return wait * (1.0 + JITTER * draw)
