"""The watchdog: a plain thread that ends a worker which makes no progress.

A living process proves nothing: a worker can heartbeat in C threads for ever while its loop, its polling thread or one
forgotten run stands still. So each probe says for how many seconds something that should move has not moved.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TextIO

from streams.transport.polling import Poller

EXIT_CODE = 70  # EX_SOFTWARE: the supervisor starts the worker again, its partitions resume from the last commit


@dataclass(frozen=True, slots=True)
class Probe:
    """`age(now)`: seconds without progress, `None` when there is nothing to do. Called in the watchdog's thread."""

    name: str
    limit_s: float
    age: Callable[[float], float | None]


@dataclass(frozen=True, slots=True)
class WatchdogLimits:
    """Seconds without progress that end the process.

    handed_s and handler_s are above loop_s, so that a slow loop is called by its name. handler_s: of a handler that gives no
    sign, while no output waits for the broker. run_s counts only while the broker confirms what is sent; else a run waits
    for its outcomes, which message.timeout (120 s) ends. commit_s is above a broker outage that a worker must survive (60 s).
    """

    polling_s: float = 10.0
    loop_s: float = 10.0
    handed_s: float = 20.0
    handler_s: float = 12.0
    run_s: float = 60.0
    commit_s: float = 120.0


class Watchdog:
    """Asks every probe each period; a probe over its limit twice in a row dumps the state and ends the process."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        period_s: float = 1.0,
        end: Callable[[int], None] = os._exit,
        out: TextIO | None = None,
    ) -> None:
        self._probes = list(probes)
        self._period_s = period_s
        self._end = end
        self._out = out
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._halt.set()
        if self._thread.ident is not None:
            self._thread.join()

    def ages(self, now: float) -> dict[str, float | None]:
        """Every probe's seconds without progress."""
        return {probe.name: probe.age(now) for probe in self._probes}

    def _watch(self) -> None:
        bad: set[str] = set()
        while not self._halt.wait(self._period_s):
            try:
                ages = self.ages(monotonic())
            except Exception as error:  # noqa: BLE001 - a watchdog that cannot look must not pretend that it does
                self._die([f"the watchdog itself ({error!r})"], {})
                return
            over = {probe.name for probe in self._probes if (ages[probe.name] or 0.0) > probe.limit_s}
            if over & bad:
                self._die(sorted(over & bad), ages)
                return
            bad = over

    def _die(self, names: list[str], ages: dict[str, float | None]) -> None:
        out = self._out or sys.__stderr__
        if out is not None:
            shown = ", ".join(f"{name} {'idle' if age is None else f'{age:.1f} s'}" for name, age in ages.items())
            out.write(f"watchdog: no progress of {', '.join(names)}; seconds without progress: {shown}\n")
            out.flush()
            faulthandler.dump_traceback(out, all_threads=True)
            out.flush()
        self._end(EXIT_CODE)


class Since:
    """For how long a condition has held; a change of `stamp` starts anew."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._stamp: object = None

    def age(self, now: float, holds: bool, stamp: object = None) -> float | None:
        if not holds:
            self._since = None
            return None
        if self._since is None or stamp != self._stamp:
            self._since, self._stamp = now, stamp
        return now - self._since


class LoopHeartbeat:
    """Pings the event loop at each look; the age is that of the oldest ping without an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: float | None = None

    def age(self, now: float) -> float | None:
        if not self._loop.is_running():
            return None
        asked = self._asked  # the loop may answer between any two lines
        if asked is None:
            self._asked = asked = now
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # closed since the line above
                return None
        return now - asked

    def _answer(self) -> None:
        self._asked = None


HELD_S = 2.0
"""Nothing confirmed for so long: the broker is away, and runs wait for it."""


def transport_probes(
    poller: Callable[[], Poller | None],
    loop: asyncio.AbstractEventLoop,
    limits: WatchdogLimits | None = None,
    held_s: Callable[[float], float | None] = lambda _: None,
) -> list[Probe]:
    """Probes of the run transport. poller: answers `None` while the consumer is not started. held_s: the outbox's.

    Commits are judged by what is finished and not committed, never by lag: a transaction marker at the end of a log
    leaves a lag that no commit ever closes.
    """
    bounds = limits or WatchdogLimits()
    uncommitted, confirming = Since(), Since()

    def polling(now: float) -> float | None:
        there = poller()
        return there.silent_s(now) if there else None

    def runs(now: float) -> float | None:
        there = poller()
        stalled = there.ledger.stalled_s(now) if there else None
        since = confirming.age(now, (held_s(now) or 0.0) <= HELD_S)
        return None if stalled is None or since is None else min(stalled, since)

    def handed(now: float) -> float | None:
        there = poller()
        return there.ledger.unbegun_s(now) if there else None

    def handlers(now: float) -> float | None:
        there = poller()
        waits_for_broker = held_s(now) is not None  # at most message.timeout, whatever the handler is at
        return there.ledger.unmoved_s(now) if there and not waits_for_broker else None

    def commits(now: float) -> float | None:
        there = poller()
        return uncommitted.age(now, bool(there.ledger.due()), there.committed_at) if there else None

    return [
        Probe("polling", bounds.polling_s, polling),
        Probe("loop", bounds.loop_s, LoopHeartbeat(loop).age),
        Probe("handing over", bounds.handed_s, handed),
        Probe("handlers", bounds.handler_s, handlers),
        Probe("runs", bounds.run_s, runs),
        Probe("commits", bounds.commit_s, commits),
    ]
