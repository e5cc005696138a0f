"""What follows from the responder's journal: directives, webhooks, words for people, the saved state."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from confluent_kafka import KafkaException

from responders.alerts import alert_for
from responders.decide import Delivered, Input
from responders.directives import directive_for, due, mark_failed, mark_sent
from responders.signing import SigningKey
from responders.state import RespondState, to_bytes
from responders.webhook_responder import WebhookResponder, sentence
from responders.webhooks import message_for
from schemas.actions import Decision, Directive
from schemas.errors import MACHINE_ERRORS, StateRefused
from schemas.topics import DIRECTIVES, RESPOND_STATE
from schemas.wire import KIND_HEADER
from streams.journal_log import OFFSET_HEADER, STATE_KEY
from streams.metrics import Metrics
from streams.records import Outgoing
from streams.transport.outbox import Confirmed, Outbox, OutboxClosed, OutboxFull

log = logging.getLogger(__name__)


class Publisher:
    """Carries out what is on record, while this process is active; decides nothing. From one event loop."""

    def __init__(
        self, key: SigningKey, webhooks: WebhookResponder, outbox: Callable[[], Outbox], metrics: Metrics
    ) -> None:
        self._key = key
        self._webhooks = webhooks
        self._outbox = outbox
        self._metrics = metrics
        self._unsent: dict[str, int] = {}  # endpoint to epoch of directives that Kafka did not take

    def start(self, may: Callable[[], bool]) -> None:
        """This process is active from now on. `may`: asked before each webhook."""
        self._unsent = {}
        self._webhooks.start(may)

    async def stop(self) -> None:
        """Nothing more goes out."""
        await self._webhooks.stop()

    def publish(self, state: RespondState, now_ms: int) -> RespondState:
        """Sends the directives that are due, and hands over webhooks; the state that knows of it."""
        state = mark_failed(state, self._unsent)
        self._unsent.clear()
        names = due(state, now_ms)
        for name in names:
            with self._alone(f"publishing what is wanted of {name}"):
                self._publish_one(state, name, now_ms)
        return mark_sent(state, names, now_ms)

    def _publish_one(self, state: RespondState, name: str, now_ms: int) -> None:
        directive = directive_for(state, name, now_ms)
        value = directive.to_bytes()
        headers = ((KIND_HEADER, Directive.KIND.encode()), *self._key.headers(Directive.KIND, value))
        sent = self.send(Outgoing(DIRECTIVES, name.encode(), value, headers))
        sent.add_done_callback(partial(_note_failure, self._unsent, name, directive.epoch))
        with self._alone(f"telling the webhook of {name}"):
            if self._webhooks.lacks(name, directive.epoch):
                self._webhooks.want(message_for(state, name, now_ms))

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """What is on record is done for each endpoint by itself: where it raises for one, the others get theirs. A directive
        is due again within a second while it holds."""
        try:
            yield
        except (*MACHINE_ERRORS, KafkaException, OutboxFull, OutboxClosed):
            raise
        except Exception:
            self._metrics.handler_failures.labels(DIRECTIVES).inc()
            log.exception("%s failed", what)

    def deliveries(self) -> list[Input]:
        """What became of webhooks since the last call."""
        self._metrics.webhooks_failing.set(self._webhooks.failing())
        now_s = time.monotonic()
        return [
            Delivered(news.message.endpoint, news.kind, news.message.id, sentence(news, now_s))
            for news in self._webhooks.news()
        ]

    def tell(self, decisions: Sequence[Decision]) -> None:
        """Counts decisions, and says on the log what people are to know."""
        for decision in decisions:
            self._metrics.decisions.labels(decision.kind, decision.outcome).inc()
            with self._alone(f"telling people of {decision.kind} on {decision.endpoint}"):
                alert = alert_for(decision)
                if alert is not None:
                    log.warning("%s", alert.line())

    def save(self, state: RespondState, next_offset: int) -> asyncio.Future[Confirmed]:
        """Nobody waits for it: it spares a takeover the journal below `next_offset`, and is no part of what is known."""
        headers = ((KIND_HEADER, b"respond_state"), (OFFSET_HEADER, str(next_offset).encode()))
        try:
            saved = self.send(Outgoing(RESPOND_STATE, STATE_KEY, to_bytes(state), headers, 0))
        except (StateRefused, ValueError) as error:
            saved = asyncio.get_running_loop().create_future()
            saved.set_exception(error)
        saved.add_done_callback(_say_unsaved)
        return saved

    def send(self, record: Outgoing) -> asyncio.Future[Confirmed]:
        self._metrics.sent(record)
        return self._outbox().send(record.topic, record.key, record.value, record.headers, record.partition)


def _note_failure(unsent: dict[str, int], name: str, epoch: int, sent: asyncio.Future[Confirmed]) -> None:
    """A directive that did not arrive is sent again within a second or two."""
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.warning("a directive of %s was not confirmed: %s", name, error)
        unsent[name] = epoch


def _say_unsaved(saved: asyncio.Future[Confirmed]) -> None:
    if not saved.cancelled() and (error := saved.exception()) is not None:
        log.warning("the state was not saved (%s): a takeover reads more of the journal", error)
