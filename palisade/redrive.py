"""Dead letters back to where they came from, once the cause is mended.

At least once: a letter is noted as redriven after its record is confirmed, so a crash between the two sends it again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import ValidationError

from schemas.deadletter import DEAD_REASONS, MAX_REDRIVES, REDRIVEN_HEADER, DeadLetter, Redriven
from schemas.errors import ConfigError
from schemas.ids import is_hashed_id
from schemas.topics import BY_NAME, DEAD_LETTERS
from schemas.wire import KIND_HEADER
from streams.deadletters import MAX_HEADER_CHARS, MAX_HEADERS
from streams.reading import tail
from streams.records import header_of, headers_of
from streams.transport.settings import KafkaConnection, kafka_settings

FILTERS = ("topic", "partition", "reason", "endpoint", "caller")
SIGNATURE_REASONS = frozenset({"unsigned_control", "bad_signature"})
CONFIRMED_S = 30.0
Identity = tuple[str, int, int, int]


class Plan(NamedTuple):
    """What becomes of a letter; `refused`: why it is not sent, empty if it is."""

    letter: DeadLetter
    value: bytes
    times: int
    refused: str


class Kept(NamedTuple):
    """What lies on the topic: letters, each once, oldest first; and which were redriven."""

    letters: list[DeadLetter]
    redriven: frozenset[Identity]


def filters_of(given: Iterable[str]) -> dict[str, str]:
    """`name=value` each; all must hold. Raises ConfigError."""
    wanted: dict[str, str] = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign or name not in FILTERS:
            raise ConfigError(f"{each!r} is no filter: NAME=VALUE, and NAME is one of {', '.join(FILTERS)}")
        if name == "reason" and value not in DEAD_REASONS:
            raise ConfigError(f"there is no reason {value!r}: one of {', '.join(DEAD_REASONS)}")
        wanted[name] = value
    return wanted


def read_letters(connection: KafkaConnection, most: int) -> Kept:
    """The `most` newest of each partition. Raises KafkaException, TimeoutError."""
    letters: dict[Identity, DeadLetter] = {}
    redriven: set[Identity] = set()
    for message in tail(connection, DEAD_LETTERS, most):
        value = message.value() or b""
        try:
            if header_of(headers_of(message), KIND_HEADER) == Redriven.KIND.encode():
                redriven.add(_identity(Redriven.from_bytes(value)))
            else:
                letter: DeadLetter = DeadLetter.from_bytes(value)
                letters[_identity(letter)] = letter
        except ValidationError:
            continue
    return Kept(list(letters.values()), frozenset(redriven))


def plans(kept: Kept, wanted: Mapping[str, str], *, again: bool, signatures: bool) -> Iterator[Plan]:
    """For each letter that `wanted` chooses. `again`: also what was redriven; `signatures`: also what a signature failed."""
    for letter in kept.letters:
        said = {
            "topic": letter.log_topic,
            "partition": str(letter.log_partition),
            "reason": letter.reason,
            "endpoint": letter.endpoint,
            "caller": letter.caller,
        }
        if any(said[name] != value for name, value in wanted.items()):
            continue
        value = _bytes_of(letter)
        times = _times(letter) + 1
        refused = _refused(letter, value, times)
        if not refused and letter.reason in SIGNATURE_REASONS and not signatures:
            refused = "its signature was refused; --signatures sends it all the same"
        if not refused and _identity(letter) in kept.redriven and not again:
            refused = "it was redriven before; --again sends it once more"
        yield Plan(letter, value or b"", times, refused)


def redrive(connection: KafkaConnection, chosen: Iterable[Plan]) -> int:
    """Sends what is not refused, one after the other; how many. Raises KafkaException when one is not confirmed."""
    producer = Producer(kafka_settings(connection, "producer") | {"linger.ms": 0})
    sent = 0
    for plan in chosen:
        if plan.refused:
            continue
        letter = plan.letter
        # what lay on the wrong partition goes where its endpoint belongs, all else where it lay
        partition = -1 if letter.reason == "wrong_partition" else letter.log_partition
        key = letter.endpoint.encode() if letter.endpoint is not None else None
        _confirmed(producer, letter.log_topic, plan.value, key, partition, _headers(plan))
        note = Redriven(
            log_topic=letter.log_topic,
            log_partition=letter.log_partition,
            log_offset=letter.log_offset,
            log_row=letter.log_row,
            at_ms=int(time.time() * 1000),
        )
        headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, Redriven.KIND)]
        _confirmed(producer, DEAD_LETTERS, note.to_bytes(), letter.log_topic.encode(), letter.log_partition, headers)
        sent += 1
    return sent


def _refused(letter: DeadLetter, value: bytes | None, times: int) -> str:
    """Why it cannot be sent, whatever is wished; empty if it can."""
    if letter.log_topic not in BY_NAME:
        return "its topic is none of Palisade's"
    if letter.reason == "not_audited":
        return "it was handled; only the audit has no row of it, and sent again it would count twice"
    if times > MAX_REDRIVES:
        return f"it was redriven {times - 1} times and is a dead letter again: mend the cause"
    if not letter.size:
        return "it has no bytes, or they were not kept"
    if value is None:
        return "its bytes were not kept whole; its sender has them"
    if letter.reason == "wrong_partition" and letter.endpoint is None:
        return "its endpoint, which says where it belongs, cannot be read"
    if letter.reason == "wrong_partition" and is_hashed_id(letter.endpoint or ""):
        return "its endpoint's name is not plain, and only a hash of it was kept: its sender knows where it belongs"
    if len(letter.headers) >= MAX_HEADERS or any(
        len(text) >= MAX_HEADER_CHARS or "\\" in text or "\ufffd" in text
        for pair in letter.headers.items()
        for text in pair
    ):
        return "its headers were not kept whole; its sender has them"
    return ""


def _bytes_of(letter: DeadLetter) -> bytes | None:
    """The record's or row's bytes if the letter holds all of them."""
    try:
        head = base64.b64decode(letter.head, validate=True)
    except (binascii.Error, ValueError):
        return None
    return head if hashlib.sha256(head).hexdigest() == letter.sha256 else None


def _times(letter: DeadLetter) -> int:
    """How often the record had been redriven when it became this letter."""
    told = letter.headers.get(REDRIVEN_HEADER, "")
    return min(int(told), MAX_REDRIVES) if told.isdecimal() and len(told) < 4 else 0


def _headers(plan: Plan) -> list[tuple[str, str | bytes | None]]:
    """Those it had. A row out of a record of many keeps its kind only: encoding and signature were the record's."""
    kept = plan.letter.headers.items()
    own = [(name, text) for name, text in kept if not plan.letter.log_row or name == KIND_HEADER]
    return [*((name, text) for name, text in own if name != REDRIVEN_HEADER), (REDRIVEN_HEADER, str(plan.times))]


def _identity(thing: DeadLetter | Redriven) -> Identity:
    return thing.log_topic, thing.log_partition, thing.log_offset, thing.log_row


def _confirmed(
    producer: Producer,
    topic: str,
    value: bytes,
    key: bytes | None,
    partition: int,
    headers: list[tuple[str, str | bytes | None]],
) -> None:
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    producer.produce(topic, value, key, partition=partition, headers=headers, on_delivery=delivered)
    if producer.flush(CONFIRMED_S) or failed:
        raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))
