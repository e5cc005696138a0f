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
"""Executions of a target in a round, times its share."""
LIFE, LIFE_BYTES = 200, 2 << 20
"""Executions that one instance lives through, or bytes that it is handed (they are kept to repeat a finding): what it keeps
between them is part of what is tested."""
CORPUS, CORPUS_BYTES = 400, 2 << 20
"""Cases kept of a target beside its seeds, and their bytes; above either, some give way by lot. So memory that grows is the
product's."""
BEHAVIOURS = 100_000
"""Behaviours of a target that are told apart."""
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
    seeds: list[Case]
    execute: Execute | None = None
    life: list[list[Case]] = field(default_factory=list)
    life_bytes: int = 0
    seen: set[Hashable] = field(default_factory=set)
    findings: dict[str, Finding] = field(default_factory=dict)
    executions: int = 0
    declared: int = 0
    slowest_s: float = 0.0
    kept: list[Case] = field(default_factory=list)
    kept_bytes: int = 0

    def drawn(self) -> Case:
        """A seed, or a case that behaved anew."""
        at = self.rng.randrange(len(self.seeds) + len(self.kept))
        return self.seeds[at] if at < len(self.seeds) else self.kept[at - len(self.seeds)]

    def keep(self, case: Case) -> None:
        """Keeps a case, whatever must give way."""
        self.kept.append(case)
        self.kept_bytes += len(case.value or b"")
        while len(self.kept) > CORPUS or self.kept_bytes > CORPUS_BYTES:
            at = self.rng.randrange(len(self.kept))
            self.kept_bytes -= len(self.kept[at].value or b"")
            self.kept[at] = self.kept[-1]
            self.kept.pop()


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
                for _ in range(ROUND * tried.target.share):
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
            case = tried.drawn()
            if rng.random() < 0.9:
                for _ in range(rng.choice((1, 1, 1, 1, 2))):
                    case = mutated(case, tried.drawn, rng)
                if target.signed is not None and rng.random() < 0.9:
                    case = target.signed(case)
            cases.append(case)
        if tried.execute is None or len(tried.life) >= LIFE or tried.life_bytes > LIFE_BYTES:
            tried.execute, tried.life, tried.life_bytes = target.make(), [], 0
        tried.life.append(cases)
        tried.life_bytes += sum(len(case.value or b"") for case in cases)
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
        if behaviour not in tried.seen and len(tried.seen) < BEHAVIOURS:
            tried.seen.add(behaviour)
            for case in cases:
                tried.keep(case)

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
