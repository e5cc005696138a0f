"""The part of the stage that has no Guard: a plain service, its fallback, nginx before both, and a webhook receiver.

Nothing here speaks with Palisade but the records that the services write and the webhooks that the receiver gets.
"""

from __future__ import annotations

import secrets
import socket
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from palisade.demo.children import Child
from schemas.config import EndpointConfig, WebhookConfig

ROUTES = ("primary", "fallback")


class City:
    """Starts the receiver, with nginx, at once: its address is part of Palisade's configuration. Then `serve`, then `wait`."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._exits = ExitStack()
        self._ports = {route: self._exits.enter_context(_ReservedPort()) for route in ROUTES}
        self._services: dict[str, Child] = {}
        self._secret = folder / "webhook.secret"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._secret.touch(mode=0o600)
        self._secret.write_text("whsec_" + b64encode(secrets.token_bytes(32)).decode())
        upstreams = [f"--{route}=127.0.0.1:{reserved.port}" for route, reserved in self._ports.items()]
        arguments = [f"--endpoint={self._endpoint}", f"--secret-file={self._secret}", *upstreams]
        arguments += [f"--folder={self._folder / 'nginx'}", "--ends-with-stdin"]
        self.receiver = Child("palisade.demo.receiver", arguments, self._log("receiver"))
        self._exits.enter_context(self.receiver)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def endpoint_config(self, events_per_day: float) -> EndpointConfig:
        """What the owner of the endpoint tells Palisade about it."""
        return EndpointConfig(
            name=self._endpoint,
            guard=False,
            trust_requests=True,
            events_per_day=events_per_day,
            webhook=WebhookConfig(
                url=f"http://127.0.0.1:{self.receiver.wait('ready')['port']}/",
                secret_files=(str(self._secret.resolve()),),
                fallback_health_url=f"http://127.0.0.1:{self._ports['fallback'].port}/health",
                allow_private=True,
            ),
        )

    def serve(self, bootstrap: str, version: str, keys: Path) -> None:
        """Starts model and fallback, which the receiver's nginx has been told of."""
        for route, reserved in self._ports.items():
            arguments = [
                *("--endpoint", self._endpoint, "--model", str(self._folder / f"{self._endpoint}.model.json")),
                *("--version", version, "--served-by", route, "--port", str(reserved.port)),
                *("--bootstrap", bootstrap, "--keys", str(keys)),
            ]
            child = Child("palisade.demo.plain_service", arguments, self._log(f"{self._endpoint}-{route}"))
            self._services[route] = self._exits.enter_context(child)

    def wait(self) -> int:
        """The port on which nginx serves the endpoint, once both services are ready."""
        for service in self._services.values():
            service.wait("ready")
        return int(self.receiver.wait("ready")["nginx_port"])

    def _log(self, name: str) -> Path:
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"{name}.log"


class _ReservedPort:
    """A port of loopback that nobody else is given before the process that it is meant for listens on it.

    Linux lets a second socket with SO_REUSEADDR have it as long as none listens, and gives it to nobody by itself.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
