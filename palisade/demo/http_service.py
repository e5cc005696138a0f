"""What the demo's services have in common: one path, JSON in and out, served until their standard input ends.

Commands come as JSON lines on standard input: `{"do": name}`. Lines on standard output: `{"event": "ready", "port": ...}`,
then one for each command.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from palisade.demo.data import Features

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 65_536
KEEP_ALIVE_S = 120
STOP_S = 2


async def body_of(receive: Receive) -> bytes:
    """The request's body, or its start above `MAX_BODY_BYTES`."""
    body = b""
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def features_of(body: bytes) -> Features | None:
    """The features in a request's body; None if it is no JSON object below `MAX_BODY_BYTES`."""
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        features = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return features if isinstance(features, dict) else None


async def answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    """One answer in JSON."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def say(event: str, **more: object) -> None:
    """One line on standard output."""
    sys.stdout.write(json.dumps({"event": event, "at": time.time(), **more}) + "\n")
    sys.stdout.flush()


async def serve(
    app: Any,
    port: int,
    commands: Mapping[str, Callable[[], None]],
    *,
    at_end: Callable[[], None] = lambda: None,
    **ready: object,
) -> None:
    """Serves `app` on loopback, says `ready` and its port (0: any free one), obeys; returns when standard input ends.

    `at_end` is called before the server waits for its last calls. Raises KeyError on a command that is none of `commands`.
    """
    import uvicorn

    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    # Accepted sockets inherit it. Without it head and body, sent apart, wait 40 ms for the client's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    say("ready", port=listener.getsockname()[1], **ready)
    obeying = asyncio.create_task(_obey(commands))
    await asyncio.wait({serving, obeying}, return_when=asyncio.FIRST_COMPLETED)
    at_end()
    server.should_exit = True
    await serving
    if obeying.done():
        obeying.result()


async def _obey(commands: Mapping[str, Callable[[], None]]) -> None:
    """Does what the lines of the standard input say, until they end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while text := await reader.readline():
        name = str(json.loads(text)["do"])
        commands[name]()
        say(name)
