"""Does the endpoint serve well? Errors, timeouts and latency of the live version's primary, from reports.

Each is a share of calls (failed; over the learned slow bound) under a sequential test (`sequential`), so every report is
looked at and the stated rate holds: at most `alarms` false alarms in 30 days for each kind. Evidence before an alarm: about
four failures in a row at a usual share of 0.5 %; `critical` needs half of at least ten calls, or the owner's bound. Calls in
flight while nothing is answered are a timeout that nobody set.

Recovery is decided on evidence: ten good calls of the primary (probes, while on fallback) in a row and no bad one since, or,
with full traffic, a share that is the usual one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from detectors.base import Budget, LogPoint, Reading, ReportAt, ReportEvent, TickAt
from detectors.guards import LiveGuards
from detectors.report_state import pack, unpack
from detectors.version_health import VersionHealth
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.ids import stable_id
from schemas.signals import Severity, SignalKind

VERSION = 1
MAX_PARTS = 4_096
MAX_VERSIONS = 8
EVENTS_PER_DAY = 86_400.0
KINDS: tuple[SignalKind, ...] = ("errors", "timeouts", "latency")


class _Part:
    """State of one endpoint."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.clock_ms = 0
        self.ticked_ms = 0
        self.guards = LiveGuards()
        self.versions: dict[str, VersionHealth] = {}

    def judged(self, version: str) -> VersionHealth:
        """The state of a version; the one longest not live makes room."""
        found = self.versions.pop(version, None)
        if found is None:
            if len(self.versions) >= MAX_VERSIONS:
                del self.versions[next(iter(self.versions))]
            found = VersionHealth()
        self.versions[version] = found
        return found

    def open_elsewhere(self, version: str, kind: SignalKind) -> bool:
        """True if another version that is live on some guard is failing in the same way."""
        live = {line.live_version for line in self.guards.believed()}
        return any(
            name != version and name in live and health.alarms[kind].open_since_ms is not None
            for name, health in self.versions.items()
        )


class Health:
    """Errors, timeouts and latency. One part is one endpoint, at most 40 kB.

    `endpoints`: budgets and bounds, no part of `hash`. Each kind gets `kind_share` of the endpoint's budget. Reports that
    nobody vouches for are judged only while no signed ones come, and are never `critical`.
    """

    name = "health"
    log: Literal["predictions", "reports"] = "reports"

    def __init__(
        self, endpoints: Mapping[str, EndpointConfig], *, kind_share: float = 0.1, linger_ms: int = 900_000
    ) -> None:
        self._endpoints = endpoints
        self._kind_share = kind_share
        self._linger_ms = linger_ms
        self.hash = stable_id(self.name, VERSION, repr(kind_share), linger_ms)
        self._parts: dict[str, _Part] = {}

    def update(self, batch: Sequence[ReportEvent]) -> list[Reading]:
        """Readings of reports and ticks in the order of their log."""
        readings: list[Reading] = []
        for event in batch:
            readings += self._tick(event.at) if isinstance(event, TickAt) else self._report(event)
        return readings

    def snapshot(self, part: str) -> bytes:
        """The part's state; `b""` if there is none."""
        found = self._parts.get(part)
        if found is None:
            return b""
        values = {
            "clock": [found.partition, found.clock_ms, found.ticked_ms],
            "guards": found.guards.saved(),
            "versions": [[name, health.saved()] for name, health in found.versions.items()],
        }
        return pack(self.hash, values, {})

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        self.forget(part)
        values, _ = unpack(self.hash, state, {})
        try:
            partition, clock_ms, ticked_ms = values["clock"]
            found = _Part(partition)
            found.clock_ms, found.ticked_ms = clock_ms, ticked_ms
            found.guards.take_back(values["guards"])
            found.versions = {name: VersionHealth.of(saved) for name, saved in values["versions"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateRefused(f"saved health state of {part} cannot be read: {error}") from error
        self._parts[part] = found

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        self._parts.pop(part, None)

    def _report(self, event: ReportAt) -> list[Reading]:
        report = event.report
        part = self._parts.get(report.endpoint)
        if part is None:
            if len(self._parts) >= MAX_PARTS:
                return []
            part = self._parts[report.endpoint] = _Part(event.at.partition)
        part.clock_ms = max(part.clock_ms, event.at.ms)
        part.guards.expire(part.clock_ms)
        at = event.at._replace(ms=part.clock_ms)
        if not part.guards.take(ReportAt(report, event.trusted, at)):
            return []
        lines = part.guards.believed()
        if not event.trusted and lines[0].trusted:
            return []
        config = self._endpoints.get(report.endpoint)
        budget = Budget.of(config, EVENTS_PER_DAY).share(self._kind_share)
        health = part.judged(report.live_version)
        in_flight = sum(line.in_flight for line in lines)
        health.take(ReportAt(report, event.trusted, at), config, in_flight, budget.alarms_per_30_days, len(lines))
        return self._say(part, report.endpoint, report.live_version, at, trusted=event.trusted)

    def _tick(self, at: LogPoint) -> list[Reading]:
        """An endpoint whose guards have all gone: what was open is unknown now."""
        readings: list[Reading] = []
        for endpoint, part in self._parts.items():
            if part.partition != at.partition or at.ms - part.ticked_ms < 1_000 or at.ms <= part.clock_ms:
                continue
            part.clock_ms = part.ticked_ms = at.ms
            part.guards.expire(at.ms)
            if not len(part.guards) and part.versions:
                version = next(reversed(part.versions))
                readings += self._say(part, endpoint, version, at, trusted=True, reported=False)
        return readings

    def _say(
        self, part: _Part, endpoint: str, version: str, at: LogPoint, *, trusted: bool, reported: bool = True
    ) -> list[Reading]:
        health = part.versions[version]
        readings = []
        for kind in KINDS:
            alarm = health.alarms[kind]
            known = reported and alarm.known
            if part.open_elsewhere(version, kind) or not alarm.due(at.ms, self._linger_ms, known):
                continue
            severity: Severity = "critical" if alarm.critical and trusted else "warning"
            evidence = dict(alarm.evidence)
            if not trusted:
                evidence["trusted"] = False
            readings.append(
                Reading(
                    detector=self.name,
                    detector_hash=self.hash,
                    kind=kind,
                    endpoint=endpoint,
                    subject_kind="endpoint",
                    subject=endpoint,
                    score=alarm.score,
                    threshold=alarm.threshold,
                    firing=known and alarm.firing,
                    calm=known and alarm.calm,
                    severity=severity,
                    at=at,
                    first_ms=alarm.first_ms if alarm.open_since_ms is not None else at.ms,
                    version=version,
                    known=known,
                    evidence=evidence,
                )
            )
        return readings
