"""The schema of a topic of runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import faust
from faust.types import AppT, EventT, Message


class RunSchema(faust.Schema[Any, Any]):
    """Passes the Run through as the event's value."""

    def compile(self, app: AppT, **_: Any) -> Callable[..., Awaitable[EventT[Any]]]:
        create_event = app.create_event

        async def decode(message: Message, **_: Any) -> EventT[Any]:
            return create_event(None, message.value, None, message)

        return decode
