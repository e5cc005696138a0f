"""What `make test` makes of the faults: a few of each, those that a stage can bear on one stage, and the checker over all of it.

`python -m tests.faults` makes each by itself: with `--short` as few, else at length.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import test_f04_broker_away as f04
from tests.faults import test_f05_refused as f05
from tests.faults import test_f07_clickhouse_away as f07
from tests.faults import test_f09_out_of_order as f09
from tests.faults import test_f10_clocks as f10
from tests.faults import test_f12_receivers as f12
from tests.faults.ground import Ground
from tests.faults.stage import Setup, fresh_seed

pytestmark = [pytest.mark.slow, pytest.mark.together]

LATE_S = 4.0
SLOW_BEAT_S = 0.1
"""Where several faults are made on the embedded broker, which keeps so many events and no more."""


@pytest.mark.fault("F4", "F5", "F12")
def test_a_broker_that_is_cut_off_and_refuses_and_receivers_that_misbehave(ground: Ground, tmp_path: Path) -> None:
    secret = tmp_path / "hook.secret"
    secret.write_text(f12.SECRET)
    with f12.receivers() as told:
        setup = Setup(inside=True, beat_s=SLOW_BEAT_S, config=told.config(secret), seed=fresh_seed())
        with ground.stage(setup) as stage:
            stage.load.start()
            f04.network_cut(stage, ground.of("F4"))
            f05.commits_refused(stage, ground.of("F5"))
            with stage.load.paused():
                f12.misbehaving(stage, ground.of("F12"), told)
            stage.settle()
            stage.prove(must=("I1", "I2", "I4", "I5", "I6", "I9", "I11"))


@pytest.mark.fault("F7")
def test_a_clickhouse_that_is_away_and_an_audit_that_is_behind(ground: Ground, tmp_path: Path) -> None:
    with (
        f07.clickhouse_of(tmp_path) as (clickhouse, config),
        ground.stage(Setup(config=config, beat_s=SLOW_BEAT_S, seed=fresh_seed())) as stage,
    ):
        stage.load.start()
        f07.behind_half_of_retention(stage, ground, clickhouse)
        f07.away_in_each_way(stage, ground, clickhouse)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


@pytest.mark.fault("F9", "F10")
def test_disorder_and_wrong_clocks(ground: Ground) -> None:
    with ground.stage() as stage:
        clock = f10.ServiceClock()
        stage.load = load = f09.Disordered(stage, LATE_S, clock)
        load.start()
        f10.clocks_set(stage, ground.of("F10"), clock)
        stage.settle()
        f09.ended_once_each(stage, ground.of("F9"), load)
        history = stage.history()
        stage.prove(history)
        f10.found_all_the_same(stage, history)
