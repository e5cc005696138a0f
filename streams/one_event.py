"""Records that are one event each: reports and labels. What cannot be read is a dead letter with its reason."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from schemas.deadletter import DeadReason
from schemas.events import MAX_EVENT_BYTES, Report
from schemas.feedback import Labelled
from schemas.wire import KIND_HEADER
from streams.decode import partition_of
from streams.outgoing import dead_record
from streams.records import Outgoing, Records, header_of

Event = TypeVar("Event", Report, Labelled)


class Home(NamedTuple):
    """A partition of a log, of so many."""

    topic: str
    partition: int
    partitions: int


def one_event(contract: type[Event], noun: str, home: Home, records: Records, index: int) -> Event | Outgoing:
    """The event of the record at `index`, at most 64 KiB, or its dead letter. `noun`: what a person calls it."""

    def refused(reason: DeadReason, detail: str) -> Outgoing:
        return dead_record(home.topic, home.partition, records, index, reason, detail)

    value = records.values[index]
    kind = header_of(records.headers[index], KIND_HEADER) or contract.KIND.encode()
    if kind != contract.KIND.encode():
        return refused("unknown_kind", f"kind {kind[:40]!r} does not belong on {home.topic}")
    if value is None:
        return refused("tombstone", "")
    if not value:
        return refused("empty", "")
    if len(value) > MAX_EVENT_BYTES:
        return refused("too_large", f"a {noun} has {len(value)} bytes, at most {MAX_EVENT_BYTES}")
    try:
        event: Event = contract.from_bytes(value)
    except ValidationError as error:
        fault = error.errors()[0]
        reason: DeadReason = "not_json" if fault["type"] == "json_invalid" else "wrong_shape"
        return refused(reason, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
    if partition_of(event.endpoint.encode(), home.partitions) != home.partition:
        return refused("wrong_partition", f"{event.endpoint} belongs on another partition")
    return event
