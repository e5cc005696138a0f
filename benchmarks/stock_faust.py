"""Stock Faust with the same detections, for comparison: one event a message, aiokafka, Faust's JSON serializer, agent and
commits; autodiscovery off.

The bank is the same bank over blocks cut by the same rules. Where Palisade does more, stock is let off: nothing is
validated or dead-lettered, no state is saved, and a row's outcome is said with its block, not by a record of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detectors.bank import Bank, Concluded, place_of_block
from detectors.base import Budget, part_of
from detectors.profile import Profile
from detectors.registry import block_detectors, fit
from palisade.settings import default_policy
from schemas.blocks import (
    BLOCK_ROWS,
    LONG_WAIT_MS,
    MIN_TICK_ROWS,
    MISSING,
    SHORT_WAIT_MS,
    STATUS_CODES,
    UNSEEN,
    Block,
    ClosedBy,
    RowId,
)
from schemas.events import Tick
from schemas.wire import KIND_HEADER

GROUP = "stock-faust"
VERDICTS, SIGNALS = "stock.verdicts", "stock.signals"


@dataclass(slots=True)
class _Pending:
    """The open block of one endpoint@version: a list a column."""

    since_ms: int
    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    event_times: list[int] = field(default_factory=list)
    numeric: list[list[float]] = field(default_factory=list)
    categorical: list[list[int]] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    verified: list[bool] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class Cutter:
    """Blocks of one partition from events one by one, by the rules of `streams.blocks` that this log meets: 256 rows, and
    ticks."""

    def __init__(self, topic: str, partition: int, profile: Profile) -> None:
        self._topic, self._partition = topic, partition
        self._hash = profile.hash
        self._numeric = profile.features.numeric
        self._codes = [
            (name, {value: code for code, value in enumerate(categories)})
            for name, categories in zip(profile.features.categorical, profile.features.categories, strict=True)
        ]
        self._open: dict[tuple[str, str], _Pending] = {}

    def add(self, event: Mapping[str, Any], offset: int, ms: int) -> Block | None:
        """Takes one event; returns the block that it filled."""
        part = (event["endpoint"], event["model_version"])
        pending = self._open.get(part)
        if pending is None:
            pending = self._open[part] = _Pending(ms)
        features = event["features"]
        pending.offsets.append(offset)
        pending.times.append(ms)
        pending.event_times.append(event["ts"])
        pending.numeric.append([math.nan if (value := features[name]) is None else value for name in self._numeric])
        pending.categorical.append(
            [MISSING if (value := features[name]) is None else codes.get(value, UNSEEN) for name, codes in self._codes]
        )
        pending.callers.append(event["caller"])
        pending.verified.append(event["caller_auth"] == "verified")
        pending.latency_ms.append(event["latency_ms"])
        pending.status.append(STATUS_CODES[event["status"]])
        pending.values.append(event["prediction"])
        pending.weights.append(event["weight"])
        return self._close(part, "rows", offset, ms) if len(pending.offsets) == BLOCK_ROWS else None

    def tick(self, offset: int, ms: int) -> list[Block]:
        """The log's clock says `ms`; returns the blocks whose time has come."""
        due = [
            (pending.offsets[0], part)
            for part, pending in self._open.items()
            if ms - pending.since_ms >= (SHORT_WAIT_MS if len(pending.offsets) >= MIN_TICK_ROWS else LONG_WAIT_MS)
        ]
        return [self._close(part, "tick", offset, ms) for _, part in sorted(due)]

    def _close(self, part: tuple[str, str], closed_by: ClosedBy, offset: int, ms: int) -> Block:
        pending = self._open.pop(part)
        n = len(pending.offsets)
        codes: dict[str, int] = {}
        caller = np.array([codes.setdefault(name, len(codes)) for name in pending.callers], np.int32)
        verified = np.ones(len(codes), np.bool_)
        verified[caller[~np.array(pending.verified)]] = False
        return Block(
            endpoint=part[0],
            version=part[1],
            profile_hash=self._hash,
            topic=self._topic,
            partition=self._partition,
            offsets=np.array(pending.offsets, np.int64),
            rows=np.zeros(n, np.int32),
            ts=np.array(pending.event_times, np.int64),
            broker_ts=np.array(pending.times, np.int64),
            numeric=np.array(pending.numeric, np.float64),
            categorical=np.array(pending.categorical, np.int32),
            caller=caller,
            callers=tuple(codes),
            verified=verified,
            flags=np.zeros(n, np.uint32),
            latency_ms=np.array(pending.latency_ms, np.float64),
            status=np.array(pending.status, np.uint8),
            served_by=np.zeros(n, np.uint8),
            value=np.array(pending.values, np.float64),
            label=np.full(n, MISSING, np.int32),
            confidence=np.full(n, np.nan),
            weight=np.array(pending.weights, np.float64),
            closed_by=closed_by,
            closed_at=RowId(offset, 0),
            closed_ms=ms,
        )


def open_bank(profile: Profile, endpoints: list[str], budget: Budget) -> Bank[Block]:
    """The default bank, with the profile in force for every endpoint."""
    policy = default_policy()
    detectors = block_detectors(policy)
    for endpoint in endpoints:
        fit(detectors, part_of(endpoint, "v1"), profile, budget)
    return Bank(detectors, place_of_block, int(policy.durations.recover_for_s * 1000))


def verdict_of(block: Block, concluded: Concluded) -> dict[str, object]:
    """What is said of a block: its rows, all scored, and the readings."""
    return {
        "endpoint": block.endpoint,
        "version": block.version,
        "profile_hash": block.profile_hash,
        "first": block.first.offset,
        "last": block.last.offset,
        "scored": len(block),
        "closed_by": block.closed_by,
        "readings": [
            [reading.kind, reading.score, reading.threshold, reading.firing] for reading in concluded.readings
        ],
    }


def main() -> int:
    """Runs until SIGTERM; prints a line when it has its partitions."""
    parser = argparse.ArgumentParser(prog="benchmarks.stock_faust")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--endpoints", required=True, help="comma-separated")
    parser.add_argument("--events-per-day", type=float, required=True)
    given = parser.parse_args()
    profile = Profile.from_bytes(given.profile.read_bytes())
    bank = open_bank(profile, given.endpoints.split(","), Budget(1.0, given.events_per_day))
    app = _app(given.bootstrap, given.profile.parent)  # Faust makes a folder, which is to go with the profile's
    return _run(app, given.topic, bank, lambda partition: Cutter(given.topic, partition, profile))


def _app(bootstrap: str, datadir: Path) -> Any:
    import faust

    return faust.App(
        GROUP,
        broker=f"kafka://{bootstrap}",
        datadir=str(datadir),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
    )


def _run(app: Any, topic: str, bank: Bank[Block], open_cutter: Callable[[int], Cutter]) -> int:
    import faust

    events, verdicts, signals = (app.topic(name, value_serializer="json") for name in (topic, VERDICTS, SIGNALS))
    cutters: dict[int, Cutter] = {}

    async def judge(blocks: list[Block]) -> None:
        for block in blocks:
            concluded = bank.update([block])
            await verdicts.send(value=verdict_of(block, concluded))
            for signal in concluded.signals:
                await signals.send(key=signal.endpoint, value=signal.model_dump(mode="json"))

    @app.agent(events)
    async def score(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            cutter = cutters.get(message.partition)
            if cutter is None:
                cutter = cutters[message.partition] = open_cutter(message.partition)
            ms = round(message.timestamp * 1000)
            if event.headers[KIND_HEADER] == Tick.KIND.encode():
                await judge(cutter.tick(message.offset, ms))
            elif (block := cutter.add(event.value, message.offset, ms)) is not None:
                await judge([block])

    @app.on_partitions_assigned.connect  # type: ignore[arg-type]  # Faust types signals for plain functions
    async def say_ready(_: Any, assigned: set[Any], **__: Any) -> None:
        sys.stdout.write(json.dumps({"ready": GROUP, "partitions": len(assigned)}) + "\n")
        sys.stdout.flush()

    worker = faust.Worker(app, loglevel="WARNING", redirect_stdouts=False)
    try:
        worker.execute_from_commandline()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
