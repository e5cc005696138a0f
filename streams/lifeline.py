"""A child process ends with its parent, however the parent ends.

Its standard input is a pipe that the parent holds open and never writes to: the kernel closes it with the parent, also
after a kill -9, and the child wakes at once. Nothing is polled, and no pid is trusted that another process may have now.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

SUPERVISED = "PALISADE_SUPERVISED"
"""Set to 1 in the environment of a child whose standard input is such a pipe. Elsewhere (systemd, a shell) it says nothing."""
ORPHAN_GRACE_S = 5.0
"""What a worker has for a clean stop once its parent is gone; with the embedded broker gone too, it could wait 30 s."""
ORPHAN_EXIT = 71  # EX_OSERR: nobody is left who would read it, but a log may


def hold(
    parent_is_gone: Callable[[], None], *, env: Mapping[str, str] = os.environ, pipe: int | None = None
) -> threading.Thread | None:
    """Calls `parent_is_gone` in a thread of its own when the parent is gone; None if nobody supervises this process.

    pipe: the file descriptor to watch, standard input if None.
    """
    if env.get(SUPERVISED) != "1":
        return None
    watched = sys.stdin.fileno() if pipe is None else pipe

    def watch() -> None:
        while os.read(watched, 1):
            pass
        parent_is_gone()

    thread = threading.Thread(target=watch, name="lifeline", daemon=True)
    thread.start()
    return thread


def end_this_process() -> None:
    """A stop as by SIGTERM, and the end of the process if that takes longer than the grace."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(ORPHAN_EXIT)
