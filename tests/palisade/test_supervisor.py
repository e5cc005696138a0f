"""The supervisor: children are started again after a kill, told apart when they fail, and gone when it is."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palisade import supervisor as supervisor_module
from palisade.supervisor import ChildFailed, ChildSpec, Supervisor

READY = "import sys, time; print('ready', flush=True)\n"
STAYS = READY + "time.sleep(600)"


def child(name: str, code: str, **more: object) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-u", "-c", code], **({"ready": "ready"} | more))  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Exits:
    """What the supervisor tells of ended children."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self._changed = threading.Condition()

    def __call__(self, name: str, code: int) -> None:
        with self._changed:
            self.seen.append((name, code))
            self._changed.notify_all()

    def until(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, 120), self.seen


@pytest.fixture
def exits() -> Exits:
    return Exits()


@pytest.fixture
def supervised(tmp_path: Path, exits: Exits) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "logs", on_exit=exits) as running:
        yield running


def until_another_pid(supervised: Supervisor, name: str, old: int) -> int:
    waiting = threading.Event()
    for _ in range(1_000):
        if supervised.pid(name) != old:
            return supervised.pid(name)
        waiting.wait(0.02)
    raise AssertionError(f"{name} was not started again")


def test_a_child_that_is_killed_is_started_again(supervised: Supervisor, exits: Exits) -> None:
    assert supervised.start(child("role", STAYS)) == "ready"

    killed = supervised.kill("role")

    fresh = until_another_pid(supervised, "role", killed)
    supervised.wait_ready("role", 20)
    assert exits.seen == [("role", -9)]
    assert alive(fresh)
    assert not alive(killed)


def test_a_child_that_keeps_dying_is_waited_for_longer_and_longer_and_holds_up_nobody(
    supervised: Supervisor, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "BACK_OFF_S", (0.05, 600.0))
    supervised.spawn(child("broken", "raise SystemExit(3)", ready=None))
    exits.until(lambda: exits.seen.count(("broken", 3)) == 3)

    supervised.start(child("sound", STAYS))
    killed = supervised.kill("sound")
    until_another_pid(supervised, "sound", killed)

    assert exits.seen.count(("broken", 3)) == 3


def test_a_child_that_is_not_to_be_restarted_stays_down(supervised: Supervisor, exits: Exits) -> None:
    supervised.start(child("once", READY, restart=False))
    exits.until(lambda: ("once", 0) in exits.seen)
    pid = supervised.pid("once")

    supervised.start(child("other", STAYS))

    assert supervised.pid("once") == pid


@pytest.mark.parametrize("restart", [True, False])
def test_a_child_that_fails_before_it_is_ready_is_reported_with_the_end_of_its_log(
    supervised: Supervisor, restart: bool
) -> None:
    code = "import sys; print('starting'); sys.exit('no such broker')"

    with pytest.raises(ChildFailed) as caught:
        supervised.start(child("role", code, restart=restart), timeout_s=60)

    assert "role did not become ready" in str(caught.value)
    assert "no such broker" in str(caught.value)
    assert "role.log" in str(caught.value)


def test_a_child_that_never_gets_ready_is_not_waited_for_for_ever(supervised: Supervisor) -> None:
    with pytest.raises(ChildFailed):
        supervised.start(child("mute", "import time; time.sleep(600)"), timeout_s=0.3)


def test_output_and_errors_of_a_child_lie_in_its_log(supervised: Supervisor, exits: Exits) -> None:
    supervised.start(child("talker", READY + "print('more'); sys.stderr.write('wrong\\n')", restart=False))
    exits.until(lambda: bool(exits.seen))
    supervised.stop()

    assert sorted(supervised.tail("talker").splitlines()) == ["more", "wrong"]


def test_all_are_told_to_end_at_once_and_those_they_lean_on_after_them(tmp_path: Path) -> None:
    code = f"""
import pathlib, signal, sys, time
folder, me, other = pathlib.Path({str(tmp_path)!r}), *sys.argv[1:]
def end(*_):
    (folder / f"{{me}}-told").touch()
    while other and not (folder / f"{{other}}-told").exists():  # ends only when the other was told too
        time.sleep(0.01)
    with open(folder / "order", "a") as order:
        order.write(me + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""
    names = {"broker": "", "audit": "detect", "detect": "audit"}
    with Supervisor(tmp_path / "logs") as supervised:
        for name, other in names.items():
            command = [sys.executable, "-c", code, name, other]
            supervised.start(ChildSpec(name, command, ready="ready", leaned_on=name == "broker"))
        pids = [supervised.pid(name) for name in names]

    order = (tmp_path / "order").read_text().split()
    assert (set(order[:2]), order[2:]) == ({"audit", "detect"}, ["broker"])
    assert not any(map(alive, pids))


def test_a_child_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    supervised = Supervisor(tmp_path)
    supervised.start(child("stubborn", "import signal; signal.signal(15, signal.SIG_IGN)\n" + STAYS))
    pid = supervised.pid("stubborn")

    supervised.stop(0.2)

    assert not alive(pid)


def test_who_waits_for_a_child_is_told_when_the_one_that_it_leans_on_is_gone(supervised: Supervisor) -> None:
    supervised.start(child("broker", STAYS, restart=False, leaned_on=True))
    supervised.spawn(child("role", "import time; time.sleep(600)"))
    supervised.kill("broker")

    with pytest.raises(ChildFailed, match="broker ended before role was ready"):
        supervised.wait_ready("role", 60)


def test_who_leans_on_a_child_that_is_gone_gets_a_short_grace(
    supervised: Supervisor, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "ALONE_S", 0.2)
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN)\n" + STAYS
    supervised.start(child("broker", STAYS, restart=False, leaned_on=True))
    supervised.start(child("role", stubborn))
    pid = supervised.pid("role")
    supervised.kill("broker")
    exits.until(lambda: ("broker", -9) in exits.seen)

    stopping = threading.Thread(target=supervised.stop, daemon=True)  # with the usual grace, 30 s
    stopping.start()
    stopping.join(20)

    assert not stopping.is_alive()
    assert not alive(pid)


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    """The child holds a FIFO open: its end is the child's end, whoever inherits the child."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    orphan = f"""
import threading
from streams import lifeline
held = open({str(fifo)!r}, "w")
gone = threading.Event()
lifeline.hold(gone.set)
print("ready", flush=True)
gone.wait()
"""
    parent = f"""
import pathlib, sys, time
from palisade.supervisor import ChildSpec, Supervisor
supervisor = Supervisor(pathlib.Path({str(tmp_path)!r}))
supervisor.start(ChildSpec("orphan", [sys.executable, "-c", {orphan!r}], ready="ready"))
supervisor.start(ChildSpec("other", [sys.executable, "-c", {READY + "sys.stdin.read()"!r}], ready="ready"))
print("both", flush=True)
time.sleep(600)
"""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"both\n"
        assert select.select([reader], [], [], 0)[0] == []

        process.kill()

        assert select.select([reader], [], [], 20)[0] == [reader]
        assert os.read(reader, 1) == b""
    os.close(reader)
