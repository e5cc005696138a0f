"""`palisade dev` as a process of its own: it ends when it is told to, when its broker is gone, and when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ENDS_S = 25
"""Far below the 60 s that roles wait for a broker that is gone; far above the 6 s that an end takes here."""


class Dev:
    """A running `palisade dev` in `folder`, and the pids of its children by what they run."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "palisade.cli.main", "dev", "--endpoint", "credit"]
        self.output = folder / "output"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        until(lambda: "Ctrl-C" in self.said() or self.process.poll() is not None, "the welcome", 120)
        assert self.process.poll() is None, self.said()
        self.children = children_of(self.process.pid)

    def said(self) -> str:
        return self.output.read_text()

    def child(self, word: str) -> int:
        return next(pid for pid, command in self.children.items() if word in command)

    def living(self) -> dict[int, str]:
        """Children that still run, wherever they hang in the tree of processes now."""
        return {pid: command for pid, command in self.children.items() if command in processes().get(pid, (0, ""))[1]}


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, command) of all that are no zombies; by `ps` where there is no /proc, by /proc where there is no `ps`."""
    found = {}
    for pid, parent, state, command in _from_proc() if Path("/proc/self/stat").exists() else _from_ps():
        if not state.startswith("Z"):
            found[int(pid)] = (int(parent), command)
    return found


def _from_proc() -> Iterator[tuple[str, str, str, str]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            yield (
                entry.name,
                parent,
                state,
                (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
            )


def _from_ps() -> Iterator[tuple[str, str, str, str]]:
    for line in subprocess.run(
        ["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True
    ).stdout.splitlines():
        pid, parent, state, command = line.split(None, 3)
        yield pid, parent, state, command


def children_of(parent: int) -> dict[int, str]:
    return {pid: args for pid, (ppid, args) in processes().items() if ppid == parent}


def until(ready: Callable[[], bool], what: str, timeout_s: float = ENDS_S) -> None:
    """Processes that are not our children can only be asked."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.2)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    running = Dev(tmp_path)
    yield running
    for pid in running.living():
        os.kill(pid, signal.SIGKILL)
    running.process.kill()
    running.process.wait()


def test_told_to_end_while_it_starts_it_does_not_wait_for_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "palisade.cli.main", "dev", "--endpoint", "credit"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        until(lambda: len(children_of(process.pid)) >= 2, "the first children", 60)
        children = children_of(process.pid)

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 130
    until(lambda: not children.keys() & processes().keys(), "the end of the children")
    assert not (tmp_path / "palisade-data" / "dev" / "running.json").exists()


def test_without_its_broker_it_ends_within_seconds_says_so_and_leaves_nobody(dev: Dev) -> None:
    os.kill(dev.child("embedded_broker"), signal.SIGKILL)

    assert dev.process.wait(ENDS_S) == 1
    assert "the embedded broker ended" in dev.said()
    assert dev.living() == {}


def test_killed_it_leaves_no_orphan(dev: Dev) -> None:
    assert len(dev.children) == 5
    dev.process.kill()
    dev.process.wait()

    until(lambda: dev.living() == {}, "the end of the children")


def test_a_kill_of_a_role_is_mended_and_ctrl_c_ends_all(dev: Dev, tmp_path: Path) -> None:
    killed = dev.child("worker respond")
    os.kill(killed, signal.SIGKILL)
    until(lambda: "respond ended with -9" in dev.said(), "word of the kill")
    until(lambda: len(children_of(dev.process.pid)) == 5, "the fresh respond")
    dev.children = children_of(dev.process.pid)
    assert killed not in dev.children

    dev.process.send_signal(signal.SIGINT)

    assert dev.process.wait(60) == 0
    assert dev.living() == {}
    assert not (tmp_path / "palisade-data" / "dev" / "running.json").exists()
