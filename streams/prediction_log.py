"""One partition of the predictions log: records in; verdicts, signals, dead letters out. The role sends what it gives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from detectors.bank import Bank, place_of_block
from detectors.bank import Place as PartPlace
from detectors.base import LogPoint, Reading, part_of, split_part
from detectors.learning import Learning
from detectors.profile import Profile
from detectors.unregistered import UnknownNames
from responders.signing import Keyring
from schemas.blocks import Block, FeatureSchema, RowId
from schemas.deadletter import DeadLetter, DeadReason
from schemas.errors import MACHINE_ERRORS, ConfigError, SignatureRefused, StateRefused
from schemas.events import ProfileActivated, Tick
from schemas.signals import Signal
from schemas.topics import PREDICTIONS
from schemas.wire import KIND_HEADER
from streams.blocks import BlockBuilder
from streams.deadletters import Place, dead_letter, told
from streams.decode import Columns, Control, DeadRows, Decoder, Segment
from streams.headed import split_head, with_head
from streams.learners import let_vote
from streams.outgoing import dead, said
from streams.profiles import Active, ProfileMissing, active_record, profile_record
from streams.records import Outgoing, RawHeaders, Records, header_of
from streams.turns import HOLD_S, Pause, attended
from streams.verdicts import block_verdicts, row_verdicts

log = logging.getLogger(__name__)

MAX_UNFITTED = 256
"""Versions without a profile that are said to be unknown one by one; further ones of the partition are not judged."""
BLOCKS_AT_ONCE = 32
"""Blocks that the bank takes between two pauses, fewer while they take long: drift steps as many together."""
BLOCKS_AT_LEAST = 4
"""Fewer at once cost several times as much a block, for most of a call's cost is then the call itself."""
READINGS_AT_ONCE = 512
"""Readings in one record of verdicts."""
Fit = Callable[[str, str, Profile, bool], None]
"""Tells the detectors that need one the profile of (endpoint, version), and whether it was learned from the log."""


_CONTROLS = {Tick.KIND.encode(), ProfileActivated.KIND.encode()}


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """Where a partition finds profiles. `get` waits for one; `peek` does not; `active` are those on from before."""

    get: Callable[[str], Awaitable[bytes]]
    peek: Callable[[str], bytes | None]
    active: Callable[[], list[Active]]


class _Fitted(NamedTuple):
    """The profile in force for a part; `learned`: nobody approved it."""

    profile_hash: str
    features: FeatureSchema
    learned: bool


@dataclass(slots=True)
class _Batch:
    """What one run has led to so far."""

    columns: list[Columns] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    dead_rows: list[DeadRows] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    closed: list[Block] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    more: list[Outgoing] = field(default_factory=list)

    def bury(self, letter: DeadLetter) -> None:
        """A record that is refused here and not by the decoder: its letter, and its outcome."""
        self.letters.append(letter)
        offset, row = np.array([letter.log_offset]), np.array([letter.log_row], dtype=np.int32)
        self.dead_rows.append(DeadRows(offset, row, [letter.endpoint or ""]))


class PredictionLog:
    """Decodes, cuts blocks, runs the bank. State is one part an endpoint@version, with the last row it has applied."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        bank: Bank[Block],
        fit: Fit,
        registered: Callable[[str], bool],
        profiles: ProfileSource,
        operators: Keyring,
    ) -> None:
        self._partition = partition
        self._bank = bank
        self._fit = fit
        self._profiles = profiles
        self._operators = operators
        self._learning = next((each for each in bank.detectors if isinstance(each, Learning)), None)
        self._fitted: dict[tuple[str, str], _Fitted] = {}
        self._applied: dict[str, RowId] = {}
        self._through: dict[str, int] = {}
        """Of restored parts the offset below which each record has had its effect on them: a replay learns, decides and
        switches nothing on again there."""
        self._dirty: dict[str, None] = {}
        self._registered = registered
        self._unknown = UnknownNames()
        self._unfitted: set[str] = set()
        self._decoder = Decoder(PREDICTIONS, partition, partitions, self._schema_of, registered)
        self._builder: BlockBuilder | None = None
        self._next = 0
        self._at_once = BLOCKS_AT_LEAST

    @property
    def pending(self) -> bool:
        """Rows of open blocks wait for a tick to close them."""
        return self._builder is not None and self._builder.open_rows > 0

    @property
    def restart(self) -> int:
        """The oldest row of an open block, else the end of what was read."""
        oldest = self._builder.oldest_open() if self._builder is not None else None
        return self._next if oldest is None else oldest

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        """What `records` lead to; nothing is given for rows below `quiet_below` (a replay).

        Pauses between pieces of some milliseconds; where they end changes nothing of what is concluded.
        """
        if self._builder is None:
            self._builder = self._begin(records.offsets[0])
        batch = _Batch()
        for chunk in _up_to_controls(records):
            for segment in await self._segments(chunk, batch, pause):
                await self._take_segment(segment, chunk, batch, pause)
                await pause()
        await self._conclude(batch, pause)
        self._next = records.offsets[-1] + 1
        return await self._outgoing(batch, quiet_below, pause)

    def lost(self, first: int, last: int, at: LogPoint) -> list[Outgoing]:
        """What these parts concluded is not known to hold any more: records between were removed unread."""
        places = [PartPlace(part, *split_part(part), at) for part in sorted(self._applied)]
        self._dirty |= {place.part: None for place in places if place.part not in self._dirty}
        return [said(signal) for signal in self._bank.lost(places, first, last)]

    def pass_over(self, record: Records, reason: str, quiet_below: int) -> list[Outgoing]:
        """The outcome of the one record on which `take` raises, and its dead letter."""
        batch = _Batch()
        self._bury_record(record, reason, batch)
        self._next = record.offsets[0] + 1
        if record.offsets[0] < quiet_below:
            return []
        rows = row_verdicts(PREDICTIONS, self._partition, (), batch.dead_rows, quiet_below, self._bank.hash)
        return ([] if rows is None else [rows]) + [dead(letter) for letter in batch.letters]

    def dirty(self) -> list[str]:
        """Parts that changed since they were saved, longest unsaved first."""
        return list(self._dirty)

    def snapshot(self, part: str) -> bytes:
        """The part's state, the last row that it has applied, and its profile.

        `through`: records below this offset have had their effect on the part, rows of its open block apart.
        """
        self._dirty.pop(part, None)
        endpoint, version = split_part(part)
        fitted = self._fitted.get((endpoint, version))
        head = {
            "applied": self._applied[part],
            "profile": fitted.profile_hash if fitted else "",
            "learned": fitted is not None and fitted.learned,
            "through": max(self._next, self._through.get(part, 0)),
        }
        return with_head(head, self._bank.snapshot(part))

    def unsaved(self, part: str) -> None:
        """The snapshot that was taken last did not reach the store."""
        self._dirty = {part: None} | self._dirty

    def restore(self, part: str, state: bytes) -> list[str]:
        """Takes a part back; raises StateRefused and leaves it cold if it cannot. Gives the detectors that start cold."""
        try:
            head, body = split_head(state)
            offset, row = head["applied"]
            applied, profile_hash = RowId(int(offset), int(row)), str(head["profile"])
            learned = head.get("learned") is True
            through = int(head.get("through", applied.offset + 1))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StateRefused(f"saved part {part!r} cannot be read: {error}") from error
        endpoint, version = split_part(part)
        if profile_hash:
            content = self._profiles.peek(profile_hash)
            if content is None:
                raise StateRefused(f"its profile {profile_hash[:12]} is gone")
            self._fit_profile(endpoint, version, profile_hash, content, learned=learned)
        cold = self._bank.restore(part, body)
        if cold:
            self._fit_again(endpoint, version)
        self._applied[part], self._through[part] = applied, through
        if learned or not profile_hash:
            self._unfitted.add(part)
        return cold

    def forget(self, part: str) -> None:
        """Drops what of a part is state; its profile stays."""
        self._bank.forget(part)
        self._applied.pop(part, None)
        self._through.pop(part, None)
        self._fit_again(*split_part(part))

    def _begin(self, first: int) -> BlockBuilder:
        """Profiles that were switched on before the first record that is read, and a builder that skips what is applied."""
        for active in self._profiles.active():
            activation = active.activation
            if active.offset >= first or (activation.endpoint, activation.version) in self._fitted:
                continue
            content = self._profiles.peek(activation.profile_hash)
            if content is None or self._verified(active.value, active.headers) is not None:
                continue
            try:
                self._fit_profile(activation.endpoint, activation.version, activation.profile_hash, content)
            except StateRefused as refused:
                log.warning("%s@%s starts without a profile: %s", activation.endpoint, activation.version, refused)
        return BlockBuilder(PREDICTIONS, self._partition, self._hash_of, dict(self._applied))

    async def _segments(self, records: Records, batch: _Batch, pause: Pause) -> list[Segment]:
        """Decoded segments; a record on which decoding raises is found by bisection and dead-lettered."""
        segments: list[Segment] = []
        try:
            for segment in self._decoder.segments(
                records.values, records.keys, records.headers, records.offsets, records.timestamps
            ):
                segments.append(segment)
                await pause()
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            if len(records) > 1:
                first, second = records.halves()
                return await self._segments(first, batch, pause) + await self._segments(second, batch, pause)
            log.exception("decoding failed at %s[%d] %d", PREDICTIONS, self._partition, records.offsets[0])
            self._bury_record(records, told("decoding", error), batch)
            return []
        return segments

    def _bury_record(self, record: Records, detail: str, batch: _Batch) -> None:
        place = Place(PREDICTIONS, self._partition, record.offsets[0], record.timestamps[0])
        batch.bury(dead_letter(place, "handler_failed", detail, record.values[0], record.headers[0]))

    async def _take_segment(self, segment: Segment, records: Records, batch: _Batch, pause: Pause) -> None:
        assert self._builder is not None
        batch.columns.append(segment.columns)
        batch.letters += segment.dead_letters
        batch.dead_rows.append(segment.dead_rows)
        rows = self._registered_rows(segment.evidence, batch)
        if self._learning is not None:
            let_vote(self._learning, rows, records, self._through)
        batch.blocks += self._builder.add(rows)
        control = segment.control
        if control is None:
            return
        if control.kind == "tick":
            for block in self._builder.tick(control.offset, control.broker_ms):
                batch.blocks.append(block)
                await pause()
            if self._learning is not None:
                await self._learn(self._learning, control, batch, pause)
        elif control.kind == ProfileActivated.KIND:
            await self._activate(control, batch, pause)

    def _registered_rows(self, columns: Columns, batch: _Batch) -> Columns:
        """Without the groups of unregistered endpoints: open blocks of invented names would be state, and hold back
        the restart. They are said at once."""
        strangers = [group for group in columns.groups if not self._registered(group.endpoint)]
        for group in strangers:
            row = int(group.rows[0])
            at = LogPoint(
                PREDICTIONS,
                self._partition,
                int(columns.offset[row]),
                int(columns.row[row]),
                int(columns.broker_ts[row]),
            )
            batch.signals += self._unknown.endpoint(group.endpoint, at)
        if not strangers:
            return columns
        return replace(columns, groups=tuple(group for group in columns.groups if self._registered(group.endpoint)))

    async def _learn(self, learning: Learning, control: Control, batch: _Batch, pause: Pause) -> None:
        """What versions without a profile have learned holds from this tick on: a place in the log, whatever the cut."""
        assert self._builder is not None
        if any(learning.learns(part_of(block.endpoint, block.version)) for block in batch.blocks):
            await self._conclude(batch, pause)
        due = learning.due(control.broker_ms).of(lambda part: self._through.get(part, 0) <= control.offset)
        changed = sorted({*due.voted, *due.ready, *due.ended})
        if not changed:
            return
        for part in changed:
            endpoint, version = split_part(part)
            batch.blocks += self._builder.activate(endpoint, version, control.offset, control.broker_ms)
        await self._conclude(batch, pause)
        for part in due.voted:
            learning.decide(part)
        for part in due.ready:
            profile = await attended(asyncio.to_thread(learning.build, part), pause)
            content, (endpoint, version) = profile.to_bytes(), split_part(part)
            profile_hash, record = profile_record(content)
            learning.finish(part, profile_hash)
            self._switch_on(endpoint, version, profile_hash, profile, learned=True)
            batch.more.append(record)
        for part in due.ended:
            learning.forget(part)
        self._dirty |= {part: None for part in changed if part in self._applied and part not in self._dirty}
        self._decoder.forget()

    async def _activate(self, control: Control, batch: _Batch, pause: Pause) -> None:
        """Switches a profile on from this record. Refusals are dead letters; the old profile then goes on."""
        assert self._builder is not None
        place = Place(PREDICTIONS, self._partition, control.offset, control.broker_ms)
        value = control.value or b""
        refused = self._verified(value, control.headers)
        if refused is not None:
            batch.bury(dead_letter(place, refused, "", value, control.headers))
            return
        try:
            activation: ProfileActivated = ProfileActivated.from_bytes(value)
            part = part_of(activation.endpoint, activation.version)
            if control.offset < self._through.get(part, 0):
                return  # the saved part knows it, and perhaps a later one
            content = await attended(self._profiles.get(activation.profile_hash), pause)
            profile = _profile_of(content)
        except (ValidationError, ProfileMissing, ConfigError, ValueError) as error:
            batch.bury(dead_letter(place, "wrong_shape", str(error), value, control.headers))
            return
        batch.blocks += self._builder.activate(
            activation.endpoint, activation.version, control.offset, control.broker_ms
        )
        await self._conclude(batch, pause)
        if self._learning is not None:
            self._learning.forget(part)
        if part in self._applied:
            self._dirty.setdefault(part)  # also without an open block: the saved part names the profile before
        self._switch_on(activation.endpoint, activation.version, activation.profile_hash, profile, learned=False)
        active = Active(activation, self._partition, control.offset, value, control.headers)
        batch.more.append(active_record(active))

    async def _conclude(self, batch: _Batch, pause: Pause) -> None:
        """Hands the bank all blocks closed so far, many in one call; how many changes nothing but the time it takes."""
        blocks, batch.blocks = [block for block in batch.blocks if self._judged(block, batch)], []
        first = 0
        while first < len(blocks):
            piece = blocks[first : first + self._at_once]
            held_s = await self._update(piece, batch, pause)
            first += len(piece)
            if len(piece) == self._at_once or held_s > HOLD_S:
                pace = int(len(piece) * HOLD_S / max(held_s, HOLD_S / 2))
                self._at_once = min(BLOCKS_AT_ONCE, max(BLOCKS_AT_LEAST, pace))

    async def _update(self, blocks: list[Block], batch: _Batch, pause: Pause) -> float:
        """Returns the longest time that the bank worked between two pauses, in seconds."""
        readings: list[Reading] = []
        held_s = 0.0
        for of_detector in self._bank.steps(blocks):
            readings += of_detector
            held_s = max(held_s, await pause())
        concluded = self._bank.concluded(readings)
        for block in blocks:
            part = part_of(block.endpoint, block.version)
            self._applied[part] = block.last
            self._dirty.setdefault(part)
        for reading in concluded.readings:
            if reading.kind == "detector_failed" and reading.firing:
                self._fit_again(reading.endpoint, reading.version or "")
        batch.readings += concluded.readings
        batch.signals += concluded.signals
        batch.closed += blocks
        return max(held_s, await pause())

    def _judged(self, block: Block, batch: _Batch) -> bool:
        """Whether a block may become state: not of versions that a stranger makes up without end."""
        part = part_of(block.endpoint, block.version)
        if (block.endpoint, block.version) in self._fitted or part in self._unfitted:
            return True
        if len(self._unfitted) >= MAX_UNFITTED:
            batch.signals += self._unknown.version(block.endpoint, place_of_block(block).at)
            return False
        self._unfitted.add(part)
        return True

    async def _outgoing(self, batch: _Batch, quiet_below: int, pause: Pause) -> list[Outgoing]:
        out: list[Outgoing] = []
        for signal in batch.signals:
            if signal.log_offset >= quiet_below:
                out.append(said(signal))
                await pause()
        rows = row_verdicts(PREDICTIONS, self._partition, batch.columns, batch.dead_rows, quiet_below, self._bank.hash)
        out += [] if rows is None else [rows]
        await pause()
        for first in range(0, len(batch.readings), READINGS_AT_ONCE):
            readings = batch.readings[first : first + READINGS_AT_ONCE]
            out += block_verdicts(PREDICTIONS, self._partition, batch.closed, readings, quiet_below, self._bank.hash)
            await pause()
        for letter in batch.letters:
            if letter.log_offset >= quiet_below:
                out.append(dead(letter))
                await pause()
        return out + batch.more

    def _verified(self, value: bytes, headers: Sequence[tuple[str, bytes | None]] | None) -> DeadReason | None:
        try:
            self._operators.verify(ProfileActivated.KIND, value, headers)
        except SignatureRefused as refused:
            return "unsigned_control" if refused.reason == "unsigned" else "bad_signature"
        return None

    def _fit_profile(
        self, endpoint: str, version: str, profile_hash: str, content: bytes, *, learned: bool = False
    ) -> None:
        try:
            profile = _profile_of(content)
        except (ConfigError, ValueError) as error:
            raise StateRefused(f"profile {profile_hash[:12]} cannot be read: {error}") from error
        self._switch_on(endpoint, version, profile_hash, profile, learned=learned)

    def _fit_again(self, endpoint: str, version: str) -> None:
        """A detector that broke starts cold, and with the profile that holds: it must not stay unknown for good."""
        fitted = self._fitted.get((endpoint, version))
        content = self._profiles.peek(fitted.profile_hash) if fitted is not None else None
        if fitted is not None and content is not None:
            self._fit_profile(endpoint, version, fitted.profile_hash, content, learned=fitted.learned)
        self._decoder.forget()

    def _switch_on(self, endpoint: str, version: str, profile_hash: str, profile: Profile, *, learned: bool) -> None:
        self._fitted[endpoint, version] = _Fitted(profile_hash, profile.features, learned)
        self._fit(endpoint, version, profile, learned)
        self._decoder.forget()

    def _schema_of(self, endpoint: str, version: str) -> FeatureSchema | None:
        fitted = self._fitted.get((endpoint, version))
        if fitted is not None:
            return fitted.features
        return None if self._learning is None else self._learning.schema(part_of(endpoint, version))

    def _hash_of(self, endpoint: str, version: str) -> str:
        fitted = self._fitted.get((endpoint, version))
        return fitted.profile_hash if fitted is not None else ""


@lru_cache(maxsize=64)
def _profile_of(content: bytes) -> Profile:
    """The profile of these bytes; endpoints of one model share it. Raises ConfigError or ValueError."""
    return Profile.from_bytes(content)


def _up_to_controls(records: Records) -> Iterator[Records]:
    """The records in pieces that end with a tick or an activation: what follows may be decoded by a new profile."""
    start = 0
    seen: RawHeaders = None
    for index, headers in enumerate(records.headers):
        if headers == seen:
            continue  # neighbours mostly have equal headers
        seen = headers
        if header_of(headers, KIND_HEADER) in _CONTROLS:
            yield records.part(start, index + 1)
            start = index + 1
            seen = None
    if start < len(records):
        yield records.part(start, len(records))
