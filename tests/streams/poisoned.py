"""A detect worker in a process of its own, on the small log of predictions, with errors planted in it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectors.base import Reading
from detectors.feature_drift import FeatureDrift
from detectors.profile import Profile
from schemas.blocks import Block
from schemas.topics import PREDICTIONS
from streams import detect
from streams.app import Hooks, TopicLimits, WorkerSettings, consumer_of, make_app, outbox_of, run_topic, run_worker
from streams.blocks import BlockBuilder
from streams.decode import Columns
from streams.detect import DetectRole
from streams.metrics import Metrics
from streams.prediction_log import PredictionLog
from streams.profiles import Active
from streams.snapshots import DirectoryStore
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection
from tests.streams import log_of_predictions

SESSION_S = 4.0


@dataclass(frozen=True)
class Planted:
    """Offsets on which something raises: the decoder; the cutting of blocks, when it has taken the rows already; a
    detector; `once`: cutting blocks as well, but never again."""

    decoder: int = -1
    half_way: int = -1
    detector: int = -1
    once: int = -1
    error: type[Exception] = ZeroDivisionError


def plant(planted: Planted) -> None:
    """From now on, in this process."""
    add, drift, seen = BlockBuilder.add, FeatureDrift.update, set[int]()

    def adding(self: BlockBuilder, columns: Columns) -> list[Block]:
        closed = add(self, columns)
        offsets = set(columns.offset.tolist())
        if planted.half_way in offsets or planted.once in offsets - seen:
            seen.update(offsets)
            raise planted.error("planted half-way")
        return closed

    def drifting(self: FeatureDrift, blocks: Sequence[Block]) -> list[Reading]:
        if any(planted.detector in block.offsets for block in blocks):
            raise OverflowError("planted in a detector")
        return drift(self, blocks)

    BlockBuilder.add = adding  # type: ignore[method-assign]
    FeatureDrift.update = drifting  # type: ignore[method-assign]


def planted_log(planted: Planted, active: list[Active]) -> PredictionLog:
    """A cold log whose decoder raises where it is planted. `active`: what was switched on before it reads."""
    opened = log_of_predictions.open_log(active)
    decode = opened._decoder.segments

    def decoding(values: Any, keys: Any, headers: Any, offsets: Any, times: Any) -> Any:
        if planted.decoder in offsets:
            raise ValueError("planted in the decoder")
        return decode(values, keys, headers, offsets, times)

    opened._decoder.segments = decoding  # type: ignore[method-assign]
    return opened


def main(
    bootstrap: str, folder: str, planted: Planted, run_max: int, content: bytes, operator: str, active: list[Active]
) -> int:
    """The role detect with its predictions only, until SIGTERM. `content`: of the profile, which takes long to build;
    `operator`: the public key of who signed the log; `active`: its activations, which a log that is read from later on
    finds on their topic."""
    log_of_predictions.OPERATOR = SimpleNamespace(public_base64=operator)  # type: ignore[assignment]
    log_of_predictions.profile = lambda: Profile.from_bytes(content)
    said = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    plant(planted)
    detect.SNAPSHOT_EVERY_S = 0.3

    async def open_(_: TP) -> PredictionLog:
        return planted_log(planted, active)

    async def start_at(committed: Mapping[TP, int]) -> Mapping[TP, int]:
        return await role.start_at(committed, frozenset({TP(PREDICTIONS, 0)}))

    app = make_app(
        "palisade.detect",
        connection=KafkaConnection(bootstrap=bootstrap, fetch_wait_ms=10),
        topics={PREDICTIONS: TopicLimits(run_max=run_max)},
        hooks=Hooks(on_revoked=lambda tps: role.leave(tps), start_at=start_at),
        settings=WorkerSettings(session_s=SESSION_S, heartbeat_s=0.5, commit_every_s=0.3),
    )
    role = DetectRole(
        "w",
        open_,
        DirectoryStore(Path(folder) / "state"),
        lambda: outbox_of(app),
        Metrics("detect"),
        lambda: consumer_of(app).read_again(),
    )
    run_topic(app, PREDICTIONS, role.handle)
    app.task(role.save_rounds)
    sys.exit(run_worker(app))
