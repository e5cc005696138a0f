"""From readings to signals: incidents open, update at most once a second, recover after lasting calm.

Hysteresis lives here once for all detectors: a subject that is neither firing nor calm keeps its incident open. All times
are the log's, so a replay opens, updates and closes the same incidents with the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from detectors.base import Reading
from schemas.errors import StateRefused
from schemas.ids import stable_id
from schemas.signals import SEVERITY_ORDER, CallerShare, Signal, SignalState

UPDATE_EVERY_MS = 1_000
MAX_OPEN = 1_024
"""Open incidents of one part, 130 bytes each when saved; a flood of new subjects beyond it opens none. As many subjects
are remembered as unknown, 36 bytes each."""
SNAPSHOT_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class _Incident:
    incident_id: str
    seq: int
    severity: str
    updated_ms: int
    calm_since_ms: int | None = None


class SignalBook:
    """The open incidents of one part of one log. Bounded by `MAX_OPEN`."""

    def __init__(self, recover_for_ms: int) -> None:
        self.recover_for_ms = recover_for_ms
        self._open: dict[str, _Incident] = {}
        self._unknown: set[str] = set()

    @property
    def has_open(self) -> bool:
        return bool(self._open)

    def is_open(self, reading: Reading) -> bool:
        """Whether an incident is open on what `reading` speaks of."""
        return _key(reading) in self._open

    def fold(self, readings: Iterable[Reading]) -> list[Signal]:
        """The signals that `readings` (of this part, in log order) give rise to."""
        signals = (self._signal_of(reading) for reading in readings)
        return [signal for signal in signals if signal is not None]

    def _signal_of(self, reading: Reading) -> Signal | None:
        key = _key(reading)
        if not reading.known:
            return self._unknown_of(key, reading)
        self._unknown.discard(key)
        incident = self._open.get(key)
        if incident is None:
            return self._opened(key, reading) if reading.firing else None
        if reading.firing:
            return self._updated(key, incident, reading)
        return self._calmer(key, incident, reading)

    def _unknown_of(self, key: str, reading: Reading) -> Signal | None:
        if key in self._unknown or len(self._unknown) >= MAX_OPEN:
            return None
        self._unknown.add(key)
        return _signal(reading, "unknown", incident_id="", seq=0)

    def _opened(self, key: str, reading: Reading) -> Signal | None:
        if len(self._open) >= MAX_OPEN:
            return None
        signal = _signal(reading, "opened", incident_id="", seq=0)
        self._open[key] = _Incident(signal.incident_id, 0, reading.severity, reading.at.ms)
        return signal

    def _updated(self, key: str, incident: _Incident, reading: Reading) -> Signal | None:
        worse = SEVERITY_ORDER[reading.severity] > SEVERITY_ORDER[incident.severity]
        if not worse and reading.at.ms - incident.updated_ms < UPDATE_EVERY_MS:
            if incident.calm_since_ms is not None:
                self._open[key] = replace(incident, calm_since_ms=None)
            return None
        severity = reading.severity if worse else incident.severity
        self._open[key] = _Incident(incident.incident_id, incident.seq + 1, severity, reading.at.ms)
        return _signal(reading, "updated", incident.incident_id, incident.seq + 1)

    def _calmer(self, key: str, incident: _Incident, reading: Reading) -> Signal | None:
        if not reading.calm:
            if incident.calm_since_ms is not None:
                self._open[key] = replace(incident, calm_since_ms=None)
            return None
        since = incident.calm_since_ms if incident.calm_since_ms is not None else reading.at.ms
        if reading.at.ms - since < self.recover_for_ms:
            if incident.calm_since_ms is None:
                self._open[key] = replace(incident, calm_since_ms=since)
            return None
        del self._open[key]
        return _signal(reading, "recovered", incident.incident_id, incident.seq + 1)

    def snapshot(self) -> bytes:
        """The open incidents as JSON."""
        incidents = {key: astuple(incident) for key, incident in self._open.items()}
        saved = {"schema": SNAPSHOT_SCHEMA, "open": incidents, "unknown": sorted(self._unknown)}
        return json.dumps(saved, separators=(",", ":")).encode()

    def restore(self, state: bytes) -> None:
        """Takes back a snapshot; raises StateRefused on anything else."""
        try:
            saved = json.loads(state)
            if saved["schema"] != SNAPSHOT_SCHEMA:
                raise StateRefused(f"incidents of schema {saved['schema']}, this version reads {SNAPSHOT_SCHEMA}")
            opened = {str(key): _Incident(*incident) for key, incident in saved["open"].items()}
            unknown = {str(key) for key in saved["unknown"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateRefused(f"incidents cannot be read: {error}") from error
        self._open, self._unknown = opened, unknown


def _key(reading: Reading) -> str:
    """Names what a reading speaks of, in 32 characters however long the subject is."""
    return stable_id(reading.detector, reading.kind, reading.subject_kind, reading.caller_auth or "", reading.subject)


def _signal(reading: Reading, state: SignalState, incident_id: str, seq: int) -> Signal:
    at = reading.at
    signal_id = stable_id(
        reading.detector_hash,
        reading.kind,
        reading.endpoint,
        reading.subject,
        state,
        at.topic,
        at.partition,
        at.offset,
        at.row,
    )
    return Signal(
        signal_id=signal_id,
        incident_id=incident_id or signal_id,
        state=state,
        seq=seq,
        detector=reading.detector,
        detector_hash=reading.detector_hash,
        kind=reading.kind,
        endpoint=reading.endpoint,
        version=reading.version,
        subject_kind=reading.subject_kind,
        subject=reading.subject,
        caller_auth=reading.caller_auth,
        severity=reading.severity,
        score=float(reading.score),
        threshold=float(reading.threshold),
        usual_rate=reading.usual_rate,
        rate=reading.rate,
        shares=[CallerShare(caller=caller, caller_auth=auth, share=share) for caller, auth, share in reading.shares],
        evidence=reading.evidence,
        atlas=list(reading.atlas),
        first_ms=reading.first_ms,
        at_ms=at.ms,
        log_topic=at.topic,
        log_partition=at.partition,
        log_offset=at.offset,
        log_row=at.row,
    )
