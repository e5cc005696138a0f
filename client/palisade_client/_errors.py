"""What a guarded call may raise besides the model's own exceptions."""

from __future__ import annotations


class PalisadeError(Exception):
    """Base of the exceptions of this package."""


class CallerLimited(PalisadeError):
    """The caller is over the limit that a directive set. `retry_after`: seconds until a call can be admitted."""

    def __init__(self, caller: str, retry_after: float, action_id: str = "") -> None:
        super().__init__(caller, retry_after)
        self.caller = caller
        self.retry_after = retry_after
        self.action_id = action_id

    def __str__(self) -> str:
        return f"caller {self.caller} is limited, retry after {self.retry_after:.3f} s"


class PredictTimeout(PalisadeError):
    """The model did not answer within `timeout_s`, or all `max_inflight` places were taken; and no fallback answered."""

    def __init__(self, endpoint: str, timeout_s: float | None, *, pool_full: bool = False) -> None:
        why = "every place of the pool is taken" if pool_full else f"no answer within {timeout_s} s"
        super().__init__(f"{endpoint}: {why}")
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.pool_full = pool_full
