"""Who is calling, handed from the middleware to the Guard through a context variable."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal, NamedTuple

CallerAuth = Literal["verified", "claimed"]


class Caller(NamedTuple):
    """A caller's id, and whether the serving tier authenticated it (`verified`) or it is only said (`claimed`)."""

    id: str
    auth: CallerAuth = "claimed"


ANONYMOUS = Caller("anonymous")
caller_var: ContextVar[Caller] = ContextVar("palisade_caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """The caller of the request being served; `anonymous`, claimed, outside the middleware."""
    return caller_var.get()
