"""F16: a release with other state comes and goes: what did not change goes on, what did starts cold and says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palisade.dev import role_specs
from palisade.supervisor import python_module
from tests.faults.ground import Ground
from tests.faults.outages import await_beats
from tests.faults.stage import READY_S, Setup, Stage

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

KINDS = ("detector", "format")


@pytest.mark.shared
@pytest.mark.fault("F16")
def test_a_release_with_other_state_and_back_again_starts_cold_where_it_must_and_never_crashes(ground: Ground) -> None:
    with ground.stage(Setup(kafka=True)) as stage:
        stage.load.start()
        there_and_back(stage, ground)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def there_and_back(stage: Stage, ground: Ground) -> None:
    ended = list(stage.ended)
    _await_state(stage)
    for kind in KINDS:
        _replace_detect(stage, kind)
        _await_state(stage)
        _replace_detect(stage, None)
        _await_state(stage)
        ground.made(2)
    assert stage.ended == ended, "nobody ended by itself"
    log = stage.supervisor.log("detect").read_text()
    cold = [line for line in log.splitlines() if "cold start of" in line]
    assert sum("cold start of feature_drift" in line for line in cold) >= 2, "there and back"
    assert not [line for line in cold if "outliers" in line], "it did not change"
    assert "another format" in log


def _await_state(stage: Stage) -> None:
    """Some beats more, and a round of snapshots of what they led to."""
    await_beats(stage, 60)
    stage.await_saved("predictions")


def _replace_detect(stage: Stage, kind: str | None) -> None:
    """The release of that kind, or the one of this checkout, in place of the one that runs."""
    spec = next(spec for spec in role_specs(stage.stack) if spec.name == "detect")
    words = list(spec.command[3:])  # after: python -m palisade.cli.main
    command = spec.command if kind is None else python_module("tests.faults.next_release", kind, *words)
    assert stage.supervisor.retire("detect") == 0
    stage.supervisor.spawn(replace(spec, command=command, env=stage.env))
    stage.supervisor.wait_ready("detect", READY_S)
