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
from functools import partial
from typing import Literal

from detectors.base import Budget, LogPoint, Reading, ReportAt, ReportEvent, TickAt
from detectors.budget import SHARES
from detectors.guards import GUARD_COLUMNS, MAX_GUARDS, MAX_UNSIGNED_GUARDS, LiveGuards
from detectors.report_state import pack, unpack
from detectors.version_health import VersionHealth
from detectors.vouched import part_after
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.ids import stable_id
from schemas.signals import Severity, SignalKind

VERSION = 2
MAX_VERSIONS = 8
EVENTS_PER_DAY = 86_400.0
KINDS: tuple[SignalKind, ...] = ("errors", "timeouts", "latency")


class _Part:
    """State of one endpoint. `signed`: of signed reports, and unsigned ones count for nothing any more."""

    def __init__(self, partition: int, signed: bool) -> None:
        self.partition = partition
        self.signed = signed
        self.clock_ms = 0
        self.ticked_ms = 0
        self.guards = LiveGuards(MAX_GUARDS if signed else MAX_UNSIGNED_GUARDS)
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
        return any(
            name != version and self.guards.serves(name) and health.alarms[kind].open_since_ms is not None
            for name, health in self.versions.items()
        )


class Health:
    """Errors, timeouts and latency. One part is one endpoint, at most 90 kB.

    `endpoints`: budgets and bounds, no part of `hash`. Each kind gets `kind_share` of the endpoint's budget. Unsigned reports
    are judged only until the endpoint's first signed one, which starts anew, and are never `critical`.
    """

    name = "health"
    log: Literal["predictions", "reports"] = "reports"

    def __init__(
        self, endpoints: Mapping[str, EndpointConfig], *, kind_share: float = SHARES["errors"], linger_ms: int = 900_000
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
        guards, columns = found.guards.saved(GUARD_COLUMNS)
        values = {
            "signed": found.signed,
            "clock": [found.partition, found.clock_ms, found.ticked_ms],
            "guards": guards,
            "versions": [[name, health.saved()] for name, health in found.versions.items()],
        }
        return pack(self.hash, values, columns)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        self.forget(part)
        values, columns = unpack(self.hash, state, GUARD_COLUMNS)
        try:
            partition, clock_ms, ticked_ms = values["clock"]
            found = _Part(partition, bool(values["signed"]))
            found.clock_ms, found.ticked_ms = clock_ms, ticked_ms
            found.guards.take_back(values["guards"], columns)
            found.versions = {name: VersionHealth.of(saved) for name, saved in values["versions"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateRefused(f"saved health state of {part} cannot be read: {error}") from error
        self._parts[part] = found

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        self._parts.pop(part, None)

    def _report(self, event: ReportAt) -> list[Reading]:
        report = event.report
        part = part_after(self._parts, event, partial(_Part, event.at.partition, event.trusted))
        if part is None or event.trusted is not part.signed:
            return []
        part.clock_ms = max(part.clock_ms, event.at.ms)
        part.guards.expire(part.clock_ms)
        at = event.at._replace(ms=part.clock_ms)
        if part.guards.take(ReportAt(report, event.trusted, at)) is None:
            return []
        config = self._endpoints.get(report.endpoint)
        budget = Budget.of(config, EVENTS_PER_DAY).share(self._kind_share)
        health = part.judged(report.live_version)
        guards = part.guards
        health.take(
            ReportAt(report, event.trusted, at), config, guards.in_flight, budget.alarms_per_30_days, len(guards)
        )
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
                readings += self._say(part, endpoint, version, at, trusted=part.signed, reported=False)
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
