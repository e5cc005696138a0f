"""Caller limits as token buckets, one for each caller that a directive names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from palisade_client._caller import CallerAuth

REFUSED_EVENT_S = 1.0
"""At most one event a second tells of a caller's refused calls; the rest is counted in reports."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `rate_per_s` answers a second of this process until `until` (monotonic seconds)."""

    rate_per_s: float
    until: float
    action_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not admitted: seconds to wait, and whether this refusal is the one in a second to be emitted."""

    retry_after: float
    emit: bool


class _Bucket:
    __slots__ = ("at", "event_at", "rate", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.at = now
        self.tokens = 1.0  # not a second's worth: a flood is met at its first excess call
        self.event_at = now - REFUSED_EVENT_S

    def settle(self, now: float) -> None:
        """Earns what `rate` gave since it was last settled; holds a second's worth, and one call at least."""
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.at) * self.rate)
        self.at = now


class Limiter:
    """Thread-safe. At most two buckets (verified, claimed) for each limit in force.

    A caller's verified and claimed calls draw on buckets of their own, so that an impostor cannot use up the share of
    the caller whose name is claimed.
    """

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, CallerAuth], _Bucket] = {}
        self._lock = Lock()

    def follow(self, limits: Mapping[str, Limit], now: float) -> None:
        """From `now` on these rates hold. Each bucket earns by the rate it had until then, so that a share that moves
        from process to process is earned in one of them at a time; those of callers no longer limited are forgotten.
        """
        with self._lock:
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if key[0] in limits}
            for (caller, _), bucket in self._buckets.items():
                bucket.settle(now)
                bucket.rate = limits[caller].rate_per_s

    def admit(self, limit: Limit, caller: str, auth: CallerAuth, now: float) -> Refusal | None:
        """None if the call may pass, which takes a token; else the refusal."""
        with self._lock:
            bucket = self._buckets.get((caller, auth))
            if bucket is None:
                bucket = self._buckets[caller, auth] = _Bucket(limit.rate_per_s, now)
            bucket.settle(now)
            rate = bucket.rate
            if bucket.tokens >= 1.0 and rate > 0:
                bucket.tokens -= 1.0
                return None
            left = limit.until - now
            wait = min(left, (1.0 - bucket.tokens) / rate) if rate > 0 else left
            emit = now - bucket.event_at >= REFUSED_EVENT_S
            if emit:
                bucket.event_at = now
            return Refusal(wait, emit)
