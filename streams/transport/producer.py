# ruff: noqa: ARG002 - the signatures are Faust's
"""The Faust producer: an Outbox behind Faust's interface. Roles use the Outbox itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, NoReturn

from faust.exceptions import ImproperlyConfigured
from faust.transport import base
from faust.types import TP as FaustTP
from faust.types import RecordMetadata
from faust.types.core import HeadersArg

from streams.transport.outbox import Confirmed, Outbox
from streams.transport.settings import Setting

FLUSH_S = 5.0


class Producer(base.Producer):
    """`settings` is set on a subclass by `install`."""

    settings: ClassVar[Mapping[str, Setting]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox = Outbox(self.settings)

    async def on_start(self) -> None:
        self.outbox.start()
        await super().on_start()

    async def on_stop(self) -> None:
        await self.outbox.close()

    async def flush(self) -> None:
        """Waits for what is on its way, for `FLUSH_S` at most. Faust asks for it in each rebalance, also in one that follows
        from the broker being away; no run depends on it, for a run is done when its own outcomes are confirmed."""
        await self.buffer.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self.outbox.flush()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Queue a record. timestamp: seconds since epoch, as Faust has it."""
        at = None if timestamp is None else int(timestamp * 1000)
        return _metadata(self.outbox.send(topic, key, value, headers or (), partition, at))

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        return await (await self.send(*args, **kwargs))

    def supports_headers(self) -> bool:
        return True

    def key_partition(self, topic: str, key: bytes) -> FaustTP:
        raise ImproperlyConfigured("librdkafka chooses the partition: murmur2_random")

    async def create_topic(self, *_: Any, **__: Any) -> NoReturn:
        raise ImproperlyConfigured("topics are made by the admin command")


async def _metadata(confirmed: Awaitable[Confirmed]) -> RecordMetadata:
    topic, partition, offset, timestamp = await confirmed
    return RecordMetadata(topic, partition, FaustTP(topic, partition), offset, timestamp / 1000, 0)
