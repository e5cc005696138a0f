"""What people do: the kill switch, commands, profile activations: signed records on Kafka."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer
from pydantic import ValidationError

from detectors.profile import MAX_PROFILE_BYTES
from responders.signing import SigningKey
from schemas.actions import ActionKind, Command, Decision, JournalEntry, KillSwitch
from schemas.errors import PalisadeError
from schemas.events import ProfileActivated
from schemas.topics import ACTIONS, COMMANDS, DIRECTIVES, PREDICTIONS
from schemas.wire import KIND_HEADER, Wire
from streams.admin import input_partitions
from streams.profiles import profile_record
from streams.reading import tail
from streams.records import Outgoing
from streams.transport.settings import KafkaConnection, kafka_settings

CONFIRM_S = 15.0
LARGEST_RECORD = 8_500_000
"""What the topic of profiles takes: the largest profile that is read (one of 20 features has 30 kB, of 512 some 5 MB)."""
ANSWER_S = 8.0
LOOK_BACK = 200
"""Entries at the journal's end among which a command's answer is looked for."""


class NotConfirmed(PalisadeError):
    """A record that the broker did not confirm: nothing can be said of its effect."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A person at the keyboard: who they say they are, and the key that proves it."""

    name: str
    key: SigningKey


def send(connection: KafkaConnection, records: list[Outgoing]) -> None:
    """Sends records and waits until all are confirmed. Raises NotConfirmed."""
    producer = Producer(kafka_settings(connection, "producer") | {"message.max.bytes": LARGEST_RECORD})
    failures: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    for record in records:
        partition = -1 if record.partition is None else record.partition  # -1: by the key
        headers: list[tuple[str, str | bytes | None]] = list(record.headers)
        producer.produce(
            record.topic, record.value, record.key, partition=partition, on_delivery=delivered, headers=headers
        )
    left = producer.flush(CONFIRM_S)
    if left or failures:
        reason = failures[0] if failures else f"no answer in {CONFIRM_S:.0f} s"
        raise NotConfirmed(f"the broker did not confirm {left or len(failures)} of {len(records)} records ({reason})")


def throw_kill_switch(connection: KafkaConnection, operator: Operator, *, kill: bool, reason: str) -> int:
    """Stops (or allows again) every enforcement: a record to each partition of directives, and a command to respond.

    Returns the number of partitions told.
    """
    now = _now_ms()
    switch = KillSwitch(kill=kill, issued_ms=now, actor=operator.name, reason=reason)
    partitions = input_partitions(connection, DIRECTIVES)
    records = [_signed(operator, DIRECTIVES, b"@kill", switch, partition) for partition in range(partitions)]
    command = _command(operator, Wanted("kill" if kill else "unkill"), reason, now, now + 60_000)
    send(connection, [*records, _signed(operator, COMMANDS, b"@all", command)])
    return partitions


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person orders, of whom."""

    kind: ActionKind
    endpoint: str | None = None
    caller: str | None = None
    rate_per_s: float | None = None


def order(
    connection: KafkaConnection, operator: Operator, wanted: Wanted, *, reason: str = "", for_s: float = 600
) -> Command:
    """A person's command about one endpoint or caller; it wins over the machine until it expires."""
    now = _now_ms()
    command = _command(operator, wanted, reason, now, now + int(for_s * 1000))
    send(connection, [_signed(operator, COMMANDS, (wanted.endpoint or "@all").encode(), command)])
    return command


def answer_to(connection: KafkaConnection, command: Command, timeout_s: float = ANSWER_S) -> Decision | None:
    """What the responder decided about a command, or None if it has not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for message in tail(connection, ACTIONS, LOOK_BACK):
            try:
                entry: JournalEntry = JournalEntry.from_bytes(message.value() or b"")
            except ValidationError:
                continue
            for decision in entry.decisions:
                mine = decision.actor == command.actor and decision.issued_ms >= command.issued_ms
                about = decision.endpoint == command.endpoint and decision.caller == command.caller
                if mine and about and decision.kind == command.kind:
                    return decision
        time.sleep(0.2)
    return None


def activate_profile(
    connection: KafkaConnection, operator: Operator, content: bytes, endpoint: str, version: str
) -> str:
    """Publishes a profile and switches it on for a version of an endpoint; returns its hash."""
    if len(content) > MAX_PROFILE_BYTES:
        raise NotConfirmed(f"the profile has {len(content):,} bytes, at most {MAX_PROFILE_BYTES:,}: exclude features")
    name, record = profile_record(content)
    activation = ProfileActivated(
        endpoint=endpoint, version=version, profile_hash=name, actor=operator.name, at_ms=_now_ms()
    )
    send(connection, [record])
    send(connection, [_signed(operator, PREDICTIONS, endpoint.encode(), activation)])
    return name


def _command(operator: Operator, wanted: Wanted, reason: str, now: int, until: int) -> Command:
    return Command(
        command_id=uuid.uuid4().hex,
        kind=wanted.kind,
        endpoint=wanted.endpoint,
        caller=wanted.caller,
        rate_per_s=wanted.rate_per_s,
        actor=operator.name,
        reason=reason,
        issued_ms=now,
        expires_ms=until,
    )


def _signed(operator: Operator, topic: str, key: bytes, record: Wire, partition: int | None = None) -> Outgoing:
    value = record.to_bytes()
    headers = ((KIND_HEADER, record.KIND.encode()), *operator.key.headers(record.KIND, value))
    return Outgoing(topic, key, value, headers, partition)


def _now_ms() -> int:
    return int(time.time() * 1000)
