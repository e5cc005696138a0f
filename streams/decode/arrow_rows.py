"""A batch of Arrow columns to the rows of a segment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.blocks import Codes, Flags, Floats, Longs
from schemas.deadletter import DeadReason
from streams.decode import arrow
from streams.decode import envelope as env
from streams.decode.columns import Group
from streams.decode.fast import Plan
from streams.decode.gather import Rows, SegmentNames, Target
from streams.decode.layout import settle

TargetOf = Callable[[str, str], Target]
Home = Callable[[str], str]


class BadRow(NamedTuple):
    """A row that is dead-lettered alone, and what its letter shows of it."""

    record: int
    row: int
    reason: DeadReason
    detail: str
    shown: dict[str, Any]


def arrow_rows(
    record_batch: pa.RecordBatch, record: Longs, row: Codes, names: SegmentNames, target_of: TargetOf, home: Home
) -> tuple[Rows | None, list[BadRow]]:
    """The rows of a batch, and those refused alone; raises ArrowRefused for the whole.

    record, row [n]: index of each row's record in the run, and its number there. `home` says what is wrong with an
    endpoint's partition ("": nothing).
    """
    batch = arrow.Batch(record_batch)
    endpoint_of, endpoints = batch.words("endpoint")
    version_of, versions = batch.words("model_version")
    status, wrong_status = arrow.statuses(batch)
    verified, wrong_auth = arrow.auths(batch)
    wrongs = ["endpoint is null" if not isinstance(name, str) else home(name) for name in endpoints]
    misplaced = np.array([bool(wrong) for wrong in wrongs])[endpoint_of]
    bad = misplaced | wrong_status | wrong_auth
    refused = [
        BadRow(int(record[at]), int(row[at]), *_why(batch, at, wrongs[endpoint_of[at]]))
        for at in np.flatnonzero(bad).tolist()
    ]
    kept: arrow.Picked = np.flatnonzero(~bad) if refused else slice(None)
    if len(refused) == batch.rows:
        return None, refused
    flags = np.zeros(batch.rows, dtype=np.uint32)
    for name in ("producer", "request_id", "served_by"):
        batch.flag_odd_ids(name, flags)
    batch.flag_reused_ids(flags)
    latency_ms, weight = batch.doubles("latency_ms", np.nan), batch.doubles("weight", 1.0)
    outcome = batch.outcomes(names.labels)
    env.check_numbers(latency_ms, outcome.value, weight, flags)
    caller_of, callers = batch.words("caller")
    groups, group_flags = _groups(batch, kept, endpoint_of, endpoints, version_of, versions, target_of)
    flags = flags[kept] | group_flags
    rows = Rows(
        record=record[kept],
        row=row[kept],
        endpoint=_codes(names.endpoints, endpoint_of[kept], endpoints, flags),
        version=_codes(names.versions, version_of[kept], versions, flags),
        caller=_codes(names.callers, caller_of[kept], callers, flags),
        verified=verified[kept],
        ts=batch.times()[kept],
        flags=flags,
        latency_ms=latency_ms[kept],
        status=status[kept],
        served_by=arrow.routes(batch)[kept],
        value=outcome.value[kept],
        label=outcome.label[kept],
        confidence=outcome.confidence[kept],
        weight=weight[kept],
        groups=groups,
    )
    return rows, refused


def _why(batch: arrow.Batch, at: int, misplaced: str) -> tuple[DeadReason, str, dict[str, Any]]:
    shown = batch.ids(at)
    if not isinstance(shown["endpoint"], str):
        return "wrong_shape", misplaced, shown | {"endpoint": ""}
    if misplaced:
        return "wrong_partition", misplaced, shown
    return "wrong_shape", f"status {shown['status']!r}, caller_auth {shown['caller_auth']!r}", shown


def _codes(names: env.Names, codes: Codes, words: list[str], flags: Flags) -> Codes:
    """A segment's codes of a batch's codes, odd names flagged; words that no row uses get none."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(words)))
    table = np.zeros(len(words), dtype=np.int32)
    odd = np.zeros(len(words), dtype=np.uint32)
    found = np.zeros(len(used), dtype=np.uint32)
    # `words` ends with the default, which is seldom in use
    in_use = words[:-1] if len(used) == len(words) - 1 == used[-1] + 1 else [words[code] for code in used.tolist()]
    table[used] = names.column(in_use, found)
    odd[used] = found
    flags |= odd[codes]
    return table[codes]


def _groups(
    batch: arrow.Batch,
    kept: arrow.Picked,
    endpoint_of: npt.NDArray[np.int32],
    endpoints: list[str],
    version_of: npt.NDArray[np.int32],
    versions: list[str],
    target_of: TargetOf,
) -> tuple[list[Group], Flags]:
    """Groups of the kept rows (numbered among the kept), and the flags of their features."""
    part = endpoint_of[kept].astype(np.int64) * len(versions) + version_of[kept]
    if len(part) and (part == part[0]).all():
        order = np.arange(len(part))
        edges = np.array([0, len(part)])
    else:
        order = np.argsort(part, kind="stable")
        edges = np.concatenate(([0], np.flatnonzero(np.diff(part[order])) + 1, [len(order)]))
    flags = np.zeros(len(part), dtype=np.uint32)
    cuts: list[tuple[Target, npt.NDArray[np.intp]]] = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        endpoint, version = divmod(int(part[order[first]]), len(versions))
        cuts.append((target_of(endpoints[endpoint], versions[version]), order[first:last]))
    # Columns are looked at once for all endpoints of one layout: a batch may hold a few rows of each of many.
    by_plan: dict[Plan | None, list[int]] = {}
    for number, (target, _) in enumerate(cuts):
        by_plan.setdefault(target.plan, []).append(number)
    parts: dict[int, Floats] = {}
    for plan, numbers in by_plan.items():
        rows = np.concatenate([cuts[number][1] for number in numbers])
        matrix = np.empty((len(rows), 0))
        if plan is not None:
            matrix, bits = batch.matrix(plan.layout, _of(kept, rows, len(cuts) == 1))
            flags[rows] = bits | settle(matrix, plan.layout)
        ends = np.cumsum([len(cuts[number][1]) for number in numbers])
        parts |= zip(numbers, np.split(matrix, ends[:-1]), strict=True)
    return [
        Group(target.endpoint, target.version, None if target.plan is None else target.plan.layout, rows, parts[number])
        for number, (target, rows) in enumerate(cuts)
    ], flags


def _of(kept: arrow.Picked, rows: npt.NDArray[np.intp], alone: bool) -> arrow.Picked:
    """Rows of the kept ones as rows of the batch. `alone`: of one endpoint, so all of them as they lie."""
    if not isinstance(kept, slice):
        return kept[rows]
    return kept if alone else rows
