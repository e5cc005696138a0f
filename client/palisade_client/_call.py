"""One guarded call, from its admission to its one end."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from palisade_client._answered import note_answer
from palisade_client._caller import CallerAuth
from palisade_client._counts import CallerKey, Failure, Route
from palisade_client._fallback import NO_ANSWER
from palisade_client._live import Live
from palisade_client._request_id import take_request_id


class Call:
    """One guarded call from admission to its end, which is counted exactly once."""

    __slots__ = ("_attempt", "_begun", "_request_id", "_taken", "_ts", "features", "key", "live", "route")

    def __init__(self, live: Live, features: Any, caller: str, auth: CallerAuth) -> None:
        self.live, self.features = live, features
        self.key: CallerKey = (live.known_as(caller), auth)
        self._ts = live.clock.wall_ms()
        self._request_id = take_request_id()  # also of a call that is refused
        self.route: Route = live.admit(self.key, features)
        self._taken = live.take(features)  # now: the model may change them
        self._begun = self._attempt = perf_counter()

    def divert(self) -> Any:
        """Ends a call that a directive routes to the fallback; NO_ANSWER, and the primary is next, if it fails."""
        value = self.fall_back("ok")
        if value is NO_ANSWER:
            self.route = "primary"
            self.attempt()
        return value

    def attempt(self) -> None:
        """The clock of the route starts anew: an earlier attempt failed."""
        self._attempt = perf_counter()

    def answer(self, value: Any, route: Route | None = None, status: str = "ok") -> Any:
        """Ends the call with `value`, answered by `route` (default: the one it was admitted to)."""
        route = route or self.route
        if route == "probe":
            self.live.end_probe()
        now = perf_counter()
        self.live.counts.answer(self.key, route, (now - self._attempt) * 1000)
        self._emit(value, route, status, now)
        note_answer(route, status)
        return value

    def fall_back(self, status: str) -> Any:
        """Ends the call with the fallback's answer; NO_ANSWER, and the call goes on, if there is none."""
        fallback = self.live.fallback
        if not fallback.exists:
            return NO_ANSWER
        self.attempt()
        value = fallback.answer(self.features)
        if value is NO_ANSWER:
            self.live.failed("fallback", "error")
            return NO_ANSWER
        return self.answer(value, "fallback", status)

    def recover(self, failure: Failure, error: Exception) -> Any:
        """The route failed: the fallback's answer, else `error` is raised."""
        self.live.failed(self.route, failure)
        if self.route == "probe":
            self.live.end_probe()
        value = self.fall_back(failure)
        if value is not NO_ANSWER:
            return value
        self.live.counts.answer(self.key, None, 0.0)
        self._emit(None, self.route, failure, perf_counter())
        raise error

    def give_up(self) -> None:
        """Ends the call without an answer and without blame: cancelled, or an error of the client's own making."""
        if self.route == "probe":
            self.live.end_probe()
        self.live.counts.answer(self.key, None, 0.0)

    def _emit(self, value: Any, route: Route, status: str, now: float) -> None:
        if self._taken is not None:
            latency_ms = (now - self._begun) * 1000
            self.live.emit(
                self.key,
                self._taken,
                value,
                served_by=route,
                status=status,
                ts=self._ts,
                latency_ms=latency_ms,
                request_id=self._request_id,
            )
