"""What the roles' processes share: metrics, the line that says ready, logging."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from dataclasses import dataclass
from importlib.abc import MetaPathFinder

import pyarrow as pa

from palisade.settings import Settings
from schemas.errors import ConfigError
from streams.admin import BrokerAway, input_partitions
from streams.health import Health
from streams.health_port import HealthPort
from streams.memory import MemoryCollector
from streams.metrics import Metrics
from streams.transport.settings import KafkaConnection, Setting

log = logging.getLogger(__name__)

START_S = 120.0
"""A role that is started while the brokers are away waits so long for them: ending at once would only be started again."""
LARGEST_RECORD = 5_000_000
"""The responder's state is the largest record that we send."""


def reading(settings: Settings, **more: Setting) -> dict[str, Setting]:
    """librdkafka settings of a role's consumer. The embedded broker answers a waiting fetch only when its time is up."""
    return {"fetch.wait.max.ms": 10, **more} if settings.config.kafka.embedded else dict(more)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a worker answers who runs it; None: nowhere. Metrics stay on loopback, and so does health, unless
    `health_host` says otherwise: a kubelet asks from outside."""

    metrics: int | None = None
    health: int | None = None
    health_host: str = "127.0.0.1"


def observed(role: str, name: str, ports: Ports) -> tuple[Metrics, Health]:
    """What a role counts, and how it is: served from now on. Raises ConfigError where a port is taken."""
    metrics, health = Metrics(role), Health(role, name)
    metrics.registry.register(health)
    metrics.registry.register(MemoryCollector())
    for port, host, registry in (
        (ports.metrics, "127.0.0.1", metrics.registry),
        (ports.health, ports.health_host, None),
    ):
        if port is None:
            continue
        try:
            bound = HealthPort(health, registry).start(port, host)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"{host}:{port} cannot be listened on ({error}): choose another port or host") from error
        log.info("%s answers on http://%s:%d/ready", name, host, bound)
    return metrics, health


def partitions_of(connection: KafkaConnection, topic: str) -> int:
    """How many partitions a topic has, as soon as a broker answers. Raises BrokerAway after `START_S`, or PalisadeError."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return input_partitions(connection, topic)
        except BrokerAway as away:
            if time.monotonic() > deadline:
                raise
            log.warning("%s; trying again", away)


class _NotFound(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == self._name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def without_pandas() -> None:
    """pyarrow looks for pandas at its first list, and loads it where it is installed: 0.2 s of CPU and 30 MB for something
    that no worker uses, longer on a busy machine than the watchdog lets an event loop stand. It is told once that there is
    none, and does not ask again; who imports pandas later gets it."""
    absent = _NotFound("pandas")
    sys.meta_path.insert(0, absent)
    try:
        pa.array([0.0])
    finally:
        sys.meta_path.remove(absent)


def settle_memory() -> None:
    """Takes what has been loaded so far out of the garbage collector's sight: looking through all of it would hold the
    event loop for 100 ms, whenever a flood of records makes a full collection due."""
    gc.collect()
    gc.freeze()


def say_ready(role: str, name: str, **more: object) -> None:
    """One line on standard output, for whoever started this process."""
    sys.stdout.write(json.dumps({"ready": role, "name": name, **more}) + "\n")
    sys.stdout.flush()


def set_up_logging() -> None:
    """To standard error, with time and role; librdkafka's and Faust's chatter from warnings up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("faust", "mode", "aiokafka"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
