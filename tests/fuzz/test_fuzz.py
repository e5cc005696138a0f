"""A short fuzz run over each target; and that a run finds what is planted, keeps it in a file, and repeats it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import case as cases
from tests.fuzz.case import Case, Execute, Target
from tests.fuzz.fuzzer import ROUND, Fuzzer, Hung, fails, in_time, place_of
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

SEED = 20_261


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_undeclared_is_raised_in_a_short_run(target: Target, tmp_path: Path) -> None:
    fuzzer = Fuzzer([target], SEED, tmp_path)
    summary = fuzzer.run(0)

    (tried,) = fuzzer.tried
    assert {where: finding.error for where, finding in tried.findings.items()} == {}
    assert summary["executions"] == ROUND * target.share


def test_the_names_of_targets_differ() -> None:
    names = [target.name for target in TARGETS]
    assert sorted(set(names)) == sorted(names)


def planted(bug: int) -> Target:
    """A decoder of `{"n": number}` that cannot stand one kind of number; 1 only after it saw it twice, 2 never ends."""

    def make() -> Execute:
        seen = 0

        def execute(given: Sequence[Case]) -> Hashable:
            nonlocal seen
            for one in given:
                try:
                    number = json.loads(one.value or b"")["n"]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise LookupError("declared") from error
                if isinstance(number, int) and number > 2**62:
                    seen += 1
                    if bug == 0 or (bug == 1 and seen > 1):
                        raise OverflowError(f"{number} is too much")
            return seen

        return execute

    return Target(f"planted {bug}", make, lambda: [Case(b'{"n": 1, "x": [1, 2]}')], declared=(LookupError,), most=1)


@pytest.mark.parametrize("bug", [0, 1], ids=["in one record", "that takes a history"])
def test_a_planted_bug_is_found_kept_and_repeated_from_its_file(bug: int, tmp_path: Path) -> None:
    fuzzer = Fuzzer([planted(bug)], SEED, tmp_path)
    for _ in range(3_000):
        fuzzer.once(fuzzer.tried[0])

    (finding,) = fuzzer.tried[0].findings.values()
    assert "OverflowError" in finding.error
    assert fuzzer.summary(1.0, 0.0)["undeclared"] == 1
    name, runs = cases.load(finding.file)
    assert name == f"planted {bug}"
    assert len(runs) == 1 if bug == 0 else len(runs) > 1
    error = fails(planted(bug), runs)
    assert isinstance(error, OverflowError)
    assert place_of(error).startswith("OverflowError at test_fuzz.py:")


def test_a_seed_repeats_a_run(tmp_path: Path) -> None:
    def trace(seed: int) -> list[tuple[int, int]]:
        fuzzer = Fuzzer([TARGETS[0]], seed, tmp_path)
        found = []
        for _ in range(60):
            fuzzer.once(fuzzer.tried[0])
            found.append((len(fuzzer.tried[0].seen), len(fuzzer.tried[0].kept)))
        return found

    assert trace(5) == trace(5) != trace(6)


def test_an_execution_that_hangs_is_ended() -> None:
    def hang() -> None:
        with in_time(0.05):
            while True:
                pass

    with pytest.raises(Hung):
        hang()


def test_mutation_reaches_values_headers_keys_and_times() -> None:
    rng = Random(SEED)
    start = Case(b'{"a": {"b": [1, 2]}}', b"credit", (("palisade-kind", b"prediction"),))
    found = [mutated(start, lambda: start, rng) for _ in range(2_000)]
    assert len({one.value for one in found}) > 800
    assert len({one.key for one in found}) > 5
    assert len({one.headers for one in found}) > 20
    assert {one.at_ms for one in found} & {-1, 2**63 - 1}
    readable = 0
    for one in found:
        try:
            json.loads(one.value or b"")
        except (ValueError, RecursionError):
            continue
        readable += 1
    assert 0.2 < readable / len(found) < 0.95


@pytest.mark.slow
def test_the_command_ends_with_one_json_line_and_its_status() -> None:
    words = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--minutes",
        "0",
        "--seed",
        "7",
        "--target",
        "manifest",
        "--target",
        "sql",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, summary["undeclared"], summary["seed"]) == (0, 0, 7)
    assert set(summary["targets"]) == {"manifest", "sql"}
    assert summary["rss_growth_mb"] >= 0
