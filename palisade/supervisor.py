"""A supervisor of child processes: starts them, restarts those that die, stops all at once.

It spawns the same commands as in production, so what is tried with it is what runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from schemas.errors import PalisadeError
from streams.lifeline import SUPERVISED

GRACE_S = 30.0
"""A worker finishes and commits its open runs within 20 s of SIGTERM; then it is killed. One grace for all children."""
ALONE_S = 5.0
"""The grace when a child that the others lean on is gone already: there is nothing that they could commit to."""
LEANED_ON_S = 2.0
"""What a child has to end when the grace is used up by those that leaned on it."""
BACK_OFF_S = (0.2, 1.0, 3.0, 10.0)
GIVE_UP_AFTER = 2
"""Restarts of a child that was never ready; who waits for it is told then."""
STEADY_S = 60.0
"""A child that lived so long starts its back-off anew."""


class ChildFailed(PalisadeError):
    """A child that ended before it said that it was ready."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process. `ready`: text of a line on its standard output that says it works; None: ready at once.

    `leaned_on`: the others need it, also to end: it is stopped after them.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | None = None
    restart: bool = True
    leaned_on: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes]
    started: float
    ready_line: str = ""
    is_ready: threading.Event = field(default_factory=threading.Event)
    failures: int = 0
    ended: bool = False
    retired: bool = False
    restart_at: float | None = None


class Supervisor:
    """Owns child processes; each writes its standard error to `<logs>/<name>.log`. Thread-safe.

    `on_start` is told name and pid of each process, `on_exit` name and status of one that ended by itself. `back_off_s`: the
    waits before the second and further restarts of a child in a row.
    """

    def __init__(
        self,
        logs: Path,
        on_exit: Callable[[str, int], None] | None = None,
        on_start: Callable[[str, int], None] | None = None,
        back_off_s: Sequence[float] = BACK_OFF_S,
    ) -> None:
        self._logs = logs
        self._back_off_s = back_off_s
        self._on_exit = on_exit
        self._on_start = on_start
        self._children: dict[str, _Child] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, spec: ChildSpec, timeout_s: float = 60.0) -> str:
        """Starts a child and waits until it is ready; returns the line that said so. Raises ChildFailed."""
        child = self.spawn(spec)
        return self.wait_ready(child, timeout_s)

    def spawn(self, spec: ChildSpec) -> str:
        """Starts a child and does not wait; returns its name."""
        with self._lock:
            self._children[spec.name] = self._launch(spec)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
                self._watcher.start()
        return spec.name

    def wait_ready(self, name: str, timeout_s: float = 60.0) -> str:
        """Waits until the child said that it is ready. Raises ChildFailed with the end of its log, or of the log of the
        child that it leans on and that is gone."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            child = self._children[name]
            if child.ended:  # ready once, perhaps; the one in its place is not yet
                time.sleep(0.05)
            elif child.is_ready.wait(0.1):
                return child.ready_line
            if child.process.poll() is not None and (not child.spec.restart or child.failures >= GIVE_UP_AFTER):
                break
            if self._leaned_on_and_gone(name) is not None:
                break
        lost = self._leaned_on_and_gone(name)
        if lost is not None:
            raise ChildFailed(f"{lost} ended before {name} was ready; the end of {self.log(lost)}:\n{self.tail(lost)}")
        raise ChildFailed(
            f"{name} did not become ready (waited up to {timeout_s:.0f} s); the end of {self.log(name)}:\n{self.tail(name)}"
        )

    def _leaned_on_and_gone(self, name: str) -> str | None:
        with self._lock:
            children = list(self._children.values())
        gone = (each.spec.name for each in children if each.spec.leaned_on and each.process.poll() is not None)
        return next((other for other in gone if other != name), None)

    def pid(self, name: str) -> int:
        """The pid of a child as it runs now."""
        with self._lock:
            return self._children[name].process.pid

    def kill(self, name: str) -> int:
        """kill -9, as a fault would; the child is started again if its spec says so. Returns the pid that was killed."""
        with self._lock:
            pid = self._children[name].process.pid
            self._children[name].process.kill()
            return pid

    def retire(self, name: str, grace_s: float = GRACE_S) -> int:
        """SIGTERM to one child, SIGKILL after the grace; it is not started again. Returns its exit status."""
        with self._lock:
            child = self._children.pop(name)
            child.retired = True
        _end([child], time.monotonic() + grace_s)
        return child.process.returncode

    @property
    def names(self) -> list[str]:
        """The children that are not retired, in the order of their start."""
        with self._lock:
            return list(self._children)

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 30) -> str:
        """The last lines of a child's log."""
        path = self.log(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    def stop(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM to all, last started first, then to those they lean on; SIGKILL after the grace, which all share.

        The grace is ALONE_S at most when one they lean on is gone. Returns when all are gone.
        """
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            children = list(reversed(self._children.values()))
        if any(child.spec.leaned_on and child.process.poll() is not None for child in children):
            grace_s = min(grace_s, ALONE_S)
        deadline = time.monotonic() + grace_s
        _end([child for child in children if not child.spec.leaned_on], deadline)
        _end([child for child in children if child.spec.leaned_on], max(deadline, time.monotonic() + LEANED_ON_S))

    def kill_all(self) -> None:
        """SIGKILL to all, now: for who does not want to wait for a `stop` that runs."""
        self._stopping.set()
        with self._lock:
            for child in self._children.values():
                child.process.kill()

    def _launch(self, spec: ChildSpec) -> _Child:
        with self.log(spec.name).open("ab") as log:
            process = subprocess.Popen(
                list(spec.command),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.PIPE,  # the child's lifeline: closed by the kernel, whatever ends this process
                env={**os.environ, SUPERVISED: "1", **spec.env},
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops its children in order
            )
        if self._on_start is not None:
            self._on_start(spec.name, process.pid)
        child = _Child(spec, process, time.monotonic())
        if spec.ready is None:
            child.is_ready.set()
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(child, process.stdout), name=f"out-{spec.name}", daemon=True).start()
        return child

    def _read(self, child: _Child, out: IO[bytes]) -> None:
        """Keeps the child's output: the ready line for who waits, the rest in its log."""
        with self.log(child.spec.name).open("ab") as log, out:
            for line in out:
                text = line.decode("utf-8", "replace").rstrip()
                if child.spec.ready is not None and child.spec.ready in text and not child.is_ready.is_set():
                    child.ready_line = text
                    child.is_ready.set()
                else:
                    with suppress(OSError):  # a full disk: who stops reading would hold up the child
                        log.write(line)
                        log.flush()

    def _watch(self) -> None:
        while not self._stopping.wait(0.05):
            with self._lock:
                children = list(self._children.values())
            now = time.monotonic()
            for child in children:
                if child.retired:
                    continue
                if not child.ended and child.process.poll() is not None:
                    self._after_end(child, now)
                if child.restart_at is not None and now >= child.restart_at:
                    self._again(child)

    def _after_end(self, child: _Child, now: float) -> None:
        child.ended = True
        _let_go(child)
        if child.spec.restart:
            failures = 0 if now - child.started > STEADY_S else child.failures
            child.restart_at = now + self._wait_s(failures)
        if self._on_exit is not None:
            self._on_exit(child.spec.name, child.process.returncode)

    def _wait_s(self, failures: int) -> float:
        """Before a child is started again that has failed so often in a row."""
        return self._back_off_s[min(failures, len(self._back_off_s)) - 1] if failures else 0.0

    def _again(self, child: _Child) -> None:
        """Starts a child that ended, the first time at once, then after longer and longer waits."""
        with self._lock:
            if child.retired:
                return
            fresh = self._launch(child.spec)
            fresh.failures = 1 if time.monotonic() - child.started > STEADY_S else child.failures + 1
            self._children[child.spec.name] = fresh


def _end(children: Sequence[_Child], deadline: float) -> None:
    """Asks all to end, then waits for each until the common deadline, then ends it by force."""
    for child in children:
        child.process.terminate()
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        _let_go(child)


def _let_go(child: _Child) -> None:
    if child.process.stdin is not None:
        child.process.stdin.close()


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this interpreter."""
    return [sys.executable, "-m", module, *arguments]
