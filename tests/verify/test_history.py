"""The directory of a history: what is saved is read back, part by part, and what is no history says so."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from palisade.verify.history import SCHEMAS, History, HistoryUnusable, HistoryWriter, Run, table_of
from tests.verify.given import RUN, history


def test_a_saved_history_is_read_back(tmp_path: Path):
    history().save(tmp_path)
    found = History.load(tmp_path)

    assert found.run == RUN
    assert found.names == history().names == set(SCHEMAS)
    assert all(found[name].to_pylist() == history()[name].to_pylist() for name in SCHEMAS)


def test_a_table_that_nobody_gathered_is_not_an_empty_one(tmp_path: Path):
    with HistoryWriter(tmp_path) as writer:
        writer.add_rows("lost", [])
        writer.finish(Run())
    found = History.load(tmp_path)

    assert "lost" in found
    assert "sent" not in found
    assert found["sent"].num_rows == found["lost"].num_rows == 0


def test_parts_are_one_table_and_the_last_run_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HistoryWriter, "PART_ROWS", 3)
    for name in ("left", "lost"):
        with HistoryWriter(tmp_path) as writer:
            for first in range(4):
                same = {"first": first, "last": 9, "at_ms": 1, "told": True}
                writer.add_rows("lost", [same | {"topic": f"{name}{n}", "partition": n} for n in range(2)])
            writer.finish(Run(endpoints=3))

    found = History.load(tmp_path)
    assert found["lost"]["first"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(found["lost"]["topic"].to_pylist()) == {"lost0", "lost1"}
    assert found.run.endpoints == 3


@pytest.mark.parametrize("loose", [1, 3, 100])
def test_rows_and_tables_of_one_name_stand_in_the_order_in_which_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loose: int
):
    monkeypatch.setattr(HistoryWriter, "LOOSE_ROWS", loose)
    rows = [{"topic": "t", "partition": 0, "first": n, "last": 9, "at_ms": 1, "told": True} for n in range(6)]
    with HistoryWriter(tmp_path) as writer:
        writer.add_rows("lost", rows[:2])
        writer.add("lost", table_of("lost", rows[2:4]))
        writer.add_rows("lost", rows[4:])
        writer.add_rows("sent", [])
        writer.drop("sent")
        writer.finish(Run())
    found = History.load(tmp_path)

    assert found["lost"]["first"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert "sent" not in found


def test_json_lines_by_hand_will_do(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"finished": True, "of_a_later_version": 1}))
    (tmp_path / "lost.jsonl").write_text(
        '{"topic": "t", "partition": 1, "first": 2, "last": 3, "at_ms": 4, "told": true}\n'
    )

    found = History.load(tmp_path)
    assert found.run.finished
    assert found["lost"].to_pylist() == [
        {"topic": "t", "partition": 1, "first": 2, "last": 3, "at_ms": 4, "told": True}
    ]


def test_what_is_no_history_says_so(tmp_path: Path):
    with pytest.raises(HistoryUnusable, match="is no history"):
        History.load(tmp_path)
    with pytest.raises(HistoryUnusable, match="no history has a table other"):
        History({"other": pa.table({"a": [1]})})
    with pytest.raises(HistoryUnusable, match="does not have the columns"):
        History({"lost": pa.table({"first": ["one"]})})
    with pytest.raises(HistoryUnusable, match="the table outages has rows without to_ms"):
        History({"outages": table_of("outages", [{"component": "audit", "from_ms": 1}])})


def test_an_empty_file_says_that_nothing_of_the_kind_happened(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "outages.jsonl").touch()

    assert "outages" in History.load(tmp_path)
