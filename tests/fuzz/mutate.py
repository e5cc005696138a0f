"""Mutation of records: of bytes, of JSON by its structure, of Arrow streams by their columns, of headers, keys and times.

Seeded: the same `Random` gives the same cases.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa

from streams.decode.ipc import ArrowRefused, inspect
from tests.fuzz.case import Case

MAX_BYTES = 1_200_000
"""A little over what a record may have."""
ARROW_START = b"\xff\xff\xff\xff"
ATOMS = (
    b"0", b"-1", b"1", b"-0.0", b"1e999", b"-1e999", b"1e308", b"5e-324", b"NaN", b"Infinity", b"9223372036854775807",
    b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"1" + b"0" * 400, b"4611686018427387905",
    b"1.5", b"true", b"false", b"null", b'""', b'"x"', b'"1"', b'"\\u0000"', b'"\\ud800"', b'"\\u001b[31m"', b'"h:0"',
    b'"r:0"', b'"' + b"y" * 130 + b'"', b'"' + b"z" * 5_000 + b'"', b'"\xff\xfe"', '"\u2603\U0001f600"'.encode(), b"[]",
    b"{}", b"[null]", b'["x"]', b"[1,2,[3]]", b'{"a":{"b":{}}}', b"[" * 40 + b"]" * 40, b'{"a":' * 40 + b"1" + b"}" * 40,
    b"[" * 5_000 + b"]" * 5_000, b"[" + b"1," * 5_000 + b"1]", b"{", b"}", b"", b",", b":",
    b'{"__proto__":1,"":2," ":3}',
)  # fmt: skip
HEADERS: tuple[tuple[str, bytes | None], ...] = (
    ("content-type", b"application/json"), ("content-type", b"application/vnd.apache.arrow.stream"),
    ("content-type", b"application/cloudevents+json; charset=UTF-8"), ("Content-Type", b"\xff\xfe"),
    ("content-type", None), ("content-type", b"x" * 5_000), ("palisade-kind", b"prediction"), ("palisade-kind", b"tick"),
    ("palisade-kind", b"report"), ("palisade-kind", b"profile_activated"), ("palisade-kind", b"command"),
    ("palisade-kind", None), ("palisade-kind", b"\xff"), ("palisade-signature", b"!!"), ("palisade-key-id", b"\xff"),
    ("ce_type", b"org.kubeflow.serving.inference.request"), ("ce_id", b"1"), ("ce_specversion", b"1.0"), ("", b""),
    ("ce_time", b"not a time"), ("ce_metadata", b'{"X": [1]}'), ("partition", b"-1"), ("offset", b"9" * 30),
)  # fmt: skip
KEYS = (None, b"", b"credit", b"spam", b"other", b"\xff\xfe", b"k" * 300, b"active|x|y", b"profile|x")
TIMES = (-1, 0, 1, 2**31, 2**62, 2**63 - 1)
Other = Callable[[], Case]
"""Gives some other case of the same target."""
_MARK = "\x02placeholder\x03"


def mutated(case: Case, other: Other, rng: Random) -> Case:
    """A case near to `case`; pieces of what `other` gives are spliced in."""
    value, key, headers, at_ms = case
    if rng.random() < 0.9:
        value = _value(value, other, rng)
    if rng.random() < (0.15 if value else 0.8):
        headers = _headers(headers, other, rng)
    if rng.random() < 0.06:
        key = rng.choice(KEYS)
    if rng.random() < 0.5:
        at_ms = rng.choice(TIMES) if rng.random() < 0.1 else at_ms + rng.randint(-500, 5_000)
    return Case(value, key, headers, max(-1, min(at_ms, 2**63 - 1)))


def _value(value: bytes | None, other: Other, rng: Random) -> bytes | None:
    roll = rng.random()
    if value is None or roll < 0.02:
        return rng.choice([None, b"", rng.choice(ATOMS), other().value])
    structured = None
    if roll < 0.75 and len(value) < 200_000:
        structured = _arrow(value, rng) if value.startswith(ARROW_START) else _json(value, rng) or _embedded(value, rng)
    if structured is None or rng.random() < 0.1:
        structured = _bytes(structured or value, other, rng)
    return structured[:MAX_BYTES]


def _bytes(value: bytes, other: Other, rng: Random) -> bytes:
    data = bytearray(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at : at + rng.choice((1, 1, 4, 8, 64, 1_000))]
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 33)))
            case 4:
                piece = data[at : at + rng.choice((1, 8, 64))]
                data[at:at] = piece * rng.choice((1, 2, 50))
            case 5:
                number = rng.choice(
                    (0, 1, 2, 7, 127, 128, 255, 256, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -1)
                )
                raw = struct.pack("<q", number)[: rng.choice((1, 2, 4, 8))]
                data[at : at + len(raw)] = raw
            case 6:
                spliced = other().value or b""
                data[at:] = spliced[rng.randrange(len(spliced) + 1) :]
            case _:
                data[at:at] = rng.choice(ATOMS)
    return bytes(data)


def _json(value: bytes, rng: Random) -> bytes | None:
    """One to three changes of a JSON document by its structure; None if it is none."""
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return None
    atoms = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document, atom = _changed(document, rng)
        atoms.append(atom)
    try:
        text = json.dumps(document).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None
    mark = json.dumps(_MARK).encode()
    for atom in atoms:
        text = text.replace(mark, atom, 1)
    return text


def _embedded(value: bytes, rng: Random) -> bytes | None:
    """A change of the first JSON document inside of other bytes, as saved state has one; the length before it follows."""
    at = min((found for found in (value.find(b"{"), value.find(b"[")) if found >= 0), default=-1)
    if at < 0:
        return None
    try:
        _, length = json.JSONDecoder().raw_decode(value[at:].decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    changed = _json(value[at : at + length], rng)
    if changed is None:
        return None
    before = value[:at]
    if before[-4:] == struct.pack("<I", length):
        before = before[:-4] + struct.pack("<I", len(changed))
    return before + changed + value[at + length :]


def _changed(document: Any, rng: Random) -> tuple[Any, bytes]:
    """The document with one place changed, and what stands for a placeholder in it."""
    atom = rng.choice(ATOMS)
    at, parents = document, []
    while isinstance(at, dict | list) and at and (not parents or rng.random() < 0.8):
        step = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        parents.append((at, step))
        at = at[step]
    if not parents:
        return rng.choice([_MARK, [document] * rng.choice((0, 2, 300)), {"x": document}]), atom
    parent, step = parents[-1]
    kind = rng.randrange(7)
    if kind == 0 and isinstance(parent, dict):
        del parent[step]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("", "x", step.upper(), step + "\x00", "y" * 200))] = (
            parent[step] if rng.random() < 0.5 else _MARK
        )
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(list(parent))] = parent[step]
    elif kind == 3 and isinstance(parent, list):
        parent[step:step] = [parent[step]] * rng.choice((1, 3, 200))
    elif kind == 4 and isinstance(parent[step], int | float):
        parent[step] = parent[step] * rng.choice((-1, 0, 2, 1_000, 10**18)) + rng.choice((0, 1, -1))
    else:
        parent[step] = _MARK
    return document, atom


def _arrow(value: bytes, rng: Random) -> bytes | None:
    """An Arrow stream with a column changed, taken out, doubled or made another type; None if it cannot be read."""
    try:
        table = read_arrow(value)
        names, columns = list(table.column_names), [column.combine_chunks() for column in table.columns]
        if not names:
            return None
        at = rng.randrange(len(names))
        match rng.randrange(8):
            case 0:
                del names[at], columns[at]
            case 1:
                names.append(names[at])
                columns.append(columns[at])
            case 2:
                names[at] = rng.choice(("", "x", names[at].upper(), "features.x", rng.choice(names)))
            case 3:
                columns[at] = columns[at].slice(0, len(table)).dictionary_encode()
            case 4:
                columns[at] = pa.nulls(
                    len(table), rng.choice((pa.string(), pa.int64(), pa.null(), pa.list_(pa.float64())))
                )
            case 5:
                columns[at] = _odd_column(len(table), rng)
            case 6 if pa.types.is_struct(columns[at].type) and columns[at].type.num_fields:
                inner = columns[at].flatten()
                fields = [field.name for field in columns[at].type]
                inner[rng.randrange(len(inner))] = _odd_column(len(table), rng)
                columns[at] = pa.StructArray.from_arrays(inner, fields)
            case _:
                columns[at] = columns[at].cast(
                    rng.choice((pa.string(), pa.float64(), pa.float32(), pa.int32(), pa.large_string())), safe=False
                )
        changed = pa.Table.from_arrays(columns, names) if names else table.select([])
        if rng.random() < 0.2:
            changed = (
                pa.concat_tables([changed] * rng.choice((2, 3, 40))) if rng.random() < 0.7 else changed.slice(0, 0)
            )
        sink = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, None, "lz4", "zstd")))
        with pa.ipc.new_stream(sink, changed.schema, options=options) as writer:
            writer.write_table(changed, max_chunksize=rng.choice((None, 1, 7)))
    except (ArrowRefused, pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError):
        return None
    return sink.getvalue()


def read_arrow(value: bytes) -> pa.Table:
    """A stream that is sound: pyarrow itself may crash on others. Raises ArrowRefused, ArrowException or OSError."""
    inspect(value)
    table = pa.ipc.open_stream(io.BytesIO(value)).read_all()
    table.validate(full=True)
    return table


def _odd_column(rows: int, rng: Random) -> pa.Array:
    odd: Any = rng.choice(
        (
            float("nan"), float("inf"), 1e308, -1, 2**63 - 1, -(2**63), True, "", "x" * 5_000, "\x1b[31m", "a b", b"\xff\xfe",
            [1.0], [], ["x"], {"a": 1.0}, {"a": {"b": "c"}}, "credit", "verified", [[1.0]],
        )
    )  # fmt: skip
    return pa.array([odd if rng.random() < 0.8 else None for _ in range(rows)] if rows else [odd][:0])


def _headers(
    headers: tuple[tuple[str, bytes | None], ...], other: Other, rng: Random
) -> tuple[tuple[str, bytes | None], ...]:
    listed = list(headers)
    match rng.randrange(4):
        case 0 if listed:
            del listed[rng.randrange(len(listed))]
        case 1 if listed:
            name, value = listed[at := rng.randrange(len(listed))]
            listed[at] = (name, None if value is None else _bytes(value, other, rng))
        case 2:
            return other().headers
        case _:
            listed.insert(rng.randrange(len(listed) + 1), rng.choice(HEADERS))
    return tuple(listed)
