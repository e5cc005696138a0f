"""Whether the fallback of an endpoint without a Guard works now (R9): its health URL is asked again and again.

A fallback that was not found healthy within the last seconds counts as none: the responder then keeps the primary and
tells people.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from responders.delivery import Answer
from responders.http import Destination, HttpClient
from responders.webhook_responder import destination
from schemas.config import EndpointConfig

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0
"""From the start of one question to that of the next."""
DEADLINE_S: Final = 1.0
"""An answer that takes longer is none."""
HOLDS_S: Final = 5.0
"""A good answer counts so long: one may be missed, two may not."""


class Get(Protocol):
    """A question: never raises, takes at most `deadline_s`."""

    async def __call__(self, to: Destination, deadline_s: float, now_s: float) -> Answer: ...


def health_urls(endpoints: Iterable[EndpointConfig], home: Path) -> dict[str, Destination]:
    """Endpoint -> where its fallback says how it is; without a health URL an endpoint has no fallback. Raises ConfigError."""
    return {
        endpoint.name: destination(webhook, webhook.fallback_health_url, home)
        for endpoint in endpoints
        if (webhook := endpoint.webhook) is not None and webhook.fallback_health_url is not None
    }


class FallbackHealth:
    """Call it with an endpoint's name: True if its fallback answered 2xx in the last 5 s. `run` asks until cancelled.

    One task an endpoint: a health URL that hangs delays no other's. Memory: one number an endpoint.
    """

    def __init__(
        self, urls: Mapping[str, Destination], get: Get | None = None, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._urls = dict(urls)
        self._get = get or HttpClient().get
        self._now_s = now_s
        self._good_s: dict[str, float] = {}
        self._said: dict[str, bool] = {}

    def __call__(self, endpoint: str) -> bool:
        good = self._good_s.get(endpoint)
        return good is not None and self._now_s() - good <= HOLDS_S

    async def run(self) -> None:
        """Asks all of them until cancelled."""
        async with asyncio.TaskGroup() as group:
            for endpoint in self._urls:
                group.create_task(self._watch(endpoint))

    async def ask(self, endpoint: str) -> bool:
        """One question; whether it was answered well. Logged where that changes."""
        began = self._now_s()
        answer = await self._get(self._urls[endpoint], DEADLINE_S, time.time())
        if answer.taken:
            self._good_s[endpoint] = began
        elif answer.fault is None:  # it says itself that it is not well: that is believed at once
            self._good_s.pop(endpoint, None)
        if self._said.get(endpoint) != answer.taken:
            self._said[endpoint] = answer.taken
            log.log(logging.INFO if answer.taken else logging.WARNING, "the fallback of %s: %s", endpoint, answer)
        return answer.taken

    async def _watch(self, endpoint: str) -> None:
        while True:
            began = self._now_s()
            with contextlib.suppress(OSError):
                await self.ask(endpoint)
            await asyncio.sleep(max(0.1, EVERY_S - (self._now_s() - began)))
