"""Events for decode tests, and a decoder with one profiled endpoint."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from schemas.blocks import FeatureSchema
from streams.decode import Decoder, Segment
from streams.decode.columns import Headers

NOW = 1_700_000_000_000
ARROW = [("content-type", b"application/vnd.apache.arrow.stream")]
JSON = [("content-type", b"application/json")]
SCHEMA = FeatureSchema(
    numeric=("distance", "temp"),
    categorical=("carrier",),
    categories=(("UA", "AA"),),
    order=("distance", "carrier", "temp"),
)
FEATURES: dict[str, Any] = {"distance": 12.5, "carrier": "AA", "temp": 3}


def schema_of(endpoint: str, version: str) -> FeatureSchema | None:
    return SCHEMA if endpoint == "credit" else None


def event(**fields: Any) -> dict[str, Any]:
    return {"endpoint": "credit", "features": dict(FEATURES), "caller": "ann", "ts": NOW} | fields


def as_json(**fields: Any) -> bytes:
    return json.dumps(event(**fields)).encode()


def with_features(**features: Any) -> bytes:
    return as_json(features=FEATURES | features)


def arrow_stream(rows: Sequence[Mapping[str, Any]] | pa.Table, compression: str | None = None) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def segments(
    values: Sequence[bytes | None],
    headers: Headers | Sequence[Headers | None] = (),
    key: bytes | None = b"credit",
    decoder: Decoder | None = None,
    first: int = 0,
) -> list[Segment]:
    """All records under one key, offsets from `first`; `headers` are each record's, or one list for all."""
    each = list(headers) if headers and not isinstance(headers[0], tuple) else [headers or None] * len(values)
    decoder = decoder or Decoder("log", 0, 1, schema_of)
    count = len(values)
    return list(
        decoder.segments(values, [key] * count, each, list(range(first, first + count)), [NOW] * count)  # type: ignore[arg-type]
    )


def places(found: Sequence[Segment]) -> list[tuple[int, int]]:
    """(offset, row) of the scored rows of all segments, in their order."""
    return [place for segment in found
            for place in zip(segment.columns.offset.tolist(), segment.columns.row.tolist(), strict=True)]  # fmt: skip


def one(value: bytes | None, **keywords: Any) -> Segment:
    (segment,) = segments([value], **keywords)
    return segment
