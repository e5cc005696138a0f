"""Which state a report counts in: what nobody signed never counts for an endpoint whose services sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from detectors.base import ReportAt

MAX_PARTS = 4_096
"""Endpoints that a detector of reports keeps state of; what comes of further ones is not judged."""


class Part(Protocol):
    """State of one endpoint. `signed`: of signed reports."""

    signed: bool


AnyPart = TypeVar("AnyPart", bound=Part)


def part_after(parts: dict[str, AnyPart], event: ReportAt, new: Callable[[], AnyPart]) -> AnyPart | None:
    """The state of the report's endpoint, made by `new` if there is none; None if there is no room for it.

    The first signed report starts it anew: what unsigned ones taught or claimed before counts for nothing any more.
    """
    endpoint = event.report.endpoint
    part = parts.get(endpoint)
    if part is None and len(parts) >= MAX_PARTS:
        return None
    if part is None or (event.trusted and not part.signed):
        part = parts[endpoint] = new()
    return part
