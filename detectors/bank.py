"""The bank: the detectors of one log run together; a failing one is isolated and said; state is saved as one part.

A detector that raises becomes a `detector_failed` signal and starts cold for the part whose input it raised on, never
silence: what else a batch held is handed to it again, one input at a time, from the state before the batch.
"""

from __future__ import annotations

import hashlib
import json
import struct
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Generic, NamedTuple, TypeVar

from detectors.base import (
    Detector,
    LabelledAt,
    LogPoint,
    Reading,
    ReportAt,
    ReportEvent,
    Reversible,
    Undo,
    part_of,
    split_part,
)
from detectors.signal_book import SignalBook
from schemas.blocks import Block
from schemas.errors import MACHINE_ERRORS, StateRefused
from schemas.ids import stable_id
from schemas.signals import Signal

Input = TypeVar("Input")

MAGIC = b"PALISADE-PART-1\n"
MAX_PART_BYTES = 262_144
"""A part's saved state as the bounds of its detectors and of its incidents (170 kB) let it grow; twice this is refused."""
MAX_PARTS = 16_384
"""Parts whose incidents are kept; names beyond it make the oldest without an open incident forgotten."""


class Place(NamedTuple):
    """Where an input stands: its part, its endpoint and version, the row that brought it."""

    part: str
    endpoint: str
    version: str | None
    at: LogPoint


def place_of_block(block: Block) -> Place:
    """A block stands at the row that closed it."""
    part = part_of(block.endpoint, block.version)
    return Place(part, block.endpoint, block.version, LogPoint.closing(block))


def place_of_report(event: ReportEvent) -> Place | None:
    """A report stands where it lies; a tick belongs to no part."""
    if not isinstance(event, ReportAt):
        return None
    return Place(event.report.endpoint, event.report.endpoint, None, event.at)


def place_of_label(event: LabelledAt) -> Place:
    """A label stands where it lies; its part is the endpoint."""
    label = event.labelled
    return Place(label.endpoint, label.endpoint, label.model_version, event.at)


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
        self._failed: set[tuple[str, str]] = set()
        """(part, subject) of failures that are open incidents; of losses, whose subject is the part."""

    def update(self, batch: Sequence[Input]) -> Concluded:
        """Hands `batch` to each detector and folds what they say into signals."""
        return self.concluded([reading for said in self.steps(batch) for reading in said])

    def steps(self, batch: Sequence[Input]) -> Iterator[list[Reading]]:
        """What each detector says of `batch`, one after the other: whoever shares a thread may pause in between. All are to
        be taken, and then `concluded`, before the next batch."""
        if batch:
            places = self._places(batch)
            for detector in self.detectors:
                yield self._guarded(detector, batch, places)
            yield self._fresh(batch)

    def concluded(self, readings: list[Reading]) -> Concluded:
        """What all detectors said of one batch, in the order of the log, and the signals that it gives rise to."""
        readings.sort(key=lambda reading: (reading.at.offset, reading.at.row))
        signals: list[Signal] = []
        for reading in readings:
            signals += self._folded(reading)
        return Concluded(readings, signals)

    def lost(self, places: Sequence[Place], first: int, last: int) -> list[Signal]:
        """Records `first` to `last` of the log were removed unread: what holds of these parts is unknown, and people are
        told. Over when what came since was calm for as long as any signal needs to recover."""
        signals: list[Signal] = []
        for place in places:
            for known in (False, True):
                signals += self._folded(_loss(place, firing=True, known=known, first=first, last=last))
        return signals

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
        """Takes back a part; gives the names of detectors that start cold: they are new, have changed, or cannot take back
        what they saved. Such a one has lost its profile too, if it raised.

        Raises StateRefused if the bytes are not a part's; then the whole part starts cold.
        """
        saved, incidents = _opened(state)
        book = SignalBook(self._recover_for_ms)
        if incidents:
            book.restore(incidents)
        self._drop_book(part)
        self._books[part] = book
        if book.has_open:
            anywhere = Place(part, *split_part(part), LogPoint("", 0, 0, 0, 0))
            failures = [_failure(each.name, each.hash, anywhere, "", firing=False) for each in self.detectors]
            failures.append(_loss(anywhere, firing=False))
            self._failed |= {(part, failure.subject) for failure in failures if book.is_open(failure)}
        return [detector.name for detector in self.detectors if not self._restored(detector, part, saved)]

    def forget(self, part: str) -> None:
        """Drops all state of a part."""
        self._drop_book(part)
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
            return False
        except MACHINE_ERRORS:
            raise
        except Exception:  # noqa: BLE001  what is half taken back is no state: the others keep theirs
            detector.forget(part)
            return False
        return True

    def _folded(self, reading: Reading) -> list[Signal]:
        """The signals of one reading; one that no signal can hold is the failure of the detector that gave it."""
        part = self._part(reading)
        book = self._book(part)
        try:
            signals = book.fold([reading])
        except MACHINE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  what one detector says must not silence the others
            place = Place(part, reading.endpoint, reading.version, reading.at)
            signals = book.fold([_failure(reading.detector, reading.detector_hash, place, _detail(error))])
        for signal in signals:
            if signal.kind in ("detector_failed", "data_lost"):
                change = self._failed.discard if signal.state == "recovered" else self._failed.add
                change((part, signal.subject))
        return signals

    def _book(self, part: str) -> SignalBook:
        book = self._books.get(part)
        if book is None:
            if len(self._books) >= MAX_PARTS:
                quiet = (name for name, held in self._books.items() if not held.has_open)
                self._drop_book(next(quiet, next(iter(self._books))))
            book = self._books[part] = SignalBook(self._recover_for_ms)
        return book

    def _drop_book(self, part: str) -> None:
        self._books.pop(part, None)
        self._failed = {failed for failed in self._failed if failed[0] != part}

    def _part(self, reading: Reading) -> str:
        detectors_log = self.detectors[0].log
        if detectors_log == "predictions":
            return part_of(reading.endpoint, reading.version or "")
        return reading.endpoint

    def _guarded(self, detector: Detector[Input], batch: Sequence[Input], places: Mapping[str, Place]) -> list[Reading]:
        undo: Undo | None = None
        try:
            if len(batch) > 1:
                undo = _undo_of(detector, list(places))
            readings = detector.update(batch)
        except MACHINE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  a broken detector must not stop the others: it becomes a signal
            if len(batch) > 1:
                return self._one_by_one(detector, batch, places, undo, error)
            return self._after_failure(detector, places, error)
        return readings + self._healed(detector, batch)

    def _one_by_one(
        self,
        detector: Detector[Input],
        batch: Sequence[Input],
        places: Mapping[str, Place],
        undo: Undo | None,
        error: Exception,
    ) -> list[Reading]:
        """A batch that failed, again from the state before it: only parts whose own input raises start cold.

        If none raises alone, the failure of the batch is said at its last input.
        """
        readings: list[Reading] = []
        for part, place in places.items():
            detail = _put_back(detector, part, undo)
            if detail is not None:
                readings.append(_failure(detector.name, detector.hash, place, detail))
        for one in batch:
            readings += self._guarded(detector, [one], self._places([one]))
        if places and not any(reading.kind == "detector_failed" and reading.firing for reading in readings):
            last = max(places.values(), key=lambda place: (place.at.offset, place.at.row))
            readings.append(_failure(detector.name, detector.hash, last, _detail(error)))
        return readings

    @staticmethod
    def _after_failure(detector: Detector[Input], places: Mapping[str, Place], error: Exception) -> list[Reading]:
        """Says so, and lets the detector start cold there."""
        said: list[Reading] = []
        for part, place in places.items():
            detector.forget(part)
            said.append(_failure(detector.name, detector.hash, place, _detail(error)))
        return said

    def _places(self, batch: Sequence[Input]) -> dict[str, Place]:
        """The parts of a batch, each at its last input."""
        return {place.part: place for place in map(self._place_of, batch) if place is not None}

    def _fresh(self, batch: Sequence[Input]) -> list[Reading]:
        """A calm reading for each input of a part that is told to have lost records before."""
        if not self._failed:
            return []
        places = [place for place in map(self._place_of, batch) if place is not None]
        return [_loss(place, firing=False) for place in places if (place.part, place.part) in self._failed]

    def _healed(self, detector: Detector[Input], batch: Sequence[Input]) -> list[Reading]:
        """A calm reading for each input of a part where the detector's failure is still an open incident."""
        failed = {part for part, _ in self._failed}
        calm = []
        for place in map(self._place_of, batch) if failed else ():
            if place is not None and place.part in failed:
                reading = _failure(detector.name, detector.hash, place, "", firing=False)
                calm += [reading] if (place.part, reading.subject) in self._failed else []
        return calm


def _opened(state: bytes) -> tuple[dict[str, tuple[str, bytes]], bytes]:
    """Each detector's hash and state by name, and the incidents. Raises StateRefused."""
    start = len(MAGIC) + 32
    if len(state) > 2 * MAX_PART_BYTES or not state.startswith(MAGIC):
        raise StateRefused("saved part has another format or is too large")
    body = state[start:]
    if hashlib.sha256(body).digest() != state[len(MAGIC) : start]:
        raise StateRefused("saved part is damaged: its hash does not match")
    try:
        (size,) = struct.unpack_from("<I", body)
        header = json.loads(body[4 : 4 + size])
        position, saved = 4 + size, {}
        for name, detector_hash, length in header["detectors"]:
            saved[str(name)] = (str(detector_hash), body[position : position + length])
            position += length
        return saved, body[position : position + header["book"]]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateRefused(f"saved part cannot be read: {error}") from error


def _undo_of(detector: Detector[Input], parts: Sequence[str]) -> Undo:
    """What gives each of `parts` its state of now: by what the detector itself keeps, else by snapshots."""
    if isinstance(detector, Reversible):
        return detector.undo(parts)
    saved = {part: detector.snapshot(part) for part in parts}

    def back(part: str) -> None:
        state = saved[part]
        detector.restore(part, state) if state else detector.forget(part)

    return back


def _put_back(detector: Detector[Input], part: str, undo: Undo | None) -> str | None:
    """Gives a part the state it had; where that is not known or is refused it starts cold, and the answer says why."""
    if undo is None:
        detector.forget(part)
        return "the state before the batch cannot be read"
    try:
        undo(part)
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  what is broken may break here as well: it is said, and the part is cold
        detector.forget(part)
        return f"the state before the batch was refused: {_detail(error)}"
    return None


def _detail(error: Exception) -> str:
    """The error and where it was raised, for the people who mend it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}"[:200] + where


def _loss(place: Place, *, firing: bool, known: bool = True, first: int = 0, last: int = 0) -> Reading:
    return Reading(
        detector="bank",
        detector_hash=stable_id("retention", 1),
        kind="data_lost",
        endpoint=place.endpoint,
        version=place.version,
        subject_kind="endpoint",
        subject=place.part,
        score=float(last - first + 1) if firing else 0.0,
        threshold=0.5,
        firing=firing,
        calm=not firing,
        known=known,
        severity="warning",
        at=place.at,
        first_ms=place.at.ms,
        evidence={"first": first, "last": last} if firing else {},
    )


def _failure(detector: str, detector_hash: str, place: Place, detail: str, *, firing: bool = True) -> Reading:
    return Reading(
        detector="bank",
        detector_hash=detector_hash,
        kind="detector_failed",
        endpoint=place.endpoint,
        version=place.version,
        subject_kind="endpoint",
        subject=f"{place.endpoint}:{detector}",
        score=1.0 if firing else 0.0,
        threshold=0.5,
        firing=firing,
        calm=not firing,
        severity="warning",
        at=place.at,
        first_ms=place.at.ms,
        evidence={"detector": detector, "error": detail},
    )
