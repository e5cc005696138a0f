"""Role respond and webhooks: journal first, the newest state alone, only the active process, on record what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from responders.delivery import Answer
from responders.http import Destination
from responders.webhook_responder import Hook, WebhookResponder
from responders.webhooks import parse_secret
from schemas.actions import Decision, JournalEntry
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, DIRECTIVES, RESPOND_STATE, SIGNALS
from streams.embedded_broker import EmbeddedBroker
from streams.respond import RespondRole
from streams.transport.settings import KafkaConnection
from tests.responders.given import command
from tests.responders.receivers import to
from tests.streams.broker import produce
from tests.streams.responding import OURS, journal_on, now, role_on, run_of, take_part, trouble

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
HOOK = Hook(to(9_999), (parse_secret("whsec_" + "a" * 44),), 1.0)
OK, DOWN = Answer(status=200), Answer(fault="unreachable")


@pytest.fixture
def embedded(embedded_broker: Start) -> KafkaConnection:
    connection = embedded_broker({ACTIONS: 1, RESPOND_STATE: 1, DIRECTIVES: 1, DEAD_LETTERS: 1, SIGNALS: 1}).connection
    produce(connection, SIGNALS, *[(b"x", b"{}", ())] * 20)
    return connection


class Receiver:
    """Notes what it is told, and what the journal held at that moment. `answers`: one each, then OK."""

    def __init__(self, connection: KafkaConnection, *answers: Answer) -> None:
        self._connection = connection
        self._answers = list(answers)
        self.told: asyncio.Queue[tuple[dict[str, Any], list[JournalEntry]]] = asyncio.Queue()

    async def __call__(
        self, to: Destination, headers: Sequence[tuple[str, str]], body: bytes, deadline_s: float, now_s: float
    ) -> Answer:
        entries = await asyncio.to_thread(journal_on, self._connection)
        self.told.put_nowait((json.loads(body)["data"], entries))
        return self._answers.pop(0) if self._answers else OK

    def responder(self, *endpoints: str) -> WebhookResponder:
        return WebhookResponder(dict.fromkeys(endpoints, HOOK), self, draw=lambda: 0.0)


async def until_journaled(role: RespondRole, connection: KafkaConnection, reason: str) -> Decision:
    """The timer ticks until the journal tells of it."""
    ticking = asyncio.create_task(role.timer())
    try:
        async with asyncio.timeout(20):
            while True:
                entries = await asyncio.to_thread(journal_on, connection)
                for decision in (d for entry in entries for d in entry.decisions if d.reason == reason):
                    return decision
                await asyncio.sleep(0.05)
    finally:
        ticking.cancel()


def decided(entries: list[JournalEntry]) -> list[str]:
    return [decision.kind for entry in entries for decision in entry.decisions if decision.kind != "notify"]


def test_a_flip_is_in_the_journal_before_its_receiver_is_told_and_so_is_the_restore(embedded: KafkaConnection) -> None:
    async def story() -> None:
        receiver = Receiver(embedded)
        async with role_on(embedded, fenced=False, webhooks=receiver.responder("a")) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("a", first=0))
            data, entries = await receiver.told.get()
            assert (data["route"], data["endpoint"], data["reason"]) == ("fallback", "a", "endpoint_failing")
            assert decided(entries) == ["fallback"]
            delivered = await until_journaled(role, embedded, "webhook_delivered")
            assert (delivered.kind, delivered.endpoint, delivered.outcome) == ("notify", "a", "published")
            assert f"epoch {data['epoch']} (fallback or limits): answered 200; 1 attempt" in delivered.detail

            at = now()
            restore = command("restore", "a", issued_ms=at, expires_ms=at + 600_000)
            await role.handle(run_of(COMMANDS, (restore, True)))
            data, entries = await receiver.told.get()
            assert (data["route"], data["limits"]) == ("primary", [])
            assert decided(entries) == ["fallback", "restore"]
            await role.leave(OURS)

    asyncio.run(story())


def test_an_endpoint_without_a_webhook_has_directives_alone(embedded: KafkaConnection) -> None:
    async def story() -> None:
        receiver = Receiver(embedded)
        async with role_on(embedded, fenced=False, webhooks=receiver.responder("a")) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("b", first=0))
            await role.handle(trouble("a", first=2))
            data, _ = await receiver.told.get()
            assert data["endpoint"] == "a"
            assert receiver.told.empty()
            await role.leave(OURS)

    asyncio.run(story())


def test_a_receiver_that_takes_nothing_is_told_to_people_and_on_record(
    embedded: KafkaConnection, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        receiver = Receiver(embedded, DOWN)
        async with role_on(embedded, fenced=False, webhooks=receiver.responder("a")) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("a", first=0))
            await receiver.told.get()
            failing = await until_journaled(role, embedded, "webhook_failing")
            assert "(fallback or limits): unreachable; 1 attempt" in failing.detail
            delivered = await until_journaled(role, embedded, "webhook_delivered")  # 5 s later
            assert "2 attempts" in delivered.detail
            await role.leave(OURS)

    asyncio.run(story())
    assert "critical webhook_failing: a: its webhook receiver does not take what is wanted of it" in caplog.text


def test_a_standby_sends_nothing_and_who_takes_over_tells_what_holds_under_its_own_epoch(
    embedded: KafkaConnection,
) -> None:
    async def story() -> None:
        dead, heir = Receiver(embedded, DOWN, DOWN), Receiver(embedded)
        async with (
            role_on(embedded, fenced=False, webhooks=dead.responder("a")) as old,
            role_on(embedded, fenced=False, webhooks=heir.responder("a")) as new,
            asyncio.timeout(30),
        ):
            await take_part(old)
            await old.handle(trouble("a", first=0))
            before, _ = await dead.told.get()
            assert heir.told.empty()
            await old.leave(OURS)
            assert "webhook of a" not in {task.get_name() for task in asyncio.all_tasks()}
            await take_part(new)
            after, _ = await heir.told.get()
            assert (after["route"], after["action_id"]) == ("fallback", before["action_id"])
            assert after["expires_at"] == before["expires_at"]
            assert after["epoch"] > before["epoch"]
            await new.handle(trouble("a", first=0))  # delivered again: the journal says that it is answered
            assert heir.told.empty()
            await new.leave(OURS)
            assert dead.told.empty()

    asyncio.run(story())


def test_other_endpoints_are_answered_while_one_receiver_hangs(embedded: KafkaConnection) -> None:
    async def story() -> None:
        told: asyncio.Queue[str] = asyncio.Queue()

        async def post(
            to: Destination, headers: Sequence[tuple[str, str]], body: bytes, deadline_s: float, now_s: float
        ) -> Answer:
            endpoint = json.loads(body)["data"]["endpoint"]
            told.put_nowait(endpoint)
            if endpoint == "a":
                await asyncio.Event().wait()
            return OK

        webhooks = WebhookResponder({"a": HOOK, "b": HOOK}, post)
        async with role_on(embedded, fenced=False, webhooks=webhooks) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("a", first=0))
            assert await told.get() == "a"
            await role.handle(trouble("b", first=2))
            assert await told.get() == "b"
            await role.handle(trouble("c", first=4))  # no webhook: its directive goes out
            delivered = await until_journaled(role, embedded, "webhook_delivered")
            assert delivered.endpoint == "b"
            await role.leave(OURS)

    asyncio.run(story())
    assert {d.endpoint for e in journal_on(embedded) for d in e.decisions if d.kind == "fallback"} == {"a", "b", "c"}


def test_the_kill_switch_tells_receivers_to_go_back(embedded: KafkaConnection) -> None:
    async def story() -> None:
        receiver = Receiver(embedded)
        async with role_on(embedded, fenced=False, webhooks=receiver.responder("a")) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("a", first=0))
            await receiver.told.get()
            at = now()
            await role.handle(run_of(COMMANDS, (command("kill", None, issued_ms=at, expires_ms=at + 600_000), True)))
            data, _ = await receiver.told.get()
            assert (data["route"], data["limits"]) == ("primary", [])
            await role.leave(OURS)

    asyncio.run(story())


def test_what_is_wanted_while_a_message_is_undelivered_takes_its_place(embedded: KafkaConnection) -> None:
    async def story() -> None:
        receiver = Receiver(embedded, DOWN)
        async with role_on(embedded, fenced=False, webhooks=receiver.responder("a")) as role, asyncio.timeout(30):
            await take_part(role)
            await role.handle(trouble("a", first=0))
            await receiver.told.get()
            at = now()
            await role.handle(run_of(COMMANDS, (command("restore", "a", issued_ms=at, expires_ms=at + 600_000), True)))
            data, _ = await receiver.told.get()
            assert data["route"] == "primary"
            await until_journaled(role, embedded, "webhook_delivered")
            assert receiver.told.empty()
            await role.leave(OURS)

    asyncio.run(story())
