"""Computes again what detect concluded of the logs that Kafka still holds whole. Nothing is written to Kafka."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from palisade.detect_bank import PartitionLogs
from palisade.settings import Settings
from palisade.verify.columns import Place, Span
from palisade.verify.history import SCHEMAS, HistoryWriter
from palisade.verify.records import Read, outcomes, signal_row
from palisade.verify.replayed import REFERENCE
from palisade.verify.states import saved_of, state_row
from palisade.verify.uninterrupted import Buried, Kept, Uninterrupted, passed_by
from schemas.deadletter import DeadLetter
from schemas.errors import MACHINE_ERRORS
from schemas.signals import Signal
from schemas.topics import DEAD_LETTERS, PREDICTIONS, SIGNALS, VERDICTS
from schemas.wire import KIND_HEADER
from streams.profiles import ProfileTopic
from streams.reading import first_offset, read_to_end
from streams.records import Outgoing, header_of, headers_of
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection

log = logging.getLogger(__name__)

Parts = Mapping[str, bytes]
"""Saved parts of a partition of a log by name."""


def recompute(
    settings: Settings,
    partitions: Mapping[str, int],
    saved: Mapping[Place, Parts],
    writer: HistoryWriter,
    say: Callable[[str], None],
) -> None:
    """Writes what an uninterrupted run says of the logs `saved`, and their states where their parts were saved.

    By the configuration and the detectors of now; profiles are those on Kafka. Raises KafkaException, TimeoutError.
    """
    connection = settings.connection
    for name in ("recomputed", "reference_outcomes", "reference_signals"):
        writer.add_rows(name, [])
    say("dead letters, to pass over what the run did")
    buried = _buried(connection, partitions[DEAD_LETTERS])
    with _followed(connection) as profiles:
        asyncio.run(profiles.caught_up())
        logs = PartitionLogs(settings, profiles, partitions[PREDICTIONS])
        for place, parts in saved.items():
            say(f"{place[0]}[{place[1]}] once more")
            _partition(_Asked(connection, place, parts, buried.get(place, Buried())), logs, writer)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A partition of a log that is to be computed again."""

    connection: KafkaConnection
    place: Place
    parts: Parts
    buried: Buried


def _partition(asked: _Asked, logs: PartitionLogs, writer: HistoryWriter) -> None:
    topic, partition = asked.place
    bounds = {"topic": topic, "partition": partition}
    first = first_offset(asked.connection, topic, partition)
    if first > 0:
        gone = f"its records below offset {first} were removed by retention"
        writer.add_rows("recomputed", [bounds | {"end": 0, "reason": gone}])
        return
    saved = {part: found for part, state in asked.parts.items() if (found := saved_of(state)) is not None}
    opened = asyncio.run(logs.open(TP(topic, partition)))
    told = _Told(asked.place, writer)
    run = Uninterrupted(asked.place, opened, saved, asked.buried, told.take)
    try:
        asyncio.run(run.run(_kept(asked.connection, topic, partition)))
    except MACHINE_ERRORS:
        raise
    except Exception as error:
        log.exception("%s[%d] cannot be computed again", topic, partition)
        reason = f"handling it raises behind offset {run.end}: {type(error).__name__}: {error}"
        writer.add_rows("recomputed", [bounds | {"end": run.end, "reason": reason}])
        return
    writer.add_rows("recomputed", [bounds | {"end": run.end, "reason": None}])
    writer.add_rows("states", [state_row(topic, partition, part, now, REFERENCE) for part, now in run.found.items()])


@dataclass(frozen=True, slots=True)
class _Told:
    """Writes what a log leads to as tables, as if it had been read from Kafka."""

    place: Place
    writer: HistoryWriter

    def take(self, said: Iterable[Outgoing]) -> None:
        for out in said:
            if out.topic == VERDICTS:
                found = outcomes(Read(VERDICTS, self.place[1], 0, 0, None, dict(out.headers), out.value))
                if found is not None:
                    self.writer.add("reference_outcomes", found.select(SCHEMAS["reference_outcomes"].names))
            elif out.topic == SIGNALS and header_of(out.headers, KIND_HEADER) == Signal.KIND.encode():
                self.writer.add_rows("reference_signals", [signal_row(out.value)])


def _kept(connection: KafkaConnection, topic: str, partition: int) -> Iterator[Kept]:
    over: list[Span] = []
    for message in read_to_end(connection, topic, partition, stepped_over=lambda *span: over.append(span)):
        at_ms, behind = int(message.timestamp()[1]), over.pop() if over else None
        yield Kept(int(message.offset() or 0), at_ms, message.key(), headers_of(message), message.value(), behind)


def _buried(connection: KafkaConnection, partitions: int) -> dict[Place, Buried]:
    """What the run dead-lettered, as far as Kafka keeps it, by the partition that it lay on."""
    letters: dict[Place, list[tuple[int, str]]] = defaultdict(list)
    for partition in range(partitions):
        for message in read_to_end(connection, DEAD_LETTERS, partition):
            if header_of(headers_of(message), KIND_HEADER) != DeadLetter.KIND.encode():
                continue
            try:
                letter: DeadLetter = DeadLetter.from_bytes(message.value() or b"")
            except (ValidationError, RecursionError):
                continue
            letters[letter.log_topic, letter.log_partition].append((letter.log_offset, letter.reason))
    return {place: passed_by(found) for place, found in letters.items()}


@contextmanager
def _followed(connection: KafkaConnection) -> Iterator[ProfileTopic]:
    profiles = ProfileTopic(connection)
    profiles.start()
    try:
        yield profiles
    finally:
        profiles.close()
