"""The serving process of `benchmarks.latency` and `.churn`: a guarded draw over HTTP, so that only the loop is measured."""

from __future__ import annotations

import json
import random
import sys

import uvicorn
from palisade_client import Guard, PalisadeMiddleware
from palisade_client.asgi import Receive, Scope, Send


def main() -> None:
    """`latency_serve ENDPOINT PORT KEYS_FILE [FEATURES]`; the broker and the keys come from the environment.

    FEATURES: so many are drawn for each call, `f0` and on, normal around 100; default one that never changes.
    """
    endpoint, port, keys = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    drawn = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    with open(keys) as file:
        api_keys = json.load(file)
    guard = Guard(endpoint, fallback=0.5, version="v1", kafka_settings={"fetch.wait.max.ms": 10})

    def features() -> dict[str, float]:
        return {f"f{n}": random.gauss(100, 15) for n in range(drawn)} or {"x": 1.0}

    async def predict(_: object) -> float:
        return random.random() if drawn else 0.1  # noqa: S311

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body", False):
            continue
        body = json.dumps({"answer": await guard.acall(predict, features())}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    guard.start()
    uvicorn.run(
        PalisadeMiddleware(app, api_keys=api_keys),
        host="127.0.0.1",
        port=port,
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    guard.close()


if __name__ == "__main__":
    main()
