"""What cannot be decoded is dead-lettered with a reason, and the records around it are scored."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pytest

from schemas.deadletter import DEAD_REASONS, KEPT_BYTES
from schemas.events import MAX_RECORD_BYTES, MAX_ROWS_PER_RECORD
from streams.deadletters import Place, dead_letter, explain
from streams.decode.columns import Headers
from tests.decode.cases import ARROW, JSON, arrow_stream, as_json, event, one, places, segments, with_features

DEEP = b'{"endpoint":"credit","caller":"ann","features":{},"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
BRACKETS_IN_TEXT = with_features(carrier="[{" * 40)

BAD: list[tuple[str, bytes | None, Headers]] = [
    ("tombstone", None, ()),
    ("empty", b"", ()),
    ("empty", b"[]", ()),
    ("empty", arrow_stream(pa.Table.from_pylist([event()]).slice(0, 0)), ARROW),
    ("too_large", b" " * (MAX_RECORD_BYTES + 1), ()),
    ("too_large", b"2" * 2_000_000, ()),
    ("too_large", as_json(x="y" * 70_000), ()),
    ("too_large", b"[" + b",".join([b"1"] * (MAX_ROWS_PER_RECORD + 1)) + b"]", ()),
    ("too_deep", DEEP, ()),
    ("too_deep", b"[" * 10_000, ()),
    ("too_deep", b'{"a":' * 20 + b"1" + b"}" * 20, ()),
    ("not_json", b"hello", ()),
    ("not_json", b"\x00\x01\x02", ()),
    ("not_json", as_json()[:-1], ()),
    ("not_json", as_json() + b"x", ()),
    ("not_json", b"\xef\xbb\xbf" + as_json(), ()),
    ("not_json", b'{"endpoint":"credit","features":{},"x":"\xff"}', ()),
    ("not_json", as_json(caller="\ud800"), ()),
    ("not_json", b"[" + as_json() + b",", ()),
    ("wrong_shape", b"5", ()),
    ("wrong_shape", b"null", ()),
    ("wrong_shape", b"{}", ()),
    ("wrong_shape", as_json(features=None), ()),
    ("wrong_shape", as_json(features={"distance": {"a": 1}}), ()),
    ("wrong_shape", as_json(status="fine"), ()),
    ("wrong_shape", as_json(seq="1"), ()),
    ("wrong_shape", as_json(ts=1.5), ()),
    ("wrong_shape", as_json(caller=7), ()),
    ("arrow_broken", arrow_stream([event()])[:-8], ARROW),
    ("arrow_broken", arrow_stream([event()])[:100], ()),
    ("arrow_broken", b"\xff\xff\xff\xff", ()),
    ("arrow_broken", arrow_stream([event()]) + b"more", ()),
    ("arrow_broken", b"PAR1", ARROW),
    ("arrow_schema", arrow_stream([{"a": 1}]), ()),
    ("arrow_schema", arrow_stream([event(endpoint=5)]), ()),
    ("arrow_schema", arrow_stream([event(features=[1.0])]), ()),
    ("arrow_schema", arrow_stream([event(latency_ms="4")]), ()),
    ("arrow_schema", arrow_stream([event(ts="now")]), ()),
    ("encoding_mismatch", as_json(), ARROW),
    ("encoding_mismatch", arrow_stream([event()]), JSON),
    ("encoding_mismatch", as_json(), [("Content-Type", b"application/avro")]),
    ("unknown_kind", as_json(), [("palisade-kind", b"report")]),
    ("unknown_kind", as_json(), [("palisade-kind", b"\xff\x1b[31m")]),
    ("wrong_partition", as_json(endpoint="fraud"), ()),
]


@pytest.mark.parametrize(("reason", "value", "headers"), BAD)
def test_a_bad_record_is_dead_lettered_with_its_reason(reason: str, value: bytes | None, headers: Headers) -> None:
    segment = one(value, headers=headers)

    assert [letter.reason for letter in segment.dead_letters] == [reason]
    assert len(segment.columns) == 0
    letter = segment.dead_letters[0]
    assert letter.endpoint in ("credit", "fraud")
    assert letter.size == len(value or b"")
    assert letter.sha256 == hashlib.sha256(value or b"").hexdigest()
    assert base64.b64decode(letter.head) == (value or b"")[:KEPT_BYTES]


def test_records_around_bad_ones_are_scored() -> None:
    values: list[bytes | None] = [as_json(caller="before")]
    headers: list[Headers | None] = [None]
    for _, value, head in BAD:
        values += [value, as_json(caller="after")]
        headers += [head, None]

    (segment,) = segments(values, headers)

    assert segment.columns.offset.tolist() == list(range(0, 2 * len(BAD) + 1, 2))
    assert [letter.log_offset for letter in segment.dead_letters] == list(range(1, 2 * len(BAD), 2))
    assert not segment.columns.flags.any()


def test_brackets_inside_of_text_are_not_depth() -> None:
    segment = one(BRACKETS_IN_TEXT)

    assert not segment.dead_letters
    assert len(segment.columns) == 1


def test_a_bad_element_of_an_array_dies_alone() -> None:
    segment = one(b"[" + b",".join([as_json(), b"5", as_json(status="x"), with_features(temp=float("nan"))]) + b"]")

    assert [(letter.log_row, letter.reason) for letter in segment.dead_letters] == [
        (1, "wrong_shape"),
        (2, "wrong_shape"),
    ]
    assert segment.columns.row.tolist() == [0, 3]


def test_a_dead_letter_names_the_caller_that_its_bytes_show() -> None:
    (letter,) = one(as_json(caller="mallory", status="x")).dead_letters

    assert (letter.endpoint, letter.caller) == ("credit", "mallory")
    assert "status" in letter.detail


def test_rows_of_foreign_endpoints_in_one_arrow_record_die_one_by_one() -> None:
    from streams.decode import Decoder, partition_of
    from tests.decode.cases import schema_of

    names = [f"e{n}" for n in range(20)]
    home = partition_of(b"e0", 4)
    decoder = Decoder("log", home, 4, schema_of)
    segment = one(arrow_stream([event(endpoint=name) for name in names]), decoder=decoder, key=b"e0")

    ours = [name for name in names if partition_of(name.encode(), 4) == home]
    assert [segment.columns.endpoints[code] for code in segment.columns.endpoint] == ours
    assert [letter.endpoint for letter in segment.dead_letters] == [name for name in names if name not in ours]
    assert {letter.reason for letter in segment.dead_letters} == {"wrong_partition"}
    assert [letter.log_row for letter in segment.dead_letters] == [
        at for at, name in enumerate(names) if name not in ours
    ]


def test_an_arrow_row_with_a_word_that_the_contract_does_not_know_dies_alone() -> None:
    segment = one(arrow_stream([event(status="ok"), event(status="fine"), event(status=None), event(endpoint=None)]))

    assert segment.columns.row.tolist() == [0, 2]
    assert [(letter.log_row, letter.reason) for letter in segment.dead_letters] == [
        (1, "wrong_shape"),
        (3, "wrong_shape"),
    ]


def test_an_arrow_stream_that_unpacks_to_more_than_the_bound_is_refused_before_it_is_unpacked() -> None:
    bomb = arrow_stream([event(note="x" * (70 << 20))], "zstd")
    assert len(bomb) < MAX_RECORD_BYTES

    (letter,) = one(bomb).dead_letters

    assert letter.reason == "too_large"
    assert "decompressed" in letter.detail


def test_an_arrow_stream_of_too_many_rows_is_refused() -> None:
    table = pa.table({"endpoint": pa.array(["credit"] * (MAX_ROWS_PER_RECORD + 1)).dictionary_encode()})
    table = table.append_column("features.distance", pa.nulls(len(table)))

    assert one(arrow_stream(table, "zstd")).dead_letters[0].reason == "too_large"


def test_any_flipped_byte_of_an_arrow_stream_gives_rows_or_a_dead_letter() -> None:
    stream = arrow_stream([event(), event(caller="bob")], "lz4")
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        damaged = bytearray(stream)
        for at in rng.integers(0, len(stream), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        values.append(bytes(damaged))
    values += [stream[:cut] for cut in range(1, len(stream), 37)]

    *_, segment = found = segments(values)

    outcomes = {offset for offset, _ in places(found)} | {letter.log_offset for letter in segment.dead_letters}
    assert outcomes == set(range(len(values)))


def test_a_declared_row_count_is_not_believed() -> None:
    stream = arrow_stream([event(), event()])
    for forged in (1, 3, 9_999, 1 << 40, -1):
        parts = stream.rsplit(struct.pack("<q", 2), 1)
        segment = one(struct.pack("<q", forged).join(parts))
        assert len(segment.columns) + len(segment.dead_letters) > 0


def test_a_damaged_stream_read_together_with_others_takes_none_of_them_along() -> None:
    good = arrow_stream([event()])
    table = pa.Table.from_pylist([event()])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    bad = sink.getvalue().replace(b"credit", b"\xff\xfe\xfdedit")
    assert bad != good

    (segment,) = segments([good, bad, good])

    assert segment.columns.offset.tolist() == [0, 2]
    assert [(letter.log_offset, letter.reason) for letter in segment.dead_letters] == [(1, "arrow_broken")]


@pytest.mark.parametrize("reason", DEAD_REASONS)
def test_each_reason_is_explained_in_words(reason: str) -> None:
    letter = dead_letter(Place("log", 3, 41, 5, row=2), reason, "x\x1b[31m", b"{}", [("a", None), ("b", b"\xff")])  # type: ignore[arg-type]
    text = explain(letter)

    assert "log[3] offset 41, row 2" in text
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text
    assert json.loads(letter.to_bytes())["headers"] == {"a": "", "b": "\ufffd"}
