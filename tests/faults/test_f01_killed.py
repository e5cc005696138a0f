"""F1: kill -9 at random moments and at each named point; what is left is what an undisturbed run leaves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from streams.failpoints import Point
from tests.faults.ground import Ground
from tests.faults.outages import await_beats, trip_at_start
from tests.faults.stage import Setup, Stage, alarms, fresh_seed
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

KILLED = ("detect", "audit", "ingest", "respond")
RANDOM_KILLS = {"short": 4, "full": 100}
ROUNDS: tuple[tuple[tuple[str, Point], ...], ...] = (
    (("detect", "taken"), ("respond", "journaled"), ("ingest", "published")),
    (("detect", "published"), ("audit", "inserted")),
    (("detect", "before_commit"), ("audit", "after_commit"), ("ingest", "before_commit")),
    (("detect", "in_snapshot"),),
)
"""Points at which workers are killed, those of a round side by side."""
STARTING: tuple[Point, ...] = ("in_restore", "in_replay")
"""Points that only a worker which starts again gets to."""
AUDITED = {"short": (15_000, 1), "full": (1_000_000, 12)}
"""Rows, and how often the audit is killed while it inserts them."""
ALARMS = {"feature_drift", "prediction_drift", "outliers", "odd_input", "caller_rate", "errors", "concept_drift"}
"""What the load's attacks make the detectors say: state that is compared is not trivial."""


@pytest.mark.shared
@pytest.mark.fault("F1")
def test_workers_that_are_killed_at_any_moment_lose_nothing_and_do_nothing_twice(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True, seed=fresh_seed())) as stage:
        stage.load.start()
        killed_at_points_and_at_random(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I3", "I4", "I5", "I6", "I8", "I9"))


def killed_at_points_and_at_random(stage: Stage, ground: Ground) -> None:
    chance = random.Random(stage.setup.seed)
    for points in ROUNDS:
        await_beats(stage, 20)
        _kill_at(stage, points)
        ground.made(len(points))
    for point in STARTING:
        trip_at_start(stage, "detect", point, "kill")
        ground.made()
    for number in range(RANDOM_KILLS[ground.scale]):
        await_beats(stage, chance.randrange(5, 60))
        stage.kill(KILLED[number % len(KILLED)])
        ground.made()
    until(lambda: set(+alarms(stage)) >= ALARMS, f"all of {ALARMS} (seed {stage.setup.seed})", 300, 1.0)


def _kill_at(stage: Stage, points: Sequence[tuple[str, Point]]) -> None:
    """Each of these roles dies where it is said, and is back when this returns."""
    waited: list[tuple[Path, str, int]] = []
    for role, point in points:
        stage.expect_exit(role)
        exits = stage.exits_of(role) + 1
        waited.append((stage.arm(role, point), role, exits))
    for armed, role, exits in waited:
        stage.await_tripped(armed, 120)
        stage.await_back(role, exits)


@pytest.mark.shared
@pytest.mark.fault("F1")
def test_an_audit_that_is_killed_again_and_again_holds_each_scored_row_once(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True, roles=("detect", "audit"))) as stage:
        audit_killed_while_it_inserts(stage, ground)
        stage.settle(1_200)
        stage.prove(must=("I1", "I2", "I3", "I4", "I9"))


def audit_killed_while_it_inserts(stage: Stage, ground: Ground) -> None:
    rows, kills = AUDITED[ground.scale]
    for _ in range(kills):
        stage.load.bulk(rows // kills)
        armed = stage.arm("audit", "inserted", nth=2)
        exits = stage.exits_of("audit") + 1
        stage.expect_exit("audit")
        stage.await_tripped(armed, 120)
        stage.await_back("audit", exits)
        ground.made()
