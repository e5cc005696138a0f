"""Child processes that speak JSON lines: commands to their standard input, what happened from their standard output.

A child ends when its standard input ends, so none outlives the demo, whatever becomes of it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Line = dict[str, Any]

START_S = 30.0
STOP_S = 5.0


class ChildFailed(RuntimeError):
    """A child ended, or stayed silent, where it was expected to speak. Names the child and its log."""


class Child:
    """`python -m module arguments`; its standard error goes to the file `log`.

    `on_line` gets each line that is not an `event`, on the reader's thread. The latest line of each `event` is kept.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, on_line: Callable[[Any], None] | None = None
    ) -> None:
        self.name = " ".join([module, *arguments[:2]])
        self._log = log
        self._on_line = on_line
        self._events: dict[str, Line] = {}
        self._changed = threading.Condition()
        self._ended = False
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )
        self._reader = threading.Thread(target=self._read, name=f"read {module}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, command: Mapping[str, object], answer: str, timeout_s: float = 5.0) -> Line:
        """Sends a command and waits for the `event` that answers it. Raises ChildFailed."""
        with self._changed:
            self._events.pop(answer, None)
        self.tell(command)
        return self.wait(answer, timeout_s)

    def tell(self, command: Mapping[str, object]) -> None:
        """Sends a command. Raises ChildFailed if the child has ended."""
        stdin = self._process.stdin
        assert stdin is not None  # opened as a pipe
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ChildFailed(f"{self.name} has ended, see {self._log}") from error

    def wait(self, event: str, timeout_s: float = START_S) -> Line:
        """The latest line of this event, waited for. Raises ChildFailed if the child ends first or is too late."""
        with self._changed:
            self._changed.wait_for(lambda: event in self._events or self._ended, timeout_s)
            if event in self._events:
                return self._events[event]
        state = "ended before" if self._ended else "said nothing of"
        raise ChildFailed(f"{self.name} {state} {event!r}, see {self._log}")

    def stop(self, timeout_s: float = STOP_S) -> int:
        """Ends the standard input, waits, and ends the process by force if that was not enough. Returns its exit code."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it ended first
                stdin.close()
        for end in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(timeout_s)
                break
            except subprocess.TimeoutExpired:
                end()
        code = self._process.wait()
        self._reader.join(timeout_s)
        if stdout is not None:
            stdout.close()
        return code

    def kill(self) -> None:
        """SIGKILL, for experiments on crashes."""
        self._process.kill()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # opened as a pipe
        try:
            for text in stdout:
                line = json.loads(text)
                if isinstance(line, dict) and "event" in line:
                    with self._changed:
                        self._events[line["event"]] = line
                        self._changed.notify_all()
                elif self._on_line is not None:
                    self._on_line(line)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
