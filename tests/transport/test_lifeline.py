"""The lifeline: a child ends with its parent, and only where it has one that holds the pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from streams import lifeline


def test_the_end_of_the_pipe_says_that_the_parent_is_gone_and_nothing_else_does() -> None:
    ours, parents = os.pipe()
    gone = threading.Event()
    thread = lifeline.hold(gone.set, env={lifeline.SUPERVISED: "1"}, pipe=ours)
    assert thread is not None
    os.write(parents, b"a word")
    assert not gone.wait(0.05)

    os.close(parents)

    assert gone.wait(5)
    thread.join(5)
    os.close(ours)


def test_a_process_that_nobody_supervises_lives_on_when_its_input_ends() -> None:
    assert lifeline.hold(lambda: None, env={}) is None


def test_an_orphan_that_does_not_end_by_the_signal_is_ended_after_the_grace() -> None:
    program = """
import signal, time
from streams import lifeline
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
lifeline.ORPHAN_GRACE_S = 0.2
lifeline.hold(lifeline.end_this_process)
while True:
    time.sleep(60)
"""
    env = {**os.environ, lifeline.SUPERVISED: "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], input="", capture_output=True, text=True, env=env, timeout=120
    )

    assert (done.returncode, done.stdout) == (lifeline.ORPHAN_EXIT, "told\n")
