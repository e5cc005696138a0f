"""Helpers for tests with a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from confluent_kafka import Producer

from streams.transport.outbox import Outbox
from streams.transport.settings import KafkaConnection, kafka_settings

Result = TypeVar("Result")
Headers = Sequence[tuple[str, bytes]]


def produce(
    connection: KafkaConnection, topic: str, *records: tuple[bytes | None, bytes | None, Headers], partition: int = 0
) -> None:
    """Writes (key, value, headers) and waits until all are confirmed."""
    once = {"enable.idempotence": False}  # else librdkafka waits half a second for the id of each new producer
    producer = Producer(kafka_settings(connection, "producer") | once)
    for key, value, headers in records:
        producer.produce(topic, value, key, partition=partition, headers=list(headers))
    assert producer.flush(20) == 0


@asynccontextmanager
async def outbox_on(connection: KafkaConnection) -> AsyncIterator[Outbox]:
    outbox = Outbox(kafka_settings(connection, "producer"))
    outbox.start()
    try:
        yield outbox
    finally:
        await outbox.close()


def with_outbox(connection: KafkaConnection, job: Callable[[Outbox], Awaitable[Result]]) -> Result:
    """Runs a coroutine that sends."""

    async def run() -> Result:
        async with outbox_on(connection) as outbox:
            return await job(outbox)

    return asyncio.run(run())
