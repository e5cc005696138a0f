"""Killed and restarted at any moment, saved at any moment before: state and signals are those of a log that nobody disturbed.

The log has what a replay could do twice: profiles that are switched on one after the other, versions that learn theirs, one that
begins anew as one caller made it, and an endpoint whose blocks stay open for seconds, so that restarts go far back.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from detectors.learning import Learning
from detectors.profile import Profile
from detectors.profile_build import build_profile
from palisade.verify.states import Saved, saved_of
from schemas.events import ProfileActivated
from schemas.signals import Signal
from schemas.wire import KIND_HEADER
from streams.prediction_log import PredictionLog
from streams.records import Outgoing, RawHeaders, Records
from tests.streams.fakes import no_pause
from tests.streams.log_of_predictions import OPERATOR, content_of_log, open_log, profile
from tests.streams.test_prediction_log import signals

ROUNDS = 1_000
FIRST = 100
LEARN_ROWS, LEARN_MS = 1_100, 1_000


@cache
def other_profile() -> Profile:
    rng = np.random.default_rng(8)
    numbers = {"amount": rng.normal(120, 15, 6_000), "age": rng.gamma(3, 12, 6_000)}
    return build_profile(pa.table(numbers | {"plan": rng.choice(["free", "basic", "pro"], 6_000)}), seed=1)


def activation(found: Profile) -> tuple[bytes, RawHeaders]:
    kind = ProfileActivated.KIND
    value = ProfileActivated(
        endpoint="credit", version="v1", profile_hash=found.hash, actor="test", at_ms=1
    ).to_bytes()  # fmt: skip
    return value, [(KIND_HEADER, kind.encode()), *OPERATOR.headers(kind, value)]


@cache
def whole_log() -> Records:
    """Arrays of events, a tick each half second, and every three seconds the other profile of credit@v1."""
    rng = np.random.default_rng(12)
    rows: list[tuple[bytes | None, bytes, RawHeaders, int]] = []
    now = 1_000_000

    def event(endpoint: str, version: str, caller: int) -> dict[str, object]:
        plan = ("free", "basic", "pro")[int(rng.integers(0, 3))]
        features = {"amount": float(rng.normal(115, 15)), "age": float(rng.gamma(3, 12)), "plan": plan}
        return {
            "endpoint": endpoint, "model_version": version, "caller": f"c{caller}", "caller_auth": "verified",
            "features": features, "prediction": 0.5,
        }  # fmt: skip

    for number in range(ROUNDS):
        now += int(rng.integers(5, 40))
        if number % 130 == 70:
            rows.append((b"credit", *activation(profile() if number % 260 == 70 else other_profile()), now))
        if number % 22 == 0:
            rows.append((None, b'{"worker":"w","at_ms":1}', [(KIND_HEADER, b"tick")], now))
        version = ("v1", "v2", "one-caller")[int(rng.integers(0, 3))]
        caller = 7 if version == "one-caller" else int(rng.integers(0, 40))
        batch = [event("credit", version, caller if k else 7) for k in range(int(rng.integers(4, 13)))]
        rows.append((b"credit", json.dumps(batch).encode(), None, now))
        if number % 20 == 0:
            rows.append((b"spam", json.dumps(event("spam", "v1", 1)).encode(), None, now))
    keys, values, headers, times = zip(*rows, strict=True)
    return Records(values, keys, headers, list(range(FIRST, FIRST + len(values))), times)


def opened(content: dict[str, bytes]) -> PredictionLog:
    known = {other_profile().hash: other_profile().to_bytes()} | content
    return open_log(learning=Learning(rows=LEARN_ROWS, at_least_ms=LEARN_MS), content=known)


@dataclass
class Worker:
    """What role detect does around a log, with a store that saves only some of the parts in a round."""

    rng: random.Random
    log: PredictionLog = field(default_factory=lambda: opened({}))
    content: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)
    start: int = FIRST
    began: int = FIRST
    committed: int = FIRST
    read: int = FIRST
    saved_from: dict[str, int] = field(default_factory=dict)
    said: list[Signal] = field(default_factory=list)

    def take(self, count: int) -> None:
        at = self.read - FIRST
        out = asyncio.run(self.log.take(whole_log().part(at, at + count), self.committed_at_start, no_pause))
        self.said += signals(out)
        self.content |= content_of_log(out)
        self.read = min(self.read + count, FIRST + len(whole_log()))

    committed_at_start: int = FIRST

    def save(self) -> None:
        restart = taken_from = max(self.log.restart, self.began)
        for part in self.log.dirty():
            if self.rng.random() < 0.2:  # beyond the budget of a round
                restart = min(restart, self.saved_from.get(part, self.began))
                continue
            self.parts[part] = self.log.snapshot(part)
            self.saved_from[part] = taken_from
        self.start = restart
        self.committed = max(self.committed, self.rng.randint(self.committed, max(self.read, self.committed)))

    def restart(self) -> None:
        self.committed = max(self.committed, self.rng.randint(self.committed, max(self.read, self.committed)))
        self.log = opened(self.content)
        for part, state in self.parts.items():
            self.log.restore(part, state)
        self.began = self.read = min(self.start, self.committed)
        self.committed_at_start, self.saved_from = self.committed, {}


def states(log: PredictionLog, parts: set[str]) -> dict[str, Saved | None]:
    return {part: saved_of(log.snapshot(part)) for part in sorted(parts)}


@cache
def undisturbed() -> tuple[dict[str, Saved | None], dict[str, Signal]]:
    log = opened({})
    out: list[Outgoing] = asyncio.run(log.take(whole_log(), 0, no_pause))
    return states(log, set(log.dirty())), {signal.signal_id: signal for signal in signals(out)}


def test_the_log_has_what_a_replay_could_do_twice() -> None:
    found, said = undisturbed()
    log = opened({})
    learned = {signal.evidence.get("reason") for signal in signals(asyncio.run(log.take(whole_log(), 0, no_pause)))}

    assert {"credit@v1", "credit@v2", "credit@one-caller", "spam@v1"} == found.keys()
    assert {"learned", "one_caller"} <= learned
    assert {"feature_drift", "learning"} <= {signal.kind for signal in said.values()}


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(seed: int) -> None:
    rng = random.Random(seed)
    worker = Worker(rng)
    kills = sorted(rng.sample(range(FIRST + 50, FIRST + len(whole_log())), 12))
    while worker.read < FIRST + len(whole_log()):
        worker.take(rng.randint(1, 60))
        if rng.random() < 0.3:
            worker.save()
        if kills and worker.read >= kills[0]:
            kills.pop(0)
            worker.restart()
    expected, signals_expected = undisturbed()

    assert not kills
    assert states(worker.log, set(expected)) == expected
    assert {signal.signal_id: signal for signal in worker.said} == signals_expected
