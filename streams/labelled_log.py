"""One partition of the log of labels: records in, signals out. No I/O: the role sends what it gives.

The audit may repeat records after a crash; their feedback's position tells them: within a partition positions never fall
but by repetition, so what is not above the highest one seen of an endpoint is not counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from detectors.bank import Bank
from detectors.base import LabelledAt, LogPoint
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.feedback import Labelled
from schemas.signals import Signal
from schemas.topics import LABELLED
from streams.endpoint_parts import EndpointParts
from streams.headed import split_head, with_head
from streams.one_event import Home, one_event
from streams.outgoing import said
from streams.records import Outgoing, Records
from streams.turns import Pause

UPDATE_LABELS = 256
"""Labels that are handed to the bank at once: some milliseconds."""


@dataclass(slots=True)
class EndpointLabels:
    """What runs for one endpoint. `applied`: offset of the last record that it has seen; `position`: offset and row of the
    last feedback that it has counted."""

    bank: Bank[LabelledAt]
    applied: int = -1
    position: tuple[int, int] = (-1, 0)
    dirty: bool = False


class LabelledLog(EndpointParts[EndpointLabels]):
    """Detectors of the endpoints whose labels lie on one partition. State is one part an endpoint."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        endpoints: Mapping[str, EndpointConfig],
        make: Callable[[str], EndpointLabels],
    ) -> None:
        super().__init__(Home(LABELLED, partition, partitions), make)
        self._endpoints = endpoints

    @property
    def pending(self) -> bool:
        """Nothing on this log waits for a clock."""
        return False

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        """What `records` lead to; nothing is given for offsets below `quiet_below` (a replay).

        Labels of endpoints that are not in the configuration are passed over.
        """
        dead: list[Outgoing] = []
        concluded: list[Signal] = []
        batches: dict[str, list[LabelledAt]] = {}
        for index, offset in enumerate(records.offsets):
            event = self._event(records, index)
            if isinstance(event, Outgoing):
                dead += [event] if offset >= quiet_below else []
            elif event.labelled.endpoint in self._endpoints:
                batches.setdefault(event.labelled.endpoint, []).append(event)
            await pause()
        self._next = records.offsets[-1] + 1
        for name, batch in batches.items():
            concluded += await self._update(name, batch, pause)
        loud = [signal for signal in concluded if signal.log_offset >= quiet_below]
        return dead + [said(signal) for signal in sorted(loud, key=lambda signal: signal.log_offset)]

    def snapshot(self, part: str) -> bytes:
        """The part's state, with what it has applied."""
        running = self._running[part]
        running.dirty = False
        return with_head({"applied": running.applied, "position": list(running.position)}, running.bank.snapshot(part))

    def restore(self, part: str, state: bytes) -> list[str]:
        """Takes a part back, or leaves it cold; raises StateRefused if it could not be read. Gives the detectors that start
        cold."""
        if part not in self._endpoints:
            raise StateRefused("the endpoint is not in the configuration any more")
        try:
            head, body = split_head(state)
            applied, (offset, row) = int(head["applied"]), map(int, head["position"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StateRefused(f"saved part {part!r} cannot be read: {error}") from error
        running = self._make(part)
        cold = running.bank.restore(part, body)
        running.applied, running.position = applied, (offset, row)
        self._running[part] = running
        return cold

    def _event(self, records: Records, index: int) -> LabelledAt | Outgoing:
        labelled = one_event(Labelled, "label", self._home, records, index)
        if isinstance(labelled, Outgoing):
            return labelled
        offset, ms = records.offsets[index], records.timestamps[index]
        return LabelledAt(labelled, LogPoint(LABELLED, self._home.partition, offset, 0, ms))

    async def _update(self, name: str, batch: list[LabelledAt], pause: Pause) -> list[Signal]:
        running = self._part(name)
        fresh: list[LabelledAt] = []
        for event in batch:
            position = (event.labelled.feedback_offset, event.labelled.feedback_row)
            if event.at.offset > running.applied and position > running.position:
                running.position = position
                fresh.append(event)
        concluded: list[Signal] = []
        for first in range(0, len(fresh), UPDATE_LABELS):
            concluded += running.bank.update(fresh[first : first + UPDATE_LABELS]).signals
            await pause()
        running.applied = max(running.applied, batch[-1].at.offset)
        running.dirty = True
        return concluded
