"""Pairs of requests and responses as records of `palisade.predictions`: Arrow IPC streams, each for one partition.

Each prediction says where its request and its response lie (`origin`, `answer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json, to_json

from responders.signing import SigningKey
from schemas.blocks import Longs
from schemas.events import Prediction
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER, SCHEMA_VERSION
from streams.decode.partitioner import partition_of
from streams.ingest.batches import FEATURES, FEATURES_TEXT
from streams.ingest.pieces import ROW_BITS, Blamed
from streams.ingest.shapes import Features
from streams.ingest.texts import texts
from streams.records import Outgoing

MAX_BYTES = 900_000
"""Of one record: below what a broker takes by default (1 MiB), headers and envelope included."""
MAX_ROWS = 8_192
MALFORMED = 1_000
"""Refused rows of one record, each at most 800 bytes."""
MAX_ENDPOINTS = 16_384
"""Endpoints whose partition is remembered: hashing a name costs some microseconds."""
INGEST_HEADER = "palisade-ingest"
"""On each record that ingest writes to predictions: the partition number that its rows were read from."""


SIGNED_KIND = "prediction-sha256"
"""What a signature of ingest is of: the digest of a record. Ed25519 goes over its message twice by SHA-512, which for 500 kB
costs as much as a third of all else that is done with them."""


def signed_part(value: bytes) -> bytes:
    """What is signed of a record, as `SIGNED_KIND`."""
    return hashlib.sha256(value).digest()


class Pairs(NamedTuple):
    """n requests of one layout and what became of them. response None: unanswered. `topic`: where the requests lie."""

    request: pa.RecordBatch
    response: pa.RecordBatch | None
    topic: str = REQUESTS


class Written(NamedTuple):
    """Columns [n] of predictions that counters need, of one `Pairs`."""

    endpoint: pa.Array
    caller: pa.Array
    verified: pa.Array
    version: pa.Array
    served_by: pa.Array
    status: pa.Array
    latency_ms: pa.Array


class PredictionWriter:
    """Makes records of the pairs of one source partition, signed if there is a key. Remembers where endpoints belong,
    nothing else."""

    def __init__(self, partition: int, partitions: int, signer: SigningKey | None = None) -> None:
        self._signer = signer
        self._partition = partition
        self._partitions = partitions
        self._homes: dict[str, int] = {}

    def records(self, many: Sequence[Pairs]) -> tuple[list[Outgoing], list[Written]]:
        """Records of all pairs, and what was written of each. Rows of one layout and partition travel together."""
        tables: dict[Any, list[pa.RecordBatch]] = {}
        written: list[Written] = []
        for pairs in _together(many):
            columns = self._columns(pairs)
            written.append(Written(*(columns[name] for name in _COUNTED)))
            endpoint = columns["endpoint"].dictionary_encode()
            homes = np.array([self._home(name) for name in endpoint.dictionary.to_pylist()], dtype=np.int64)
            target = homes[endpoint.indices.to_numpy()]
            for prediction, rows in _by_outcome(pairs.response, len(target)):
                batch = _batch(columns | {"prediction": prediction}, rows)
                at = target if rows is None else target[rows]
                for partition in np.unique(at).tolist():
                    mine = np.flatnonzero(at == partition)
                    part = batch if len(mine) == len(at) else batch.take(pa.array(mine))
                    tables.setdefault((partition, part.schema), []).append(part)
        return [record for (home, _), parts in tables.items() for record in self._of(home, parts)], written

    def malformed(
        self, topic: str, rows: Sequence[Blamed], callers: Sequence[str], verified: Sequence[bool]
    ) -> list[Outgoing]:
        """What is passed on of rows that were refused: whose they are, and where they lie. No prediction: it has no features."""
        by_home: dict[int, list[bytes]] = {}
        for row, caller, vouched in zip(rows, callers, verified, strict=True):
            origin = f"{topic}/{self._partition}/{row.place >> ROW_BITS}/{row.place & ((1 << ROW_BITS) - 1)}"
            said = {"endpoint": row.endpoint, "caller": caller, "model_version": row.version, "origin": origin}
            auth = {"caller_auth": "verified"} if vouched else {}
            by_home.setdefault(self._home(row.endpoint), []).append(to_json(said | auth))
        return [
            Outgoing(PREDICTIONS, None, b"[" + b",".join(parts[at : at + MALFORMED]) + b"]", _MALFORMED_HEADERS, home)
            for home, parts in by_home.items()
            for at in range(0, len(parts), MALFORMED)
        ]

    def _columns(self, pairs: Pairs) -> dict[str, pa.Array]:
        """Columns of predictions, the prediction itself excepted."""
        request, response = pairs.request, pairs.response
        n = request.num_rows
        asked = {name: request.column(name) for name in request.schema.names}
        none = pa.nulls(n, pa.string())
        answered = (
            {name: response.column(name) for name in response.schema.names}
            if response is not None
            else {"status": _same("unanswered", n), "served_by": _same("primary", n), "model_version": none}
        )
        latency = answered.get("latency_ms", pa.nulls(n, pa.float64()))
        if response is not None and latency.null_count:
            latency = pc.coalesce(latency, _between(asked["sent_ms"], answered["sent_ms"]))
        combined = response is not None and "place" not in answered
        answer = (
            _places(RESPONSES, self._partition, answered["place"]) if response is not None and not combined else none
        )
        columns = {
            "endpoint": asked["endpoint"],
            "producer": asked["producer"],
            "request_id": asked["request_id"],
            "model_version": pc.coalesce(answered["model_version"], asked["model_version"], pa.scalar("default")),
            "artifact_digest": asked["artifact_digest"],
            "caller": asked["caller"],
            "caller_auth": _auths(asked["verified"]),
            "ts": pc.coalesce(asked["sent_ms"], asked["broker_ms"]),
            "latency_ms": latency,
            "status": answered["status"],
            "served_by": answered["served_by"],
            "weight": asked["weight"],
            "origin": _places(pairs.topic, self._partition, asked["place"]),
            "answer": answer,
            "reused_id": asked["reused_id"],
        }
        waited = Features.of(request)
        name = FEATURES_TEXT if FEATURES_TEXT in asked else FEATURES
        features = asked[name] if waited is None else waited.struct()
        return columns | {"verified": asked["verified"], name: features}

    def _home(self, endpoint: str) -> int:
        home = self._homes.get(endpoint)
        if home is None:
            if len(self._homes) >= MAX_ENDPOINTS:
                self._homes.clear()
            home = self._homes[endpoint] = partition_of(endpoint.encode(), self._partitions)
        return home

    def _of(self, home: int, parts: list[pa.RecordBatch]) -> Iterator[Outgoing]:
        """Records of batches of one schema, for one partition."""
        table = pa.Table.from_batches(parts)
        size = max(table.get_total_buffer_size(), 1)
        step = max(1, min(MAX_ROWS, table.num_rows * MAX_BYTES // size))
        batch = table.combine_chunks().to_batches()[0]
        for first in range(0, batch.num_rows, step):
            yield from self._fitting(home, batch.slice(first, step))

    def _fitting(self, home: int, batch: pa.RecordBatch) -> Iterator[Outgoing]:
        arrow = FEATURES in batch.schema.names
        value = _arrow(batch) if arrow else _json(batch)
        if len(value) > MAX_BYTES and batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from self._fitting(home, batch.slice(0, half))
            yield from self._fitting(home, batch.slice(half))
            return
        endpoints = batch.column("endpoint").unique()
        headers = [
            (KIND_HEADER, Prediction.KIND.encode()),
            (CONTENT_TYPE_HEADER, (ARROW_TYPE if arrow else JSON_TYPE).encode()),
            (INGEST_HEADER, str(self._partition).encode()),
        ]
        if self._signer is not None:
            headers += self._signer.headers(SIGNED_KIND, signed_part(value))
        key = endpoints[0].as_py().encode() if len(endpoints) == 1 else None
        yield Outgoing(PREDICTIONS, key, value, tuple(headers), home)


def _together(many: Sequence[Pairs]) -> list[Pairs]:
    """The same pairs, those of one layout in one: what is done with columns costs little more for many rows than for few."""
    groups: dict[Any, list[Pairs]] = {}
    for pairs in many:
        answers = None if pairs.response is None else pairs.response.schema
        groups.setdefault((pairs.topic, pairs.request.schema, answers), []).append(pairs)
    return [each[0] if len(each) == 1 else _concatenated(each) for each in groups.values()]


def _concatenated(many: Sequence[Pairs]) -> Pairs:
    responses = [pairs.response for pairs in many if pairs.response is not None]
    return Pairs(
        pa.concat_batches([pairs.request for pairs in many]),
        pa.concat_batches(responses) if responses else None,
        many[0].topic,
    )


_MALFORMED_HEADERS = ((KIND_HEADER, Prediction.KIND.encode()), (CONTENT_TYPE_HEADER, JSON_TYPE.encode()))
_COUNTED = ("endpoint", "caller", "verified", "model_version", "served_by", "status", "latency_ms")


def _same(text: str, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


def _auths(verified: pa.Array) -> pa.Array:
    return pc.if_else(verified, "verified", "claimed") if verified.true_count else _same("claimed", len(verified))


def _between(asked: pa.Array, answered: pa.Array) -> pa.Array:
    """Milliseconds [n] between two times; null where one is not known, or they run backwards."""
    ms = pc.subtract(answered, asked).cast(pa.float64())
    return pc.if_else(pc.greater_equal(ms, 0.0), ms, pa.scalar(None, pa.float64()))


def _places(topic: str, partition: int, place: pa.Array) -> pa.Array:
    """`topic/partition/offset/row` [n] of places."""
    packed = place.to_numpy(zero_copy_only=False)
    row = packed & ((1 << ROW_BITS) - 1)
    rows = pa.array(row).cast(pa.string()) if row.any() else pa.scalar("0")  # records of one event have no other row
    parts = (pa.scalar(f"{topic}/{partition}"), pa.array(packed >> ROW_BITS).cast(pa.string()), rows)
    return pc.binary_join_element_wise(*parts, "/")


def _by_outcome(response: pa.RecordBatch | None, n: int) -> Iterator[tuple[pa.Array, Longs | None]]:
    """Predictions of one type, and their rows (None: all)."""
    if response is None:
        yield pa.nulls(n, pa.float64()), None
        return
    text, label, value = response.column("text"), response.column("label"), response.column("value")
    if text.null_count == n and label.null_count in (0, n):
        yield value if label.null_count else label, None
        return
    outcomes = [
        from_json(found) if found is not None else number if word is None else word
        for found, word, number in zip(text.to_pylist(), label.to_pylist(), value.to_pylist(), strict=True)
    ]
    groups: dict[Any, list[int]] = {}
    for row, outcome in enumerate(outcomes):
        kind = tuple(outcome) if isinstance(outcome, dict) else float if outcome is None else type(outcome)
        groups.setdefault(kind, []).append(row)
    for kind, rows in groups.items():
        yield _outcomes([outcomes[row] for row in rows], kind), np.array(rows, dtype=np.int64)


def _outcomes(values: list[Any], kind: Any) -> pa.Array:
    if isinstance(kind, tuple) and kind:
        columns = [pa.array([value[name] for value in values], pa.float64()) for name in kind]
        return pa.StructArray.from_arrays(columns, names=[texts([name])[0].as_py() for name in kind])
    if kind is str:
        return texts(values)
    types = {float: pa.float64(), bool: pa.bool_(), list: pa.list_(pa.float64())}
    return pa.array(values, types[kind]) if kind in types else pa.nulls(len(values), pa.float64())


_SAID_APART = {"verified"}


def _batch(columns: dict[str, pa.Array], rows: Longs | None) -> pa.RecordBatch:
    """Columns as a batch; all rows where `rows` is None, whose `prediction` alone is of those rows already."""
    names = [name for name in columns if name not in _SAID_APART]
    arrays = [columns[name] for name in names]
    if rows is not None:
        picked = pa.array(rows)
        arrays = [
            array if name == "prediction" else array.take(picked) for name, array in zip(names, arrays, strict=True)
        ]
    return pa.RecordBatch.from_arrays(arrays, names=names)


_METADATA = {"schema_version": str(SCHEMA_VERSION)}


def _arrow(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    schema = batch.schema.with_metadata(_METADATA)
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(_METADATA))
    return bytes(sink.getvalue())


def _json(batch: pa.RecordBatch) -> bytes:
    """A JSON array: for features that no column can say."""
    rows = []
    for fields in batch.to_pylist():
        features = from_json(fields.pop(FEATURES_TEXT))
        said = {name: value for name, value in fields.items() if value is not None}
        rows.append(to_json({"schema_version": SCHEMA_VERSION, **said, FEATURES: features}, inf_nan_mode="constants"))
    return b"[" + b",".join(rows) + b"]"
