"""Rows of a segment as they are decoded, and how they become Columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.blocks import MISSING, ROUTE_CODES, Bytes, Codes, Flags, Floats, Longs
from schemas.flags import RowFlag
from schemas.outcomes import Words, numbers, outcomes
from streams.decode import envelope as env
from streams.decode.columns import Columns, Group
from streams.decode.fast import GENERIC, NAMES, Form, Plan
from streams.decode.ipc import Stream
from streams.decode.layout import settle
from streams.decode.refusals import Refusals

PLAN_ROWS, ENVELOPE_ROWS = 32, 512
"""Rows from which features, and the other fields, are made columns before their segment ends: with fewer, the calls that
make them cost more than the cache saves; with more, the objects of a row (1 kB) no longer fit it."""
_AT = {name: at for at, name in enumerate(NAMES)}
Registered = Callable[[str], bool]
PIECE = 2_048
"""Work that is decoded without a pause, in rows of JSON at 5 us each: 10 ms."""
LOOKED_BYTES = 128
"""Of a malformed row searched for its caller, in the same unit."""
TARGET_WORK = 8
"""What a further endpoint@version costs, in the same unit."""


class Target:
    """Where rows of one endpoint@version (clean ids) go.

    `open` and `closed` are the decoders of the form in which features came last; `slot` is the target's number within
    the segment (-1: none yet), `flat` the plan's feature rows.
    """

    __slots__ = (
        "closed",
        "endpoint",
        "endpoint_id",
        "flat",
        "form",
        "open",
        "plan",
        "slot",
        "typed",
        "version",
        "version_id",
    )

    def __init__(self, endpoint: str, version: str, plan: Plan | None) -> None:
        self.endpoint = endpoint
        self.version = version
        self.plan = plan
        self.slot = -1
        self.flat: list[Any] = [] if plan is None else plan.flat
        self.use("object")

    def use(self, form: Form) -> None:
        """From now on, try the decoders of this form first."""
        self.form: Form = form
        self.typed = self.plan is not None and self.plan.typed and form != "any"
        self.open, self.closed = GENERIC if self.plan is None or not self.typed else self.plan.decoders(form)

    def take(self, features: Any, finite: bool) -> int:
        """Adds a row of features as the generic decoder (`finite`) or the judge gave them; returns its flags.

        Features that typed decoders refuse mostly come again, clean ones too: the form follows what came last.
        """
        if self.plan is None:
            return 0
        row, flags = self.plan.layout.spread(features, finite)
        self.flat += row
        form: Form = "list" if isinstance(features, list) else "object"
        if flags & (RowFlag.UNKNOWN_FEATURE | RowFlag.WRONG_FEATURE_TYPE):
            form = "any"
        if form != self.form:
            self.use(form)
        return flags


@dataclass(slots=True, eq=False)
class Rows:
    """Rows of one encoding; `record` [n] indexes the run's records. Endpoint, version and caller are codes of `Names`, label
    of the words of `SegmentNames.labels`, -1 = none."""

    record: npt.NDArray[np.int64]
    row: Codes
    endpoint: Codes
    version: Codes
    caller: Codes
    verified: npt.NDArray[np.bool_]
    ts: Longs
    flags: Flags
    latency_ms: Floats
    status: Bytes
    served_by: Bytes
    value: Floats
    label: Codes
    confidence: Floats
    weight: Floats
    groups: list[Group]


class MalformedRow(NamedTuple):
    """A row that was refused and shows whose it is (clean ids).

    It travels in blocks beside the scored rows, flagged `MALFORMED`, without a single feature, and as one that the
    service refused: such rows weigh nothing in what is said of inputs and answers.
    """

    record: int
    row: int
    target: Target
    caller: str
    verified: bool


class _Envelopes(NamedTuple):
    """Columns [n] of JSON events, as in `Rows`; `flags` are those of the fields here."""

    caller: Codes
    verified: npt.NDArray[np.bool_]
    ts: Longs
    flags: Flags
    latency_ms: Floats
    status: Bytes
    served_by: Bytes
    value: Floats
    label: Codes
    confidence: Floats
    weight: Floats


@dataclass(slots=True, eq=False)
class SegmentNames:
    """The names that a segment's codes mean."""

    endpoints: env.Names = field(default_factory=env.Names)
    versions: env.Names = field(default_factory=env.Names)
    callers: env.Names = field(default_factory=env.Names)
    labels: Words = field(default_factory=Words)


@dataclass(slots=True, eq=False)
class Gather:
    """What has been decoded of a segment. `envelope` holds the fields of JSON events end to end: the names of
    `fast.NAMES` and one place more. (Tuples kept by the thousand would cost a garbage collection each run.) `records` and
    `slots` have one entry an event; `rows` and `flags` hold what is not 0 of them, by position. `spent` counts the work
    of what may be slow, in the unit of `PIECE`; fast JSON events are not counted, a run bounds them."""

    envelope: list[Any] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)
    flags: dict[int, int] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    names: SegmentNames = field(default_factory=SegmentNames)
    plans: dict[Plan, None] = field(default_factory=dict)
    packed: list[_Envelopes] = field(default_factory=list)
    streams: list[tuple[int, Stream]] = field(default_factory=list)
    others: list[Rows] = field(default_factory=list)
    malformed: list[MalformedRow] = field(default_factory=list)
    refused: Refusals = field(default_factory=Refusals)
    spent: int = 0

    @property
    def full(self) -> bool:
        """Whether so much work lies in it that it should become columns before more is decoded."""
        return self.spent >= PIECE

    def blame(self, row: MalformedRow | None, looked_at: int) -> None:
        """Takes a refused row that shows whose it is; `looked_at` bytes were searched for it."""
        self.spent += looked_at // LOOKED_BYTES
        if row is not None:
            self.malformed.append(row)

    def clear(self) -> None:
        """Empties it for the next rows of the segment; what was refused so far stays."""
        for held in (self.envelope, self.records, self.slots, self.rows, self.flags, self.targets, self.streams):
            held.clear()
        for other in (self.plans, self.packed, self.others, self.malformed):
            other.clear()
        self.names = SegmentNames()
        self.spent = 0

    def slot_of(self, target: Target) -> int:
        if target.slot < 0:
            target.slot = len(self.targets)
            self.targets.append(target)
            self.spent += TARGET_WORK
            if target.plan is not None:
                self.plans[target.plan] = None
        return target.slot

    def pack(self) -> None:
        """Makes columns of what was gathered so far, if it is enough: its objects are freed, and their memory used again,
        while they lie in the processor's cache."""
        if len(self.envelope) >= ENVELOPE_ROWS * (len(NAMES) + 1):
            self.packed.append(_envelopes(self.envelope, self.names))
            self.envelope.clear()
        for plan in self.plans:
            plan.pack(PLAN_ROWS)

    def columns(self, offsets: Longs, broker_ms: Longs, registered: Registered | None) -> tuple[Columns, Columns]:
        """All rows gathered, in log order, and the same with malformed ones beside them; frees the targets for the next
        segment."""
        parts = ([self._json_rows()] if self.slots else []) + self.others
        if not self.malformed:
            scored = assemble(parts, self.names, offsets, broker_ms, registered)
            return scored, scored
        malformed = _malformed_rows(sorted(self.malformed, key=lambda row: row[:2]), self.names)
        both = [assemble(some, self.names, offsets, broker_ms, registered) for some in (parts, [*parts, malformed])]
        return both[0], both[1]

    def _json_rows(self) -> Rows:
        if self.envelope:
            self.packed.append(_envelopes(self.envelope, self.names))
        fields = _Envelopes(*map(_join, zip(*self.packed, strict=True)))
        slots = np.array(self.slots, dtype=np.intp)
        groups, group_flags = self._groups(slots)
        flags = fields.flags | group_flags
        env.check_numbers(fields.latency_ms, fields.value, fields.weight, flags)
        for at, bits in self.flags.items():
            flags[at] |= np.uint32(bits)
        row = np.zeros(len(slots), dtype=np.int32)
        for at, number in self.rows.items():
            row[at] = number
        targets, names = self.targets, self.names
        rows = Rows(
            record=np.array(self.records, dtype=np.int64),
            row=row,
            endpoint=names.endpoints.clean_column([target.endpoint for target in targets])[slots],
            version=names.versions.clean_column([target.version for target in targets])[slots],
            groups=groups,
            **(fields._asdict() | {"flags": flags}),
        )
        for target in targets:
            target.slot = -1
        return rows

    def _groups(self, slots: npt.NDArray[np.intp]) -> tuple[list[Group], Flags]:
        """Groups, those of one plan together, and the flags of each row's features."""
        by_plan: dict[Plan | None, list[Target]] = {}
        for target in self.targets:
            by_plan.setdefault(target.plan, []).append(target)
        targets = [target for same in by_plan.values() for target in same]
        rank = np.empty(len(targets), dtype=np.intp)
        rank[[target.slot for target in targets]] = np.arange(len(targets))
        ranks = rank[slots]
        order = np.argsort(ranks, kind="stable")
        edges = np.concatenate(([0], np.cumsum(np.bincount(ranks, minlength=len(targets))))).tolist()
        flags = np.zeros(len(slots), dtype=np.uint32)
        groups: list[Group] = []
        for plan, same in by_plan.items():
            first, last = edges[len(groups)], edges[len(groups) + len(same)]
            rows = order[first:last]
            layout = None if plan is None else plan.layout
            matrix = np.empty((len(rows), 0))
            if plan is not None:
                matrix = plan.matrix(len(rows))
                if len(same) > 1:  # rows lie in the order of the log; group by group they are views
                    matrix = matrix[np.argsort(np.argsort(rows))]
                flags[rows] |= settle(matrix, plan.layout)
            for target in same:
                start, stop = edges[len(groups)], edges[len(groups) + 1]
                part = matrix[start - first : stop - first]
                groups.append(Group(target.endpoint, target.version, layout, order[start:stop], part))
        return groups, flags


def _malformed_rows(rows: Sequence[MalformedRow], names: SegmentNames) -> Rows:
    """Rows of nothing but their place, endpoint, version and caller."""
    n = len(rows)
    nothing = np.full(n, np.nan)
    places: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault((row.target.endpoint, row.target.version), []).append(at)
    groups = []
    for of_target in places.values():
        target = rows[of_target[0]].target
        layout = None if target.plan is None else target.plan.layout
        features = np.full((len(of_target), 0 if layout is None else layout.width), np.nan)
        if layout is not None:
            settle(features, layout)
        groups.append(Group(target.endpoint, target.version, layout, np.array(of_target, dtype=np.intp), features))
    return Rows(
        record=np.array([row.record for row in rows], dtype=np.int64),
        row=np.array([row.row for row in rows], dtype=np.int32),
        endpoint=names.endpoints.clean_column([row.target.endpoint for row in rows]),
        version=names.versions.clean_column([row.target.version for row in rows]),
        caller=names.callers.clean_column([row.caller for row in rows]),
        verified=np.array([row.verified for row in rows], dtype=np.bool_),
        ts=np.full(n, env.NO_TIME, dtype=np.int64),
        flags=np.full(n, RowFlag.MALFORMED, dtype=np.uint32),
        latency_ms=nothing,
        status=np.zeros(n, dtype=np.uint8),
        served_by=np.full(n, ROUTE_CODES["refused"], dtype=np.uint8),
        value=nothing,
        label=np.full(n, MISSING, dtype=np.int32),
        confidence=nothing,
        weight=np.ones(n),
        groups=groups,
    )


def _envelopes(flat: list[Any], names: SegmentNames) -> _Envelopes:
    """Columns of events whose fields lie end to end: the names of `fast.NAMES` and one place more."""
    columns = {name: flat[_AT[name] :: len(NAMES) + 1] for name in _USED}
    flags = np.zeros(len(columns["ts"]), dtype=np.uint32)
    for name in ("producer", "request_id", "served_by"):
        env.flag_odd_ids(columns[name], flags)
    env.flag_reused_ids(columns["reused_id"], flags)
    latency_ms = numbers(columns["latency_ms"])
    outcome = outcomes(columns["prediction"], names.labels)
    weight = numbers(columns["weight"])
    return _Envelopes(
        caller=names.callers.column(columns["caller"], flags),
        verified=env.small_codes(_AUTH, columns["caller_auth"]).astype(np.bool_),
        ts=env.times(columns["ts"]),
        flags=flags,
        latency_ms=latency_ms,
        status=env.statuses(columns["status"]),
        served_by=env.small_codes(env.ROUTES, columns["served_by"]),
        value=outcome.value,
        label=outcome.label,
        confidence=outcome.confidence,
        weight=weight,
    )


_USED = (
    "producer", "request_id", "caller", "caller_auth", "ts", "latency_ms", "status", "served_by", "prediction", "weight",
    "reused_id",
)  # fmt: skip
_AUTH = {"claimed": 0, "verified": 1}
_COLUMNS = (
    "record", "row", "endpoint", "version", "caller", "verified", "ts", "flags",
    "latency_ms", "status", "served_by", "value", "label", "confidence", "weight",
)  # fmt: skip


def assemble(
    parts: list[Rows], names: SegmentNames, offsets: Longs, broker_ms: Longs, registered: Registered | None
) -> Columns:
    """Columns of rows of several encodings, merged into log order."""
    if not parts:
        return empty_columns()
    merged = {name: _join([getattr(part, name) for part in parts]) for name in _COLUMNS}
    groups = _merge_groups(parts)
    if len(parts) > 1:
        order = np.lexsort((merged["row"], merged["record"]))
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.arange(len(order))
        merged = {name: column[order] for name, column in merged.items()}
        groups = [_in_order(group._replace(rows=place[group.rows])) for group in groups]
    flags = merged["flags"]
    label = np.full(len(flags), MISSING, np.int32)
    words = names.labels.all()
    for group in groups:
        if group.layout is not None and (codes := group.layout.labels) is not None:
            sent = merged["label"][group.rows].tolist()
            label[group.rows] = [codes[words[word]] for word in sent]
        bits = 0 if group.layout is not None else int(RowFlag.NO_PROFILE)
        if registered is not None and not registered(group.endpoint):
            bits |= RowFlag.UNREGISTERED_ENDPOINT
        if bits:
            flags[group.rows] |= np.uint32(bits)
    broker = broker_ms[merged["record"]]
    return Columns(
        offset=offsets[merged["record"]],
        row=merged["row"],
        endpoint=merged["endpoint"],
        endpoints=names.endpoints.all(),
        version=merged["version"],
        versions=names.versions.all(),
        caller=merged["caller"],
        callers=names.callers.all(),
        verified=merged["verified"],
        ts=env.clamp_times(merged["ts"], broker, flags),
        broker_ts=broker,
        flags=flags,
        latency_ms=merged["latency_ms"],
        status=merged["status"],
        served_by=merged["served_by"],
        value=merged["value"],
        label=label,
        confidence=merged["confidence"],
        weight=merged["weight"],
        groups=tuple(groups),
    )


def _join(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _merge_groups(parts: list[Rows]) -> list[Group]:
    """Groups of all parts, with rows shifted to the joined columns; groups of one endpoint@version become one."""
    if len(parts) == 1:
        return parts[0].groups
    found: dict[tuple[str, str], list[Group]] = {}
    shift = 0
    for part in parts:
        for group in part.groups:
            moved = group if shift == 0 else group._replace(rows=group.rows + shift)
            found.setdefault((group.endpoint, group.version), []).append(moved)
        shift += len(part.record)
    merged = []
    for same in found.values():
        if len(same) == 1:
            merged.append(same[0])
        else:
            rows = np.concatenate([group.rows for group in same])
            merged.append(same[0]._replace(rows=rows, features=np.concatenate([group.features for group in same])))
    return [_in_order(group) for group in merged]


def _in_order(group: Group) -> Group:
    if np.all(group.rows[1:] > group.rows[:-1]):
        return group
    order = np.argsort(group.rows)
    return group._replace(rows=group.rows[order], features=group.features[order])


def empty_columns() -> Columns:
    """Columns of no rows."""
    codes, longs, floats = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float64)
    small = np.empty(0, np.uint8)
    return Columns(
        offset=longs, row=codes, endpoint=codes, endpoints=(), version=codes, versions=(), caller=codes, callers=(),
        verified=np.empty(0, np.bool_), ts=longs, broker_ts=longs, flags=np.empty(0, np.uint32), latency_ms=floats,
        status=small, served_by=small, value=floats, label=codes, confidence=floats, weight=floats, groups=(),
    )  # fmt: skip
