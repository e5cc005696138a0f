"""Did the model get worse, now that labels are here? The share of wrong predictions of each version, in the order of labels.

A sequential test of the share against the learned one (`error_share`) says so at a stated rate; river's HDDM_A beside it is a
second opinion that learns nothing and so is not led by slow change (`hddm`). Either fires. Labels come late and out of the
predictions' order: what is judged is the stream of labels, and a shift of what becomes known early looks like drift.

From the first label of a verified source on, others count for nothing. One source, or one caller, brings at most
max(5 %, 2 / those active) of what is counted, and one prediction is counted once (`fair_share`: among the last 256); all
callers whom nobody vouched for are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from detectors.base import DAYS_30_MS, Budget, LabelledAt, Reading
from detectors.budget import SHARES
from detectors.error_share import ErrorShare
from detectors.fair_share import FairShare
from detectors.hddm import DELTA, load_hddm, new_hddm, save_hddm
from detectors.label_errors import is_wrong
from detectors.report_state import pack, unpack
from detectors.river_drift import HDDMA
from detectors.sequential import threshold
from detectors.version_health import Alarm
from detectors.vouched import MAX_PARTS
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.feedback import Labelled
from schemas.ids import stable_id
from schemas.signals import Evidence

VERSION = 1
MAX_VERSIONS = 8
"""Versions of an endpoint; the one longest without a label makes room."""
EVENTS_PER_DAY = 86_400.0
DAY_MS = 86_400_000
EXTRA_EVIDENCE = 3.0
EXIT = 0.5
"""Part of the threshold below which evidence must fall before it is calm again."""
ANYBODY = 0
"""The number of all sources, or callers, whom nobody vouched for."""
NOT_THE_MODEL = ("fallback", "refused")
_COLUMNS = {"last": np.dtype(np.uint64).str}


@dataclass(slots=True)
class _Version:
    """State of one version: 2 kB, and 6 kB of who brought the last labels."""

    first_ms: int
    errors: ErrorShare = field(default_factory=ErrorShare)
    hddm: HDDMA = field(default_factory=new_hddm)
    fair: FairShare = field(default_factory=FairShare)
    alarm: Alarm = field(default_factory=Alarm)
    counted: int = 0
    passed_over: int = 0
    not_judged: int = 0
    second: bool = False
    """HDDM_A detected, and it is not as usual again."""
    delay_days: float = 0.0
    """Mean of the last hundred or so."""


@dataclass(slots=True)
class _Part:
    """State of one endpoint. `verified`: of labels of verified sources, and others count for nothing any more."""

    verified: bool
    versions: dict[str, _Version] = field(default_factory=dict)


class ConceptDrift:
    """`concept_drift` of model versions; `Detector[LabelledAt]`. One part is one endpoint, at most 60 kB.

    `endpoints`: budgets and tolerances, no part of `hash`. Nothing is known below 300 labels of a version.
    """

    name = "concept_drift"
    log: Literal["labelled"] = "labelled"

    def __init__(self, endpoints: Mapping[str, EndpointConfig], *, linger_ms: int = 900_000) -> None:
        self._endpoints = endpoints
        self._linger_ms = linger_ms
        self.hash = stable_id(self.name, VERSION, repr(SHARES["concept_drift"]), repr(DELTA), linger_ms)
        self._parts: dict[str, _Part] = {}

    def update(self, batch: Sequence[LabelledAt]) -> list[Reading]:
        """Readings at changes, else once in ten seconds of the log's time, while an alarm is open once a second."""
        readings: list[Reading] = []
        for event in batch:
            readings += self._label(event)
        return readings

    def snapshot(self, part: str) -> bytes:
        """The part's state; `b""` if there is none."""
        found = self._parts.get(part)
        if found is None:
            return b""
        lasts = [version.fair.saved() for version in found.versions.values()]
        versions = [
            [name, len(last), _saved(version)]
            for (name, version), last in zip(found.versions.items(), lasts, strict=True)
        ]
        columns = {"last": np.concatenate(lasts) if lasts else np.zeros((0, 3), np.uint64)}
        return pack(self.hash, {"verified": found.verified, "versions": versions}, columns)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        self.forget(part)
        values, columns = unpack(self.hash, state, _COLUMNS)
        try:
            found, first = _Part(bool(values["verified"])), 0
            for name, count, saved in values["versions"]:
                found.versions[str(name)] = _version(saved, columns["last"][first : first + count])
                first += count
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise StateRefused(f"saved state of labels of {part} cannot be read: {error}") from error
        self._parts[part] = found

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        self._parts.pop(part, None)

    def _label(self, event: LabelledAt) -> list[Reading]:
        label = event.labelled
        verified = label.source_auth == "verified"
        part = self._parts.get(label.endpoint)
        if part is None and len(self._parts) >= MAX_PARTS:
            return []
        if part is None or (verified and not part.verified):
            part = self._parts[label.endpoint] = _Part(verified)
        if verified is not part.verified or label.served_by in NOT_THE_MODEL:
            return []
        version = _judged(part, label.model_version, event.at.ms)
        config = self._endpoints.get(label.endpoint)
        entry = _entry(version, event.at.ms, config)
        wrong = is_wrong(label.prediction, label.label, config.label_tolerance if config is not None else None)
        if wrong is None:
            version.not_judged += 1
        elif not version.fair.admits(*_names(label)):
            version.passed_over += 1
        else:
            _count(version, label, wrong, entry)
        return self._say(event, part, version, entry)

    def _say(self, event: LabelledAt, part: _Part, version: _Version, entry: float) -> list[Reading]:
        errors, alarm, now_ms = version.errors, version.alarm, event.at.ms
        known = errors.known
        first = errors.evidence >= entry
        firing = known and (first or version.second)
        calm = known and not firing and errors.evidence < EXIT * entry and errors.usual_again
        alarm.follow(now_ms, firing=firing, calm=calm, first_ms=now_ms)
        if not alarm.due(now_ms, self._linger_ms, known):
            return []
        reading = Reading(
            detector=self.name,
            detector_hash=self.hash,
            kind="concept_drift",
            endpoint=event.labelled.endpoint,
            subject_kind="model_version",
            subject=event.labelled.model_version,
            # the second opinion has no scale of its own: where it alone fires, it is said as just over
            score=max(errors.evidence, entry) if version.second else errors.evidence,
            threshold=entry,
            firing=firing,
            calm=calm,
            severity="warning",
            at=event.at,
            first_ms=alarm.first_ms if alarm.open_since_ms is not None else now_ms,
            version=event.labelled.model_version,
            known=known,
            evidence=_evidence(version, first=first, verified=part.verified),
        )
        return [reading]


def _judged(part: _Part, name: str, now_ms: int) -> _Version:
    found = part.versions.pop(name, None)
    if found is None:
        if len(part.versions) >= MAX_VERSIONS:
            del part.versions[next(iter(part.versions))]
        found = _Version(first_ms=now_ms)
    part.versions[name] = found
    return found


def _entry(version: _Version, now_ms: int, config: EndpointConfig | None) -> float:
    """The threshold (log): labels of 30 days, at the rate at which they have come so far (of a day at least), per alarm."""
    elapsed = max(now_ms - version.first_ms, DAY_MS)
    budget = Budget.of(config, EVENTS_PER_DAY).share(SHARES["concept_drift"])
    return threshold((version.counted + 1) * DAYS_30_MS / elapsed, budget.alarms_per_30_days)


def _count(version: _Version, label: Labelled, wrong: bool, entry: float) -> None:
    errors = version.errors
    version.counted += 1
    delay = min(max(label.delay_ms / DAY_MS, 0.0), 36_500.0)
    version.delay_days += (delay - version.delay_days) / min(version.counted, 100)
    errors.test(wrong, entry + EXTRA_EVIDENCE)
    version.hddm.update(wrong)  # type: ignore[no-untyped-call]
    if version.hddm.drift_detected and errors.known and errors.recent_share > errors.base:
        version.second = True
    elif version.second and errors.usual_again:
        version.second = False
    if version.second or errors.evidence >= entry or version.alarm.firing:
        errors.distrust()
    elif version.alarm.open_since_ms is None or version.alarm.calm:
        errors.learn(wrong)


def _names(label: Labelled) -> tuple[int, int, int]:
    """Source, caller and prediction as numbers; all of whom nobody vouched for have the same."""
    source = _number(label.source) if label.source_auth == "verified" else ANYBODY
    caller = _number(label.caller) if label.caller_auth == "verified" else ANYBODY
    return source, caller, _number(f"{label.prediction_topic}/{label.prediction_offset}/{label.prediction_row}")


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def _evidence(version: _Version, *, first: bool, verified: bool) -> Evidence:
    errors = version.errors
    reasons = [name for name, says in (("sequential_test", first), ("hddm_a", version.second)) if says]
    found: Evidence = {
        "wrong_share": round(errors.recent_share, 4),
        "usual_share": round(errors.share, 4),
        "labels": version.counted,
        "passed_over": version.passed_over,
        "not_judged": version.not_judged,
        "delay_days": round(version.delay_days, 2),
        "reason": "+".join(reasons) or ("quiet" if errors.known else "too_few_labels"),
    }
    if not errors.known and version.not_judged > version.counted:
        found["reason"] = "labels_cannot_be_judged"
    return found if verified else found | {"trusted": False}


def _saved(version: _Version) -> dict[str, Any]:
    alarm = version.alarm
    return {
        "first_ms": version.first_ms,
        "errors": version.errors.saved(),
        "hddm": save_hddm(version.hddm),
        "counts": [version.counted, version.passed_over, version.not_judged],
        "second": version.second,
        "delay": version.delay_days,
        "alarm": [alarm.firing, alarm.calm, alarm.open_since_ms, alarm.calm_since_ms, alarm.first_ms,
                  alarm.said_ms, alarm.said],
    }  # fmt: skip


def _version(saved: Mapping[str, Any], last: Any) -> _Version:
    firing, calm, open_since, calm_since, first, said_ms, said = saved["alarm"]
    alarm = Alarm(firing=firing, calm=calm, open_since_ms=open_since, calm_since_ms=calm_since, first_ms=first,
                  said_ms=said_ms, said=said)  # fmt: skip
    counted, passed_over, not_judged = (int(count) for count in saved["counts"])
    return _Version(
        int(saved["first_ms"]), ErrorShare.of(saved["errors"]), load_hddm(saved["hddm"]), FairShare(last), alarm,
        counted, passed_over, not_judged, bool(saved["second"]), float(saved["delay"]),
    )  # fmt: skip
