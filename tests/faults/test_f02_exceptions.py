"""F2: an exception in each step of each role. Where it is handled the worker goes on, else another one goes on from its commit."""

from __future__ import annotations

import pytest

from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS
from schemas.wire import KIND_HEADER
from streams.failpoints import Point
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from tests.faults.ground import Ground
from tests.faults.stage import ALL_ROLES, PARTITIONS, Stage

pytestmark = [pytest.mark.slow, pytest.mark.fault("F2")]

GOES_ON: tuple[tuple[str, Point], ...] = (
    ("ingest", "taken"),
    ("detect", "taken"),
    ("detect", "in_snapshot"),
    ("respond", "deciding"),
)
"""Where an exception ends nothing: what failed is read, saved or decided again."""
ENDS: tuple[tuple[str, Point], ...] = (
    ("detect", "published"),
    ("ingest", "published"),
    ("respond", "journaled"),
    ("audit", "inserted"),
)
"""Where it leaves the handler, so that the process ends and its successor goes on."""
COMMITS: tuple[tuple[str, Point], ...] = tuple(
    (role, point) for role in ALL_ROLES for point in ("before_commit", "after_commit")
)
STARTING: tuple[Point, ...] = ("in_restore", "in_replay")
ROUNDS = 3
WITHIN_S = 180.0


def test_an_exception_in_any_step_costs_no_record_and_stops_nothing(ground: Ground) -> None:
    with ground.stage() as stage:
        stage.load.start()
        for _ in range(ROUNDS if ground.full else 1):
            ended = list(stage.ended)
            for role, point in GOES_ON:
                stage.await_tripped(stage.arm(role, point, "raise"), WITHIN_S)
                ground.made()
            assert stage.ended == ended
            for role, point in (*ENDS, *(COMMITS if ground.full else ())):
                _ends_and_goes_on(stage, role, point)
                ground.made()
        for point in STARTING:
            _raises_at_a_start(stage, point)
            ground.made()
        stage.settle()
        assert _failed(stage) == []
        stage.prove()


def _ends_and_goes_on(stage: Stage, role: str, point: Point) -> None:
    name = _worker(stage, role)
    exits = stage.exits_of(name)
    stage.expect_exit(name)
    stage.await_tripped(stage.arm(role, point, "raise"), WITHIN_S)
    stage.await_back(name, exits + 1)


def _raises_at_a_start(stage: Stage, point: Point) -> None:
    """The successor of a worker that was killed raises while it takes back state, or while it reads again."""
    name = _worker(stage, "detect")
    armed = stage.arm("detect", point, "raise")
    stage.kill(name)
    stage.await_tripped(armed, WITHIN_S)


def _worker(stage: Stage, role: str) -> str:
    (name,) = [name for name in stage.supervisor.names if name.split("-")[0] == role]
    return name


def _failed(stage: Stage) -> list[str]:
    """What became a dead letter because handling it raised: nothing may, for nothing raised twice."""
    letters = [
        DeadLetter.from_bytes(message.value() or b"")
        for partition in range(PARTITIONS)
        for message in read_to_end(stage.connection, DEAD_LETTERS, partition)
        if header_of(headers_of(message), KIND_HEADER) == DeadLetter.KIND.encode()
    ]
    return [letter.detail for letter in letters if letter.reason in ("handler_failed", "not_audited")]
