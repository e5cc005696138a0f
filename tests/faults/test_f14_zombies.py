"""F14, a zombie: a worker that lives and makes no progress. The watchdog ends it, and the next one takes up where it was."""

from __future__ import annotations

from collections import Counter

import pytest

from streams.failpoints import Point
from streams.watchdog import EXIT_CODE, WatchdogLimits
from tests.faults.ground import Ground
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.fault("F14"), pytest.mark.shared, pytest.mark.slow]

FOUND_S = 15.0
"""What the invariant allows, on a machine that does nothing else."""
TWO_LOOKS_S = 2.0
Zombie = tuple[str, Point, str, str]
ZOMBIES: tuple[tuple[Zombie, ...], ...] = (
    (
        ("detect", "begun", "stick", "handlers"),
        ("ingest", "polled", "hang", "polling"),
        ("respond", "deciding", "hang", "loop"),
    ),
    (
        ("audit", "polled", "hang", "polling"),
        ("detect", "taken", "hang", "loop"),
        ("ingest", "begun", "stick", "handlers"),
        ("respond", "begun", "stick", "handlers"),
    ),
)
"""Role, where it stands still, how, and the probe that must find it; those of a round side by side. The short run makes the
first round."""


def test_a_worker_that_lives_and_stands_still_is_ended_and_the_next_one_goes_on(ground: Ground) -> None:
    limits = WatchdogLimits()
    assert max(limits.polling_s, limits.loop_s, limits.handler_s) + TWO_LOOKS_S < FOUND_S
    with ground.stage(Setup(kafka=ground.full)) as stage:
        stage.load.start()
        standing_still(stage, ground)
        stage.settle()
        stage.prove()


def standing_still(stage: Stage, ground: Ground) -> None:
    for zombies in ZOMBIES if ground.full else ZOMBIES[:1]:
        before = Counter(stage.ended)
        logs = {role: stage.supervisor.log(role) for role, *_ in zombies}
        said = {role: log.stat().st_size for role, log in logs.items()}
        for role, point, what, _ in zombies:
            stage.expect_exit(role)
            stage.arm(role, point, what)
        for role, point, _, named in zombies:
            until(lambda: Counter(stage.ended)[role, EXIT_CODE] > before[role, EXIT_CODE], f"{role} to be ended", 120.0)  # noqa: B023
            assert f"no progress of {named}".encode() in logs[role].read_bytes()[said[role] :], point
            ground.made()
