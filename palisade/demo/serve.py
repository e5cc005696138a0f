"""One endpoint's serving process: `python -m palisade.demo.serve`, an ASGI app around a guarded model.

`POST /predict` with an `x-api-key` and a JSON object of features answers
`{"late15": probability, "served_by": "primary"|"probe"|"fallback", "cause": why the fallback}`:
`directive`, `timeout` or `error`.

Commands come as JSON lines on standard input: `{"do": "hang"}` lets every prediction wait until `{"do": "clear"}`; the end
of the input ends the process. Lines on standard output: `{"event": "ready", "port": ...}`, then one for each command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palisade_client import Guard, PalisadeMiddleware, last_answer
from palisade_client.asgi import Message, Receive, Scope, Send

from palisade.demo.data import Features
from palisade.demo.models import Artifact, HourlyShare, Scorecard

TIMEOUT_S = 0.25
"""A prediction takes microseconds: what has no answer by then has none."""
MAX_INFLIGHT = 32
MAX_BODY_BYTES = 65_536
KEEP_ALIVE_S = 120
STOP_S = 2


class HangingModel:
    """The model behind a gate: while the gate is shut, every prediction waits at it, as at a lost database."""

    def __init__(self, model: Scorecard) -> None:
        self._model = model
        self._gate = threading.Event()
        self._gate.set()

    def hang(self) -> None:
        self._gate.clear()

    def clear(self) -> None:
        self._gate.set()

    def __call__(self, features: Features) -> float:
        self._gate.wait()
        return self._model(features)


class PredictApp:
    """The ASGI application inside the middleware: one path, JSON in, JSON out. Keeps Guard's life in its lifespan."""

    def __init__(self, guard: Guard, model: HangingModel) -> None:
        self._guard = guard
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != "/predict" or scope["method"] != "POST":
            await _answer(send, 404, {"error": "POST /predict is all there is"})
            return
        features = _features(await _body(receive))
        if features is None:
            await _answer(send, 400, {"error": f"the body is no JSON object below {MAX_BODY_BYTES} bytes"})
            return
        late15 = await self._guard.acall(self._model, features)
        answered = last_answer()
        served_by, cause = (answered.served_by, answered.why) if answered is not None else ("primary", "")
        await _answer(send, 200, {"late15": late15, "served_by": served_by, "cause": cause})


async def _body(receive: Receive) -> bytes:
    """The request's body, or its start above `MAX_BODY_BYTES`."""
    body = b""
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _features(body: bytes) -> Features | None:
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        features = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return features if isinstance(features, dict) else None


async def _answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def guarded_app(
    endpoint: str, model: HangingModel, fallback: HourlyShare, api_keys: Mapping[str, str], **options: Any
) -> tuple[PalisadeMiddleware, Guard]:
    """The application as it is served, and its Guard. `options` are Guard's; `api_keys`: key -> caller."""
    guard = Guard(endpoint, fallback=fallback, max_inflight=MAX_INFLIGHT, **options)
    return PalisadeMiddleware(PredictApp(guard, model), api_keys=api_keys), guard


def _say(event: str, **more: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "at": time.time(), **more}) + "\n")
    sys.stdout.flush()


async def _obey(model: HangingModel) -> None:
    """Does what the lines of the standard input say, until they end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while text := await reader.readline():
        match json.loads(text)["do"]:
            case "hang":
                model.hang()
                _say("hang")
            case "clear":
                model.clear()
                _say("clear")
            case other:
                raise ValueError(f"no command {other!r}")


async def _serve(options: argparse.Namespace) -> None:
    import uvicorn

    artifact, digest = Artifact.load(options.model)
    model = HangingModel(artifact.model)
    app, guard = guarded_app(
        options.endpoint,
        model,
        artifact.fallback,
        json.loads(options.keys.read_text()),
        version=options.version,
        timeout_s=options.timeout,
        bootstrap=options.bootstrap,
        directive_keys=options.directive_keys,
        producer_key=options.producer_key,
        kafka_settings={"fetch.wait.max.ms": 10},
        artifact_digest=digest,
    )
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
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
    guard.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    _say("ready", port=listener.getsockname()[1], digest=digest, guard=guard.status()["guard_id"])
    obeying = asyncio.create_task(_obey(model))
    await asyncio.wait({serving, obeying}, return_when=asyncio.FIRST_COMPLETED)
    model.clear()
    server.should_exit = True
    await serving
    guard.close()
    if obeying.done():
        obeying.result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="palisade.demo.serve", description="Serves one guarded model on loopback.")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", type=Path, required=True, help="an artifact that palisade.demo.models saved")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds before the fallback answers")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, named in the ready line")
    parser.add_argument("--bootstrap", required=True, help="Kafka's address")
    parser.add_argument("--keys", type=Path, required=True, help="JSON object: API key -> caller")
    parser.add_argument("--directive-keys", required=True, help="public keys whose directives are followed")
    parser.add_argument("--producer-key", help="PEM file of the key that signs reports")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
