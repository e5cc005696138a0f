"""The seam of detectors: what they are handed, what they say, how their state is saved.

A detector reads one log, and the partition it is handed is one total order. Time comes from the log. Whatever it
concludes is a function of the log and its parameters: same ids and state for any cut of the log into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from schemas.blocks import Block
from schemas.config import EndpointConfig
from schemas.events import CallerAuth, Report
from schemas.feedback import Labelled
from schemas.signals import Evidence, Severity, SignalKind, SubjectKind

DAYS_30_MS = 30 * 86_400_000


class LogPoint(NamedTuple):
    """A row of a log and the log's time there, ms. `broker_ms`: the broker's time, where it is another one (`LogClock`)."""

    topic: str
    partition: int
    offset: int
    row: int
    ms: int
    broker_ms: int = 0

    @property
    def told_ms(self) -> int:
        """What is told to others: the broker's time."""
        return self.broker_ms or self.ms

    @classmethod
    def closing(cls, block: Block) -> LogPoint:
        """Where a block stands: at the row that closed it."""
        at = block.closed_at
        return cls(block.topic, block.partition, at.offset, at.row, block.closed_ms)


@dataclass(frozen=True, slots=True)
class ReportAt:
    """A report where it lies in the log. `trusted`: signed by a producer key listed for the endpoint."""

    report: Report
    trusted: bool
    at: LogPoint


@dataclass(frozen=True, slots=True)
class TickAt:
    """The log's clock: time has come this far, whatever else arrived.

    `behind_ms`: how far its writer then was behind on the same partition of predictions, where it says so.
    """

    at: LogPoint
    behind_ms: int | None = None


ReportEvent = ReportAt | TickAt


@dataclass(frozen=True, slots=True)
class LabelledAt:
    """A label with its prediction where it lies in the log: in the order in which labels came, not predictions."""

    labelled: Labelled
    at: LogPoint


@dataclass(frozen=True, slots=True)
class Budget:
    """The false-alarm budget of an endpoint, and the event rate that turns it into alarms a row. `assumed`: nobody gave
    that rate, so it holds until it is measured."""

    alarms_per_30_days: float
    events_per_day: float
    assumed: bool = False

    @property
    def alarms_per_row(self) -> float:
        return self.alarms_per_30_days / (30 * self.events_per_day)

    def share(self, part: float) -> Budget:
        return replace(self, alarms_per_30_days=self.alarms_per_30_days * part)

    @classmethod
    def of(cls, endpoint: EndpointConfig | None, events_per_day: float) -> Budget:
        """Of an endpoint's configuration; `events_per_day` stands in where it gives none."""
        if endpoint is None:
            return cls(1.0, events_per_day, assumed=True)
        given = endpoint.events_per_day
        return cls(endpoint.false_alarms_per_30_days, given or events_per_day, assumed=given is None)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a detector says of one subject at one row, whether or not it fires.

    `firing`: score passed the entry threshold. `calm`: it is below the exit threshold (never both). `known` False: the
    detector lacks data, which is `unknown`, never `healthy`. `first_ms` is the log's time of the first evidence.
    `shares`: (caller, auth, share 0-1), heaviest first, at most 20. `rate`, `usual_rate`: events/s of a caller.
    Detectors of callers give readings only of callers over or near their threshold, or that fired lately.
    `p_values`: of each row of the block that the reading closes, where the detector judges rows one by one; else empty.
    """

    detector: str
    detector_hash: str
    kind: SignalKind
    endpoint: str
    subject_kind: SubjectKind
    subject: str
    score: float
    threshold: float
    firing: bool
    calm: bool
    severity: Severity
    at: LogPoint
    first_ms: int
    version: str | None = None
    known: bool = True
    caller_auth: CallerAuth | None = None
    rate: float | None = None
    usual_rate: float | None = None
    shares: tuple[tuple[str, CallerAuth, float], ...] = ()
    evidence: Evidence = field(default_factory=dict)
    atlas: tuple[str, ...] = ()
    p_values: tuple[float, ...] = ()


Input_contra = TypeVar("Input_contra", contravariant=True)


class Detector(Protocol[Input_contra]):
    """One idea. Constructor parameters are its whole configuration; `hash` names them and its version.

    State is kept a part: `endpoint@version` for detectors of predictions, `endpoint` for detectors of reports and labels.
    Implementations never mutate their input and bound their memory a part (32 kB as a rule, 256 kB at most).
    """

    name: str
    hash: str

    @property
    def log(self) -> Literal["predictions", "reports", "labelled"]:
        """The one log that it reads."""
        ...

    def update(self, batch: Sequence[Input_contra]) -> list[Reading]:
        """Readings of what `batch` (in log order) concluded. Any cut of the log into batches gives the same readings."""
        ...

    def snapshot(self, part: str) -> bytes:
        """The part's state: numbers only, never pickle; `b""` if there is none."""
        ...

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        ...

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        ...


Undo = Callable[[str], None]
"""Gives a part the state that it had; one that had none starts cold. Once, and before anything is restored or fitted."""


@runtime_checkable
class Reversible(Protocol):
    """A detector that can take back what it learned from a batch, for far less than a snapshot costs."""

    def undo(self, parts: Sequence[str]) -> Undo:
        """What takes each of `parts` back to its state as it is now."""
        ...


def part_of(endpoint: str, version: str) -> str:
    """The name of the state part of an endpoint's version."""
    return f"{endpoint}@{version}"


def split_part(part: str) -> tuple[str, str]:
    """(endpoint, version) of a part's name. A configured endpoint has no `@` in its name, its versions may."""
    endpoint, _, version = part.partition("@")
    return endpoint, version


def top_shares(
    weights: Mapping[tuple[str, CallerAuth], float], most: int = 20
) -> tuple[tuple[str, CallerAuth, float], ...]:
    """The heaviest `most` callers of `weights` (non-negative) as shares of the sum, ties by name."""
    total = sum(weights.values())
    if total <= 0:
        return ()
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:most]
    return tuple((caller, auth, weight / total) for (caller, auth), weight in ranked)
