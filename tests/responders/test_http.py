"""The HTTP client: where it connects to, what it believes of an answer, and that nobody can hold it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from responders.delivery import Answer
from responders.http import MAX_HEAD, HttpClient, Resolver, refusal, tls_context
from schemas.errors import ConfigError
from tests.responders.receivers import (
    Behaviour,
    answer,
    certificate,
    dripping_body,
    dripping_head,
    receiver,
    resolving,
    silent,
    to,
)

Result = TypeVar("Result")
DEADLINE_S = 0.3
NOW = 1_700_000_000.0


def run(job: Awaitable[Result]) -> Result:
    async def within() -> Result:
        async with asyncio.timeout(20):
            return await job

    return asyncio.run(within())


async def asked(behave: Behaviour | bytes, deadline_s: float = 5.0) -> Answer:
    async with receiver(behave) as there:
        return await HttpClient().post(to(there.port), [("webhook-id", "x")], b'{"a":1}', deadline_s, NOW)


def test_a_request_is_what_it_should_be_and_nothing_more() -> None:
    async def story() -> tuple[bytes, bytes, int]:
        async with receiver(answer(204)) as there:
            got = await HttpClient().post(to(there.port), [("webhook-id", "x")], b'{"a":1}', 5.0, NOW)
            assert got == Answer(status=204)
            (request,) = there.requests
            return *request, there.port

    head, body, port = run(story())
    first, *headers = head.decode().rstrip("\r\n").split("\r\n")
    assert first == "POST /hook?a=b HTTP/1.1"
    assert set(headers) == {
        f"Host: 127.0.0.1:{port}", "User-Agent: palisade", "Accept: */*", "Content-Type: application/json",
        "Content-Length: 7", "webhook-id: x", "Connection: close",
    }  # fmt: skip
    assert body == b'{"a":1}'


@pytest.mark.parametrize("status", [200, 204, 299, 400, 401, 410, 429, 500, 503])
def test_the_status_is_told(status: int) -> None:
    assert run(asked(answer(status, body=b"x" * 10))).status == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    async def story() -> None:
        async with (
            receiver(answer(200)) as elsewhere,
            receiver(answer(status, f"Location: http://127.0.0.1:{elsewhere.port}/")) as there,
        ):
            got = await HttpClient().post(to(there.port), [], b"{}", 5.0, NOW)
            assert (got.status, got.taken) == (status, False)
            assert (there.connections, elsewhere.connections) == (1, 0)

    run(story())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0), ("0", 0.0), ("9" * 400, 999_999_999.0), ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2000 22:14:20 GMT", 0.0), ("soon", None), ("-5", None), ("1.5", None), ("", None), ("\xff", None),
        ("Tue, 99 Nov 2023 99:14:20 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, seconds: float | None) -> None:
    wire = answer(429, "retry-AFTER: @").replace(b"@", value.encode("latin-1"))

    assert run(asked(wire)).retry_after_s == seconds


def test_interim_answers_are_passed_over() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

    assert run(asked(early + answer(200))).status == 200


@pytest.mark.parametrize(
    "wire",
    [
        b"", b"HTTP/1.1 200 OK\r\n", b"\x00" * 100 + b"\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 099 x\r\n\r\n", b"HTTP/1.1 2\xc2\xb200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10 * MAX_HEAD + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nX: yyyyyyyyyyyyyyyyyyyyyyy\r\n\r\n" * 1_000 + b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=lambda wire: repr(wire[:24]),
)  # fmt: skip
def test_what_is_no_answer_is_a_fault_and_never_an_exception(wire: bytes) -> None:
    got = run(asked(wire))

    assert got.fault in ("no_http", "unreachable"), "a broken connection may show first"
    assert len(str(got)) < 200


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda tail: b"HTTP/1.1 200 " + tail + b"\r\n\r\n"))
)
def test_whatever_bytes_come_there_is_an_answer_or_a_named_fault(wire: bytes) -> None:
    got = run(asked(wire))

    assert (got.status is None) != (got.fault is None)


@pytest.mark.parametrize("behave", [silent, dripping_head])
def test_one_deadline_holds_for_all_of_it_however_slowly_it_comes(behave: Behaviour) -> None:
    assert run(asked(behave, DEADLINE_S)).fault == "timeout"


def test_a_body_is_never_waited_for() -> None:
    assert run(asked(dripping_body, 5.0)).status == 200


def test_nobody_there_is_unreachable_and_the_next_address_is_tried() -> None:
    async def story() -> None:
        async with receiver(answer(200)) as there:
            one = HttpClient(resolving("127.0.0.2", "127.0.0.1"))
            assert (await one.post(to(there.port, "hooks.example"), [], b"", 5.0, NOW)).status == 200
            none = await HttpClient(resolving("127.0.0.2")).post(to(there.port, "hooks.example"), [], b"", 5.0, NOW)
            assert none.fault == "unreachable"

    run(story())


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("10.0.0.1",),
        ("169.254.169.254",),
        ("::ffff:127.0.0.1",),
        ("0.0.0.0",),
        ("1.1.1.1", "127.0.0.1"),
        ("224.0.0.1",),
    ],
)
def test_a_name_with_any_address_that_is_not_allowed_is_not_connected_to(addresses: tuple[str, ...]) -> None:
    async def story() -> None:
        async with receiver(answer(200)) as there:
            strict = to(there.port, "hooks.example", allow_private=False)
            got = await HttpClient(resolving(*addresses)).post(strict, [], b"", 5.0, NOW)
            assert got.fault == "blocked"
            assert there.connections == 0

    run(story())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]"]
)
def test_no_spelling_of_this_machine_gets_around_the_policy(host: str) -> None:
    strict = to(9_999, host, allow_private=False)

    got = run(HttpClient().post(strict, [], b"", 5.0, NOW))
    assert got.fault in ("blocked", "unresolved")


def test_the_name_is_asked_for_once_and_the_address_that_was_judged_is_connected_to() -> None:
    """A name server that answers otherwise the second time (DNS rebinding) is not asked a second time."""
    answers, times = [["127.0.0.1"], ["169.254.169.254"]], []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        times.append(host)
        return answers[len(times) - 1]

    async def story() -> None:
        async with receiver(answer(200)) as there:
            got = await HttpClient(rebinding).post(to(there.port, "hooks.example"), [], b"", 5.0, NOW)
            assert got.status == 200
            ((head, _),) = there.requests
            assert f"Host: hooks.example:{there.port}".encode() in head

    run(story())
    assert times == ["hooks.example"]


def test_plain_http_is_for_this_machine_alone_unless_allowed() -> None:
    plain = to(9_000, "hooks.example")

    assert "https" in (refusal(plain, ["10.0.0.1"]) or "")
    assert "https" in (refusal(plain, ["127.0.0.1", "1.1.1.1"]) or "")
    assert refusal(plain, ["127.0.0.1", "::1"]) is None


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"])
def test_one_address_that_is_not_allowed_refuses_the_name_wherever_it_stands(bad: str) -> None:
    secure = to(443, "hooks.example", tls=tls_context(None), allow_private=False)

    assert refusal(secure, ["1.1.1.1", "2606:4700::1111"]) is None
    for addresses in ([bad, "1.1.1.1"], ["1.1.1.1", bad], ["1.1.1.1", "2606:4700::1111", bad]):
        assert bad in (refusal(secure, addresses) or "")


def test_too_many_addresses_or_none_are_refused() -> None:
    assert "more than 8" in (refusal(to(9_000, "a.example"), ["127.0.0.1"] * 9) or "")
    assert "no address" in (refusal(to(9_000, "a.example"), []) or "")


def test_a_name_without_address_is_unresolved() -> None:
    def nothing(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    assert run(HttpClient(Resolver(nothing)).post(to(9_000, "a.example"), [], b"", 5.0, NOW)).fault == "unresolved"
    assert run(HttpClient().post(to(9_000, "a..example"), [], b"", 5.0, NOW)).fault == "unresolved"


def test_a_name_server_that_hangs_holds_its_own_name_alone_and_one_thread() -> None:
    gate, looked_up = threading.Event(), []

    def lookup(host: str, port: int) -> Sequence[str]:
        looked_up.append(host)
        if host == "hangs.example":
            gate.wait(30)
        return ["127.0.0.1"]

    async def story() -> None:
        client = HttpClient(Resolver(lookup))
        async with receiver(answer(200)) as there:
            for _ in range(3):
                assert (await client.post(to(there.port, "hangs.example"), [], b"", 0.1, NOW)).fault == "timeout"
            assert (await client.post(to(there.port, "well.example"), [], b"", 5.0, NOW)).status == 200
            assert looked_up.count("hangs.example") == 1
            gate.set()
            assert (await client.post(to(there.port, "hangs.example"), [], b"", 5.0, NOW)).status == 200

    try:
        run(story())
    finally:
        gate.set()


def test_tls_verifies_the_name_of_the_url_though_the_address_is_pinned(tmp_path: Path) -> None:
    chain, server = certificate(tmp_path, "hooks.example")
    trusted = tls_context(chain)

    async def story() -> None:
        async with receiver(answer(200), tls=server) as there:
            client = HttpClient(resolving("127.0.0.1"))
            assert (await client.post(to(there.port, "hooks.example", tls=trusted), [], b"", 5.0, NOW)).status == 200
            other = await client.post(to(there.port, "other.example", tls=trusted), [], b"", 5.0, NOW)
            assert (other.fault, other.detail) == ("tls", "certificate verify failed")
            unknown = await client.post(to(there.port, "hooks.example", tls=tls_context(None)), [], b"", 5.0, NOW)
            assert unknown.fault == "tls"

    run(story())


def test_a_plain_server_behind_https_and_a_handshake_that_hangs_are_faults(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def story() -> None:
        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        began = time.monotonic()
        got = await HttpClient().post(to(port, tls=tls_context(None)), [], b"", DEADLINE_S, NOW)
        assert got.fault in ("timeout", "unreachable")
        assert time.monotonic() - began < 10
        server.close()

    run(story())


def test_a_file_that_holds_no_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no")

    with pytest.raises(ConfigError, match=r"ca\.pem"):
        tls_context(tmp_path / "ca.pem")
