"""A batch of inputs of the responder, decided one after the other: what one of them raises stops no other.

Deciding is pure, so an input on which it raises has changed nothing and is tried once more at once. Where the *state* of
an endpoint is what it raises on (time passes for all endpoints together), that endpoint is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from responders.decide import Clock, Input, decide
from responders.mandate import Mandate
from responders.state import RespondState
from schemas.actions import Decision
from schemas.errors import MACHINE_ERRORS
from streams.failpoints import reach
from streams.metrics import Metrics

log = logging.getLogger(__name__)


class Decided(NamedTuple):
    """The state after all inputs, what was decided, and for each input what it raised."""

    state: RespondState
    decisions: list[Decision]
    failed: list[Exception | None]


class Decider:
    """`decide` for the active process. It remembers the endpoints that are left out, until the process ends."""

    def __init__(self, mandate: Mandate, metrics: Metrics) -> None:
        self._mandate = mandate
        self._metrics = metrics
        self._without: frozenset[str] = frozenset()

    def decide(self, state: RespondState, inputs: Sequence[Input], now_ms: int) -> Decided:
        """An input that raises twice is passed over. Raises what `Clock` raises if no endpoint is to blame."""
        decisions: list[Decision] = []
        failed: list[Exception | None] = []
        for given in inputs:
            error = None
            try:
                state, decided = self._one(state, given, now_ms)
            except MACHINE_ERRORS:
                raise
            except Exception:
                log.exception("deciding failed on %s and is tried again", type(given).__name__)
                state = self._mended(state, now_ms)
                state, decided, error = self._again(state, given, now_ms)
            decisions += decided
            failed.append(error)
        return Decided(state, decisions, failed)

    def _one(self, state: RespondState, given: Input, now_ms: int) -> tuple[RespondState, list[Decision]]:
        if not isinstance(given, Clock):
            reach("deciding")
        after, decided = decide(state, given, now_ms, self._mandate, self._without)
        for decision in decided:
            decision.to_bytes()  # what cannot be written must not reach the journal of all others
        return after, decided

    def _again(
        self, state: RespondState, given: Input, now_ms: int
    ) -> tuple[RespondState, list[Decision], Exception | None]:
        try:
            return *self._one(state, given, now_ms), None
        except MACHINE_ERRORS:
            raise
        except Exception as error:
            if isinstance(given, Clock):  # no input to bury: time itself cannot be decided any more
                raise
            self._metrics.handler_failures.labels("deciding").inc()
            log.exception("deciding failed on %s, which is passed over", type(given).__name__)
            return state, [], error

    def _mended(self, state: RespondState, now_ms: int) -> RespondState:
        """Without what waits for the endpoints for which no time can pass; those for which it still cannot are left out.
        Their actions end by their own expiry, as without a responder."""
        if not self._raises(state, now_ms, self._without):
            return state
        names = {
            *state.endpoints,
            *state.seen.waiting,
            *state.seen.batch_until_ms,
            *state.seen.awaiting,
        } - self._without
        stuck = {name for name in names if self._raises(state, now_ms, self._without | (names - {name}))}
        mended = state.copy()
        for name in sorted(stuck):
            dropped = [held.pop(name, None) for held in (mended.seen.waiting, mended.seen.awaiting)]
            mended.seen.batch_until_ms.pop(name, None)
            log.error("what waits to be decided about %s is passed over: deciding raises on it (%s)", name, dropped)
        out = frozenset(name for name in stuck if self._raises(mended, now_ms, self._without | (names - {name})))
        if out:
            self._without |= out
            self._metrics.stuck_endpoints.set(len(self._without))
            log.error(
                "nothing is decided any more about %s: deciding raises on what holds there, which ends by its own expiry; "
                "restart respond once the fault is mended", ", ".join(sorted(out)),
            )  # fmt: skip
        return mended

    def _raises(self, state: RespondState, now_ms: int, without: frozenset[str]) -> bool:
        try:
            decide(state, Clock(), now_ms, self._mandate, without)
        except MACHINE_ERRORS:
            raise
        except Exception:  # noqa: BLE001  which one it is is asked
            return True
        return False
