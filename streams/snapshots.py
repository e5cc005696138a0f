"""Where detector state is kept between processes: a compacted topic, or a directory for the embedded way to run.

A part is the state of one endpoint (and version) of one log; the manifest of a partition says where to start reading
again. Parts are saved before the manifest that counts on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from schemas.topics import SNAPSHOTS
from schemas.wire import KIND_HEADER
from streams.failpoints import reach
from streams.reading import read_newest
from streams.transport.outbox import Outbox
from streams.transport.settings import KafkaConnection

MAX_BLOB_BYTES = 1_000_000
"""A larger part would not fit a record: its place is cleared instead. Detectors' own bounds are a quarter of it."""
_MANIFEST = "#manifest"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a store holds of one partition of a log. `start`: the offset to read again from; None: nothing saved."""

    start: int | None = None
    parts: Mapping[str, bytes] = field(default_factory=dict)


class SnapshotStore(Protocol):
    """Keeps the newest bytes of each part. Both calls raise OSError or KafkaException when the store is away."""

    async def load(self, log: str, partition: int) -> Saved:
        """What was saved last; damaged parts are left out."""
        ...

    async def save(self, log: str, partition: int, parts: Mapping[str, bytes], start: int) -> None:
        """Saves `parts` and then the manifest; returns when both are safe."""
        ...


class DirectoryStore:
    """A directory, for one machine. Each file is replaced in one step, so a crash leaves the old or the new one."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def load(self, log: str, partition: int) -> Saved:
        return await asyncio.to_thread(self._load, self._folder(log, partition))

    async def save(self, log: str, partition: int, parts: Mapping[str, bytes], start: int) -> None:
        await asyncio.to_thread(self._save, self._folder(log, partition), dict(parts), start)

    def _folder(self, log: str, partition: int) -> Path:
        return self._root / f"{log}-{partition}"

    @staticmethod
    def _load(folder: Path) -> Saved:
        if not folder.is_dir():
            return Saved()
        parts: dict[str, bytes] = {}
        for path in folder.glob("*.part"):
            name, line_end, state = path.read_bytes().partition(b"\n")
            if line_end and path.name == _file_of(name):
                parts[name.decode()] = state
            else:
                logger.warning("%s is no saved part and is left out", path)
        manifest = folder / "manifest.json"
        return Saved(_start_of(manifest.read_bytes() if manifest.exists() else None), parts)

    @staticmethod
    def _save(folder: Path, parts: Mapping[str, bytes], start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in parts.items():
            _replace(folder / _file_of(name.encode()), name.encode() + b"\n" + state)
        reach("in_snapshot")
        _replace(folder / "manifest.json", json.dumps({"start": start}).encode())


class TopicStore:
    """The compacted topic `palisade.snapshots`, which has the input's partition numbers."""

    def __init__(self, connection: KafkaConnection, outbox: Callable[[], Outbox]) -> None:
        self._connection = connection
        self._outbox = outbox

    async def load(self, log: str, partition: int) -> Saved:
        newest = await asyncio.to_thread(read_newest, self._connection, SNAPSHOTS, partition, f"{log}|")
        states = {key.removeprefix(f"{log}|"): message.value() or b"" for key, message in newest.items()}
        manifest = states.pop(_MANIFEST, None)
        return Saved(_start_of(manifest), states)

    async def save(self, log: str, partition: int, parts: Mapping[str, bytes], start: int) -> None:
        headers = {KIND_HEADER: b"snapshot"}
        outbox, sent = self._outbox(), []
        for name, state in parts.items():
            if len(state) > MAX_BLOB_BYTES:
                logger.warning("state of %s has %d bytes and is not saved: it will start cold", name, len(state))
                state = b""
            await outbox.room(len(state))  # a round, or what is left at the end, is more than its queue
            await asyncio.sleep(0)  # a thousand parts in a row would hold the loop
            sent.append(outbox.send(SNAPSHOTS, f"{log}|{name}".encode(), state or None, headers, partition))
        await asyncio.gather(*sent)
        reach("in_snapshot")
        manifest = json.dumps({"start": start}).encode()
        await outbox.room(len(manifest))
        await outbox.send(SNAPSHOTS, f"{log}|{_MANIFEST}".encode(), manifest, headers, partition)


def _start_of(manifest: bytes | None) -> int | None:
    try:
        start = None if manifest is None else int(json.loads(manifest)["start"])
        if start is None or 0 <= start < 2**63:
            return start
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    logger.warning("a manifest cannot be read; what it counted on is read again from the committed offset")
    return None


def _file_of(name: bytes) -> str:
    return hashlib.blake2b(name, digest_size=16).hexdigest() + ".part"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
