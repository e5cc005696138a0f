"""Where detector state is kept between processes: a compacted topic, or a directory for the embedded way to run.

A part is the state of one endpoint (and version) of one log; the manifest of a partition says where to start reading
again. Parts are saved before the manifest that counts on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from schemas.errors import StateRefused
from schemas.topics import SNAPSHOTS
from schemas.wire import KIND_HEADER
from streams.reading import read_newest
from streams.transport.outbox import Outbox
from streams.transport.settings import KafkaConnection

MAX_BLOB_BYTES = 1_000_000
"""A larger part is refused: it would not fit a record."""
_MANIFEST = "#manifest"


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
            name, _, state = path.read_bytes().partition(b"\n")
            parts[name.decode()] = state
        manifest = folder / "manifest.json"
        start = int(json.loads(manifest.read_bytes())["start"]) if manifest.exists() else None
        return Saved(start, parts)

    @staticmethod
    def _save(folder: Path, parts: Mapping[str, bytes], start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in parts.items():
            file = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
            _replace(folder / f"{file}.part", name.encode() + b"\n" + state)
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
        return Saved(int(json.loads(manifest)["start"]) if manifest is not None else None, states)

    async def save(self, log: str, partition: int, parts: Mapping[str, bytes], start: int) -> None:
        headers = {KIND_HEADER: b"snapshot"}
        too_large = [name for name, state in parts.items() if len(state) > MAX_BLOB_BYTES]
        if too_large:
            raise StateRefused(f"state of {too_large[0]} is larger than {MAX_BLOB_BYTES} bytes and was not saved")
        sent = [
            self._outbox().send(SNAPSHOTS, f"{log}|{name}".encode(), state, headers, partition)
            for name, state in parts.items()
        ]
        await asyncio.gather(*sent)
        manifest = json.dumps({"start": start}).encode()
        await self._outbox().send(SNAPSHOTS, f"{log}|{_MANIFEST}".encode(), manifest, headers, partition)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
