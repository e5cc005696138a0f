"""Endpoints without a Guard: what is wanted of them is told to their webhook receivers.

One task an endpoint, which holds its newest message and no other, so that a receiver that is slow, gone or hostile delays
nobody but its own endpoint, and memory is bounded by the configuration (20 kB an endpoint). `want` never waits. When to
send is `responders.delivery`'s to say, how is `responders.http`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from responders.addresses import AddressPolicy
from responders.delivery import FIRST_DEADLINE_S, Answer, Delivery, News, alarm_s, answered, overdue, want
from responders.http import Destination, HttpClient, Post, tls_context
from responders.webhooks import Message, Secret, load_secrets
from schemas.config import EndpointConfig, WebhookConfig
from schemas.weburl import WebUrl

log = logging.getLogger(__name__)

MAX_NEWS: Final = 1_000
"""News that wait to be journaled; the oldest goes first. There are a few an incident and endpoint."""
FAULT_PAUSE_S: Final = 5.0
"""After a fault of our own in one endpoint's task."""
DOUBT_PAUSE_S: Final = 0.1
"""Until it is asked again whether this process may send."""

_RANDOM: Final = random.SystemRandom()

Watch = Callable[[str, Answer, float], None]
"""Endpoint, what an attempt led to, its seconds: for metrics."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A checked webhook: where to, signed by whom, when people are told that it fails."""

    to: Destination
    secrets: tuple[Secret, ...] = field(repr=False)
    alert_after_s: float


def destination(webhook: WebhookConfig, url: str, home: Path) -> Destination:
    """A URL of a webhook's configuration with what it allows. Raises ConfigError (`ca_file`)."""
    parsed = WebUrl.parse(url)
    policy = AddressPolicy.of(webhook.allow_private, webhook.allow_networks)
    ca_file = None if webhook.ca_file is None else home / webhook.ca_file
    return Destination(
        parsed, policy, webhook.allow_plaintext, tls_context(ca_file) if parsed.scheme == "https" else None
    )


def hooks_of(endpoints: Iterable[EndpointConfig], home: Path) -> dict[str, Hook]:
    """The webhook of each endpoint that has one; paths are relative to `home`. Raises ConfigError without any secret in it."""
    return {
        endpoint.name: Hook(
            destination(webhook, webhook.url, home),
            load_secrets(home / file for file in webhook.secret_files),
            webhook.alert_after_s,
        )
        for endpoint in endpoints
        if (webhook := endpoint.webhook) is not None
    }


class WebhookResponder:
    """Sends what is wanted, from `start` until `stop`. All calls on one event loop.

    post: an HTTP client's. now_s: the monotonic clock; unix_s: the one in signatures; draw: uniform in [0, 1).
    """

    def __init__(
        self,
        hooks: Mapping[str, Hook],
        post: Post | None = None,
        *,
        watch: Watch | None = None,
        now_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
        draw: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._hooks = dict(hooks)
        self._post = post or HttpClient().post
        self._watch = watch or (lambda *_: None)
        self._now_s = now_s
        self._unix_s = unix_s
        self._draw = draw
        self._deliveries: dict[str, Delivery] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._news: deque[News] = deque(maxlen=MAX_NEWS)
        self._may_send: Callable[[], bool] = lambda: True

    def start(self, may_send: Callable[[], bool] = lambda: True) -> None:
        """From now on this process sends; it knows nothing of what was sent before.

        may_send: asked before each attempt. While it says no, another process may have taken over.
        """
        self._may_send = may_send
        self._deliveries = {name: Delivery() for name in self._hooks}
        self._changed = {name: asyncio.Event() for name in self._hooks}
        self._news.clear()
        self._tasks = [asyncio.create_task(self._serve(name), name=f"webhook of {name}") for name in self._hooks]

    async def stop(self) -> None:
        """Nothing more is sent; an attempt under way is broken off."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._deliveries = {}

    def lacks(self, endpoint: str, epoch: int) -> bool:
        """True if the endpoint has a webhook that was not yet told of this epoch."""
        delivery = self._deliveries.get(endpoint)
        return delivery is not None and (delivery.message is None or delivery.message.epoch < epoch)

    def want(self, message: Message) -> None:
        """Takes the place of what was wanted of this endpoint before. Never waits."""
        delivery = self._deliveries.get(message.endpoint)
        if delivery is not None:
            self._deliveries[message.endpoint] = want(delivery, message, self._now_s())
            self._changed[message.endpoint].set()

    def news(self) -> list[News]:
        """What happened since the last call."""
        told = list(self._news)
        self._news.clear()
        return told

    def failing(self) -> int:
        """Endpoints whose receivers take nothing, or are gone."""
        return sum(delivery.failing_told or delivery.disabled for delivery in self._deliveries.values())

    async def _serve(self, name: str) -> None:
        hook = self._hooks[name]
        while True:
            try:
                await self._turn(name, hook)
            except Exception:
                log.exception("the webhook of %s is tried again in %g s", name, FAULT_PAUSE_S)
                await asyncio.sleep(FAULT_PAUSE_S)

    async def _turn(self, name: str, hook: Hook) -> None:
        """Waits until something is due or wanted, and does it."""
        delivery, news = overdue(self._deliveries[name], self._now_s(), hook.alert_after_s)
        self._keep(name, delivery, news)
        due = min(delivery.next_s, alarm_s(delivery, hook.alert_after_s))
        changed = self._changed[name]
        if due > self._now_s():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due == float("inf") else due - self._now_s()):
                    await changed.wait()
            changed.clear()
            return
        changed.clear()
        if not self._may_send():
            await asyncio.sleep(DOUBT_PAUSE_S)
        elif delivery.message is not None and delivery.next_s <= self._now_s():
            await self._attempt(name, hook, delivery, delivery.message)

    async def _attempt(self, name: str, hook: Hook, delivery: Delivery, message: Message) -> None:
        """One attempt. Once it is superseded it may still take `FIRST_DEADLINE_S`, so that a receiver that needs as long
        as changes take to follow each other is not broken off each time."""
        began = self._now_s()
        unix_s = self._unix_s()
        headers = message.headers(int(unix_s), hook.secrets)
        attempt = asyncio.create_task(self._post(hook.to, headers, message.body, delivery.deadline_s, unix_s))
        changed = asyncio.create_task(self._changed[name].wait())
        alarm = alarm_s(delivery, hook.alert_after_s)
        try:
            while not attempt.done() and not changed.done():
                wait_s = max(0.0, alarm - self._now_s()) if alarm != float("inf") else None
                await asyncio.wait({attempt, changed}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                self._keep(name, *overdue(self._deliveries[name], self._now_s(), hook.alert_after_s))
                alarm = alarm_s(self._deliveries[name], hook.alert_after_s)
            await asyncio.wait({attempt}, timeout=max(0.0, began + FIRST_DEADLINE_S - self._now_s()))
            answer = (
                attempt.result() if attempt.done() else Answer(fault="timeout", detail="something newer is to be sent")
            )
        finally:
            attempt.cancel()
            changed.cancel()
        now = self._now_s()
        self._watch(name, answer, now - began)
        if not answer.taken:
            log.warning("webhook of %s, epoch %d, attempt %d: %s", name, message.epoch, delivery.attempts + 1, answer)
        self._keep(name, *answered(self._deliveries[name], message, answer, now, self._draw()))

    def _keep(self, name: str, delivery: Delivery, news: News | None) -> None:
        self._deliveries[name] = delivery
        if news is not None:
            self._news.append(news)


def sentence(news: News, now_s: float) -> str:
    """The numbers of it, for the journal."""
    what = "fallback or limits" if news.message.holds else "back to normal"
    took = f"{news.attempts} attempt{'s' if news.attempts != 1 else ''}, {max(0.0, now_s - news.since_s):.1f} s"
    return f"epoch {news.message.epoch} ({what}): {news.last}; {took}"


__all__: Sequence[str] = ["Hook", "WebhookResponder", "destination", "hooks_of", "sentence"]
