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
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palisade_client import Guard, PalisadeMiddleware, last_answer
from palisade_client.asgi import Receive, Scope, Send

from palisade.demo.data import Features
from palisade.demo.http_service import MAX_BODY_BYTES, answer, body_of, features_of, serve
from palisade.demo.models import Artifact, HourlyShare, Scorecard

TIMEOUT_S = 0.25
"""A prediction takes microseconds: what has no answer by then has none."""
MAX_INFLIGHT = 32


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
            await answer(send, 404, {"error": "POST /predict is all there is"})
            return
        features = features_of(await body_of(receive))
        if features is None:
            await answer(send, 400, {"error": f"the body is no JSON object below {MAX_BODY_BYTES} bytes"})
            return
        late15 = await self._guard.acall(self._model, features)
        answered = last_answer()
        served_by, cause = (answered.served_by, answered.why) if answered is not None else ("primary", "")
        await answer(send, 200, {"late15": late15, "served_by": served_by, "cause": cause})


def guarded_app(
    endpoint: str, model: HangingModel, fallback: HourlyShare, api_keys: Mapping[str, str], **options: Any
) -> tuple[PalisadeMiddleware, Guard]:
    """The application as it is served, and its Guard. `options` are Guard's; `api_keys`: key -> caller."""
    guard = Guard(endpoint, fallback=fallback, max_inflight=MAX_INFLIGHT, **options)
    return PalisadeMiddleware(PredictApp(guard, model), api_keys=api_keys), guard


async def _serve(options: argparse.Namespace) -> None:
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
    guard.start()

    commands = {"hang": model.hang, "clear": model.clear}
    try:
        await serve(app, options.port, commands, at_end=model.clear, digest=digest, guard=guard.status()["guard_id"])
    finally:
        guard.close()


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
