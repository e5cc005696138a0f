"""Failpoints: nothing without the environment; once, at the time asked for, with it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.failpoints import FailpointReached, Failpoints


def test_without_a_folder_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "detect.taken").write_text("raise")
    Failpoints(None, "detect").reach("taken")
    assert (tmp_path / "detect.taken").exists()


def test_a_point_is_reached_once_at_the_time_asked_for(tmp_path: Path) -> None:
    points = Failpoints(tmp_path, "detect")
    (tmp_path / "detect.taken").write_text("raise 3")
    (tmp_path / "audit.inserted").write_text("raise")
    points.reach("taken")
    points.reach("published")
    points.reach("taken")
    with pytest.raises(FailpointReached, match=r"detect\.taken"):
        points.reach("taken")
    points.reach("taken")
    assert [path.name for path in tmp_path.iterdir()] == ["audit.inserted"]


def test_a_word_that_it_does_not_know_is_told(tmp_path: Path) -> None:
    (tmp_path / "detect.taken").write_text("explode")
    with pytest.raises(ValueError, match="kill, raise or hang"):
        Failpoints(tmp_path, "detect").reach("taken")


async def _waits(points: Failpoints) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await points.reach_waiting("begun")
    except TimeoutError:
        return True
    return False


def test_stick_waits_for_ever_where_waiting_is_possible_and_is_refused_elsewhere(tmp_path: Path) -> None:
    points = Failpoints(tmp_path, "detect")
    (tmp_path / "detect.begun").write_text("stick")
    assert asyncio.run(_waits(points))
    assert not asyncio.run(_waits(points))
    (tmp_path / "detect.taken").write_text("stick")
    with pytest.raises(ValueError, match="points that can wait"):
        points.reach("taken")


def test_kill_ends_the_process_at_once(tmp_path: Path) -> None:
    (tmp_path / "detect.taken").write_text("kill")
    program = "from streams.failpoints import name_role, reach; name_role('detect'); reach('taken'); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PALISADE_FAILPOINTS": str(tmp_path)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
