"""The service's own id of a request: what labels, which come weeks later, find their prediction by."""

from __future__ import annotations

from contextvars import ContextVar

from palisade_client._wire import clean_id

_var: ContextVar[str] = ContextVar("palisade_request_id", default="")


def name_request(request_id: str) -> None:
    """The next guarded call of this thread or task is of this request.

    The id must be the service's own and unique within the endpoint, never one that a caller can choose: an id of two
    predictions labels neither. Without one, a prediction has an id that nobody knows, and cannot be labelled.
    """
    _var.set(clean_id(request_id))


def take_request_id() -> str:
    """The id that `name_request` gave, once: no later call of this thread has it too. "" if there is none."""
    found = _var.get()
    if found:
        _var.set("")
    return found
