"""F10, wrong clocks: services whose clocks are ahead, behind, right, and far ahead.

Event time is held near the broker's and flagged; what was found otherwise is found all the same. How long an action lasts
no clock of a service tells: `tests/client/test_directives.py` sets a Guard's own.
"""

from __future__ import annotations

import time

import pytest

from palisade.verify.history import History
from responders.signing import SigningKey
from schemas.flags import RowFlag
from tests.faults.ground import Ground
from tests.faults.load import PHASE_BEATS, PHASES, Load
from tests.faults.stage import Setup, Stage, alarms
from tests.support.waiting import until

pytestmark = [pytest.mark.fault("F10"), pytest.mark.shared, pytest.mark.slow]

HOUR_S = 3_600.0
STEPS_S = (HOUR_S / 2, -2 * HOUR_S, 0.0, 2 * HOUR_S)
"""How wrong the services' clocks are, one after the other: a row may be an hour late or five minutes early. The flood of
a short run comes in the last of them."""


class ServiceClock:
    """The time of day, and how wrong it is."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


def test_clocks_of_services_that_are_set_change_nothing_but_flags(ground: Ground) -> None:
    with ground.stage(Setup(kafka=ground.full)) as stage:
        clock, key = ServiceClock(), SigningKey.load(stage.stack.keys.producer)
        stage.load = Load(stage.connection, key, bounded=stage.setup.bounded, clock=clock)
        stage.load.start()
        clocks_set(stage, ground, clock)
        stage.settle()
        history = stage.history()
        stage.prove(history)
        found_all_the_same(stage, history)


def clocks_set(stage: Stage, ground: Ground, clock: ServiceClock) -> None:
    """From the load's first beat on."""
    round_of = PHASE_BEATS * len(PHASES)
    beats = round_of if ground.full else round_of // len(STEPS_S)
    for number, clock.off_s in enumerate(STEPS_S, 1):
        until(lambda: stage.load.beats >= number * beats, "beats to be sent", 300.0, 0.1)  # noqa: B023
        ground.made()


def found_all_the_same(stage: Stage, history: History) -> None:
    flags = history["outcomes"]["flags"].to_numpy()
    assert (flags & RowFlag.LATE).any()
    assert (flags & RowFlag.FUTURE).any()
    assert alarms(stage)["caller_rate"], "who floods is found, whatever the services say the time is"
