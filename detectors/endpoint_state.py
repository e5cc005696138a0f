"""What respond must know of an endpoint, from reports: live guards, what they apply, who is active, who still knocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from detectors.base import LogPoint, ReportAt, ReportEvent, TickAt
from detectors.caller_rates import auth_in
from detectors.caller_table import caller_key
from detectors.guards import (
    GUARD_COLUMNS,
    MAX_ASKED,
    MAX_GUARDS,
    MAX_UNSIGNED_GUARDS,
    LiveGuards,
    calls_of,
    interval_of,
    window_count,
)
from detectors.report_state import pack, unpack
from detectors.vouched import part_after
from schemas.config import EndpointConfig
from schemas.errors import StateRefused
from schemas.events import CallerAuth
from schemas.ids import stable_id
from schemas.signals import MAX_GUARD_SHARES, EndpointState, KnockingCaller

VERSION = 3
ACTIVE_MS = 60_000
MAX_ACTIVE = 1_024
"""Callers counted as active; beyond, the guards' own estimate of distinct callers counts (21 bytes each)."""
MAX_KNOCKING = 256
"""Refused callers followed, of which the heaviest 100 are said."""
KNOCKING_MS = 3_000
LIVELY_MS = 10_000
"""How long after the last sign of an action a state is still given each second."""
FALLBACK_ANEW_MS = 30_000
"""Fallback answers after so long without any: what went well before says nothing of the fault that begins."""
SAY_EVERY_MS, SAY_QUIET_EVERY_MS = 1_000, 8_000
MAX_SAID = 100
EVEN_SHARE = 0.2
"""So much of a limit is split evenly: a caller who moves to a quiet guard finds something there until the next split."""
_SHARE_GRAIN = 10_000
"""Shares are rounded down to 1/10,000, so that they never sum to more than 1."""

_COLUMNS = {**GUARD_COLUMNS, "active_key": "<u8", "active_ms": "<i8", "active_count": "<f4", "active_verified": "|u1"}
_Facts = tuple[int, int, bool, bool, str]


class _Part:
    """State of one endpoint. `signed`: of signed reports, and unsigned ones count for nothing any more."""

    def __init__(self, partition: int, signed: bool) -> None:
        self.partition = partition
        self.signed = signed
        self.clock_ms = 0
        self.first_ms = 0
        self.guards = LiveGuards(MAX_GUARDS if signed else MAX_UNSIGNED_GUARDS, named=True)
        self.active: dict[int, tuple[int, float, bool]] = {}
        """By caller key: when last seen, count of the last minute, verified."""
        self.knocking: dict[tuple[str, CallerAuth], tuple[int, float]] = {}
        """By caller: when last refused, count of the last second."""
        self.distinct = 0
        self.good_probes = 0
        self.fallback_ms = 0
        self.live_version = "default"
        self.lively_ms = 0
        self.said_ms = 0
        self.said: _Facts | None = None

    def take(self, event: ReportAt) -> None:
        """Counts a report, once."""
        report, now_ms = event.report, event.at.ms
        self.first_ms = self.first_ms or now_ms
        counted = self.guards.take(event)
        if counted is None:
            return
        self.live_version = report.live_version
        self.distinct = report.distinct_callers
        tried = [one for one in report.routes if one.route != "fallback" and one.version == report.live_version]
        failed = any(route.errors or route.timeouts for route in tried)
        if any(one.route == "fallback" and one.served for one in report.routes):
            failed = failed or now_ms - self.fallback_ms > FALLBACK_ANEW_MS
            self.fallback_ms = now_ms
        self.good_probes = 0 if failed else min(self.good_probes + sum(map(calls_of, tried)), 1_000_000)
        if report.refused or any(one.route != "primary" and calls_of(one) for one in report.routes):
            self.lively_ms = now_ms
        interval_ms, pressed = interval_of(report), 0
        for caller in report.callers:
            auth = auth_in(event, caller.caller_auth)
            if caller.asked:
                self._see(caller_key(caller.caller, auth), caller.asked, auth, now_ms)
            name = (caller.caller, auth)
            if caller.refused:
                before_ms, count = self.knocking.pop(name, (0, 0.0))
                faded = count * max(0.0, 1.0 - (now_ms - before_ms) / 1000.0)
                self.knocking[name] = (now_ms, window_count(caller.asked, max(interval_ms, 1_000), 0.0) + faded)
            if name in self.knocking:
                pressed += caller.asked
        self.guards.press(counted.key, pressed, interval_ms)
        self._bound(now_ms)

    def _see(self, key: int, asked: int, auth: CallerAuth, now_ms: int) -> None:
        before_ms, count, _ = self.active.pop(key, (now_ms, 0.0, False))
        left = max(0.0, 1.0 - (now_ms - before_ms) / ACTIVE_MS)
        # kept as the 32 bits that a snapshot holds
        self.active[key] = (now_ms, float(np.float32(count * left + min(asked, MAX_ASKED))), auth == "verified")

    def _bound(self, now_ms: int) -> None:
        """Both dictionaries are in the order of the last sight: what is old or too much is at the front."""
        while (self.active and self._oldest_ms(self.active) < now_ms - ACTIVE_MS) or len(self.active) > MAX_ACTIVE:
            del self.active[next(iter(self.active))]
        while (self.knocking and self._oldest_ms(self.knocking) < now_ms - KNOCKING_MS) or len(
            self.knocking
        ) > MAX_KNOCKING:
            del self.knocking[next(iter(self.knocking))]

    @staticmethod
    def _oldest_ms(seen: Mapping[Any, tuple[Any, ...]]) -> int:
        return int(next(iter(seen.values()))[0])

    def shares(self) -> dict[str, float]:
        """How much of a limit each live guard is to admit: by what it was asked by limited callers, else by all."""
        lines, pressed = list(self.guards), self.guards.pressed
        total = pressed or self.guards.asked
        weights = [line.pressed if pressed else line.asked for line in lines]
        if total == 0.0:
            weights, total = [1.0] * len(lines), float(len(self.guards))
        split = {
            line.guard: EVEN_SHARE / len(self.guards) + (1.0 - EVEN_SHARE) * weight / total
            for line, weight in zip(lines, weights, strict=True)
        }
        most = sorted(split.items(), key=lambda item: (-item[1], item[0]))[:MAX_GUARD_SHARES]
        return {guard: math.floor(share * _SHARE_GRAIN) / _SHARE_GRAIN for guard, share in most}

    def facts(self) -> _Facts:
        """What respond is told of at once when it changes."""
        guards = self.guards
        return len(guards), guards.epoch, guards.fallback_ok, guards.killed, self.live_version

    def state(self, endpoint: str, at: LogPoint, facts: _Facts) -> EndpointState:
        """The endpoint at `at`."""
        self._bound(at.ms)
        guards, epoch, fallback_ok, killed, live_version = facts
        verified = [count for _, count, is_verified in self.active.values() if is_verified]
        counts = verified or [count for _, count, _ in self.active.values()]
        full = len(self.active) >= MAX_ACTIVE
        # counts fade by 1/60 a second: this is what one ask a second adds up to
        seconds = ACTIVE_MS / 1000.0 * (1.0 - math.exp(-max(at.ms - self.first_ms, 1_000) / ACTIVE_MS))
        loudest = sorted(self.knocking.items(), key=lambda item: (-item[1][1], item[0]))[:MAX_SAID]
        return EndpointState(
            endpoint=endpoint,
            at_ms=at.told_ms,
            guards_live=guards,
            epoch_applied=epoch,
            fallback_ok=fallback_ok,
            killed=killed,
            live_version=live_version,
            asked_per_s=self.guards.asked,
            active_callers=max(len(counts), self.distinct if full else 0),
            median_caller_rate=float(np.median(counts)) / seconds if counts else 0.0,
            good_probes=self.good_probes,
            knocking=[
                KnockingCaller(caller=caller, caller_auth=auth, asked_per_s=count)
                for (caller, auth), (_, count) in loudest
            ],
            guard_shares=self.shares(),
            log_partition=at.partition,
            log_offset=at.offset,
        )


class EndpointStates:
    """Endpoint states from reports and ticks. One part is one endpoint, at most 256 kB.

    A state is given each second while something is under action or watched, else on change of live guards, epoch,
    `fallback_ok`, `killed` or live version, and every 8 s. From an endpoint's first signed
    report on, unsigned ones count for nothing here, nor does what they said before.
    """

    name = "endpoint_state"

    def __init__(self, endpoints: Mapping[str, EndpointConfig]) -> None:
        self._endpoints = endpoints
        self._parts: dict[str, _Part] = {}
        self._watched: set[str] = set()
        self.hash = stable_id(self.name, VERSION)

    def watch(self, endpoint: str, on: bool) -> None:
        """An endpoint has an open incident, or no longer."""
        if on:
            self._watched.add(endpoint)
        else:
            self._watched.discard(endpoint)

    def update(self, batch: Sequence[ReportEvent]) -> list[EndpointState]:
        """States that `batch` (in log order) gives rise to."""
        states: list[EndpointState] = []
        for event in batch:
            if isinstance(event, TickAt):
                states += self._tick(event.at)
                continue
            endpoint = event.report.endpoint
            part = part_after(self._parts, event, partial(_Part, event.at.partition, event.trusted))
            if part is None or event.trusted is not part.signed:
                continue
            part.clock_ms = max(part.clock_ms, event.at.ms)
            at = event.at._replace(ms=part.clock_ms)
            part.guards.expire(at.ms)
            part.take(ReportAt(event.report, event.trusted, at))
            states += self._say(endpoint, part, at)
        return states

    def signed(self, part: str) -> bool:
        """Whether an endpoint has had a signed report, so that unsigned ones count for nothing."""
        found = self._parts.get(part)
        return found is not None and found.signed

    def snapshot(self, part: str) -> bytes:
        """The part's state; `b""` if there is none. What is watched is not part of it."""
        found = self._parts.get(part)
        if found is None:
            return b""
        guards, guard_columns = found.guards.saved(GUARD_COLUMNS)
        values = {
            "signed": found.signed,
            "times": [
                found.partition,
                found.clock_ms,
                found.first_ms,
                found.lively_ms,
                found.said_ms,
                found.fallback_ms,
            ],
            "counts": [found.distinct, found.good_probes],
            "live_version": found.live_version,
            "said": found.said,
            "guards": guards,
            "knocking": [[*name, *value] for name, value in found.knocking.items()],
        }
        active = list(found.active.values())
        columns = guard_columns | {
            "active_key": np.array(list(found.active), "<u8"),
            "active_ms": np.array([ms for ms, _, _ in active], "<i8"),
            "active_count": np.array([count for _, count, _ in active], "<f4"),
            "active_verified": np.array([verified for _, _, verified in active], "|u1"),
        }
        return pack(self.hash, values, columns)

    def restore(self, part: str, state: bytes) -> None:
        """Takes back what `snapshot` gave; raises StateRefused on anything else, leaving the part cold."""
        self.forget(part)
        values, columns = unpack(self.hash, state, _COLUMNS)
        try:
            self._parts[part] = _restored(values, columns)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateRefused(f"saved endpoint state of {part} cannot be read: {error}") from error

    def forget(self, part: str) -> None:
        """Drops the part's state."""
        self._parts.pop(part, None)

    def _tick(self, at: LogPoint) -> list[EndpointState]:
        states: list[EndpointState] = []
        for endpoint, part in self._parts.items():
            if part.partition == at.partition and at.ms > part.clock_ms:
                part.clock_ms = at.ms
                part.guards.expire(at.ms)
                states += self._say(endpoint, part, at)
        return states

    def _say(self, endpoint: str, part: _Part, at: LogPoint) -> list[EndpointState]:
        facts = part.facts()
        if part.said is not None and facts[1] != part.said[1]:
            part.lively_ms = at.ms
        lively = endpoint in self._watched or at.ms - part.lively_ms < LIVELY_MS
        pace = SAY_EVERY_MS if lively else SAY_QUIET_EVERY_MS
        if facts == part.said and at.ms - part.said_ms < pace:
            return []
        part.said, part.said_ms = facts, at.ms
        return [part.state(endpoint, at, facts)]


def _restored(values: Mapping[str, Any], columns: Mapping[str, Any]) -> _Part:
    partition, *times = values["times"]
    part = _Part(partition, bool(values["signed"]))
    part.clock_ms, part.first_ms, part.lively_ms, part.said_ms, part.fallback_ms = times
    part.distinct, part.good_probes = values["counts"]
    part.live_version = values["live_version"]
    part.guards.take_back(values["guards"], columns)
    said = values["said"]
    part.said = None if said is None else (said[0], said[1], said[2], said[3], said[4])
    part.knocking = {(caller, auth): (ms, count) for caller, auth, ms, count in values["knocking"]}
    seen = zip(columns["active_ms"], columns["active_count"], columns["active_verified"], strict=True)
    rows = [(int(ms), float(count), bool(verified)) for ms, count, verified in seen]
    part.active = dict(zip((int(key) for key in columns["active_key"]), rows, strict=True))
    return part
