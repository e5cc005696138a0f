"""F4: the broker goes away for seconds, a minute, ten minutes: none ends in a minute, and nothing is lost or done twice."""

from __future__ import annotations

import pytest

from schemas.topics import VERDICTS
from tests.faults.ground import Ground
from tests.faults.outages import await_beats, lasts, written
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

AWAY_S = {"short": (12.0,), "full": (5.0, 60.0, 600.0)}
CUT_S = {"short": (0.2, 4.0), "full": (0.2, 1.0, 4.0, 12.0, 0.2, 1.0, 4.0)}
"""The embedded broker does not keep more events than come in these."""
NO_EXIT_S = 60.0
BACK_S = 180.0


@pytest.mark.shared
@pytest.mark.fault("F4")
def test_a_broker_that_goes_away_ends_no_process_and_costs_no_event(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True)) as stage:
        stage.load.start()
        broker_away(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def broker_away(stage: Stage, ground: Ground) -> None:
    assert stage.broker is not None
    ended = list(stage.ended)
    for seconds in AWAY_S[ground.scale]:
        await_beats(stage, 60)
        stage.broker.kill()
        if seconds > NO_EXIT_S:  # the last one: outputs have waited long enough, workers may be started anew
            for name in stage.supervisor.names:
                stage.expect_exit(name, 100)
        lasts(seconds)
        assert stage.ended == ended or seconds > NO_EXIT_S, f"in {seconds:.0f} s without a broker"
        stage.broker.start()
        ground.made()
        before = written(stage, VERDICTS)
        until(lambda before=before: written(stage, VERDICTS) > before, "verdicts after the outage", BACK_S)
    await_beats(stage, 60)
    assert stage.ended == ended or ground.full


@pytest.mark.shared
@pytest.mark.fault("F4")
def test_a_network_that_cuts_every_connection_again_and_again_costs_no_event(ground: Ground) -> None:
    with ground.stage(Setup(inside=True)) as stage:
        stage.load.start()
        network_cut(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def network_cut(stage: Stage, ground: Ground) -> None:
    assert stage.embedded is not None
    for seconds in CUT_S[ground.scale]:
        await_beats(stage, 40)
        stage.embedded.down()
        lasts(seconds)
        stage.embedded.up()
        ground.made()
    await_beats(stage, 40)
    assert stage.ended == []
