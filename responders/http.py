"""One HTTP request to a configured URL, safely: for webhooks and for the health of fallbacks.

A client of its own, on asyncio's streams, because it must connect to the very address that was judged, keep the name for
TLS and `Host`, follow no redirect, use no proxy of the environment, and be cut off after a time that holds for all of it:
name, connection, handshake, every byte. Of the answer only its head is read, at most `MAX_HEAD` bytes; a body is never read,
so that neither its size nor its pace matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from responders.addresses import AddressPolicy, is_loopback
from responders.delivery import Answer
from schemas.errors import ConfigError
from schemas.weburl import WebUrl

MAX_HEAD: Final = 16_384
"""Bytes of an answer's status line and headers, interim ones (1xx) included."""
MAX_ADDRESSES: Final = 8
"""Addresses of a name that are judged; one with more is refused, since all must be."""
TRIED: Final = 3
"""Addresses that are tried, one after the other, within the one deadline."""

USER_AGENT: Final = "palisade"
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: [^\r\n]*)?\Z")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to numeric addresses. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL with what the operator allows of it. `tls`: None for http."""

    url: WebUrl
    policy: AddressPolicy
    allow_plaintext: bool = False
    tls: ssl.SSLContext | None = None


class Post(Protocol):
    """An attempt: never raises, takes at most `deadline_s`. `now_s`: Unix time, for a `Retry-After` that is a date."""

    async def __call__(
        self, to: Destination, headers: Sequence[tuple[str, str]], body: bytes, deadline_s: float, now_s: float
    ) -> Answer: ...


@lru_cache(maxsize=64)
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies certificates by the system's authorities, or by those of `ca_file` alone. Raises ConfigError.

    One for all that trust the same: reading the authorities takes some 20 ms and half a megabyte.
    """
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("holds no certificates in PEM form; name the file of the authority", str(ca_file)) from error


class Resolver:
    """Asks the system for addresses, on a thread for each name that is being asked for, never more.

    A name server that does not answer holds the thread of its own name, not those of others and no pool that other work
    needs; who asks meanwhile waits for the same answer.
    """

    def __init__(self, lookup: Callable[[str, int], Sequence[str]] | None = None) -> None:
        self._lookup = lookup or _getaddrinfo
        self._asked: dict[tuple[str, int], asyncio.Future[Sequence[str]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        key = (host, port)
        waiting = self._asked.get(key)
        if waiting is None:
            waiting = self._asked[key] = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._ask, args=(key, waiting), name=f"resolve {host}", daemon=True).start()
        return await asyncio.shield(waiting)

    def _ask(self, key: tuple[str, int], waiting: asyncio.Future[Sequence[str]]) -> None:
        found: Sequence[str] | OSError
        try:
            found = self._lookup(*key)
        except (OSError, UnicodeError) as error:  # a label that is empty or too long is no OSError
            found = error if isinstance(error, OSError) else OSError("no name that can be looked up")
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            waiting.get_loop().call_soon_threadsafe(self._tell, key, waiting, found)

    def _tell(
        self, key: tuple[str, int], waiting: asyncio.Future[Sequence[str]], found: Sequence[str] | OSError
    ) -> None:
        del self._asked[key]
        if isinstance(found, OSError):
            waiting.set_exception(found)
            waiting.exception()  # seen: whoever asked may have given up
        else:
            waiting.set_result(found)


def _getaddrinfo(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class HttpClient:
    """Asks configured URLs. Holds no connection between requests."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        self._resolve = resolve or Resolver()

    async def post(
        self, to: Destination, headers: Sequence[tuple[str, str]], body: bytes, deadline_s: float, now_s: float
    ) -> Answer:
        """As `Post` says."""
        sent = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
        return await self._within(to, "POST", sent, body, deadline_s, now_s)

    async def get(self, to: Destination, deadline_s: float, now_s: float) -> Answer:
        """Never raises; takes at most `deadline_s`."""
        return await self._within(to, "GET", [], b"", deadline_s, now_s)

    async def _within(
        self,
        to: Destination,
        method: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        deadline_s: float,
        now_s: float,
    ) -> Answer:
        try:
            async with asyncio.timeout(deadline_s):
                return await self._ask(to, method, headers, body, deadline_s, now_s)
        except TimeoutError:
            return Answer(fault="timeout", detail=f"no answer within {deadline_s:g} s")

    async def _ask(
        self,
        to: Destination,
        method: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        deadline_s: float,
        now_s: float,
    ) -> Answer:
        url = to.url
        try:
            addresses = await self._resolve(url.host, url.port)
        except OSError as error:
            return Answer(fault="unresolved", detail=f"{url.host} has no address ({type(error).__name__})")
        refused = refusal(to, addresses)
        if refused is not None:
            return Answer(fault="blocked", detail=refused)
        tried = addresses[:TRIED]
        failed = Answer(fault="unreachable", detail=f"{url.host} has no address")
        for address in tried:
            try:
                async with asyncio.timeout(deadline_s / len(tried)):
                    reader, writer = await _connect(address, to)
            except ssl.SSLError as error:
                return Answer(fault="tls", detail=_short(error.reason or "the handshake failed"))
            except TimeoutError:
                failed = Answer(fault="unreachable", detail=f"{address} port {url.port} does not answer")
            except OSError as error:
                failed = Answer(fault="unreachable", detail=f"{address} port {url.port}: {_why(error)}")
            else:
                return await _exchange(reader, writer, _request(url, method, headers, body), now_s)
        return failed


def refusal(to: Destination, addresses: Sequence[str]) -> str | None:
    """Why none of these addresses may be connected to; None if all of them may. One bad address refuses the name."""
    host = to.url.host
    if not addresses:
        return f"{host} has no address"
    if len(addresses) > MAX_ADDRESSES:
        return f"{host} has {len(addresses)} addresses, more than {MAX_ADDRESSES}"
    for address in addresses:
        verdict = to.policy.verdict(address)
        if verdict == "private":
            return f"{address} of {host} is private; `allow_private: true` or `allow_networks` would allow it"
        if verdict == "special":
            return f"{address} of {host} is no public address; only `allow_networks` would allow it"
        if verdict == "never":
            return f"{address} of {host} is nobody's address and is never connected to"
    if to.tls is None and not to.allow_plaintext and not all(map(is_loopback, addresses)):
        return f"{host} is not this machine and its URL is http; use https, or set `allow_plaintext: true`"
    return None


async def _connect(address: str, to: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the numeric address; TLS verifies the name of the URL."""
    host = to.url.host if to.tls is not None else None
    return await asyncio.open_connection(address, to.url.port, limit=MAX_HEAD, ssl=to.tls, server_hostname=host)


def _request(url: WebUrl, method: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {url.target} HTTP/1.1", f"Host: {url.authority}", f"User-Agent: {USER_AGENT}", "Accept: */*"]
    lines += [*(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, now_s: float) -> Answer:
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError):  # it may have answered before it had read all
            await writer.drain()
        return await _answer(reader, now_s)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return Answer(fault="no_http", detail=f"no head of an answer within {MAX_HEAD} bytes")
    except ssl.SSLError as error:
        return Answer(fault="tls", detail=_short(error.reason or "the connection broke"))
    except OSError as error:
        return Answer(fault="unreachable", detail=_why(error))
    finally:
        writer.transport.abort()  # closing politely would wait for the other side


async def _answer(reader: asyncio.StreamReader, now_s: float) -> Answer:
    """The final answer's status and Retry-After; interim ones are passed over, all within one bound."""
    left = MAX_HEAD
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        left -= len(head)
        first, *lines = head[:-4].split(b"\r\n")
        status = _STATUS.match(first)
        if status is None or left < 0:
            return Answer(fault="no_http", detail="what came is no answer of HTTP/1.1")
        code = int(status[1])
        if code >= 200:
            return Answer(status=code, retry_after_s=_retry_after_s(lines, now_s))
        if code == 101:
            return Answer(fault="no_http", detail="it wants to speak another protocol")


def _retry_after_s(lines: Sequence[bytes], now_s: float) -> float | None:
    """Seconds of the first Retry-After, a number or a date (RFC 9110 10.2.3); None if there is none that can be read."""
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() != b"retry-after":
            continue
        text = value.strip()
        if text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text.decode("ascii")).timestamp() - now_s)
        except (ValueError, OverflowError, UnicodeDecodeError):
            return None
    return None


def _why(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "the connection broke"


def _short(reason: str) -> str:
    return reason.lower().replace("_", " ")[:80]
