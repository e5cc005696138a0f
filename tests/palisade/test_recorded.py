"""A user's file becomes predictions: which column means what; and what cannot be used ends with what to do about it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from detectors.profile_build import build_profile
from palisade.fitting import hardly_features, misfits, unanswered
from palisade.recorded import FIELDS, Mapping, read_predictions
from palisade.tables import UnusableFile
from schemas.events import Prediction
from schemas.wire import SCHEMA_VERSION
from tests.decode.cases import arrow_stream, one
from tests.streams.log_of_predictions import profile

SECOND = 1_700_000_000
ROWS = [{"who": f"c{k % 3}", "amount": 1.5 * k, "plan": "pro", "at": SECOND + k / 100} for k in range(40)]
MAPPING = Mapping(endpoint="credit", caller="who", time="at")


def write(folder: Path, rows: list[dict[str, Any]] | pa.Table, kind: str = "parquet") -> Path:
    path, table = folder / f"rows.{kind}", rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pacsv.write_csv(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "arrow"])
def test_each_format_gives_the_same_predictions_in_the_order_of_time(kind: str, tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path, ROWS[::-1], kind), MAPPING)

    assert found.table["features"].to_pylist()[1] == {"amount": 1.5, "plan": "pro"}
    assert found.table["caller"].to_pylist()[:4] == ["c0", "c1", "c2", "c0"]
    assert found.table["ts"].to_pylist()[0] == SECOND * 1000
    assert set(found.table["endpoint"].to_pylist()) == {"credit"}


def test_a_column_is_a_feature_unless_an_option_names_it_whatever_its_own_name(tmp_path: Path) -> None:
    odd = {name: f"my {name}" for name in FIELDS} | {"weight": 81.5, "seq": 7, "ts": 3, "schema_version": 2}
    rows = [odd | {"who": "ann", "at": SECOND, "target": 1, "score": 0.25} for _ in range(3)]

    found = read_predictions(
        write(tmp_path, rows),
        Mapping("credit", caller="who", time="at", drop=("target",), fields=(("prediction", "score"),)),
    )

    assert found.features == (*odd,)
    assert found.meaning == {"caller": "who", "ts": "at", "prediction": "score"}
    assert found.left_out == ("target",)
    assert found.doubts() == FIELDS
    assert set(found.table.column_names) == {"endpoint", "caller", "ts", "prediction", "features"}
    segment = one(arrow_stream(found.table))
    assert (len(segment.dead_letters), segment.columns.weight.tolist()) == (0, [1.0] * 3)
    assert found.table["features"][0].as_py()["status"] == "my status"


def test_palisades_own_form_keeps_what_its_columns_mean(tmp_path: Path) -> None:
    event = Prediction(endpoint="spam", features={"a": 1.0, "b": "x"}, caller="ann", status="error", ts=SECOND * 1000)
    rows = [event.model_dump() | {"label": k} for k in range(3)]

    for features in (rows[0]["features"], json.dumps(rows[0]["features"])):
        found = read_predictions(write(tmp_path, [row | {"features": features} for row in rows]), Mapping())

        assert found.exported
        assert found.table["features"].to_pylist() == [{"a": 1.0, "b": "x"}] * 3
        assert (found.table["status"][0].as_py(), found.table["caller"][0].as_py()) == ("error", "ann")
        assert found.table["endpoint"].to_pylist() == ["spam"] * 3
        assert found.left_out == ("schema_version", "label")
        assert one(arrow_stream(found.table), key=b"spam").dead_letters == ()
    assert rows[0]["schema_version"] == SCHEMA_VERSION


def test_a_number_that_is_named_features_is_a_feature(tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path, [{"features": 12, "x": 1}]), Mapping("credit"))

    assert (found.exported, found.features) == (False, ("features", "x"))


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([7, 8, 7]), ["7", "8", "7"]),
        (pa.array([7.0, None, float("nan")]), ["7", None, None]),
        (pa.array([1.5, 2.0, 3.0]), ["1.5", "2", "3"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([7, 8, 7]).dictionary_encode(), ["7", "8", "7"]),
        (pa.array(["a", "", None], pa.large_string()), ["a", None, None]),
        (pa.nulls(3), [None] * 3),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_callers_of_any_type_are_names(column: pa.Array, named: list[str | None], tmp_path: Path) -> None:
    table = pa.table({"who": column, "x": [1.0, 2.0, 3.0], "caller": ["mine", "own", "column"]})

    found = read_predictions(write(tmp_path, table), Mapping("credit", caller="who"))

    assert found.table["caller"].to_pylist() == named
    assert found.features == ("x", "caller")
    segment = one(arrow_stream(found.table))
    assert (segment.dead_letters, len(segment.columns)) == ((), 3)


@pytest.mark.parametrize(
    "times",
    [
        [SECOND + k for k in range(3)],
        [SECOND * 1000 + k * 1000 for k in range(3)],
        [SECOND * 10**6 + k * 10**6 for k in range(3)],
        [SECOND * 10**9 + k * 10**9 for k in range(3)],
        [f"2023-11-14T22:13:2{k}" for k in range(3)],
        [f"2023-11-14T22:13:2{k}Z" for k in range(3)],
        [f"2023-11-14T23:13:2{k}+01:00" for k in range(3)],
        [datetime.fromtimestamp(SECOND + k, UTC) for k in range(3)],
        [datetime.fromtimestamp(SECOND + k, UTC).replace(tzinfo=None) for k in range(3)],
    ],
    ids=["s", "ms", "us", "ns", "text", "text Z", "text +01:00", "timestamp UTC", "timestamp"],
)
def test_times_are_understood_as_tables_have_them(times: list[Any], tmp_path: Path) -> None:
    table = pa.table({"at": times[::-1], "x": [2.0, 1.0, 0.0]})

    found = read_predictions(write(tmp_path, table), Mapping("credit", time="at"))

    assert found.table["ts"].to_pylist() == [(SECOND + k) * 1000 for k in range(3)]
    assert [row["x"] for row in found.table["features"].to_pylist()] == [0.0, 1.0, 2.0]


def test_features_are_what_building_a_profile_makes_of_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "money": [Decimal("1.50"), None],
            "nan": [float("nan"), 2.0],
            "flag": [True, None],
            "word": pa.array(["a", "b"]).dictionary_encode(),
            "code": pa.array([3, 4]).dictionary_encode(),
            "none": pa.nulls(2),
        }
    )

    found = read_predictions(write(tmp_path, table, "arrow"), Mapping("credit"))

    assert found.table["features"].to_pylist() == [
        {"money": 1.5, "nan": None, "flag": True, "word": "a", "code": 3.0, "none": None},
        {"money": None, "nan": 2.0, "flag": None, "word": "b", "code": 4.0, "none": None},
    ]


AT = datetime(2026, 1, 1, tzinfo=UTC)
UNUSABLE: dict[str, tuple[pa.Table, Mapping, str]] = {
    "no rows": (pa.table({"x": pa.array([], pa.float64())}), Mapping("credit"), "has no rows"),
    "nobody's": (pa.table({"x": [1]}), Mapping(), "--endpoint NAME"),
    "nobody's in part": (
        pa.table({"x": [1, 2], "of": ["credit", None]}),
        Mapping(fields=(("endpoint", "of"),)),
        "1 rows of column 'of' name no endpoint",
    ),
    "no features": (pa.table({"who": ["a"]}), Mapping("credit", "who"), "has no features left"),
    "a column that is not there": (
        pa.table({"x": [1], "y": [2]}), Mapping("credit", "who"), "no column 'who'; it has x, y",
    ),
    "a column that is two things": (
        pa.table({"x": [1], "at": [2]}), Mapping("credit", "at", "at"), "'at' is named twice",
    ),
    "a field that is none": (pa.table({"x": [1]}), Mapping("credit", fields=(("colour", "x"),)), "--field takes endpoint"),
    "two columns of a name": (
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]), Mapping("credit"), "two columns named 'x'",
    ),
    "a time that is missing": (
        pa.table({"x": [1, 2, 3], "at": [SECOND, None, None]}),
        Mapping("credit", time="at"),
        "'at' is empty in 2 rows, the first of them row 2: fill or remove them, or publish without times: --drop at",
    ),
    "a time that is no number": (
        pa.table({"x": [1, 2], "at": [1.0, float("nan")]}), Mapping("credit", time="at"), "empty in 1 rows, .* row 2",
    ),
    "a time in words": (pa.table({"x": [1], "at": ["noon"]}), Mapping("credit", time="at"), "is no time"),
    "a time that is a flag": (pa.table({"x": [1], "at": [True]}), Mapping("credit", time="at"), "is no time"),
    "a feature that is a time": (pa.table({"x": [AT]}), Mapping("credit"), "'x' is timestamp.*--drop x, .*--time-column"),
    "a nested feature": (pa.table({"x": [{"a": 1}]}), Mapping("credit"), "'x' is struct.*leave it out with --drop x"),
    "a list as feature": (pa.table({"x": [[1.0]]}), Mapping("credit"), "'x' is list.*--drop x"),
    "bytes as feature": (pa.table({"x": [b"a"]}), Mapping("credit"), "'x' is binary.*--drop x"),
    "a nested caller": (pa.table({"x": [1], "who": [["a"]]}), Mapping("credit", "who"), "'who' is list.*caller must be"),
    "a status of one's own": (
        pa.table({"x": [1], "is": ["married"]}),
        Mapping("credit", fields=(("status", "is"),)),
        "'is' holds 'married', but status is one of ok, error",
    ),
    "a weight in words": (
        pa.table({"x": [1], "w": ["heavy"]}), Mapping("credit", fields=(("weight", "w"),)), "weight must be numbers",
    ),
    "an odd word for features": (pa.table({"features": ["{"]}), Mapping("credit"), "no JSON object"),
    "features that are missing": (pa.table({"features": ['{"a": 1}', "null"]}), Mapping("credit"), "in every row"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_file_that_cannot_be_used_says_what_to_do(case: str, tmp_path: Path) -> None:
    table, mapping, words = UNUSABLE[case]
    with pytest.raises(UnusableFile, match=words):
        read_predictions(write(tmp_path, table, "arrow"), mapping)


def test_a_file_that_is_damaged_absent_or_of_another_kind_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.arrow").write_bytes(b"no")
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\nnot json\n')
    (tmp_path / "mixed.jsonl").write_bytes(b'{"a": 1}\n{"a": "x"}\n')
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for name in ("x.parquet", "x.arrow", "x.jsonl", "mixed.jsonl", "empty.csv", "empty.jsonl", "none.parquet"):
        with pytest.raises(UnusableFile, match="cannot be read"):
            read_predictions(tmp_path / name, MAPPING)
    with pytest.raises(UnusableFile, match="must end in"):
        read_predictions(tmp_path / "rows.txt", MAPPING)


def test_what_rows_lack_or_have_too_much_for_a_profile_is_named_with_the_remedy() -> None:
    wanted = profile()
    first, *others = wanted.order
    numbers = {feature.name for feature in wanted.numeric}

    def rows(**columns: Any) -> pa.StructArray:
        fitting = {name: pa.array([1.0 if name in numbers else "a"] * 2) for name in wanted.order}
        kept = {name: column for name, column in (fitting | columns).items() if column is not None}
        return pa.StructArray.from_arrays(list(kept.values()), names=list(kept))

    assert misfits(wanted, rows()) == []
    (said,) = misfits(wanted, rows(**{first: None}))
    assert said.startswith(f"no row has {first}, which the profile has")
    assert said.endswith(f"--exclude {first}")
    assert misfits(wanted, rows(**{first: pa.array([None, None], pa.float64())})) == [said]
    (said,) = misfits(wanted, rows(more=pa.array([1.0, 2.0])))
    assert "the profile has no more: not judged" in said
    (said,) = misfits(wanted, rows(**{min(numbers): pa.array(["1", "2"])}))
    assert f"the profile has {min(numbers)} as numbers, these rows have not" in said
    assert others


def test_rows_without_an_answer_are_named_where_the_profile_knows_answers() -> None:
    rows = pa.table({"x": np.arange(600.0) % 7, "answer": np.arange(600.0) % 5})
    knows, knows_none = build_profile(rows, prediction=["answer"]), build_profile(rows)
    silent = pa.table({"endpoint": ["credit"] * 2})

    (said,) = unanswered(knows, silent)
    assert "--field prediction=COLUMN" in said
    assert unanswered(knows, silent.append_column("prediction", pa.nulls(2, pa.float64()))) == [said]
    assert unanswered(knows, silent.append_column("prediction", pa.array([None, 0.5]))) == []
    assert unanswered(knows_none, silent) == []


def test_identifiers_and_clocks_are_told_from_measurements() -> None:
    rng, rows = np.random.default_rng(5), 1_000
    table = pa.table(
        {
            "clock": np.arange(rows) // 3 + SECOND,
            "countdown": -np.arange(rows) * 0.5,
            "ticket": rng.permutation(rows),
            "session": [f"s{number}" for number in rng.permutation(rows)],
            "income": rng.lognormal(3, 1, rows),
            "age": rng.integers(18, 90, rows),
            "year": np.arange(rows) // 300 + 2020,
            "customer": [f"c{number % 40}" for number in range(rows)],
            "constant": np.ones(rows),
            "void": pa.nulls(rows),
            "flag": rng.random(rows) < 0.5,
        }
    )

    found = dict(hardly_features(table, tuple(table.column_names)))

    assert set(found) == {"clock", "countdown", "ticket", "session"}
    assert "like a clock" in found["clock"]
    assert "identifier" in found["ticket"]
