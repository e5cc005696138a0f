"""What a fuzz run hands to a target: records, as anybody could write them; and how a run is kept in a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

START_MS = 1_700_000_000_000


class Case(NamedTuple):
    """One record. Targets that read no records use `value` alone. `at_ms`: the broker's time."""

    value: bytes | None
    key: bytes | None = b"credit"
    headers: tuple[tuple[str, bytes | None], ...] = ()
    at_ms: int = START_MS


Execute = Callable[[Sequence[Case]], Hashable]
"""Hands records over, in order; what it gives tells behaviours apart: a case that shows a new one is kept and mutated."""


class Target(NamedTuple):
    """One path into the product. `make` gives a fresh instance, `declared` are the exceptions that are its contract.

    `signed` makes a mutated case pass for its sender's own, so that mutation reaches what lies behind the signature.
    """

    name: str
    make: Callable[[], Execute]
    seeds: Callable[[], Sequence[Case]]
    declared: tuple[type[Exception], ...] = ()
    signed: Callable[[Case], Case] | None = None
    most: int = 6
    """Records handed over at once."""
    share: int = 1
    """How much of a round it takes: what anybody may write to gets more of it than what is behind an ACL."""


class Swallowed(AssertionError):
    """The product caught an exception that it had not declared, and went on; or said something that cannot be."""


def save(path: Path, target: str, runs: Sequence[Sequence[Case]], error: str) -> None:
    """Runs that lead to `error` on a fresh instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"target": target, "error": error, "runs": [[_plain(case) for case in run] for run in runs]}
    path.write_text(json.dumps(content, indent=1))


def load(path: Path) -> tuple[str, list[list[Case]]]:
    """Target and runs of a file."""
    content = json.loads(path.read_text())
    return content["target"], [[_case(plain) for plain in run] for run in content["runs"]]


def _plain(case: Case) -> list[Any]:
    def text(data: bytes | None) -> str | None:
        return None if data is None else base64.b64encode(data).decode()

    return [text(case.value), text(case.key), [[name, text(value)] for name, value in case.headers], case.at_ms]


def _case(plain: list[Any]) -> Case:
    def data(text: str | None) -> bytes | None:
        return None if text is None else base64.b64decode(text)

    value, key, headers, at_ms = plain
    return Case(data(value), data(key), tuple((name, data(content)) for name, content in headers), at_ms)
