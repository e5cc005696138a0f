"""Rows of a piece as Arrow batches: requests of one layout of features together, responses all together.

A layout is the names of the features, in order. Rows that fit into no common column (another type than most of their
column, features without names, one of very many layouts) keep their features as JSON text, so that nothing of them is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from msgspec import UNSET, UnsetType
from pydantic_core import to_json

from schemas.blocks import Longs
from schemas.errors import PalisadeError
from schemas.outcomes import numbers
from streams.decode.envelope import NO_TIME, times
from streams.ingest.pieces import Piece
from streams.ingest.texts import sayable, texts

MAX_LAYOUTS = 32
"""Layouts of one piece that have a batch of their own; rows of further ones keep their features as text."""
FEATURES, FEATURES_TEXT = "features", "features_text"
_KINDS: dict[type, pa.DataType] = {
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    list: pa.list_(pa.float64()),
}


class Redaction(Protocol):
    """What makes the sensitive features of one endpoint unreadable. Raises PalisadeError on features it cannot treat."""

    def struct(self, features: pa.StructArray) -> pa.StructArray: ...
    def callers(self, ids: pa.Array) -> pa.Array: ...
    def features(self, features: Mapping[str, Any] | list[Any]) -> dict[str, Any] | list[Any]: ...


def hidden(caller: str, redaction: Redaction | None) -> str:
    """The caller's id as it may be written."""
    return caller if redaction is None else str(redaction.callers(pa.array([caller], pa.string()))[0].as_py())


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of requests. `vouched`: whether who wrote them authenticated the endpoint's callers.

    `redactions`: by endpoint, before anything is held or written.
    """

    vouched: Callable[[str], bool]
    redactions: Mapping[str, Redaction]


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests [n] of one layout: `batch`, and for pairing their keys and endpoints as lists. `rows` [n]: in the piece."""

    batch: pa.RecordBatch
    keys: list[str]
    endpoints: list[str]
    rows: Longs


@dataclass(frozen=True, slots=True, eq=False)
class NotWritten:
    """Rows of the piece that must not be written on, and why."""

    rows: Longs
    detail: str


def request_batches(piece: Piece, rules: Rules) -> tuple[list[Requests], list[NotWritten]]:
    """The rows of a piece of requests or combined events, by layout."""
    found: list[Requests] = []
    refused: list[NotWritten] = []
    for owner, names, rows in _by_layout(piece, rules):
        redaction = None if owner is None else rules.redactions[owner]
        try:
            batches, not_written = _layout_batches(piece, names, rows, rules, redaction)
        except PalisadeError as error:  # it speaks of the names of a layout, which all its rows have
            refused.append(NotWritten(np.array(rows, dtype=np.int64), str(error)))
        else:
            found += batches
            refused += not_written
    return found, refused


def _by_layout(piece: Piece, rules: Rules) -> list[tuple[str | None, tuple[str, ...] | None, list[int]]]:
    """(endpoint if it has redactions, names of the features or None if they have none, rows), most rows first."""
    groups: dict[Any, list[int]] = {}
    endpoints = piece.fields["endpoint"]
    if piece.features is not None:
        names = piece.features.names
        if not rules.redactions:
            return [(None, names, list(range(len(piece))))]
        for row, endpoint in enumerate(endpoints):
            owner = endpoint if endpoint in rules.redactions else None
            groups.setdefault((owner, names), []).append(row)
    elif rules.redactions:
        owners = [endpoint if endpoint in rules.redactions else None for endpoint in endpoints]
        for row, (owner, each) in enumerate(zip(owners, piece.fields["features"], strict=True)):
            groups.setdefault((owner, tuple(each) if type(each) is dict and each else None), []).append(row)
    else:
        for row, each in enumerate(piece.fields["features"]):
            groups.setdefault((None, tuple(each) if type(each) is dict and each else None), []).append(row)
    if len(groups) <= MAX_LAYOUTS:
        return [(owner, names, rows) for (owner, names), rows in groups.items()]
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rest: dict[str | None, list[int]] = {}
    for (owner, _), rows in ranked[MAX_LAYOUTS:]:
        rest.setdefault(owner, []).extend(rows)
    kept = [(owner, names, rows) for (owner, names), rows in ranked[:MAX_LAYOUTS]]
    return kept + [(owner, None, sorted(rows)) for owner, rows in rest.items()]


def _layout_batches(
    piece: Piece, names: tuple[str, ...] | None, rows: list[int], rules: Rules, redaction: Redaction | None
) -> tuple[list[Requests], list[NotWritten]]:
    found: list[Requests] = []
    refused: list[NotWritten] = []
    if piece.features is not None:
        given = piece.features if len(rows) == len(piece) else piece.features.take(np.array(rows, dtype=np.int64))
        columns = given.columns() if redaction is None else {FEATURES: redaction.struct(given.struct())}
        return [_requests(piece, rows, columns, rules, redaction)], refused
    if names is not None:
        struct, odd = _struct([piece.fields["features"][row] for row in rows], names)
        if struct is not None:
            fitting = [row for at, row in enumerate(rows) if at not in odd] if odd else rows
            features = struct if redaction is None else redaction.struct(struct)
            found.append(_requests(piece, fitting, {FEATURES: features}, rules, redaction))
        rows = [rows[at] for at in sorted(odd)]
    if rows and redaction is not None:
        rows, each, refused = _redacted(piece, rows, redaction)
    else:
        each = [piece.fields["features"][row] for row in rows]
    if rows:
        said = pa.array([to_json(features, inf_nan_mode="constants") for features in each], pa.binary())
        found.append(_requests(piece, rows, {FEATURES_TEXT: said}, rules, redaction))
    return found, refused


def _redacted(piece: Piece, rows: list[int], redaction: Redaction) -> tuple[list[int], list[Any], list[NotWritten]]:
    """The rows that may be written and their features; and the others. Row by row: they share no form, and whoever sends
    one that cannot be redacted takes nobody else's with it."""
    kept: list[int] = []
    each: list[Any] = []
    refused: dict[str, list[int]] = {}
    for row in rows:
        try:
            each.append(redaction.features(piece.fields["features"][row]))
            kept.append(row)
        except PalisadeError as error:
            refused.setdefault(str(error), []).append(row)
    return kept, each, [NotWritten(np.array(at, dtype=np.int64), detail) for detail, at in refused.items()]


def _struct(rows: Sequence[dict[str, Any]], names: tuple[str, ...]) -> tuple[pa.StructArray | None, set[int]]:
    """Features [rows without odd ones] as columns, and the rows that have another type somewhere than most; None if all."""
    width = len(names)
    flat = list(chain.from_iterable(map(dict.values, rows)))
    columns = [flat[at::width] for at in range(width)]
    odd: set[int] = set()
    kinds: list[type] = []
    for column in columns:
        found = set(map(type, column)) - {type(None)}
        if len(found) > 1:
            count = Counter(map(type, column))
            most = max(found, key=lambda kind: (count[kind], kind.__name__))
            odd |= {at for at, value in enumerate(column) if type(value) not in (most, type(None))}
            found = {most}
        kinds.append(found.pop() if found else float)
    if len(odd) == len(rows):
        return None, odd
    if odd:
        columns = [[value for at, value in enumerate(column) if at not in odd] for column in columns]
    arrays = [_array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.StructArray.from_arrays(arrays, names=[sayable(name) for name in names]), odd


def _array(column: list[Any], kind: type) -> pa.Array:
    return texts(column) if kind is str else pa.array(column, _KINDS[kind])


def _requests(
    piece: Piece, rows: list[int], features: Mapping[str, pa.Array], rules: Rules, redaction: Redaction | None
) -> Requests:
    everything = len(rows) == len(piece)
    at = np.array(rows, dtype=np.int64)

    def of(column: str) -> list[Any]:
        values = piece.fields[column]
        return values if everything else [values[row] for row in rows]

    keys = piece.key if everything else [piece.key[row] for row in rows]
    endpoints, ids, callers = of("endpoint"), of("request_id"), texts(of("caller"))
    arrays = {
        "place": pa.array(piece.place[at]),
        "broker_ms": pa.array(piece.broker_ms[at]),
        "endpoint": texts(endpoints),
        "producer": texts(of("producer")),
        "request_id": texts(ids if all(ids) else [one or "none" for one in ids]),
        "model_version": texts(of("model_version")),
        "artifact_digest": texts(of("artifact_digest")),
        "caller": callers if redaction is None else redaction.callers(callers),
        "verified": _verified(of("caller_auth"), endpoints, rules),
        "sent_ms": _times(of("ts")),
        "weight": pa.array(numbers(of("weight"))),
        "reused_id": pa.array(np.zeros(len(rows), dtype=np.bool_)),
        **features,
    }
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    return Requests(batch, keys, endpoints, at)


def _verified(auths: Sequence[str], endpoints: Sequence[str], rules: Rules) -> pa.Array:
    """Who says that it authenticated the caller is believed where the endpoint's owner says so."""
    if "verified" not in auths:
        return pa.array(np.zeros(len(auths), dtype=np.bool_))
    believed = {endpoint: rules.vouched(endpoint) for endpoint in set(endpoints)}
    return pa.array([a == "verified" and believed[e] for a, e in zip(auths, endpoints, strict=True)], pa.bool_())


def _times(column: Sequence[int | None]) -> pa.Array:
    if column.count(None) == len(column):
        return pa.nulls(len(column), pa.int64())
    try:
        ms = np.array(column, dtype=np.int64)
    except (TypeError, OverflowError):
        ms = times(column)
    return pa.array(ms, mask=ms == NO_TIME)


_APART = {float, str, type(None), UnsetType}
"""Types of predictions that are written without a detour through JSON."""


def response_batch(piece: Piece) -> pa.RecordBatch:
    """The rows of a piece of responses or combined events. `value`: a number; `label`: a text; `text`: any other
    prediction, as JSON."""
    given, kinds = piece.fields["prediction"], set(map(type, piece.fields["prediction"]))
    latency = numbers(piece.fields["latency_ms"])
    label, text = pa.nulls(len(given), pa.string()), pa.nulls(len(given), pa.binary())
    if UnsetType in kinds:
        given = [None if value is UNSET else value for value in given]
    if not kinds <= _APART:
        others = [None if type(one) in _APART else to_json(one, inf_nan_mode="constants") for one in given]
        text = pa.array(others, pa.binary())
    if str in kinds:
        label = texts([one if type(one) is str else None for one in given])
    if not kinds <= {float, type(None), UnsetType}:
        given = [one if type(one) is float else None for one in given]
    arrays = {
        "place": pa.array(piece.place),
        "broker_ms": pa.array(piece.broker_ms),
        "endpoint": texts(piece.fields["endpoint"]),
        "request_id": texts(piece.fields["request_id"]),
        "status": texts(["ok" if one is UNSET else one for one in piece.fields["status"]]),
        "latency_ms": pa.array(latency, mask=np.isnan(latency)),
        "model_version": texts(piece.fields["model_version"]),
        "served_by": texts(piece.fields["served_by"]),
        "sent_ms": _times(piece.fields["ts"]),
        "value": pa.array(given, pa.float64()),
        "label": label,
        "text": text,
    }
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
