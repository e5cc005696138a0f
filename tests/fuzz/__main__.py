"""`make fuzz MINUTES=10`: mutated records into every decoder; the last line is one JSON object; status 1 on a finding."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import sys
import warnings
from pathlib import Path
from random import SystemRandom

from tests.fuzz.case import load
from tests.fuzz.fuzzer import Fuzzer, fails
from tests.fuzz.targets import BY_NAME, TARGETS

FOLDER = Path(".cache/fuzz")
MAX_GROWTH_MB = 300.0
"""Memory that a run may gain after its first two rounds: corpora, the widest instances alive, what allocators keep."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=None, help="repeats a run; default: a new one, which is printed")
    options.add_argument("--target", action="append", choices=sorted(BY_NAME), help="only this; may be repeated")
    options.add_argument("--again", type=Path, help="a file of a finding: does it still fail?")
    given = options.parse_args()
    faulthandler.enable()  # should the interpreter itself die, the same seed dies at the same place
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if given.again is not None:
        return again(given.again)
    seed = SystemRandom().randrange(2**32) if given.seed is None else given.seed
    targets = [BY_NAME[name] for name in given.target] if given.target else TARGETS
    print(f"{len(targets)} targets, {given.minutes:g} minutes, seed {seed}", flush=True)
    fuzzer = Fuzzer(targets, seed, FOLDER)
    summary = fuzzer.run(given.minutes * 60, lambda line: print(line, flush=True))
    for tried in fuzzer.tried:
        for where, finding in tried.findings.items():
            print(f"\n{tried.target.name}: {where}, {finding.times} times: {finding.error}")
            print(f"  again: python -m tests.fuzz --again {finding.file}")
    if summary["rss_growth_mb"] > MAX_GROWTH_MB:
        print(f"\nmemory grew by {summary['rss_growth_mb']} MB, more than {MAX_GROWTH_MB:g}")
    print(json.dumps(summary))
    return int(summary["undeclared"] > 0 or summary["rss_growth_mb"] > MAX_GROWTH_MB)


def again(path: Path) -> int:
    """Runs a finding again, and shows where it raises."""
    name, runs = load(path)
    error = fails(BY_NAME[name], runs)
    if error is None:
        print(f"{path}: {name} does not fail on it any more")
        return 0
    raise error


if __name__ == "__main__":
    sys.exit(main())
