"""Records that several roles send: dead letters and what detectors said."""

from __future__ import annotations

from schemas.deadletter import DeadLetter, DeadReason
from schemas.signals import EndpointState, Signal
from schemas.topics import DEAD_LETTERS, SIGNALS, VERDICTS
from schemas.verdicts import Lost
from schemas.wire import KIND_HEADER
from streams.deadletters import Place, dead_letter
from streams.records import Outgoing, Records


def dead(letter: DeadLetter) -> Outgoing:
    """A dead letter lies on the partition number of its record."""
    headers = ((KIND_HEADER, DeadLetter.KIND.encode()), ("reason", letter.reason.encode()))
    return Outgoing(DEAD_LETTERS, letter.log_topic.encode(), letter.to_bytes(), headers, letter.log_partition)


def dead_record(topic: str, partition: int, records: Records, index: int, reason: DeadReason, detail: str) -> Outgoing:
    """The dead letter of one whole record."""
    place = Place(topic, partition, records.offsets[index], records.timestamps[index])
    return dead(dead_letter(place, reason, detail, records.values[index], records.headers[index]))


def lost_record(topic: str, partition: int, first: int, last: int, at_ms: int) -> Outgoing:
    """The outcome of offsets that nobody can read any more."""
    lost = Lost(log_topic=topic, log_partition=partition, first=first, last=last, at_ms=at_ms)
    return Outgoing(VERDICTS, None, lost.to_bytes(), ((KIND_HEADER, Lost.KIND.encode()),), partition)


def said(thing: Signal | EndpointState) -> Outgoing:
    """A signal or an endpoint's state; both travel on the one partition of signals."""
    return Outgoing(SIGNALS, thing.endpoint.encode(), thing.to_bytes(), ((KIND_HEADER, thing.KIND.encode()),))
