"""A Guard made before the fork reports from each gunicorn worker, with an identity of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition
from palisade_client import _wire

from schemas.events import Report
from schemas.topics import DIRECTIVES, PREDICTIONS, REPORTS
from streams.embedded_broker import EmbeddedBroker

ROOT = Path(__file__).parents[2]


@contextmanager
def gunicorn(bootstrap: str, home: Path, *, called_before_fork: bool) -> Iterator[str]:
    """The service with two workers, forked from a parent that has imported it; yields its address.

    home: where gunicorn puts its control socket.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", address]
    environment = os.environ | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "TEST_BOOTSTRAP": bootstrap,
        "TEST_CALL_BEFORE_FORK": "1" if called_before_fork else "",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
    }
    process = subprocess.Popen(
        [*command, "--graceful-timeout", "10", "tests.client.prefork_app:app"], env=environment, cwd=ROOT
    )
    try:
        yield f"http://{address}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def ask(address: str) -> str | None:
    """The process that answered; None while nobody listens."""
    try:
        pid, answer = httpx.get(address, timeout=5).text.split()
    except httpx.TransportError:
        return None
    assert answer == "0.9"
    return str(pid)


def asked_until_reported(address: str, bootstrap: str, partition: int, guards: int) -> tuple[set[str], list[Report]]:
    """Asks again and again until so many processes have answered and so many guards reported a call of `client`."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(REPORTS, partition, 0)])
    pids: set[str] = set()
    found: list[Report] = []
    deadline = time.monotonic() + 120
    while min(len(pids), len({r.guard_id for r in found})) < guards and time.monotonic() < deadline:
        pids |= {pid for pid in (ask(address),) if pid}
        read = [Report.from_bytes(record.value() or b"") for record in consumer.consume(100, 0.1)]
        found += [report for report in read if any(c.caller == "client" for c in report.callers)]
    consumer.close()
    return pids, found


@pytest.mark.parametrize("called_before_fork", [False, True])
def test_each_prefork_worker_reports_for_itself(
    embedded_broker: Callable[..., EmbeddedBroker], called_before_fork: bool, tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 2, REPORTS: 2, DIRECTIVES: 2})
    with gunicorn(broker.bootstrap, tmp_path, called_before_fork=called_before_fork) as address:
        partition = _wire.partition_of("prefork", 2)
        pids, found = asked_until_reported(address, broker.bootstrap, partition, 2)

    assert len(pids) == 2
    assert len({report.guard_id for report in found}) == 2
    assert len({report.boot_id for report in found}) == 2
