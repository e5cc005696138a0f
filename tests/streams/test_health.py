"""Health of a worker: what it says is so, and it says it whatever the event loop and strangers do."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from streams.health import BEHIND_S, HELD_S, Health, Part
from streams.health_port import CONNECTIONS, HEAD_BYTES, HealthPort
from streams.transport.run import TP
from streams.transport.seams import Figures
from streams.watchdog import Probe

NOW, NOW_MS = 1_000.0, 1_700_000_000_000
OURS = TP("palisade.predictions", 0)


class Worker:
    """What a worker's transport knows of itself; a test changes it."""

    def __init__(self) -> None:
        self.joined, self.reading, self.partitions = True, True, frozenset({OURS})
        self.lag: dict[TP, int] = {OURS: 3}
        self.behind_s = 0.2
        self.held_s: float | None = None
        self.ages: dict[str, float | None] = {"polling": 0.1, "loop": 0.0}
        self.part = Part()
        self.started = True

    def figures(self, _: float) -> Figures:
        return Figures(
            read={},
            held={},
            busy=0,
            paused=frozenset(),
            uncommitted={OURS: 2},
            lag=self.lag,
            oldest_ms={OURS: NOW_MS - int(self.behind_s * 1000)},
            commit_age_s=0.5,
        )

    def health(self) -> Health:
        health = Health("detect", "d1", clock=lambda: NOW, now_ms=lambda: NOW_MS)
        probes = [Probe(name, 10.0, lambda _, name=name: self.ages[name]) for name in self.ages]  # type: ignore[misc]
        health.follow(probes, lambda: self if self.started else None, lambda _: self.held_s)  # type: ignore[arg-type,return-value]
        health.add(lambda _: self.part)
        return health


def test_a_worker_that_keeps_up_is_live_and_ready_and_says_its_numbers() -> None:
    state = Worker().health().state()
    assert (state.live, state.ready, state.standby) == (True, True, False)
    assert state.body() == {
        "live": True,
        "ready": True,
        "standby": False,
        "why": [],
        "role": "detect",
        "name": "d1",
        "without_progress_s": {"polling": 0.1, "loop": 0.0},
        "assigned": {"palisade.predictions": [0]},
        "lag": {"palisade.predictions": 3},
        "behind_s": {"palisade.predictions": 0.2},
        "uncommitted": 2,
        "last_commit_s": 0.5,
        "unconfirmed_s": None,
    }


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"started": False}, "not started"),
        ({"joined": False, "partitions": frozenset()}, "no partition is assigned"),
        ({"reading": False}, "not read yet"),
        ({"behind_s": BEHIND_S + 1}, "handled 61 s late"),
        ({"held_s": HELD_S + 1}, "confirmed nothing for 11 s"),
        ({"part": Part({}, ["state is replayed"])}, "state is replayed"),
    ],
)
def test_a_worker_that_does_not_keep_up_is_live_and_says_why_it_is_not_ready(
    change: dict[str, Any], because: str
) -> None:
    worker = Worker()
    for name, value in change.items():
        setattr(worker, name, value)
    state = worker.health().state()
    assert (state.live, state.ready) == (True, False)
    assert because in " ".join(state.why_not_ready)


def test_a_member_whose_partitions_are_others_stands_by_and_is_ready() -> None:
    worker = Worker()
    worker.partitions, worker.lag = frozenset(), {}
    worker.part = Part({"active": False}, ["it is not active"])
    state = worker.health().state()
    assert (state.ready, state.standby) == (True, True)


def test_what_stands_still_is_not_live_before_the_watchdog_ends_the_process() -> None:
    worker = Worker()
    worker.ages["loop"] = 8.5
    state = worker.health().state()
    assert (state.live, state.ready) == (False, False)
    assert state.why_not_live == ["loop without progress for 8.5 s: the watchdog ends the process after 10 s"]


def test_metrics_say_what_health_says() -> None:
    worker = Worker()
    registry = CollectorRegistry()
    registry.register(worker.health())
    said = generate_latest(registry).decode().splitlines()
    for line in (
        "palisade_live 1.0",
        "palisade_ready 1.0",
        'palisade_assigned_partitions{topic="palisade.predictions"} 1.0',
        'palisade_lag_records{topic="palisade.predictions"} 3.0',
        'palisade_behind_seconds{topic="palisade.predictions"} 0.2',
        'palisade_without_progress_seconds{probe="polling"} 0.1',
        "palisade_last_commit_seconds 0.5",
    ):
        assert line in said
    worker.joined = False
    assert "palisade_ready 0.0" in generate_latest(registry).decode().splitlines()


# -- over HTTP


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def port(worker: Worker) -> Iterator[int]:
    serving = HealthPort(worker.health(), CollectorRegistry())
    yield serving.start(0)
    serving.close()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_status_is_the_answer_and_the_body_says_why(port: int, worker: Worker) -> None:
    assert ask(port, "/live")[0] == 200
    assert ask(port, "/ready?verbose=1")[0] == 200
    worker.joined = False
    assert ask(port, "/live")[0] == 200
    status, body = ask(port, "/ready")
    assert status == 503
    assert json.loads(body)["why"] == ["no partition is assigned: the group rebalances, or the broker is away"]
    assert ask(port, "/ready", "HEAD") == (503, b"")


def test_there_are_no_other_paths_and_no_other_methods(port: int) -> None:
    assert ask(port, "/")[0] == 404
    assert ask(port, "/../etc/passwd")[0] == 404
    assert ask(port, "/live", "POST")[0] == 405
    assert ask(port, "/metrics")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [b"\x00\xff\r\n\r\n", b"GET /live\r\n\r\n", b"\r\n\r\n", b"GET  /live HTTP/1.1\r\n\r\n"],
    ids=["bytes", "no version", "empty", "two blanks"],
)
def test_what_is_no_request_is_refused(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(sent)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 400 ")


def test_a_head_beyond_its_bound_ends_the_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES)
        assert answer_of(connection) == b""


def test_who_opens_many_connections_and_says_nothing_keeps_nobody_from_an_answer(port: int) -> None:
    before = set(threading.enumerate())
    silent = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(3 * CONNECTIONS)]
    for number, connection in enumerate(silent[-CONNECTIONS:]):
        connection.sendall(b"GET /live HTTP/1.1\r\n"[:number])  # and others a byte at a time
    try:
        assert ask(port, "/live")[0] == 200
        answering = [thread for thread in threading.enumerate() if "process_request" in thread.name]
        assert len(set(answering) - before) <= CONNECTIONS + 1
    finally:
        for connection in silent:
            connection.close()


def test_a_request_that_comes_slowly_is_ended_in_the_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.health_port.REQUEST_S", 0.2)
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\n")
        assert answer_of(connection) == b""


def test_it_answers_while_another_thread_holds_on_to_the_interpreter(port: int, worker: Worker) -> None:
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            pass

    loop = threading.Thread(target=busy)
    loop.start()
    worker.ages["loop"] = 9.0
    try:
        assert ask(port, "/live")[0] == 503
    finally:
        over.set()
        loop.join()


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the other side ends it, which is no answer where it did so at once."""
    try:
        return connection.recv(1_000)
    except ConnectionResetError:
        return b""
