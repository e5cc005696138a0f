"""The fuzz run: rounds over all targets, a corpus that grows by what behaves anew, findings kept in files.

The order of work depends on the seed alone, so a seed repeats a run; only when it ends depends on time.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import Case, Execute, Target, save
from tests.fuzz.mutate import mutated

ROUND = 40
"""Executions of a target in a round."""
LIFE = 200
"""Executions that one instance lives through: what it keeps between them is part of what is tested."""
CORPUS = 400
"""Cases kept of a target; above it one gives way by lot."""
HANGS_S = 20.0
"""Seconds of processor time of one execution, above which it counts as hanging."""


class Hung(BaseException):
    """Raised into an execution that takes too long."""


@dataclass
class Finding:
    """An exception that nobody declared: where it was raised, how often, and the file that repeats it."""

    error: str
    file: Path
    times: int = 1


@dataclass
class Tried:
    """A target as far as it was fuzzed."""

    target: Target
    rng: Random
    corpus: list[Case]
    execute: Execute | None = None
    life: list[list[Case]] = field(default_factory=list)
    seen: set[Hashable] = field(default_factory=set)
    findings: dict[str, Finding] = field(default_factory=dict)
    executions: int = 0
    declared: int = 0
    slowest_s: float = 0.0


def rss_mb() -> float:
    """Resident memory of this process, MB: now, or where Linux's /proc is not, the most it ever was."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6


class Fuzzer:
    """Fuzzes `targets`. `folder` takes the files of findings."""

    def __init__(self, targets: Sequence[Target], seed: int, folder: Path) -> None:
        self._folder = folder
        self.seed = seed
        self.tried = [
            Tried(target, Random(f"{seed}/{target.name}"), [Case(*case) for case in target.seeds()])
            for target in targets
        ]

    def run(self, seconds: float, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Rounds until `seconds` are over, one at least. Gives the summary; memory is measured from the second round on."""
        began, told, rounds, warm_mb = time.monotonic(), time.monotonic(), 0, rss_mb()
        while rounds == 0 or time.monotonic() - began < seconds:
            for tried in self.tried:
                for _ in range(ROUND):
                    self.once(tried)
            rounds += 1
            if rounds == 2:
                warm_mb = rss_mb()
            if time.monotonic() - told >= 10:
                told = time.monotonic()
                done, found = self.executions, sum(len(tried.findings) for tried in self.tried)
                progress(
                    f"{told - began:6.0f} s  round {rounds}  {done:,} executions  {rss_mb():.0f} MB  {found} findings"
                )
        return self.summary(time.monotonic() - began, max(0.0, rss_mb() - warm_mb))

    @property
    def executions(self) -> int:
        return sum(tried.executions for tried in self.tried)

    def once(self, tried: Tried) -> None:
        """One execution: some cases, mutated or not, handed over together."""
        rng, target = tried.rng, tried.target
        cases = []
        for _ in range(rng.randint(1, target.most)):
            case = rng.choice(tried.corpus)
            if rng.random() < 0.9:
                case = mutated(case, tried.corpus, rng)
                if rng.random() < 0.2:
                    case = mutated(case, tried.corpus, rng)
                if target.signed is not None and rng.random() < 0.9:
                    case = target.signed(case)
            cases.append(case)
        if tried.execute is None or len(tried.life) >= LIFE:
            tried.execute, tried.life = target.make(), []
        tried.life.append(cases)
        tried.executions += 1
        began = time.process_time()
        try:
            with in_time(HANGS_S):
                behaviour = tried.execute(cases)
        except target.declared as error:
            tried.declared += 1
            behaviour = type(error).__name__
        except (Exception, Hung) as error:  # noqa: BLE001 - what nobody declared is what is looked for
            self._found(tried, error)
            tried.execute = None
            return
        tried.slowest_s = max(tried.slowest_s, time.process_time() - began)
        if behaviour not in tried.seen:
            tried.seen.add(behaviour)
            for case in cases:
                if len(tried.corpus) < CORPUS:
                    tried.corpus.append(case)
                else:
                    tried.corpus[rng.randrange(CORPUS)] = case

    def _found(self, tried: Tried, error: BaseException) -> None:
        where = place_of(error)
        if where in tried.findings:
            tried.findings[where].times += 1
            return
        runs = [tried.life[-1]]
        if fails(tried.target, runs) is None:  # it takes what came before
            runs = list(tried.life)
        name = f"{tried.target.name}-{self.seed}-{len(tried.findings)}.json"
        save(self._folder / name, tried.target.name, runs, "".join(traceback.format_exception(error)))
        tried.findings[where] = Finding(f"{type(error).__name__}: {error}"[:300], self._folder / name)

    def summary(self, seconds: float, growth_mb: float) -> dict[str, Any]:
        """What the last line says."""
        return {
            "seconds": round(seconds, 1),
            "seed": self.seed,
            "executions": self.executions,
            "targets": {
                tried.target.name: {
                    "executions": tried.executions,
                    "behaviours": len(tried.seen),
                    "declared": tried.declared,
                    "undeclared": sum(finding.times for finding in tried.findings.values()),
                    "slowest_ms": round(tried.slowest_s * 1000, 1),
                }
                for tried in self.tried
            },
            "undeclared": sum(len(tried.findings) for tried in self.tried),
            "rss_growth_mb": round(growth_mb, 1),
            "rss_mb": round(rss_mb(), 1),
        }


def fails(target: Target, runs: Sequence[Sequence[Case]]) -> BaseException | None:
    """What the runs raise, undeclared, on a fresh instance; None if nothing."""
    execute = target.make()
    for cases in runs:
        try:
            with in_time(HANGS_S):
                execute(cases)
        except target.declared:
            continue
        except (Exception, Hung) as error:  # noqa: BLE001 - likewise
            return error
    return None


def place_of(error: BaseException) -> str:
    """The type of an exception and the innermost line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises Hung after so many seconds of processor time, in the main thread alone."""
    try:
        before = signal.signal(signal.SIGVTALRM, _hung)
    except ValueError:  # not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _hung(number: int, frame: Any) -> None:
    raise Hung(f"more than {HANGS_S} s of processor time, last at {frame.f_code.co_filename}:{frame.f_lineno}")
