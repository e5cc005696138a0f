"""A service that knows nothing of Palisade's client: `python -m palisade.demo.plain_service`.

It stands for one in any language: a plain Kafka producer writes what was asked to `palisade.requests` and what was
answered to `palisade.responses`, as JSON, in two records that share the id which the service minted. One process serves
the model, another its fallback (`--served-by fallback`); a router that somebody else owns decides who is asked.

`POST /predict` is that of `palisade.demo.serve`; `GET /health` answers 200 while the service stands.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from palisade.demo.data import Features
from palisade.demo.http_service import answer, body_of, features_of, serve
from palisade.demo.models import Artifact

REQUESTS, RESPONSES = "palisade.requests", "palisade.responses"
Write = Callable[[str, str, Mapping[str, Any]], None]
"""Topic, key, event."""


class PlainService:
    """The ASGI application. `keys`: API key -> caller. `write` must not block."""

    def __init__(
        self,
        endpoint: str,
        model: Callable[[Features], float],
        keys: Mapping[str, str],
        write: Write,
        served_by: str,
        version: str,
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._keys = keys
        self._write = write
        self._served_by = served_by
        self._version = version

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/health":
            await answer(send, 200, {"served_by": self._served_by})
            return
        caller = self._keys.get(dict(scope["headers"]).get(b"x-api-key", b"").decode("latin-1"))
        if caller is None:
            await answer(send, 401, {"error": "no such x-api-key"})
            return
        features = features_of(await body_of(receive))
        if features is None:
            await answer(send, 400, {"error": "the body is no JSON object of features"})
            return
        late15 = self._served(caller, features)
        await answer(send, 200, {"late15": late15, "served_by": self._served_by, "cause": ""})

    def _served(self, caller: str, features: Features) -> float:
        """The answer, written down on both topics under one id."""
        request_id, asked = uuid.uuid4().hex, time.time()
        about = {"endpoint": self._endpoint, "request_id": request_id}
        who = {"caller": caller, "caller_auth": "verified"}
        self._write(REQUESTS, request_id, {**about, **who, "features": features, "ts": round(asked * 1000)})
        late15 = self._model(features)
        said = {
            "prediction": late15,
            "model_version": self._version,
            "served_by": self._served_by,
            "latency_ms": (time.time() - asked) * 1000,
            "status": "ok",
        }
        self._write(RESPONSES, request_id, {**about, **said, "ts": round(time.time() * 1000)})
        return late15


def kafka_writer(bootstrap: str) -> tuple[Write, Producer]:
    """A plain producer. The partitioner is that of Java's clients, so that both records of an id meet."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 5})

    def write(topic: str, key: str, event: Mapping[str, Any]) -> None:
        producer.produce(topic, json.dumps(event).encode(), key.encode())
        producer.poll(0)

    return write, producer


def main() -> None:
    parser = argparse.ArgumentParser(prog="palisade.demo.plain_service", description="Serves one model on loopback.")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", type=Path, required=True, help="an artifact that palisade.demo.models saved")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--served-by", choices=("primary", "fallback"), default="primary")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, named in the ready line")
    parser.add_argument("--bootstrap", required=True, help="Kafka's address")
    parser.add_argument("--keys", type=Path, required=True, help="JSON object: API key -> caller")
    given = parser.parse_args()
    artifact, _ = Artifact.load(given.model)
    model = artifact.model if given.served_by == "primary" else artifact.fallback
    write, producer = kafka_writer(given.bootstrap)
    keys = json.loads(given.keys.read_text())
    app = PlainService(given.endpoint, model, keys, write, given.served_by, given.version)
    asyncio.run(serve(app, given.port, {}))
    producer.flush(5)


if __name__ == "__main__":
    main()
