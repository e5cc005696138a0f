"""ASGI middleware: who is calling, and 429 for whom a directive limits. Needs no web framework."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from palisade_client._caller import ANONYMOUS, Caller, caller_var
from palisade_client._errors import CallerLimited
from palisade_client._log import logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ApiKeys = Mapping[str, str] | Callable[[str], str | None]

TRY_AGAIN_LATER = 1013
"""The close code of websockets for it (IANA registry)."""
_PREFIX = "sha256:"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}\Z")


class PalisadeMiddleware:
    """Puts the caller into `current_caller()` and `scope["palisade"]`; answers CallerLimited with 429 and Retry-After.

    Once a response has begun CallerLimited is raised on: its status is sent. A websocket is closed with code 1013.

    `api_keys`: `sha256:` and the hex digest of a key, or the key itself, to caller id; or a function from the key to the
    caller id or None. ValueError where `sha256:` is followed by anything else. The key is read from the header
    `key_header`, else from `Authorization: Bearer`. A caller found there is `verified`. Anybody else is `claimed`: the value of `claimed_header` if it is given and sent, else the client
    address, else `anonymous`; no action may name a claimed caller.

    Put it inside what turns exceptions into answers: `app.add_middleware(PalisadeMiddleware, api_keys=...)` with
    Starlette and FastAPI. An exception of the `api_keys` function fails the request: it is the service's own code.
    """

    def __init__(
        self,
        app: App,
        *,
        api_keys: ApiKeys | None = None,
        key_header: str = "x-api-key",
        claimed_header: str | None = None,
    ) -> None:
        self._app = app
        self._lookup = _lookup(api_keys or {})
        self._key_header = key_header.lower().encode()
        self._claimed_header = claimed_header.lower().encode() if claimed_header else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        caller = self.identify(scope)
        scope["palisade"] = {"caller": caller.id, "caller_auth": caller.auth}
        started = closed = False

        async def note_start(message: Message) -> None:
            nonlocal started, closed
            started = True
            closed = closed or message["type"] == "websocket.close"
            await send(message)

        token = caller_var.set(caller)
        try:
            await self._app(scope, receive, note_start)
        except CallerLimited as limited:
            if scope["type"] == "websocket" and not closed:
                await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": "caller_limited"})
            elif started:
                raise
            else:
                await _refuse(limited, send)
        finally:
            caller_var.reset(token)

    def identify(self, scope: Scope) -> Caller:
        """Who sent the request of `scope`."""
        headers = _headers(scope.get("headers", ()))
        key = headers.get(self._key_header) or _bearer(headers.get(b"authorization"))
        if key:
            known = self._lookup(key.decode("latin-1"))
            if known is not None:
                return Caller(known, "verified")
        claimed = headers.get(self._claimed_header) if self._claimed_header else None
        if claimed:
            return Caller(claimed.decode("latin-1"))
        client = scope.get("client")
        return Caller(str(client[0])) if client else ANONYMOUS


def _lookup(api_keys: ApiKeys) -> Callable[[str], str | None]:
    if callable(api_keys):
        return api_keys
    # What is presented is always hashed before it is looked up: time tells nothing about keys, a digest opens nothing.
    table = {_digest_of(key): caller for key, caller in api_keys.items()}
    return lambda key: table.get(_digest(key))


def _digest_of(key: str) -> str:
    """The digest that an entry of `api_keys` stands for. Messages leave the entry out: it may be a secret."""
    if key.startswith(_PREFIX):
        digest = key.removeprefix(_PREFIX)
        if not _DIGEST.match(digest):
            raise ValueError(f"api_keys: {_PREFIX} is followed by {len(digest)} characters that are not 64 hex digits")
        return digest.lower()
    if _DIGEST.match(key):
        logger.warning(
            "api_keys: an entry of 64 hex digits is taken for the key itself; a digest is written %s<hex>", _PREFIX
        )
    return _digest(key)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in pairs}


def _bearer(value: bytes | None) -> bytes | None:
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return value[7:].strip()


async def _refuse(limited: CallerLimited, send: Send) -> None:
    seconds = max(1, math.ceil(limited.retry_after))
    body = json.dumps({"error": "caller_limited", "caller": limited.caller, "retry_after": seconds}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(seconds).encode()),
    ]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
