"""`make test-faults`: every fault at length, then the planted violations; the last line is JSON.

Status 0: nothing is violated, every fault was made, every planted violation was found; 1: not so; 2: it could not run.
"""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from tests.faults.ground import NAMES, RESULTS
from tests.verify.planted import counted

FOLDERS = RESULTS.parent / "faults"
"""Logs and histories of the last run, until the next."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults")
    parser.add_argument("--only", default="", help="F1,F6: these alone")
    parser.add_argument("--short", action="store_true", help="at the scale of `make test`")
    given = parser.parse_args()
    FOLDERS.parent.mkdir(exist_ok=True)
    RESULTS.unlink(missing_ok=True)
    only = [name for name in given.only.split(",") if name]
    if unknown := [name for name in only if name not in NAMES]:
        parser.error(f"there is no fault {unknown[0]}; there are F1 to F{len(NAMES)}")
    chosen = ["-k", " or ".join(f"test_f{int(name[1:]):02}" for name in only)] if only else []
    scale = "short" if given.short else "full"
    status = pytest.main(["-q", "tests/faults", f"--faults={scale}", f"--basetemp={FOLDERS}", *chosen])
    if not RESULTS.exists():
        return 2
    line = json.loads(RESULTS.read_text())["line"]
    made = {each["fault"] for each in line["faults"] if each["runs"]}
    line |= counted()
    sys.stdout.write(json.dumps(line) + "\n")
    found = line["planted_violations"] == line["planted_violations_found"]
    return 0 if status == 0 and not line["violations"] and found and made >= set(only or NAMES) else 1


if __name__ == "__main__":
    raise SystemExit(main())
