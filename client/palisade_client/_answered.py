"""Who answered the guarded call that ended last here, for services that tell their callers or their logs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal, NamedTuple

Why = Literal["", "directive", "timeout", "error"]


class Answered(NamedTuple):
    """`served_by`: primary, probe or fallback. `why` the fallback answered: told to, or the model was late or failed."""

    served_by: str
    why: Why = ""


_var: ContextVar[Answered | None] = ContextVar("palisade_answered", default=None)


def note_answer(route: str, status: str) -> None:
    """The call of this context ended; `status` is that of the prediction: ok, error or timeout."""
    why: Why = ""
    if route == "fallback":
        why = "directive" if status == "ok" else "timeout" if status == "timeout" else "error"
    _var.set(Answered(route, why))


def last_answer() -> Answered | None:
    """How the guarded call that this thread or task made last was answered; None before the first answer."""
    return _var.get()
