"""From readings to signals: incidents open, update at most once a second, recover after lasting calm.

Hysteresis lives here once for all detectors: a subject that is neither firing nor calm keeps its incident open. A caller
that no detector speaks of any more counts as calm, because detectors follow a bounded number of callers. All times are
the log's, so a replay opens, updates and closes the same incidents with the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from detectors.base import Reading
from schemas.errors import StateRefused
from schemas.events import CallerAuth
from schemas.ids import stable_id
from schemas.signals import SEVERITY_ORDER, CallerShare, Signal, SignalKind, SignalState

UPDATE_EVERY_MS = 1_000
UNHEARD_MS = 60_000
"""A caller's incident recovers when nothing was read of it for `recover_for_ms` and so long beyond."""
Standing = Literal["claimed", "verified", "own"]
MAX_OPEN: dict[Standing, int] = {"claimed": 128, "verified": 256, "own": 128}
"""Open incidents of one part by whose name the subject has: a caller's, claimed or verified (350 bytes each when saved), or
one of the endpoint's own (130 bytes). Further ones open none; names that strangers make up take no place of others. As
many subjects are remembered as unknown, 36 bytes each. 175 kB in all."""
SNAPSHOT_SCHEMA = 3


@dataclass(frozen=True, slots=True)
class _Caller:
    """What the last signal of a caller's incident needs when no reading brings it."""

    detector: str
    detector_hash: str
    kind: SignalKind
    subject: str
    auth: CallerAuth | None
    threshold: float
    first_ms: int


@dataclass(frozen=True, slots=True)
class _Incident:
    incident_id: str
    seq: int
    severity: Literal["info", "warning", "critical"]
    updated_ms: int
    heard_ms: int
    calm_since_ms: int | None = None
    caller: _Caller | None = None

    def by(self, now_ms: int) -> _Incident:
        """With no time ahead of `now_ms`: the broker's clock was set back, and nothing waits for an hour that has passed."""
        calm = self.calm_since_ms
        if max(self.updated_ms, self.heard_ms, calm or 0) <= now_ms:
            return self
        return replace(
            self,
            updated_ms=min(self.updated_ms, now_ms),
            heard_ms=min(self.heard_ms, now_ms),
            calm_since_ms=None if calm is None else min(calm, now_ms),
        )


class SignalBook:
    """The open incidents of one part of one log. Bounded by `MAX_OPEN`."""

    def __init__(self, recover_for_ms: int) -> None:
        self.recover_for_ms = recover_for_ms
        # callers' incidents lie in the order in which they were last heard of
        self._open: dict[Standing, dict[str, _Incident]] = {standing: {} for standing in MAX_OPEN}
        self._unknown: dict[Standing, set[str]] = {standing: set() for standing in MAX_OPEN}

    @property
    def has_open(self) -> bool:
        return any(self._open.values())

    @property
    def _empty(self) -> bool:
        """Nothing is open, and nothing is unknown."""
        return not self.has_open and not any(self._unknown.values())

    def is_open(self, reading: Reading) -> bool:
        """Whether an incident is open on what `reading` speaks of."""
        return _key(reading) in self._open[_standing(reading)]

    def fold(self, readings: Iterable[Reading]) -> list[Signal]:
        """The signals that `readings` (of this part, in log order) give rise to."""
        signals: list[Signal] = []
        for reading in readings:
            if reading.known and not reading.firing and self._empty:
                continue  # most are such, and to name what each speaks of takes a hash
            signal = self._signal_of(reading)
            signals += [] if signal is None else [signal]
            signals += self._unheard(reading)
        return signals

    def _signal_of(self, reading: Reading) -> Signal | None:
        key, standing = _key(reading), _standing(reading)
        held = self._open[standing]
        incident = held.get(key)
        if incident is not None:
            incident = held[key] = incident.by(reading.at.ms)
        if incident is not None and incident.caller is not None:
            del held[key]
            incident = held[key] = replace(incident, heard_ms=reading.at.ms)
        if not reading.known:
            return self._unknown_of(key, standing, reading)
        self._unknown[standing].discard(key)
        if incident is None:
            return self._opened(key, standing, reading) if reading.firing else None
        if reading.firing:
            return self._updated(key, held, incident, reading)
        return self._calmer(key, held, incident, reading)

    def _unheard(self, reading: Reading) -> Iterator[Signal]:
        """Ends the incidents of callers that no detector has spoken of for long when `reading` came."""
        for held in (self._open["verified"], self._open["claimed"]):
            while held:
                key, incident = next(iter(held.items()))
                incident = held[key] = incident.by(reading.at.ms)
                if incident.caller is None or reading.at.ms - incident.heard_ms < self.recover_for_ms + UNHEARD_MS:
                    break
                del held[key]
                last = _last_reading(incident, incident.caller, reading)
                yield signal_as(last, "recovered", incident.incident_id, incident.seq + 1)

    def _unknown_of(self, key: str, standing: Standing, reading: Reading) -> Signal | None:
        unknown = self._unknown[standing]
        if key in unknown or len(unknown) >= MAX_OPEN[standing]:
            return None
        unknown.add(key)
        return signal_as(reading, "unknown", incident_id="", seq=0)

    def _opened(self, key: str, standing: Standing, reading: Reading) -> Signal | None:
        held = self._open[standing]
        if len(held) >= MAX_OPEN[standing]:
            return None
        signal = signal_as(reading, "opened", incident_id="", seq=0)
        caller = None if standing == "own" else _caller(reading)
        at_ms = reading.at.ms
        held[key] = _Incident(signal.incident_id, 0, reading.severity, at_ms, at_ms, caller=caller)
        return signal

    @staticmethod
    def _updated(key: str, held: dict[str, _Incident], incident: _Incident, reading: Reading) -> Signal | None:
        worse = SEVERITY_ORDER[reading.severity] > SEVERITY_ORDER[incident.severity]
        if not worse and reading.at.ms - incident.updated_ms < UPDATE_EVERY_MS:
            if incident.calm_since_ms is not None:
                held[key] = replace(incident, calm_since_ms=None)
            return None
        severity = reading.severity if worse else incident.severity
        held[key] = replace(
            incident, seq=incident.seq + 1, severity=severity, updated_ms=reading.at.ms, calm_since_ms=None
        )
        return signal_as(reading, "updated", incident.incident_id, incident.seq + 1)

    def _calmer(self, key: str, held: dict[str, _Incident], incident: _Incident, reading: Reading) -> Signal | None:
        if not reading.calm:
            if incident.calm_since_ms is not None:
                held[key] = replace(incident, calm_since_ms=None)
            return None
        since = incident.calm_since_ms if incident.calm_since_ms is not None else reading.at.ms
        if reading.at.ms - since < self.recover_for_ms:
            if incident.calm_since_ms is None:
                held[key] = replace(incident, calm_since_ms=since)
            return None
        del held[key]
        return signal_as(reading, "recovered", incident.incident_id, incident.seq + 1)

    def snapshot(self) -> bytes:
        """The open incidents as JSON."""
        opened = {
            standing: {key: astuple(incident) for key, incident in held.items()}
            for standing, held in self._open.items()
        }
        unknown = {standing: sorted(keys) for standing, keys in self._unknown.items()}
        saved = {"schema": SNAPSHOT_SCHEMA, "open": opened, "unknown": unknown}
        return json.dumps(saved, separators=(",", ":")).encode()

    def restore(self, state: bytes) -> None:
        """Takes back a snapshot; raises StateRefused on anything else."""
        try:
            saved = json.loads(state)
            if saved["schema"] != SNAPSHOT_SCHEMA:
                raise StateRefused(f"incidents of schema {saved['schema']}, this version reads {SNAPSHOT_SCHEMA}")
            opened: dict[Standing, dict[str, _Incident]] = {
                standing: {str(key): _incident(incident) for key, incident in saved["open"][standing].items()}
                for standing in MAX_OPEN
            }
            unknown: dict[Standing, set[str]] = {
                standing: {str(key) for key in saved["unknown"][standing]} for standing in MAX_OPEN
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StateRefused(f"incidents cannot be read: {error}") from error
        self._open, self._unknown = opened, unknown


def _incident(saved: Iterable[Any]) -> _Incident:
    """What `astuple` gave; TypeError on anything else."""
    incident = _Incident(*saved)
    return incident if incident.caller is None else replace(incident, caller=_Caller(*astuple(incident)[-1]))


def _standing(reading: Reading) -> Standing:
    if reading.subject_kind != "caller":
        return "own"
    return reading.caller_auth or "claimed"


def _caller(reading: Reading) -> _Caller:
    return _Caller(
        reading.detector,
        reading.detector_hash,
        reading.kind,
        reading.subject,
        reading.caller_auth,
        float(reading.threshold),
        reading.first_ms,
    )


def _last_reading(incident: _Incident, caller: _Caller, now: Reading) -> Reading:
    """That a caller of whom nothing is read any more is calm, at the row of `now`."""
    return Reading(
        detector=caller.detector,
        detector_hash=caller.detector_hash,
        kind=caller.kind,
        endpoint=now.endpoint,
        version=now.version,
        subject_kind="caller",
        subject=caller.subject,
        caller_auth=caller.auth,
        score=0.0,
        threshold=caller.threshold,
        firing=False,
        calm=True,
        severity=incident.severity,
        at=now.at,
        first_ms=caller.first_ms,
        evidence={"reason": "unheard", "unheard_s": round((now.at.ms - incident.heard_ms) / 1000.0, 3)},
    )


def _key(reading: Reading) -> str:
    """Names what a reading speaks of, in 32 characters however long the subject is."""
    return stable_id(reading.detector, reading.kind, reading.subject_kind, reading.caller_auth or "", reading.subject)


def signal_as(reading: Reading, state: SignalState, incident_id: str, seq: int) -> Signal:
    """`reading` as a signal of an incident; without an `incident_id` it is the first of its own.

    Its id stands for all that it says, numbers apart: what was told but not committed is told again, and a detector that
    lost its state meanwhile may have something else to say at the same row.
    """
    at = reading.at
    first_ms = reading.first_ms - (at.ms - at.told_ms)
    signal_id = stable_id(
        reading.detector_hash,
        reading.kind,
        reading.endpoint,
        reading.version or "",  # one tick closes blocks of several versions at one row
        reading.caller_auth or "",
        reading.subject,
        state,
        incident_id,
        seq,
        reading.severity,
        first_ms,
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
        first_ms=first_ms,
        at_ms=at.told_ms,
        log_topic=at.topic,
        log_partition=at.partition,
        log_offset=at.offset,
        log_row=at.row,
    )
