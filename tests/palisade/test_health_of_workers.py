"""A worker's health, asked over HTTP from outside while it starts, works, and stands still."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from palisade.dev import prepare
from schemas.config import EndpointConfig, PalisadeConfig
from schemas.topics import PREDICTIONS, TOPICS
from streams.embedded_broker import EmbeddedBroker
from streams.failpoints import VARIABLE
from streams.watchdog import EXIT_CODE
from tests.streams.broker import produce
from tests.support.waiting import until as until_within

pytestmark = pytest.mark.slow
until = partial(until_within, within_s=180)


@pytest.fixture
def broker(embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker]) -> EmbeddedBroker:
    return embedded_broker({spec.name: spec.partitions(1) for spec in TOPICS})


class Worker:
    """One role as a process, with its health on a port."""

    def __init__(self, role: str, broker: EmbeddedBroker, folder: Path) -> None:
        config = PalisadeConfig(endpoints=(EndpointConfig(name="credit"),))
        stack = prepare(folder / "stack", config, None, broker.bootstrap, embedded=True)
        self.failpoints = folder / "failpoints"
        self.failpoints.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = ["worker", role, "--config", str(stack.config_path), "--metrics-port", str(self.port)]
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "palisade.cli.main", *command],
            env={**os.environ, VARIABLE: str(self.failpoints)},
            stdout=self.log,
            stderr=self.log,
        )

    def health(self, path: str) -> tuple[int, dict[str, Any]] | None:
        """Status and body; None where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except OSError:
            return None
        finally:
            connection.close()

    def is_(self, status: int, path: str) -> dict[str, Any] | None:
        found = self.health(path)
        return found[1] if found is not None and found[0] == status else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def detect(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker("detect", broker, tmp_path)
    yield worker
    worker.end()


def test_a_worker_is_ready_once_it_reads_and_says_so_when_it_stands_still(
    broker: EmbeddedBroker, detect: Worker
) -> None:
    starting = until(lambda: detect.health("/ready"), "an answer at all")
    assert starting[0] == 503
    assert starting[1]["why"]
    ready = until(lambda: detect.is_(200, "/ready"), "a worker that is ready")
    assert ready["assigned"] == {"palisade.labelled": [0], "palisade.predictions": [0], "palisade.reports": [0]}
    assert detect.is_(200, "/live") is not None

    event = {"endpoint": "credit", "features": {"a": 1}, "request_id": "r", "prediction": 1}
    (detect.failpoints / "detect.taken").write_text("hang")
    produce(broker.connection, PREDICTIONS, (b"credit", json.dumps(event).encode(), ()))
    dead = until(lambda: detect.is_(503, "/live"), "a worker that is not live")
    assert detect.process.poll() is None
    assert "loop without progress" in " ".join(dead["why"])
    assert detect.process.wait(180) == EXIT_CODE


def test_a_broker_that_goes_away_and_comes_back_is_seen_in_readiness_alone(
    broker: EmbeddedBroker, detect: Worker
) -> None:
    until(lambda: detect.is_(200, "/ready"), "a worker that is ready")
    broker.down()
    why = until(lambda: detect.is_(503, "/ready"), "a worker that is not ready")["why"]
    assert any("the broker" in reason for reason in why)
    assert detect.is_(200, "/live") is not None
    broker.up()
    until(lambda: detect.is_(200, "/ready"), "a worker that is ready again")
    assert detect.process.poll() is None
