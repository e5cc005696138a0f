"""What the roles' processes share: metrics, the line that says ready, logging."""

from __future__ import annotations

import gc
import json
import logging
import sys

import pyarrow as pa

from palisade.settings import Settings
from streams.metrics import Metrics
from streams.transport.settings import Setting

LARGEST_RECORD = 5_000_000
"""The responder's state is the largest record that we send."""


def reading(settings: Settings, **more: Setting) -> dict[str, Setting]:
    """librdkafka settings of a role's consumer. The embedded broker answers a waiting fetch only when its time is up."""
    return {"fetch.wait.max.ms": 10, **more} if settings.config.kafka.embedded else dict(more)


def metrics_of(role: str, port: int | None) -> Metrics:
    metrics = Metrics(role)
    if port is not None:
        metrics.serve(port)
    return metrics


def import_pandas() -> None:
    """pyarrow imports pandas, where it is installed, on its first list: done at the start, for on a busy machine it takes
    longer than the watchdog lets the event loop stand."""
    pa.array([0.0])


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
