"""What `make test` makes of the faults on Apache Kafka, on two stages; `test_together.py` has those on the embedded broker."""

from __future__ import annotations

import time

import pytest

from tests.faults import test_f01_killed as f01
from tests.faults import test_f02_exceptions as f02
from tests.faults import test_f03_poison as f03
from tests.faults import test_f04_broker_away as f04
from tests.faults import test_f05_refused as f05
from tests.faults import test_f06_rebalances as f06
from tests.faults import test_f11_control_topic as f11
from tests.faults import test_f13_churn as f13
from tests.faults import test_f14_zombies as f14
from tests.faults import test_f15_two_responders as f15
from tests.faults import test_f16_upgrades as f16
from tests.faults.ground import Ground
from tests.faults.load import GUARDED
from tests.faults.respond_pair import Follower
from tests.faults.stage import Setup, fresh_seed

pytestmark = [pytest.mark.slow, pytest.mark.together, pytest.mark.kafka]


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
