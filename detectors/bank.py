"""The bank: the detectors of one log run together; a failing one is isolated and said; state is saved as one part.

A detector that raises becomes a `detector_failed` signal and starts cold for that part, never silence.
"""

from __future__ import annotations

import hashlib
import json
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Generic, NamedTuple, TypeVar

from detectors.base import Detector, LogPoint, Reading, ReportAt, ReportEvent, part_of
from detectors.signal_book import SignalBook
from schemas.blocks import Block
from schemas.errors import StateRefused
from schemas.ids import stable_id
from schemas.signals import Signal

Input = TypeVar("Input")

MAGIC = b"PALISADE-PART-1\n"
MAX_PART_BYTES = 262_144
"""A part's saved state at most; a larger one is not saved and said so (64 kB of incidents + detectors' bounds)."""


class Place(NamedTuple):
    """Where an input stands: its part, its endpoint and version, the row that brought it."""

    part: str
    endpoint: str
    version: str | None
    at: LogPoint


def place_of_block(block: Block) -> Place:
    """A block stands at the row that closed it."""
    at = LogPoint(block.topic, block.partition, block.closed_at.offset, block.closed_at.row, block.closed_ms)
    return Place(part_of(block.endpoint, block.version), block.endpoint, block.version, at)


def place_of_report(event: ReportEvent) -> Place | None:
    """A report stands where it lies; a tick belongs to no part."""
    if not isinstance(event, ReportAt):
        return None
    return Place(event.report.endpoint, event.report.endpoint, None, event.at)


@dataclass(frozen=True, slots=True)
class Concluded:
    """What one batch led to, in the order of the log."""

    readings: list[Reading] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)


class Bank(Generic[Input]):
    """Detectors of one log over the parts of one partition.

    `place_of` says where an input stands. `hash` names the detectors with their parameters, in order.
    """

    def __init__(
        self,
        detectors: Sequence[Detector[Input]],
        place_of: Callable[[Input], Place | None],
        recover_for_ms: int,
    ) -> None:
        self.detectors = tuple(detectors)
        self.hash = stable_id("bank", *(detector.hash for detector in self.detectors), recover_for_ms)
        self._place_of = place_of
        self._recover_for_ms = recover_for_ms
        self._books: dict[str, SignalBook] = {}
        self._failing: dict[tuple[str, str], int] = {}

    def update(self, batch: Sequence[Input]) -> Concluded:
        """Hands `batch` to each detector and folds what they say into signals."""
        if not batch:
            return Concluded()
        readings: list[Reading] = []
        for detector in self.detectors:
            readings += self._guarded(detector, batch)
        readings.sort(key=lambda reading: (reading.at.offset, reading.at.row))
        signals: list[Signal] = []
        for reading in readings:
            signals += self._book(self._part(reading)).fold([reading])
        return Concluded(readings, signals)

    def open_parts(self) -> set[str]:
        """Parts with an open incident."""
        return {part for part, book in self._books.items() if book.has_open}

    def snapshot(self, part: str) -> bytes:
        """The part's state: detectors' numbers and open incidents under one hash."""
        book = self._books.get(part)
        states = [detector.snapshot(part) for detector in self.detectors]
        states.append(book.snapshot() if book is not None else b"")
        names = [
            [detector.name, detector.hash, len(state)] for detector, state in zip(self.detectors, states, strict=False)
        ]
        header = json.dumps({"detectors": names, "book": len(states[-1])}).encode()
        body = struct.pack("<I", len(header)) + header + b"".join(states)
        return MAGIC + hashlib.sha256(body).digest() + body

    def restore(self, part: str, state: bytes) -> list[str]:
        """Takes back a part; gives the names of detectors that start cold because they are new or have changed.

        Raises StateRefused if the bytes are not a part's; then the whole part starts cold.
        """
        header, body = _opened(state)
        saved: dict[str, tuple[str, bytes]] = {}
        position = 0
        for name, detector_hash, size in header["detectors"]:
            saved[name] = (detector_hash, body[position : position + size])
            position += size
        cold = [detector.name for detector in self.detectors if not self._restored(detector, part, saved)]
        incidents = body[position : position + header["book"]]
        if incidents:
            self._book(part).restore(incidents)
        return cold

    def forget(self, part: str) -> None:
        """Drops all state of a part."""
        self._books.pop(part, None)
        for detector in self.detectors:
            detector.forget(part)

    @staticmethod
    def _restored(detector: Detector[Input], part: str, saved: Mapping[str, tuple[str, bytes]]) -> bool:
        detector_hash, state = saved.get(detector.name, ("", b""))
        if detector_hash != detector.hash:
            return False
        if not state:
            return True
        try:
            detector.restore(part, state)
        except StateRefused:
            detector.forget(part)
            return False
        return True

    def _book(self, part: str) -> SignalBook:
        book = self._books.get(part)
        if book is None:
            book = self._books[part] = SignalBook(self._recover_for_ms)
        return book

    def _part(self, reading: Reading) -> str:
        detectors_log = self.detectors[0].log
        if detectors_log == "predictions":
            return part_of(reading.endpoint, reading.version or "")
        return reading.endpoint

    def _guarded(self, detector: Detector[Input], batch: Sequence[Input]) -> list[Reading]:
        try:
            readings = detector.update(batch)
        except Exception as error:  # noqa: BLE001  a broken detector must not stop the others: it becomes a signal
            return self._after_failure(detector, batch, error)
        if self._failing:
            readings = readings + self._healed(detector, batch)
        return readings

    def _after_failure(self, detector: Detector[Input], batch: Sequence[Input], error: Exception) -> list[Reading]:
        """Says so once a part of the batch, and lets the detector start cold there."""
        said: list[Reading] = []
        places = {place.part: place for place in map(self._place_of, batch) if place is not None}
        for part, place in places.items():
            detector.forget(part)
            self._failing[detector.name, part] = place.at.ms
            said.append(_failure(detector, place, firing=True, detail=_detail(error)))
        return said

    def _healed(self, detector: Detector[Input], batch: Sequence[Input]) -> list[Reading]:
        readings = []
        for place in map(self._place_of, batch):
            if place is not None and (detector.name, place.part) in self._failing:
                readings.append(_failure(detector, place, firing=False, detail=""))
                if place.at.ms - self._failing[detector.name, place.part] > 2 * self._recover_for_ms:
                    del self._failing[detector.name, place.part]
        return readings


def _opened(state: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a saved part, after its size, magic and hash were checked."""
    start = len(MAGIC) + 32
    if len(state) > 2 * MAX_PART_BYTES or not state.startswith(MAGIC):
        raise StateRefused("saved part has another format or is too large")
    body = state[start:]
    if hashlib.sha256(body).digest() != state[len(MAGIC) : start]:
        raise StateRefused("saved part is damaged: its hash does not match")
    (size,) = struct.unpack_from("<I", body)
    return json.loads(body[4 : 4 + size]), body[4 + size :]


def _detail(error: Exception) -> str:
    """The error and where it was raised, for the people who mend it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}"[:200] + where


def _failure(detector: Detector[Input], place: Place, *, firing: bool, detail: str) -> Reading:
    return Reading(
        detector="bank",
        detector_hash=detector.hash,
        kind="detector_failed",
        endpoint=place.endpoint,
        version=place.version,
        subject_kind="endpoint",
        subject=f"{place.endpoint}:{detector.name}",
        score=1.0 if firing else 0.0,
        threshold=0.5,
        firing=firing,
        calm=not firing,
        severity="warning",
        at=place.at,
        first_ms=place.at.ms,
        evidence={"detector": detector.name, "error": detail},
    )
