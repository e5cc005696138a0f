"""Control records cut a run into segments, and what is done about one holds for the segment after it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from schemas.blocks import UNSEEN, FeatureSchema
from schemas.flags import RowFlag
from streams.decode import Control, Decoder, Segment, gather, partition_of, records
from streams.decode.columns import Headers
from tests.decode.cases import ARROW, JSON, NOW, SCHEMA, arrow_stream, as_json, event, one, places, schema_of, segments

TICK: Headers = [("palisade-kind", b"tick")]
ACTIVATED: Headers = [("palisade-kind", b"profile_activated"), ("palisade-signature", b"c2ln")]
PREDICTION: Headers = [("palisade-kind", b"prediction"), ("content-type", b"application/json; charset=utf-8")]


def test_controls_come_after_the_rows_before_them() -> None:
    values = [as_json(), b"t", as_json(), as_json(), b"t", b"t"]

    found = segments(values, [None, TICK, PREDICTION, JSON, TICK, TICK], first=10)

    assert [segment.columns.offset.tolist() for segment in found] == [[10], [12, 13], []]
    assert [segment.control and segment.control.offset for segment in found] == [11, 14, 15]
    assert found[0].control == Control(1, "tick", 11, NOW, b"credit", b"t", TICK)


def test_rows_after_the_last_control_are_a_segment_without_one() -> None:
    found = segments([b"t", as_json()], [TICK, None])

    assert [(len(segment.columns), segment.control is None) for segment in found] == [(0, False), (1, True)]


def test_a_run_of_no_records_has_no_segments() -> None:
    assert segments([]) == []


def test_rows_after_an_activation_are_decoded_by_the_new_schema() -> None:
    active: dict[str, FeatureSchema] = {}
    decoder = Decoder("log", 0, 1, lambda endpoint, version: active.get(endpoint))
    values = [as_json(), as_json(), b"{}", as_json(), as_json()]
    headers: list[Headers | None] = [None, None, ACTIVATED, None, None]
    seen = []
    for segment in decoder.segments(values, [b"credit"] * 5, headers, [0, 1, 2, 3, 4], [NOW] * 5):
        seen.append((segment.columns.groups[0].schema, segment.columns.flags.tolist()))
        if segment.control is not None:
            active["credit"] = SCHEMA

    assert seen == [(None, [RowFlag.NO_PROFILE] * 2), (SCHEMA, [0, 0])]


def test_a_profile_that_changes_outside_of_the_log_is_seen_after_forget() -> None:
    active: dict[str, FeatureSchema] = {}
    decoder = Decoder("log", 0, 1, lambda endpoint, version: active.get(endpoint))
    one(as_json(), decoder=decoder)
    active["credit"] = SCHEMA
    decoder.forget()

    assert one(as_json(), decoder=decoder).columns.groups[0].schema is SCHEMA


def test_a_record_without_a_key_is_scored_where_its_endpoint_belongs() -> None:
    home = partition_of(b"credit", 5)

    for partition in range(5):
        segment = one(as_json(), key=None, decoder=Decoder("log", partition, 5, schema_of))
        assert len(segment.columns) == (1 if partition == home else 0)
        assert [letter.reason for letter in segment.dead_letters] == ([] if partition == home else ["wrong_partition"])


def test_what_is_remembered_of_endpoints_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_TARGETS", 10)
    decoder = Decoder("log", 0, 1, schema_of)
    for at in range(100):
        name = f"stranger-{at}"
        one(as_json(endpoint=name), key=name.encode(), decoder=decoder)
        assert len(one(as_json(), decoder=decoder).columns) == 1

    assert len(decoder._targets) <= 12
    assert len(decoder._by_key) <= 12
    assert ("credit", "default") in decoder._targets


def test_many_endpoints_in_one_run_are_groups_of_one_matrix_each() -> None:
    decoder = Decoder("log", 0, 1, lambda endpoint, version: SCHEMA)
    names = [f"e{at % 50}" for at in range(150)]
    values = [as_json(endpoint=name, features={"distance": at}) for at, name in enumerate(names)]

    (segment,) = decoder.segments(values, [name.encode() for name in names], [None] * 150, range(150), [NOW] * 150)

    assert len(segment.columns.groups) == 50
    for group in segment.columns.groups:
        assert [names[row] for row in group.rows] == [group.endpoint] * 3
        assert group.numeric[:, 0].tolist() == group.rows.tolist()


def test_an_error_in_the_middle_of_a_run_leaves_nothing_behind_for_the_next() -> None:
    fails = True

    def schema_or_error(endpoint: str, version: str) -> FeatureSchema | None:
        if fails and version == "v2":
            raise RuntimeError("the profile store is away")
        return SCHEMA

    decoder = Decoder("log", 0, 1, schema_or_error)
    values = [as_json(), as_json(), as_json(model_version="v2")]
    with pytest.raises(RuntimeError):
        segments(values, decoder=decoder)
    fails = False

    (segment,) = segments(values, decoder=decoder)

    assert [group.features.tolist() for group in segment.columns.groups] == [[[12.5, 1, 3]] * 2, [[12.5, 1, 3]]]


def test_rows_of_many_endpoints_in_one_arrow_record_keep_their_own_features() -> None:
    names = [f"credit-{number * 7 % 5}" for number in range(40)]
    carriers = ["UA", "AA", "DL"]
    rows = [
        event(endpoint=name, features={"distance": float(at), "carrier": carriers[at % 3], "temp": at / 2})
        for at, name in enumerate(names)
    ]
    decoder = Decoder("log", 0, 1, lambda endpoint, version: SCHEMA)

    (segment,) = segments([arrow_stream(rows)], headers=ARROW, key=None, decoder=decoder)

    assert len(segment.columns.groups) == 5
    for group in segment.columns.groups:
        assert [names[row] for row in group.rows] == [group.endpoint] * 8
        assert group.numeric[:, 0].tolist() == group.rows.tolist()
        assert group.categorical[:, 0].tolist() == [(0, 1, UNSEEN)[row % 3] for row in group.rows]


def mixed() -> list[bytes]:
    """Records of every way of decoding, good and bad, small and of many rows."""
    rows = [
        event(caller=f"c{n % 7}", features={"distance": float(n), "carrier": "AA", "temp": None}) for n in range(90)
    ]
    rows[30]["features"] = {"distance": 1.0, "carrier": "ZZ", "temp": 2.0}
    elsewhere = [event(), event(endpoint="no\x00where")] * 3
    nan = as_json(latency_ms=float("nan"))
    array = b"[" + b",".join([as_json(caller=f"d{n}") for n in range(50)] + [b"{}", nan] * 5) + b"]"
    return [
        as_json(), nan, array, as_json(), arrow_stream(rows), arrow_stream([event()]), b"[1]", as_json(model_version="b"),
        arrow_stream(rows, "zstd")[:-9], arrow_stream(elsewhere), as_json(caller="last"),
    ]  # fmt: skip


def told(found: list[Segment]) -> tuple[list[object], list[object], list[object]]:
    """Rows by what they say, letters and dead rows, whatever the cut into segments."""
    rows: list[object] = []
    dead: list[object] = []
    letters: list[object] = []
    for segment in found:
        columns = segment.columns
        features: dict[int, list[float]] = {}
        for group in columns.groups:
            features |= zip(group.rows.tolist(), np.nan_to_num(group.features, nan=-7.0).tolist(), strict=True)
        for at in range(len(columns)):
            caller = columns.callers[columns.caller[at]]
            names = (columns.endpoints[columns.endpoint[at]], columns.versions[columns.version[at]], caller)
            said = (columns.flags[at], columns.ts[at], columns.status[at], str(columns.latency_ms[at]))
            rows.append((columns.offset[at], columns.row[at], names, said, features[at]))
        dead += zip(segment.dead_rows.offset.tolist(), segment.dead_rows.row.tolist(), strict=True)
        letters += segment.dead_letters
    return rows, letters, dead


@pytest.mark.parametrize("work", [1, 7, 30])
def test_where_pieces_of_work_end_changes_neither_rows_nor_letters(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = segments(mixed())
    assert len(whole) == 1

    for module in (gather, records):
        monkeypatch.setattr(module, "PIECE", work)
    pieces = segments(mixed())

    assert len(pieces) > 3
    assert told(pieces) == told(whole)
    assert places(pieces) == sorted(places(pieces))


def test_a_large_record_comes_in_pieces_of_bounded_work() -> None:
    table = pa.table({"endpoint": ["credit"] * 9_000} | {f"features.x{n}": np.ones(9_000) for n in range(400)})

    found = segments([as_json(), arrow_stream(table, "zstd"), as_json()])

    assert len(found) > 5
    assert max(len(segment.columns) for segment in found) * 400 * 8 <= 2 * records.PIECE * records.ARROW_BYTES
    assert places(found) == [(0, 0), *((1, row) for row in range(9_000)), (2, 0)]
