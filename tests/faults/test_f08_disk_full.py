"""F8: the disk of audit and snapshots is full: detection goes on, nothing is written half, and space alone mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.topics import PREDICTIONS, VERDICTS
from tests.faults.disks import Disk, disk
from tests.faults.ground import Ground
from tests.faults.outages import await_beats, committed, written
from tests.faults.stage import Setup, Stage
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ROUNDS = {"short": 1, "full": 5}
BEAT_S = {"short": 0.05, "full": 0.25}
"""The embedded broker keeps what comes in 900 of them."""


@pytest.mark.fault("F8")
def test_a_disk_that_is_full_stops_no_detection_and_space_alone_mends_it(ground: Ground, tmp_path: Path) -> None:
    with disk(tmp_path / "stage-1" / "dev") as full, ground.stage(Setup(beat_s=BEAT_S[ground.scale])) as stage:
        stage.load.start()
        no_space(stage, ground, full)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def no_space(stage: Stage, ground: Ground, full: Disk) -> None:
    stage.await_saved("predictions")
    for _ in range(ROUNDS[ground.scale]):
        await_beats(stage, 20)
        said = len(_log(stage, "detect")), len(_log(stage, "audit"))
        _until_full(stage, full, "detect", said[0], "was not saved")
        if full.whole:
            _until_full(stage, full, "audit", said[1], " space")
        detected = written(stage, VERDICTS)
        until(lambda detected=detected: written(stage, VERDICTS) > detected, "verdicts meanwhile", 60)
        assert stage.ended == []
        full.free()
        stored = committed(stage, "audit", [PREDICTIONS])
        until(lambda stored=stored: committed(stage, "audit", [PREDICTIONS]) > stored, "inserts afterwards", 120)
        ground.made()
    stage.kill("detect")  # what was saved before, while and after is taken back
    await_beats(stage, 20)


def _until_full(stage: Stage, full: Disk, name: str, since: int, word: str) -> None:
    """Until this role says that it could not write; what others remove meanwhile is taken, too."""

    def said() -> bool:
        full.fill()
        return word in _log(stage, name)[since:]

    until(said, f"{name} to say {word!r}", 60, 0.5)


def _log(stage: Stage, name: str) -> str:
    return stage.supervisor.log(name).read_text(errors="replace")
