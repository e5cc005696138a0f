"""Records of each topic to rows of a history. Events are counted here without the product's decoders.

A record of a role that cannot be read gives no row: what it should have said is then missed by a judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from palisade.verify.history import SCHEMAS, table_of
from palisade.verify.logs import INGESTED, JUDGED
from responders.signing import Keyring
from schemas.actions import Command, Directive, JournalEntry
from schemas.deadletter import DeadLetter
from schemas.errors import SignatureRefused
from schemas.events import Prediction, ProfileActivated, Report, Tick
from schemas.ids import stable_id
from schemas.signals import EndpointState, Signal
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, DIRECTIVES, REPORTS, SIGNALS, VERDICTS
from schemas.verdicts import VERDICT_ROWS_KIND, Lost
from schemas.wire import CONTENT_TYPE_HEADER, KIND_HEADER
from streams.decode.headers import ARROW_MAGIC

CLOUD_EVENTS = b"cloudevents"
CONTROLS = (Tick.KIND, ProfileActivated.KIND)
_FOR_RUN = re.compile(r"\d+ more refused rows of this run ")
_NUMBERS = {"score", "threshold", "usual_rate", "rate", "shares", "evidence"}
"""Of a signal, what another machine may tell otherwise in its last bits."""
Rows = dict[str, list[dict[str, Any]]]


class Read(NamedTuple):
    """A record as it lies on Kafka; `at_ms` is its timestamp."""

    topic: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    headers: Mapping[str, bytes]
    value: bytes | None

    @property
    def kind(self) -> str:
        return self.headers.get(KIND_HEADER, b"").decode("utf-8", "replace")


MAX_ROWS = 2**31 - 1
"""No record holds more: one that says so holds what cannot be read."""


def events_in(read: Read) -> int:
    """How many events a record of a log holds: rows of an Arrow stream, elements of a JSON array, else one.

    What cannot be read is one event, to be dead-lettered; ticks and activations hold none. Of an envelope of others
    (CloudEvents) on requests or responses, which may hold several, one is counted.
    """
    if read.topic in INGESTED and (CLOUD_EVENTS in read.headers.get(CONTENT_TYPE_HEADER, b"") or _enveloped(read)):
        return 1
    kind = read.kind or Prediction.KIND
    if kind != Prediction.KIND and read.topic not in INGESTED:
        return 0 if kind in CONTROLS else 1
    value = read.value or b""
    try:
        if b"arrow" in read.headers.get(CONTENT_TYPE_HEADER, b"") or value.startswith(ARROW_MAGIC):
            with pa.ipc.open_stream(value) as stream:
                rows = sum(batch.num_rows for batch in stream)
            return rows if rows <= MAX_ROWS else 1
        if value.lstrip()[:1] != b"[":
            return 1
        found = json.loads(value)
        return len(found) if isinstance(found, list) and found else 1
    except (ValueError, RecursionError, pa.ArrowException, OSError):
        return 1


def _enveloped(read: Read) -> bool:
    """Whether a record is a CloudEvent: attributes as headers, or as fields of each event."""
    return any(name.startswith(("ce_", "ce-")) for name in read.headers) or b'"specversion"' in (read.value or b"")


def log_record(read: Read) -> dict[str, Any]:
    """A row of `records`."""
    return {
        "topic": read.topic,
        "partition": read.partition,
        "offset": read.offset,
        "at_ms": read.at_ms,
        "kind": read.kind or Prediction.KIND,
        "rows": events_in(read),
        "size": len(read.value or b""),
    }


def outcomes(read: Read) -> pa.Table | None:
    """Rows of `outcomes`; None if the record is no verdict on rows."""
    if read.topic != VERDICTS or read.kind != VERDICT_ROWS_KIND:
        return None
    try:
        found = pa.ipc.open_stream(read.value or b"").read_all()
        said = {name.decode(): text.decode() for name, text in (found.schema.metadata or {}).items()}
        same = {
            "topic": said["topic"],
            "partition": int(said["partition"]),
            "at_ms": read.at_ms,
            "told_at": read.offset,
        }
        schema = SCHEMAS["outcomes"]
        columns = [
            found[column.name].cast(column.type)
            if column.name in found.column_names
            else pa.array([same[column.name]] * found.num_rows, pa.string() if column.name == "topic" else column.type)
            for column in schema
        ]
        named = pa.Table.from_arrays(columns, names=schema.names)
        return named.cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def lost_row(read: Read) -> dict[str, Any] | None:
    """A row of `lost`; None if the record tells no loss. Who writes it counts the loss as well, and that pages people."""
    if read.topic != VERDICTS or read.kind != Lost.KIND:
        return None
    try:
        lost: Lost = Lost.from_bytes(read.value or b"")
    except (ValidationError, RecursionError):
        return None
    place = {"topic": lost.log_topic, "partition": lost.log_partition, "first": lost.first, "last": lost.last}
    return place | {"at_ms": read.at_ms, "told": True}


def signal_row(value: bytes) -> dict[str, Any]:
    """What a signal says, as a row of `signals` without its place. Raises ValidationError."""
    signal: Signal = Signal.from_bytes(value)
    names = ("signal_id", "endpoint", "kind", "log_topic", "log_partition", "log_offset")
    said = {name: getattr(signal, name) for name in names}
    return said | {"digest": stable_id(signal.model_dump_json(exclude=_NUMBERS))}


@dataclass(slots=True)
class Reader:
    """Rows of all other topics. `keys`: who is believed, by endpoint; `signers`: who signs directives (None: anybody)."""

    keys: Mapping[str, Keyring]
    signers: Keyring | None
    rows: Rows = field(default_factory=dict)

    def take(self, read: Read) -> None:
        """Adds what a record says to `rows`."""
        taker = _TAKERS.get((read.topic, read.kind))
        if taker is None or read.value is None:
            return
        try:
            taker(self, read, read.value)
        except (ValidationError, RecursionError):
            return

    def add(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        self.rows.setdefault(name, []).extend(rows)

    def tables(self) -> dict[str, pa.Table]:
        """What was taken since the last call."""
        taken, self.rows = self.rows, {}
        return {name: table_of(name, rows) for name, rows in taken.items()}

    def dead_letter(self, read: Read, value: bytes) -> None:
        letter: DeadLetter = DeadLetter.from_bytes(value)
        if (
            letter.log_topic in (*JUDGED, *INGESTED) and letter.reason != "not_audited"
        ):  # that one is a hole in the audit, no outcome
            row = {"topic": letter.log_topic, "partition": letter.log_partition, "offset": letter.log_offset}
            of_run = _FOR_RUN.match(letter.detail) is not None
            row |= {"row": letter.log_row, "size": letter.size, "reason": letter.reason, "for_run": of_run}
            self.add("dead_letters", [row | {"at_ms": read.at_ms}])

    def signal(self, read: Read, value: bytes) -> None:
        self.add("signals", [signal_row(value) | {"offset": read.offset, "at_ms": read.at_ms}])

    def endpoint_state(self, read: Read, value: bytes) -> None:
        view: EndpointState = EndpointState.from_bytes(value)
        row = {"at_ms": read.at_ms, "endpoint": view.endpoint, "active_callers": view.active_callers}
        self.add("views", [row])

    def journal_entry(self, read: Read, value: bytes) -> None:
        entry: JournalEntry = JournalEntry.from_bytes(value)
        place = {"offset": read.offset, "at_ms": read.at_ms, "entry": entry.entry}
        self.add("journal", [place | {"epoch": entry.epoch, "digest": stable_id(value.decode())}])
        names = SCHEMAS["decisions"].names
        for row, decision in enumerate(entry.decisions):
            said = {name: field for name, field in decision.model_dump(mode="json").items() if name in names}
            self.add("decisions", [said | place | {"row": row}])

    def command(self, read: Read, value: bytes) -> None:
        command: Command = Command.from_bytes(value)
        row = {"at_ms": read.at_ms, "command_id": command.command_id, "actor": command.actor}
        self.add("commands", [row])

    def directive(self, read: Read, value: bytes) -> None:
        """What nobody follows, because no signer signed it, orders nothing."""
        if self.signers is not None and not _signed(self.signers, Directive.KIND, read):
            return
        directive: Directive = Directive.from_bytes(value)
        if directive.mode != "enforce":
            return
        same: dict[str, Any] = {"partition": read.partition, "offset": read.offset, "at_ms": read.at_ms}
        same |= {"endpoint": directive.endpoint, "epoch": directive.epoch, "issued_ms": directive.issued_ms}
        orders: list[tuple[str | None, str | None, int]] = [
            (limit.caller, limit.action_id, limit.ttl_ms) for limit in directive.limits
        ]
        if directive.route == "fallback":
            orders.append((None, directive.route_action_id, directive.ttl_ms))
        for caller, action_id, ttl_ms in orders or [(None, None, directive.ttl_ms)]:
            ends = {"action_id": action_id, "expires_ms": directive.issued_ms + ttl_ms}
            self.add("orders", [same | ends | {"caller": caller}])

    def report(self, read: Read, value: bytes) -> None:
        report: Report = Report.from_bytes(value)
        keys = self.keys.get(report.endpoint)
        signed = keys is not None and _signed(keys, Report.KIND, read)
        names = ("endpoint", "guard_id", "from_ms", "to_ms")
        same = {name: getattr(report, name) for name in names} | {"at_ms": read.at_ms}
        troubles = sum(route.errors + route.timeouts for route in report.routes) + (
            report.breaker in ("open", "half_open")
        )
        fallbacks = sum(route.served for route in report.routes if route.route == "fallback")
        counts = {"fallbacks": fallbacks, "troubles": troubles, "signed": signed, "epoch_applied": report.epoch_applied}
        self.add("reports", [same | counts | {"boot_id": report.boot_id, "seq": report.seq}])
        if signed:
            refused = [(each.caller, each.refused) for each in report.callers if each.refused]
            self.add("refused_calls", [same | {"caller": caller, "refused": count} for caller, count in refused])


def _signed(keys: Keyring, kind: str, read: Read) -> bool:
    try:
        keys.verify(kind, read.value or b"", list(read.headers.items()))
    except SignatureRefused:
        return False
    return True


_TAKERS = {
    (DEAD_LETTERS, DeadLetter.KIND): Reader.dead_letter,
    (SIGNALS, Signal.KIND): Reader.signal,
    (SIGNALS, EndpointState.KIND): Reader.endpoint_state,
    (ACTIONS, JournalEntry.KIND): Reader.journal_entry,
    (COMMANDS, Command.KIND): Reader.command,
    (DIRECTIVES, Directive.KIND): Reader.directive,
    (REPORTS, Report.KIND): Reader.report,
}
TAKEN: dict[str, tuple[str, ...]] = {
    DEAD_LETTERS: ("dead_letters",),
    SIGNALS: ("signals", "views"),
    ACTIONS: ("journal", "decisions"),
    COMMANDS: ("commands",),
    DIRECTIVES: ("orders",),
    REPORTS: ("reports", "refused_calls"),
}
"""Topic -> tables that it fills."""
