"""What `make test` makes of the faults: a few of each, those that a stage can bear on one stage, and the checker over all of it.

`python -m tests.faults` makes each by itself: with `--short` as few, else at length.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults import test_f01_killed as f01
from tests.faults import test_f02_exceptions as f02
from tests.faults import test_f03_poison as f03
from tests.faults import test_f04_broker_away as f04
from tests.faults import test_f05_refused as f05
from tests.faults import test_f06_rebalances as f06
from tests.faults import test_f07_clickhouse_away as f07
from tests.faults import test_f09_out_of_order as f09
from tests.faults import test_f10_clocks as f10
from tests.faults import test_f11_control_topic as f11
from tests.faults import test_f12_receivers as f12
from tests.faults import test_f13_churn as f13
from tests.faults import test_f14_zombies as f14
from tests.faults import test_f15_two_responders as f15
from tests.faults import test_f16_upgrades as f16
from tests.faults.ground import Ground
from tests.faults.load import GUARDED
from tests.faults.respond_pair import Follower
from tests.faults.stage import Setup, fresh_seed

pytestmark = [pytest.mark.slow, pytest.mark.together]

LATE_S = 4.0
SLOW_BEAT_S = 0.1
"""Where several faults are made on the embedded broker, which keeps so many events and no more."""


@pytest.mark.kafka
@pytest.mark.fault("F1", "F2", "F3", "F4", "F5", "F6", "F14")
def test_whatever_befalls_the_workers_their_state_is_that_of_an_undisturbed_run(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True, seed=fresh_seed())) as stage:
        stage.load.start()
        f02.raised_in_each_role(stage, ground.of("F2"))
        f14.standing_still(stage, ground.of("F14"))
        f05.writes_refused(stage, ground.of("F5"))
        f01.killed_at_points_and_at_random(stage, ground.of("F1"))
        f01.audit_killed_while_it_inserts(stage, ground.of("F1"))
        assert f03.letters_amiss(stage, f03.poisoned(stage, ground.of("F3"))) == {}
        f04.broker_away(stage, ground.of("F4"))
        storm_ms = int(time.time() * 1000)
        f06.storm_of_rebalances(stage, ground.of("F6"))
        stage.settle()
        history = stage.history(recompute=True)
        stage.prove(history, must=("I1", "I2", "I3", "I4", "I5", "I6", "I8", "I9"))
        assert f06.longest_silence_s(history, storm_ms) < f06.OWNED_AGAIN_S


@pytest.mark.kafka
@pytest.mark.fault("F11", "F13", "F15", "F16")
def test_two_responders_lost_topics_other_releases_and_made_up_names(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True, replicas={"respond": 2}, seed=fresh_seed())) as stage:
        stage.load.start()
        f13.made_up_names(stage, ground.of("F13"))  # first: of those who flood no more are limited than three at once
        with Follower(stage, GUARDED) as follower:
            f15.two_at_once(stage, ground.of("F15"), follower)
            f11.topics_of_control_lost(stage, ground.of("F11"), follower)
        f16.there_and_back(stage, ground.of("F16"))
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I5", "I6", "I7", "I8", "I9"))


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
