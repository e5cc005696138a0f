"""The webhook responder as it runs: real tasks, a clock and an HTTP client that are handed in."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from responders.delivery import Answer, News
from responders.http import Destination, HttpClient
from responders.webhook_responder import Hook, WebhookResponder, hooks_of, sentence
from responders.webhooks import Message, parse_secret
from schemas.config import EndpointConfig, WebhookConfig
from schemas.errors import ConfigError
from tests.responders.receivers import answer, dripping_head, endless_head, receiver, silent, to

KEY = base64.b64encode(b"canary-canary-canary-canary-1234").decode()
SECRET = f"whsec_{KEY}"
OK = Answer(status=204)
DOWN = Answer(fault="unreachable")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Post:
    """Notes each attempt and answers from a list, then `OK`; an entry may be a future to wait for."""

    def __init__(self, *answers: Answer | asyncio.Future[Answer]) -> None:
        self._answers = list(answers)
        self.sent: asyncio.Queue[tuple[dict[str, str], bytes, float]] = asyncio.Queue()

    async def __call__(
        self, to: Destination, headers: Sequence[tuple[str, str]], body: bytes, deadline_s: float, now_s: float
    ) -> Answer:
        self.sent.put_nowait((dict(headers), body, deadline_s))
        given = self._answers.pop(0) if self._answers else OK
        return given if isinstance(given, Answer) else await given


def hook(alert_after_s: float = 10.0, port: int = 9_999) -> Hook:
    return Hook(to(port), (parse_secret(SECRET),), alert_after_s)


def flip(endpoint: str = "a", epoch: int = 1, *actions: str) -> Message:
    return Message(f"{endpoint}{epoch}", endpoint, epoch, b"{}", actions or ("act",))


@asynccontextmanager
async def responding(hooks: Mapping[str, Hook], post: Any, **options: Any) -> AsyncIterator[WebhookResponder]:
    responder = WebhookResponder(hooks, post, draw=lambda: 0.0, **options)
    responder.start()
    try:
        async with asyncio.timeout(20):
            yield responder
    finally:
        await responder.stop()


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


async def news_of(responder: WebhookResponder) -> list[News]:
    while not (news := responder.news()):
        await asyncio.sleep(0)
    return news


def test_what_is_wanted_is_sent_signed_and_its_delivery_is_news() -> None:
    async def story() -> None:
        post = Post()
        async with responding({"a": hook()}, post) as responder:
            assert responder.lacks("a", 1)
            responder.want(flip())
            assert not responder.lacks("a", 1)
            headers, body, deadline_s = await post.sent.get()
            Webhook(SECRET).verify(body, headers)
            assert (headers["webhook-id"], deadline_s) == ("a1", 2.0)
            (news,) = await news_of(responder)
            assert (news.kind, news.message) == ("webhook_delivered", flip())

    run(story)


def test_a_retry_has_the_same_id_and_a_timestamp_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("responders.delivery.RETRY_S", (0.01,))

    async def story() -> None:
        unix, post = Clock(), Post(DOWN)
        async with responding({"a": hook()}, post, unix_s=unix) as responder:
            responder.want(flip())
            first, _, _ = await post.sent.get()
            unix.now = 106.0
            second, _, deadline_s = await post.sent.get()
            assert first["webhook-id"] == second["webhook-id"]
            assert (first["webhook-timestamp"], second["webhook-timestamp"], deadline_s) == ("100", "106", 15.0)

    run(story)


def test_a_newer_state_is_sent_in_place_of_one_that_waits_for_its_retry() -> None:
    async def story() -> None:
        post = Post(DOWN)
        async with responding({"a": hook()}, post) as responder:
            responder.want(flip(epoch=1))
            await post.sent.get()
            responder.want(flip("a", 2))
            headers, _, _ = await post.sent.get()
            assert headers["webhook-id"] == "a2"
            await news_of(responder)
            assert post.sent.empty()

    run(story)


def test_a_receiver_that_hangs_delays_no_other_endpoint_and_is_left_for_a_newer_state() -> None:
    async def story() -> None:
        hangs: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        clock, post = Clock(), Post(hangs)
        async with responding({"a": hook(), "b": hook()}, post, now_s=clock) as responder:
            responder.want(flip("a"))
            await post.sent.get()
            responder.want(flip("b"))
            headers, _, _ = await post.sent.get()
            assert headers["webhook-id"] == "b1"
            clock.now += 2.0
            responder.want(flip("a", 2))
            headers, _, _ = await post.sent.get()
            assert headers["webhook-id"] == "a2"

    run(story)


def test_people_hear_of_a_receiver_that_hangs_while_it_hangs() -> None:
    async def story() -> None:
        hangs: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        async with responding({"a": hook(alert_after_s=0.01)}, Post(hangs)) as responder:
            responder.want(flip())
            (news,) = await news_of(responder)
            assert news.kind == "webhook_failing"
            assert responder.failing() == 1
            hangs.set_result(OK)
            (news,) = await news_of(responder)
            assert news.kind == "webhook_delivered"
            assert responder.failing() == 0

    run(story)


def test_nothing_is_sent_before_start_after_stop_or_for_an_endpoint_without_a_webhook() -> None:
    async def story() -> None:
        post = Post()
        responder = WebhookResponder({"a": hook()}, post)
        responder.want(flip())
        assert not responder.lacks("a", 1)
        responder.start()
        responder.want(flip("b"))
        await responder.stop()
        responder.want(flip("a", 2))
        await asyncio.sleep(0.05)
        assert post.sent.empty()

    run(story)


def test_a_fault_of_our_own_ends_no_task(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("responders.webhook_responder.FAULT_PAUSE_S", 0.0)

    async def story() -> None:
        broken: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        broken.set_exception(ZeroDivisionError("planted"))
        post = Post(broken)
        async with responding({"a": hook()}, post) as responder:
            responder.want(flip())
            await post.sent.get()
            await post.sent.get()
            assert (await news_of(responder))[0].kind == "webhook_delivered"

    run(story)
    assert "planted" in caplog.text


def test_over_real_http_a_delivery_is_verified_by_the_independent_package(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def story() -> None:
        seen: list[tuple[str, Answer]] = []
        async with receiver(answer(503, "Retry-After: 0")) as busy, receiver(answer(200)) as there:
            hooks = {"a": hook(port=there.port), "b": hook(port=busy.port)}
            watch = lambda name, told, seconds: seen.append((name, told))  # noqa: E731
            async with responding(hooks, HttpClient().post, watch=watch) as responder:
                responder.want(flip("b"))
                responder.want(flip("a"))
                (news,) = await news_of(responder)
                assert news.message.endpoint == "a"
                while len(seen) < 2:
                    await asyncio.sleep(0.01)
            ((head, body),) = there.requests
            lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line]
            Webhook(SECRET).verify(body, dict(lines))
        assert {(name, told.outcome) for name, told in seen} == {("a", "delivered"), ("b", "http_5xx")}

    run(story)
    assert "b, epoch 1, attempt 1: answered 503" in caplog.text
    assert KEY[:12] not in caplog.text
    assert "v1," not in caplog.text, "a signature is nobody's to read in a log"


def test_among_hostile_receivers_a_good_one_is_told_at_once_and_all_of_them_are_left_at_once() -> None:
    async def story() -> None:
        async with (
            receiver(silent) as mute,
            receiver(dripping_head) as slow,
            receiver(endless_head) as bomb,
            receiver(answer(302, "Location: http://169.254.169.254/")) as away,
            receiver(answer(200)) as well,
        ):
            ports = {"mute": mute, "slow": slow, "bomb": bomb, "away": away, "well": well}
            hooks = {name: hook(port=there.port) for name, there in ports.items()}
            async with responding(hooks, HttpClient().post) as responder:
                for _ in range(3):
                    for name in hooks:
                        responder.want(flip(name))
                (news,) = await news_of(responder)
                assert (news.message.endpoint, news.attempts) == ("well", 1)
                while bomb.connections == 0 or away.connections == 0:
                    await asyncio.sleep(0.01)
            assert len(well.requests) == 1

    run(story)


def test_hooks_are_made_of_the_configuration_and_show_no_secret(tmp_path: Path) -> None:
    (tmp_path / "hook.secret").write_text(SECRET + "\n")
    webhook = WebhookConfig(url="http://127.0.0.1:9000/", secret_files=("hook.secret",), alert_after_s=3)
    endpoints = [EndpointConfig(name="a", webhook=webhook), EndpointConfig(name="b")]

    hooks = hooks_of(endpoints, tmp_path)
    assert set(hooks) == {"a"}
    assert hooks["a"].alert_after_s == 3
    assert hooks["a"].to.tls is None
    assert KEY[:12] not in repr(hooks)
    with pytest.raises(ConfigError, match="cannot be read"):
        hooks_of(endpoints, tmp_path / "elsewhere")


def test_the_journal_is_told_in_numbers() -> None:
    late = News("webhook_failing", flip(epoch=7), 3, 100.0, Answer(fault="tls", detail="certificate verify failed"))

    assert sentence(late, 112.34) == (
        "epoch 7 (fallback or limits): tls: certificate verify failed; 3 attempts, 12.3 s"
    )
