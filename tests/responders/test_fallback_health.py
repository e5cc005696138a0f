"""R9 without a Guard: a fallback counts only while its health URL answers well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from responders.delivery import Answer
from responders.fallback_health import HOLDS_S, FallbackHealth, health_urls
from responders.http import Destination
from schemas.config import EndpointConfig, WebhookConfig
from tests.responders.receivers import answer, receiver, resolving, to

OK, ILL, HUNG = Answer(status=200), Answer(status=503), Answer(fault="timeout")


def health(*answers: Answer, now: list[float]) -> FallbackHealth:
    left = list(answers)

    async def get(to: Destination, deadline_s: float, now_s: float) -> Answer:
        return left.pop(0)

    return FallbackHealth({"a": to(9_000)}, get, now_s=lambda: now[0])


def ask(checked: FallbackHealth) -> bool:
    return asyncio.run(checked.ask("a"))


def test_an_endpoint_that_was_never_asked_or_has_no_health_url_has_no_fallback() -> None:
    checked = health(now=[0.0])

    assert not checked("a")
    assert not checked("unheard of")


def test_a_good_answer_counts_for_five_seconds() -> None:
    now = [100.0]
    checked = health(OK, now=now)
    assert ask(checked)

    now[0] += HOLDS_S
    assert checked("a")
    now[0] += 0.001
    assert not checked("a")


def test_one_question_without_an_answer_may_be_missed_and_a_bad_answer_is_believed_at_once() -> None:
    now = [100.0]
    checked = health(OK, HUNG, ILL, now=now)
    ask(checked)
    assert not ask(checked)
    assert checked("a")
    assert not ask(checked)
    assert not checked("a")


@pytest.mark.parametrize("status", [301, 404, 429, 500])
def test_only_2xx_is_healthy(status: int) -> None:
    checked = health(Answer(status=status), now=[100.0])

    assert not ask(checked)
    assert not checked("a")


def test_it_asks_by_itself_and_an_endpoint_that_hangs_delays_no_other() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def story() -> None:
        async with receiver(answer(200)) as well, receiver(silent) as hangs, asyncio.timeout(20):
            checked = FallbackHealth({"hangs": to(hangs.port), "well": to(well.port)})
            asking = asyncio.create_task(checked.run())
            while not checked("well"):
                await asyncio.sleep(0.01)
            assert not checked("hangs")
            assert well.requests[0][0].startswith(b"GET /hook?a=b HTTP/1.1\r\n")
            asking.cancel()

    asyncio.run(story())


def test_a_health_url_into_a_private_network_is_refused_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("whsec_" + "a" * 44)
    webhook = WebhookConfig(url="https://a.example", secret_files=("s",), fallback_health_url="https://b.example/up")
    urls = health_urls([EndpointConfig(name="a", webhook=webhook), EndpointConfig(name="b")], tmp_path)
    assert {name: to.url.host for name, to in urls.items()} == {"a": "b.example"}

    async def story() -> None:
        from responders.http import HttpClient

        checked = FallbackHealth(urls, HttpClient(resolving("169.254.169.254")).get)
        assert not await checked.ask("a")

    asyncio.run(story())
