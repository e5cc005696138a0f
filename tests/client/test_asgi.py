"""The middleware: who is calling, and what a limited caller is told."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest
from palisade_client import CallerLimited, PalisadeMiddleware, current_caller
from palisade_client.testing import directive

from tests.client.conftest import ENDPOINT, Bench

KEY = "s3cret"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
HEX_KEY = "0123456789abcdef" * 4
"""As `secrets.token_hex(32)` makes them: a digest looks the same."""


async def who(scope: Any, receive: Any, send: Any) -> None:
    caller = current_caller()
    assert scope["palisade"] == {"caller": caller.id, "caller_auth": caller.auth}
    body = f"{caller.id} {caller.auth}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def get(app: Any, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "headers", "expected"),
    [
        ({"api_keys": {f"sha256:{DIGEST}": "carol"}}, {"x_api_key": KEY}, "carol verified"),
        ({"api_keys": {f"sha256:{DIGEST.upper()}": "carol"}}, {"x_api_key": KEY}, "carol verified"),
        ({"api_keys": {HEX_KEY: "carol"}}, {"x_api_key": HEX_KEY}, "carol verified"),
        ({"api_keys": {KEY: "carol"}}, {"x_api_key": KEY}, "carol verified"),
        ({"api_keys": {KEY: "carol"}}, {"authorization": f"Bearer {KEY}"}, "carol verified"),
        ({"api_keys": {KEY: "carol"}, "key_header": "X-Token"}, {"x_token": KEY}, "carol verified"),
        ({"api_keys": lambda key: "carol" if key == KEY else None}, {"x_api_key": KEY}, "carol verified"),
        ({"api_keys": {KEY: "carol"}}, {"x_api_key": "guess"}, "192.0.2.7 claimed"),
        ({"api_keys": {f"sha256:{DIGEST}": "carol"}}, {"x_api_key": DIGEST}, "192.0.2.7 claimed"),
        ({"api_keys": {f"sha256:{DIGEST}": "carol"}}, {"x_api_key": f"sha256:{DIGEST}"}, "192.0.2.7 claimed"),
        ({"api_keys": {KEY: "carol"}}, {}, "192.0.2.7 claimed"),
        ({"claimed_header": "x-client"}, {"x_client": "carol"}, "carol claimed"),
        ({}, {"x_forwarded_for": "203.0.113.9"}, "192.0.2.7 claimed"),
    ],
)
async def test_only_a_known_key_verifies_a_caller(
    options: dict[str, Any], headers: dict[str, str], expected: str
) -> None:
    response = await get(PalisadeMiddleware(who, **options), **headers)

    assert response.text == expected


@pytest.mark.parametrize("digest", ["", DIGEST[:-1], DIGEST + "0", KEY])
def test_what_is_no_digest_is_an_error_that_does_not_show_it(digest: str) -> None:
    with pytest.raises(ValueError, match="not 64 hex digits") as refused:
        PalisadeMiddleware(who, api_keys={f"sha256:{digest}": "carol"})

    assert not digest or digest not in str(refused.value)


@pytest.mark.parametrize("key", [DIGEST, HEX_KEY])
def test_a_key_that_could_be_meant_as_a_digest_is_told_about_without_showing_it(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    PalisadeMiddleware(who, api_keys={key: "carol", KEY: "alice"})

    assert [key in line for line in caplog.messages] == [False]
    assert "a digest is written sha256:<hex>" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(("rate", "retry_after"), [(0.4, "3"), (100.0, "1")])
async def test_a_limited_caller_gets_429_with_retry_after(bench: Bench, rate: float, retry_after: str) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"carol": rate}))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await guard.acall(lambda features: 0.9, {"x": 1.0})
        await who(scope, receive, send)

    guarded = PalisadeMiddleware(app, api_keys={KEY: "carol", "other": "alice"})
    first = await get(guarded, x_api_key=KEY)
    refused = await get(guarded, x_api_key=KEY)
    other = await get(guarded, x_api_key="other")
    guard.flush()

    assert (first.status_code, refused.status_code, other.status_code) == (200, 429, 200)
    assert refused.headers["retry-after"] == retry_after
    assert refused.json() == {"error": "caller_limited", "caller": "carol", "retry_after": int(retry_after)}
    assert {(c.caller, c.caller_auth, c.refused) for c in bench.report.callers} == {
        ("carol", "verified", 1),
        ("alice", "verified", 0),
    }


@pytest.mark.anyio
async def test_no_key_is_ever_written_down(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"carol": 0.0}))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await guard.acall(lambda features: 1 / 0, {"x": 1.0})

    guarded = PalisadeMiddleware(app, api_keys={KEY: "carol"})
    refused = await get(guarded, x_api_key=KEY)
    for headers in ({"x_api_key": "wr0ng"}, {"authorization": "Bearer wr0ng"}):
        with pytest.raises(ZeroDivisionError) as raised:
            await get(guarded, **headers)
        assert "wr0ng" not in str(raised.value)
    guard.flush()

    written = [refused.text, caplog.text, repr(guard.status()), *(str(sent) for sent in bench.transport.sent)]
    assert len(bench.predictions) == 3
    assert not [text for text in written if KEY in text or DIGEST in text or "wr0ng" in text]


@pytest.mark.anyio
async def test_a_caller_limited_in_the_middle_of_an_answer_is_not_answered_twice() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise CallerLimited("carol", 1.0)

    with pytest.raises(CallerLimited):
        await get(PalisadeMiddleware(app))


@pytest.mark.anyio
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_websocket_of_a_limited_caller_is_closed(accepted: bool) -> None:
    """Raised on, each refused call would leave a stack trace in the service's log."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if accepted:
            await send({"type": "websocket.accept"})
        raise CallerLimited("carol", 1.0)

    async def send(message: Any) -> None:
        sent.append(message)

    await PalisadeMiddleware(app)({"type": "websocket", "headers": []}, send, send)  # nothing is received

    assert sent[-1] == {"type": "websocket.close", "code": 1013, "reason": "caller_limited"}
    assert len(sent) == 1 + accepted


@pytest.mark.anyio
async def test_a_websocket_is_closed_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 1000})
        raise CallerLimited("carol", 1.0)

    async def send(message: Any) -> None:
        assert message["code"] == 1000

    with pytest.raises(CallerLimited):
        await PalisadeMiddleware(app)({"type": "websocket", "headers": []}, send, send)


@pytest.mark.anyio
async def test_lifespan_events_pass_through() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return {}

    await PalisadeMiddleware(app)({"type": "lifespan"}, nothing, nothing)

    assert seen == ["lifespan"]
    assert current_caller().id == "anonymous"
