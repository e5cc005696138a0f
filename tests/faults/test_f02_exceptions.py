"""F2: an exception in each step of each role. Where it is handled the worker goes on, else another one goes on from its commit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS
from schemas.wire import KIND_HEADER
from streams.failpoints import Point
from streams.reading import read_to_end
from streams.records import header_of, headers_of
from tests.faults.ground import Ground
from tests.faults.outages import trip_at_start
from tests.faults.stage import ALL_ROLES, PARTITIONS, Setup, Stage

pytestmark = [pytest.mark.slow, pytest.mark.shared, pytest.mark.fault("F2")]

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
"""What a worker does only at its start."""
ROUNDS = 3
WITHIN_S = 180.0


def test_an_exception_in_any_step_costs_no_record_and_stops_nothing(ground: Ground) -> None:
    with ground.stage(Setup(kafka=ground.full)) as stage:
        stage.load.start()
        for _ in range(ROUNDS if ground.full else 1):
            raised_in_each_role(stage, ground)
        for point in STARTING:
            trip_at_start(stage, "detect", point, "raise")
            ground.made()
        stage.settle()
        assert failed_records(stage) == []
        stage.prove()


def raised_in_each_role(stage: Stage, ground: Ground) -> None:
    ended = list(stage.ended)
    for role, point in GOES_ON:
        stage.await_tripped(stage.arm(role, point, "raise"), WITHIN_S)
        ground.made()
    assert stage.ended == ended
    _end_and_go_on(stage, ENDS)
    ground.made(len(ENDS))
    for at in COMMITS if ground.full else ():
        _end_and_go_on(stage, [at])
        ground.made()


def _end_and_go_on(stage: Stage, points: Sequence[tuple[str, Point]]) -> None:
    """Roles side by side, each at its point."""
    waited = []
    for role, point in points:
        name = _worker(stage, role)
        waited.append((name, stage.exits_of(name) + 1, stage.arm(role, point, "raise")))
        stage.expect_exit(name)
    for name, exits, armed in waited:
        stage.await_tripped(armed, WITHIN_S)
        stage.await_back(name, exits)


def _worker(stage: Stage, role: str) -> str:
    (name,) = [name for name in stage.supervisor.names if name.split("-")[0] == role]
    return name


def failed_records(stage: Stage) -> list[str]:
    """What became a dead letter because handling it raised: nothing may, for nothing raised twice."""
    letters = [
        DeadLetter.from_bytes(message.value() or b"")
        for partition in range(PARTITIONS)
        for message in read_to_end(stage.connection, DEAD_LETTERS, partition)
        if header_of(headers_of(message), KIND_HEADER) == DeadLetter.KIND.encode()
    ]
    return [letter.detail for letter in letters if letter.reason in ("handler_failed", "not_audited")]
