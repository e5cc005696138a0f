"""The fallback of a Guard, and whether it can be relied upon right now."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

from palisade_client._clock import Clock
from palisade_client._log import log_fault

GOOD_FOR_S = 10.0
"""A fallback that answered is tried again after this long without a call."""
RETRY_S = 1.0
"""One that failed is tried again after this long; one that hangs longer than this is not ok."""

NO_ANSWER: Any = object()


class Fallback:
    """A value, a function of the features, or a model with `predict`; asynchronous ones are refused (TypeError).

    `ok`: a value always is. A function or model is ok while its last call answered; it is tried with the features of
    the last call, at the first call and then every 10 s (every second after a failure), in a thread of its own, so it
    must be free of side effects and is called without `timeout_s`. `trace`: log its exceptions with their text, which may
    hold features.
    """

    def __init__(self, source: Any, clock: Clock, *, trace: bool = True) -> None:
        self._trace = trace
        self._function = _function(source)
        self._value = source
        self._clock = clock
        self._lock = threading.Lock()
        self._checking_since: float | None = None
        self._due = float("-inf")
        self._answered = self._function is None
        self.exists = source is not None
        self.last_features: Any = NO_ANSWER
        self.wants_features = self._function is not None

    @property
    def ok(self) -> bool:
        return self.exists and self._answered

    def answer(self, features: Any) -> Any:
        """The fallback's answer, or NO_ANSWER if it raised."""
        if self._function is None:
            return self._value if self.exists else NO_ANSWER
        try:
            value = self._function(features)
        except Exception:  # noqa: BLE001 - a failing fallback is a state that is reported, not a fault of the call
            log_fault("the fallback failed", trace=self._trace)
            value = NO_ANSWER
        self._note(value is not NO_ANSWER)
        return value

    def check(self, *, in_thread: bool) -> None:
        """Tries the fallback if that is due; never waits for it when `in_thread`."""
        now = self._clock.monotonic()
        if not self.wants_features or self.last_features is NO_ANSWER:
            return
        with self._lock:
            since = self._checking_since
            if since is not None:
                self._answered = self._answered and now - since < RETRY_S
                return
            if now < self._due:
                return
            self._checking_since = now
        if not in_thread:
            self._try()
            return
        try:
            threading.Thread(target=self._try, name="palisade-fallback-check", daemon=True).start()
        except RuntimeError:  # the process may start no more threads: known to work is what calls show
            log_fault("the fallback could not be tried")
            self._checking_since, self._due = None, now + RETRY_S

    def _try(self) -> None:
        self.answer(self.last_features)
        with self._lock:
            self._checking_since = None

    def _note(self, answered: bool) -> None:
        self._answered = answered
        self._due = self._clock.monotonic() + (GOOD_FOR_S if answered else RETRY_S)


def _function(source: Any) -> Callable[[Any], Any] | None:
    predict = getattr(source, "predict", None)
    function = predict if callable(predict) else source if callable(source) else None
    if inspect.iscoroutinefunction(function):
        raise TypeError("a fallback must not be async: it has to answer while everything else hangs")
    return function
