"""Whatever lies on a topic of the audit: it becomes rows or none, and it never stops the audit of the others."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.signals import Signal
from schemas.topics import PROFILES, SIGNALS
from schemas.verdicts import VERDICT_BLOCKS, VERDICT_P_VALUES, VERDICT_ROWS
from schemas.wire import KIND_HEADER
from streams.audit import rows as rows_module
from streams.audit.rows import ARROW_SCHEMAS, AUDITED, LAST_MS, kept_rows, merged, rows_of
from streams.records import Records
from tests.decode.cases import NOW, arrow_stream, as_json, event
from tests.streams.test_rows import CONTRACTS, rows

KINDS = sorted({b"tick", b"", b"\xff", b"\x00", b"profile"}.union(*AUDITED.values()))
INTEGERS = st.integers() | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**4_200])
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(st.characters(codec=None)), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)  # fmt: skip
GOOD = [record.to_bytes() for _, record in CONTRACTS] + [as_json(), arrow_stream([event(), event()])]
BEYOND_INT = [value.replace(str(NOW).encode(), b"9" * 5_000) for value in GOOD]
"""More digits than Python turns into a number."""


def ipc(batch: pa.RecordBatch, **meta: str) -> bytes:
    sink = pa.BufferOutputStream()
    batch = batch.replace_schema_metadata(meta)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


COLUMNS = {
    "int64": pa.array([-1, 2**63 - 1]),
    "uint64": pa.array([0, 2**64 - 1], pa.uint64()),
    "text": pa.array(["a\x00", None]),
    "bytes": pa.array([b"\xff", b"\x00"], pa.binary()),
    "double": pa.array([float("nan"), 1e308]),
    "time": pa.array([-1, 2**62], pa.timestamp("us")),
    "list": pa.array([[1], None]),
    "words": pa.array(["a", None]).dictionary_encode(),
    "null": pa.nulls(2),
}
NAMES = sorted(
    {*VERDICT_ROWS.names, *VERDICT_BLOCKS.names, *VERDICT_P_VALUES.names, *ARROW_SCHEMAS["verdicts"].names, "other"}
)


@st.composite
def odd_verdicts(draw: st.DrawFn) -> bytes:
    """An Arrow stream with some names of verdicts over columns of any type, some names twice."""
    names = draw(st.lists(st.sampled_from(NAMES), max_size=6))
    arrays = [COLUMNS[draw(st.sampled_from(sorted(COLUMNS)))] for _ in names]
    metadata = {"topic": "\x00t", "partition": draw(st.sampled_from(["0", "-1", "x", "", "9" * 30, "9" * 5_000]))}
    return ipc(pa.RecordBatch.from_arrays(arrays, names=names), **metadata)


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """Something good with a few bytes changed, or cut short."""
    value = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
    return bytes(value[: draw(st.integers(0, len(value)))])


@st.composite
def fields_replaced(draw: st.DrawFn) -> bytes:
    """A record of a contract with some of its values replaced by anything that JSON can say."""
    fields = json.loads(draw(st.sampled_from([record for _, record in CONTRACTS])).to_bytes())
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = draw(JSON)
    return json.dumps(fields).encode()


def good_verdicts() -> list[bytes]:
    rows_ = pa.RecordBatch.from_arrays(
        [pa.array([0, 1]), pa.array([0, 0], pa.int32()), pa.array([0, 1], pa.uint8()), pa.array([0, 4], pa.uint32()),
         pa.array(["credit", "x"]).dictionary_encode()],
        schema=VERDICT_ROWS,
    )  # fmt: skip
    return [ipc(rows_, topic="t", partition="0")]


VALUES = (
    st.none()
    | st.sampled_from(BEYOND_INT)
    | st.binary(max_size=60)
    | damaged(GOOD)
    | damaged(good_verdicts())
    | odd_verdicts()
    | fields_replaced()
)
HEADER = st.tuples(
    st.sampled_from([KIND_HEADER, "content-type", ""]) | st.text(max_size=3),
    st.none() | st.sampled_from(KINDS) | st.binary(max_size=6),
)
RECORD = st.tuples(
    VALUES,
    st.none() | st.binary(max_size=8),
    st.none() | st.lists(HEADER, max_size=3) | st.sampled_from(KINDS).map(lambda kind: [(KIND_HEADER, kind)]),
    st.sampled_from([-1, 0, NOW, LAST_MS + 1, 2**63 - 1]),
)


@pytest.mark.parametrize("topic", sorted(AUDITED))
@settings(max_examples=60, deadline=None)
@given(found=st.lists(RECORD, min_size=1, max_size=4))
def test_no_record_of_any_topic_makes_the_audit_raise(topic: str, found: list[Any]) -> None:
    values, keys, headers, timestamps = (list(column) for column in zip(*found, strict=True))
    tables = rows_of(topic, 0, Records(values, keys, headers, list(range(7, 7 + len(found))), timestamps))

    for name, table in merged([tables]).items():
        assert table.schema == ARROW_SCHEMAS[name]
        table.validate(full=True)
        for at in table["broker_time"].cast(pa.int64()).to_pylist():
            assert 0 <= at <= LAST_MS


def test_a_kind_that_is_no_text_is_kept_as_far_as_it_can_be_read() -> None:
    records = Records([b"{}"], [b"x"], [[(KIND_HEADER, b"\xff")]], [7], [NOW])

    (row,) = rows(rows_of(PROFILES, 0, records), "profiles")

    assert row["kind"] == "�"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_record_that_no_rows_can_be_made_of_costs_its_own_and_no_other(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    signal = next(record for name, record in CONTRACTS if name == "signals")
    values = [signal.model_copy(update={"signal_id": f"s{k}"}).to_bytes() for k in range(count)]
    planted = count // 2
    take = rows_module._take_record

    def raising(gathered: Any, kept: Any, value: bytes, identity: Any) -> None:
        if value == values[planted]:
            raise ZeroDivisionError("planted")
        take(gathered, kept, value, identity)

    monkeypatch.setattr(rows_module, "_take_record", raising)
    headers = [[(KIND_HEADER, Signal.KIND.encode())]] * count

    tables, lost = kept_rows(SIGNALS, 0, Records(values, [b"k"] * count, headers, list(range(count)), [NOW] * count))

    assert [(offset, str(error)) for offset, error in lost] == [(planted, "planted")]
    assert [row["signal_id"] for row in rows(tables, "signals")] == [f"s{k}" for k in range(count) if k != planted]
