"""A respond role without its worker: runs are handed to it as the transport would."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from responders.signing import Keyring, SigningKey
from responders.webhook_responder import WebhookResponder
from schemas.actions import Directive, JournalEntry
from schemas.topics import SIGNALS
from schemas.wire import KIND_HEADER, Wire
from streams import journal_log, publishing
from streams.metrics import Metrics
from streams.reading import read_to_end
from streams.records import listed
from streams.respond import RespondRole
from streams.transport.ledger import Ledger
from streams.transport.run import TP, Run
from streams.transport.settings import KafkaConnection
from tests.responders.given import failing, mandate, view
from tests.streams.broker import outbox_on
from tests.transport.fakes import FakeRecord

SIGNING, OPERATOR = SigningKey.generate(), SigningKey.generate()
OURS = frozenset({TP(SIGNALS, 0)})


def run_of(topic: str, *records: tuple[Wire | bytes, bool], first: int = 0) -> Run:
    """A run of (record, signed by the operator)."""
    ledger = Ledger()
    made = []
    for offset, (record, signed) in enumerate(records, first):
        value = record if isinstance(record, bytes) else record.to_bytes()
        kind = "command" if isinstance(record, bytes) else record.KIND
        headers: list[tuple[str, Any]] = [(KIND_HEADER, kind.encode())]
        headers += OPERATOR.headers(kind, value) if signed else []
        made.append(FakeRecord(offset, value, topic, headers=headers, timestamp=now()))
    ledger.add(TP(topic, 0), made, 0.0)
    (run,) = ledger.take({TP(topic, 0)})[TP(topic, 0)]
    return run


def now() -> int:
    return int(time.time() * 1000)


def trouble(endpoint: str, first: int) -> Run:
    """Its guards report, and it fails: a fallback is due."""
    at = now()
    return run_of(SIGNALS, (view(endpoint, at), False), (failing(endpoint, at_ms=at, first_ms=at), False), first=first)


async def take_part(role: RespondRole) -> None:
    """As the transport does: told of its partition, then asked where to read from."""
    await role.join(OURS)
    await role.start_at({})


@asynccontextmanager
async def role_on(
    connection: KafkaConnection,
    *,
    fenced: bool,
    webhooks: WebhookResponder | None = None,
    read_again: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[RespondRole]:
    async with outbox_on(connection) as outbox:
        given = mandate(caps={"endpoints_share": 1.0, "endpoints_min": 5})
        operators = Keyring([OPERATOR.public_base64])
        metrics = Metrics("respond")
        yield RespondRole(
            connection,
            given,
            SIGNING,
            operators,
            lambda: outbox,
            metrics,
            webhooks=webhooks,
            fenced=fenced,
            read_again=read_again,
        )
        await outbox.flush()


def journal_on(connection: KafkaConnection) -> list[JournalEntry]:
    return [JournalEntry.from_bytes(m.value() or b"") for m in read_to_end(connection, journal_log.ACTIONS, 0)]


def directives_on(connection: KafkaConnection) -> list[Directive]:
    """Each is verified with the public key."""
    keyring, found = Keyring([SIGNING.public_base64]), []
    for message in read_to_end(connection, publishing.DIRECTIVES, 0):
        keyring.verify("directive", message.value() or b"", listed(message.headers()))
        found.append(Directive.from_bytes(message.value() or b""))
    return found
