"""Targets of webhooks: what a receiver answers, the URLs and secrets that people write, the addresses that names have."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence

from responders.addresses import AddressPolicy, is_loopback
from responders.http import MAX_HEAD, Destination, _answer, refusal
from responders.webhooks import parse_secret
from schemas.weburl import WebUrl
from tests.fuzz.case import Case, Execute, Swallowed, Target

URL = WebUrl.parse("https://example.org/x")


def answer() -> Target:
    """The head of an HTTP answer, whatever a receiver sends."""

    async def read(value: bytes) -> Hashable:
        reader = asyncio.StreamReader(limit=MAX_HEAD)
        reader.feed_data(value)
        reader.feed_eof()
        found = await _answer(reader, 1_700_000_000.0)
        wait = found.retry_after_s
        if wait is not None and not 0 <= wait < math.inf:
            raise Swallowed(f"a receiver asked to wait {wait} s")
        return (found.outcome, wait is None, found.fault)

    def make() -> Execute:
        return lambda cases: asyncio.run(read(cases[0].value or b""))

    def seeds() -> Sequence[Case]:
        heads = [b"HTTP/1.1 200 OK\r\nContent-Length: 0", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content", b"HTTP/1.1 301 Moved\r\nLocation: /",
                 b"HTTP/1.1 429 Slow\r\nRetry-After: 120", b"HTTP/1.1 503 Busy\r\nretry-after: Wed, 21 Oct 2026 07:28:00 GMT"]  # fmt: skip
        return [Case(head + b"\r\n\r\n") for head in heads]

    declared = (asyncio.IncompleteReadError, asyncio.LimitOverrunError)
    return Target("webhook answer", make, seeds, declared=declared, most=1)


def url() -> Target:
    """URLs of a configuration, and the addresses that a name server gives."""
    policy = AddressPolicy.of(True, ["10.0.0.0/8"])

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            text = (cases[0].value or b"").decode("utf-8", "replace")
            verdict = policy.verdict(text), is_loopback(text), refusal(Destination(URL, policy), [text]) is None
            try:
                found = WebUrl.parse(text)
            except ValueError:
                return verdict
            found.authority.encode("ascii")
            return (found.scheme, found.target[:2], verdict)

        return execute

    texts = ("https://hooks.example.org/palisade?x=1", "http://[::1]:8080/", "http://user@host:99999/#x", "127.0.0.1",
             "::ffff:169.254.169.254", "fe80::1%eth0", "2002:7f00:1::", "64:ff9b::a00:1", "0x7f.1")  # fmt: skip
    return Target("webhook url", make, lambda: [Case(text.encode()) for text in texts], most=1)


def secret() -> Target:
    """Secrets that messages are signed with."""

    def make() -> Execute:
        return lambda cases: parse_secret((cases[0].value or b"").decode("latin-1")).sign(b"x")[:3]

    texts = (b"whsec_" + b"QUJD" * 11, b"whsk_" + b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=")
    return Target("webhook secret", make, lambda: [Case(text) for text in texts], declared=(ValueError,), most=1)
