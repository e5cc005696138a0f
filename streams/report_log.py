"""One partition of the reports log: records in, signals and endpoint states out. No I/O: the role sends what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from detectors.bank import Bank
from detectors.base import LogPoint, ReportAt, ReportEvent, TickAt
from detectors.endpoint_state import EndpointStates
from detectors.lag import Lag
from detectors.log_clock import LogClock
from detectors.unregistered import UnknownNames
from responders.signing import Keyring
from schemas.config import EndpointConfig
from schemas.errors import SignatureRefused, StateRefused
from schemas.events import Report, Tick
from schemas.signals import EndpointState, Signal
from schemas.topics import REPORTS
from schemas.wire import KIND_HEADER, SIGNATURE_HEADER
from streams.endpoint_parts import EndpointParts
from streams.headed import split_head, with_head
from streams.one_event import Home, one_event
from streams.outgoing import said
from streams.records import Outgoing, Records, header_of
from streams.turns import Pause


@dataclass(slots=True)
class EndpointReports:
    """What runs for one endpoint. `applied`: the offset of the last report or tick that it has seen."""

    bank: Bank[ReportEvent]
    states: EndpointStates
    lag: Lag = field(default_factory=Lag)
    clock: LogClock = field(default_factory=LogClock)
    applied: int = -1
    dirty: bool = False


class ReportLog(EndpointParts[EndpointReports]):
    """Detectors of the endpoints whose reports lie on one partition. State is one part an endpoint."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        endpoints: Mapping[str, EndpointConfig],
        make: Callable[[str], EndpointReports],
    ) -> None:
        super().__init__(Home(REPORTS, partition, partitions), make)
        self._endpoints = endpoints
        self._keys = {name: Keyring(endpoint.producer_keys) for name, endpoint in endpoints.items()}
        self._unknown = UnknownNames()

    @property
    def pending(self) -> bool:
        """Whether the log's clock should run fast: some endpoint has an open incident."""
        return any(running.bank.open_parts() for running in self._running.values())

    async def take(self, records: Records, quiet_below: int, pause: Pause) -> list[Outgoing]:
        """What `records` lead to; nothing is given for offsets below `quiet_below` (a replay)."""
        dead: list[Outgoing] = []
        concluded: list[Signal | EndpointState] = []
        batches: dict[str, list[ReportEvent]] = {}
        for index, offset in enumerate(records.offsets):
            at = LogPoint(REPORTS, self._home.partition, offset, 0, records.timestamps[index])
            event = self._event(records, index, at)
            if isinstance(event, TickAt):
                for name in self._running.keys() | batches.keys():
                    batches.setdefault(name, []).append(event)
            elif isinstance(event, ReportAt) and event.report.endpoint not in self._endpoints:
                concluded += self._unknown.endpoint(event.report.endpoint, at)
            elif isinstance(event, ReportAt):
                batches.setdefault(event.report.endpoint, []).append(event)
            elif offset >= quiet_below:
                dead.append(event)
            await pause()
        self._next = records.offsets[-1] + 1
        for name, batch in batches.items():
            concluded += await self._update(name, batch, pause)
        loud = [thing for thing in concluded if thing.log_offset >= quiet_below]
        # a tick concludes something of many endpoints: in the order of their names, whatever ran first
        return dead + [said(thing) for thing in sorted(loud, key=lambda thing: (thing.log_offset, thing.endpoint))]

    def snapshot(self, part: str) -> bytes:
        """The part's state, and the offset that it has applied."""
        running = self._running[part]
        running.dirty = False
        bank, states = running.bank.snapshot(part), running.states.snapshot(part)
        head = {"applied": running.applied, "bank": len(bank), "lag": running.lag.saved()}
        head["clock"] = running.clock.saved()
        return with_head(head, bank + states)

    def restore(self, part: str, state: bytes) -> list[str]:
        """Takes a part back, or leaves it cold; raises StateRefused if it could not be read. Gives the detectors that start
        cold."""
        if part not in self._endpoints:
            raise StateRefused("the endpoint is not in the configuration any more")
        try:
            head, body = split_head(state)
            applied, bank = int(head["applied"]), int(head["bank"])
            lag = Lag.of(head["lag"]) if "lag" in head else Lag()
            clock = LogClock.of(head["clock"]) if "clock" in head else LogClock()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StateRefused(f"saved part {part!r} cannot be read: {error}") from error
        running = self._make(part)
        cold = running.bank.restore(part, body[:bank])
        running.states.restore(part, body[bank:])
        if running.states.signed(part) and not self._can_sign(part):
            raise StateRefused("what signed reports taught is no use where no producer key is listed any more")
        running.states.watch(part, bool(running.bank.open_parts()))
        running.applied, running.lag, running.clock = applied, lag, clock
        self._running[part] = running
        return cold

    def _event(self, records: Records, index: int, at: LogPoint) -> ReportEvent | Outgoing:
        value = records.values[index]
        if header_of(records.headers[index], KIND_HEADER) == Tick.KIND.encode():
            return TickAt(at, _behind_ms(value))
        report = one_event(Report, "report", self._home, records, index)
        if isinstance(report, Outgoing):
            return report
        return ReportAt(report, self._trusted(report.endpoint, value or b"", records, index), at)

    def _trusted(self, endpoint: str, value: bytes, records: Records, index: int) -> bool:
        """A report vouches for its callers if a producer key of the endpoint signed it."""
        if endpoint not in self._endpoints:
            return False
        headers = records.headers[index]
        if header_of(headers, SIGNATURE_HEADER) is None:
            return self._endpoints[endpoint].trust_unsigned
        try:
            self._keys[endpoint].verify(Report.KIND, value, headers or ())
        except SignatureRefused:
            return False
        return True

    def _can_sign(self, endpoint: str) -> bool:
        config = self._endpoints[endpoint]
        return bool(config.producer_keys) or config.trust_unsigned

    async def _update(self, name: str, batch: list[ReportEvent], pause: Pause) -> list[Signal | EndpointState]:
        running = self._part(name)
        fresh = [event for event in batch if event.at.offset > running.applied]
        if not fresh:
            return []
        concluded: list[Signal | EndpointState] = []
        for told in fresh:  # one by one: a state says whether an incident is open at its row, whatever the cut
            event = replace(told, at=told.at._replace(ms=running.clock.at(told.at.ms), broker_ms=told.at.ms))
            concluded += running.bank.update([event]).signals
            running.states.watch(name, bool(running.bank.open_parts()))
            concluded += running.states.update([event])
            if isinstance(event, TickAt):
                concluded += running.lag.update(name, event)
            await pause()
        running.applied = fresh[-1].at.offset
        running.dirty = True
        return concluded


def _behind_ms(value: bytes | None) -> int | None:
    """What a tick tells of predictions. One that cannot be read tells nothing, and is the log's clock all the same."""
    try:
        tick: Tick = Tick.from_bytes(value or b"")
    except ValidationError:
        return None
    return tick.behind_ms
