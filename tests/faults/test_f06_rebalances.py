"""F6: detect workers join, leave and die all the time; state follows its partition, and every partition is owned again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from palisade.dev import role_specs
from palisade.verify.history import History
from schemas.topics import PREDICTIONS
from tests.faults.ground import Ground
from tests.faults.outages import await_beats
from tests.faults.stage import READY_S, Setup, Stage, fresh_seed

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

MEMBERS, PARTITIONS = 4, 4
CHANGES = {"short": 4, "full": 80}
BEATS_BETWEEN = {"short": 30, "full": 160}
"""8 s at length: a group that changes more often than a session of 6 s runs out never comes to rest, and owns nothing meanwhile."""
OWNED_AGAIN_S = 60.0


@pytest.mark.shared
@pytest.mark.fault("F6")
def test_in_a_storm_of_rebalances_nothing_is_lost_and_every_partition_is_owned_again(ground: Ground) -> None:
    setup = Setup(kafka=True, partitions=PARTITIONS, replicas={"detect": 2}, seed=fresh_seed())
    with ground.stage(setup) as stage:
        stage.load.start()
        storm_of_rebalances(stage, ground)
        stage.settle()
        history = stage.history(recompute=True)
        stage.prove(history, must=("I1", "I2", "I3", "I4", "I6", "I9"))
        assert longest_silence_s(history) < OWNED_AGAIN_S, f"seed {stage.setup.seed}"


def storm_of_rebalances(stage: Stage, ground: Ground) -> None:
    chance = random.Random(stage.setup.seed)
    for _ in range(CHANGES[ground.scale]):
        await_beats(stage, BEATS_BETWEEN[ground.scale])
        _change(stage, chance)
        ground.made()


def _change(stage: Stage, chance: random.Random) -> None:
    """One member joins, leaves in order, or dies; at least one stays. There may be more than partitions."""
    members = [name for name in stage.supervisor.names if name.startswith("detect")]
    what = chance.choice(["join", "leave", "kill"])
    if what == "join" and len(members) < MEMBERS:
        taken = {spec.name: spec for spec in role_specs(stage.stack, {"detect": MEMBERS})}
        name = next(name for name in taken if name.startswith("detect") and name not in members)
        stage.supervisor.spawn(replace(taken[name], env=stage.env))
        stage.supervisor.wait_ready(name, READY_S)
    elif what == "leave" and len(members) > 1:
        stage.supervisor.retire(chance.choice(members))
    else:
        stage.kill(chance.choice(members))


def longest_silence_s(history: History, since_ms: int = 0) -> float:
    """Between two outcomes of one partition of predictions: whoever owns it ticks there, and ticks have no outcome, but the
    load never pauses."""
    outcomes = history["outcomes"].to_pandas()
    there = outcomes[(outcomes["topic"] == PREDICTIONS) & (outcomes["at_ms"] >= since_ms)].sort_values("told_at")
    gaps = there.groupby("partition")["at_ms"].apply(lambda ms: ms.sort_values().diff().max())
    return float(gaps.max()) / 1000
