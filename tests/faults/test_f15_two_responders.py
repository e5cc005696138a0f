"""F15: two responders at once. One is stopped until another has taken over, then goes on; one dies between journal and directive."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.faults.ground import Ground
from tests.faults.load import GUARDED
from tests.faults.respond_pair import WITHIN_S, Follower, Responders
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.shared, pytest.mark.fault("F15")]
ROUNDS, FULL_ROUNDS = 1, 10


def stood_still(stage: Stage, responders: Responders, follower: Follower, for_s: float) -> None:
    """SIGSTOP until another one is active and has spoken, then SIGCONT: the older one says nothing that anybody takes."""
    before, old = responders.takeovers(), responders.active()
    responders.signal(old, signal.SIGSTOP)
    try:
        responders.await_takeover(before)
        fenced = responders.journal()[-1].epoch
        until(lambda: follower.state.epoch >= fenced or not follower.limited, "the new one's directives", WITHIN_S)
        time.sleep(for_s)  # the older one's commitments grow older
    finally:
        woken = time.monotonic()
        responders.signal(old, signal.SIGCONT)
    stage.expect_exit(old)  # by the journal's fence, if that tells it first
    until(lambda: time.monotonic() - woken > 3 or old in dict(stage.ended), "the older one's words", WITHIN_S)
    assert all(epoch >= fenced for at, epoch in follower.taken if at > woken)


def died_in_the_act(stage: Stage, responders: Responders) -> None:
    """kill -9 after the journal's commit, before anything was done about it; and of whoever takes over, at once."""
    before, active = responders.takeovers(), responders.active()
    stage.expect_exit(active)
    stage.await_tripped(stage.arm("respond", "journaled"), WITHIN_S)
    second = responders.await_takeover(before)
    stage.kill(second)
    responders.await_takeover(before + 1)


def test_of_two_responders_the_older_one_does_nothing_more(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True, replicas={"respond": 2})) as stage:
        stage.load.start()
        with Follower(stage, GUARDED) as follower:
            two_at_once(stage, ground, follower)
        stage.settle()
        stage.prove(must=("I1", "I5", "I6", "I7", "I8"))


def two_at_once(stage: Stage, ground: Ground, follower: Follower) -> None:
    responders, draw = Responders(stage), random.Random(stage.setup.seed)
    until(lambda: follower.limited, "the first limit", WITHIN_S)
    for _ in range(FULL_ROUNDS if ground.full else ROUNDS):
        stood_still(stage, responders, follower, draw.uniform(0, 8 if ground.full else 1))
        died_in_the_act(stage, responders)
        ground.made(2)
