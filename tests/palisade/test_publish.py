"""`palisade publish`: a user's file becomes predictions, whatever its format; what cannot be used says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from palisade.publish import Mapping as Columns
from palisade.publish import UnusableFile, parse_json_features, publish, read_predictions
from responders.signing import Keyring, SigningKey
from schemas.events import Report
from schemas.topics import PREDICTIONS, REPORTS
from streams.audit.rows import rows_of
from streams.embedded_broker import EmbeddedBroker
from streams.reading import read_to_end
from streams.records import Records, listed

ROWS = [{"who": f"c{k % 3}", "amount": 1.5 * k, "plan": "pro", "at": 1_700_000_000 + k / 100} for k in range(40)]
MAPPING = Columns(endpoint="credit", caller="who", time="at")


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path, table = folder / f"rows.{kind}", pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pacsv.write_csv(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "arrow"])
def test_each_format_gives_the_same_predictions_in_the_order_of_time(kind: str, tmp_path: Path) -> None:
    table = read_predictions(write(tmp_path, kind, ROWS[::-1]), MAPPING)

    assert table["features"].to_pylist()[1] == {"amount": 1.5, "plan": "pro"}
    assert table["caller"].to_pylist()[:4] == ["c0", "c1", "c2", "c0"]
    assert table["ts"].to_pylist()[0] == 1_700_000_000_000
    assert set(table["endpoint"].to_pylist()) == {"credit"}


def test_a_column_of_features_is_taken_as_it_is_also_as_json_text(tmp_path: Path) -> None:
    rows = [{"endpoint": "spam", "features": json.dumps({"a": k}), "label": 1} for k in range(3)]

    table = parse_json_features(read_predictions(write(tmp_path, "jsonl", rows), Columns(drop=("label",))))

    assert table["features"].to_pylist() == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert table["endpoint"].to_pylist() == ["spam"] * 3


@pytest.mark.parametrize(
    ("name", "rows", "mapping", "words"),
    [
        ("jsonl", [{"a": 1}], Columns(), "--endpoint NAME"),
        ("jsonl", [{"endpoint": "x"}], Columns(), "no features"),
        ("jsonl", [{"a": 1, "at": "noon"}], Columns("x", time="at"), "time column is no time"),
        ("txt", [{"a": 1}], Columns("x"), "must end in"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_to_do(
    name: str, rows: list[dict[str, Any]], mapping: Columns, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableFile, match=words):
        read_predictions(write(tmp_path, name, rows), mapping)


def test_a_file_that_is_damaged_or_absent_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.arrow").write_bytes(b"no")
    (tmp_path / "x.jsonl").write_bytes(b"{")
    for name in ("x.parquet", "x.arrow", "x.jsonl", "none.parquet"):
        with pytest.raises(UnusableFile, match="cannot be read"):
            read_predictions(tmp_path / name, MAPPING)
    with pytest.raises(UnusableFile, match="no JSON object"):
        parse_json_features(pa.table({"features": ["{"]}))


@pytest.mark.parametrize("recorded_pace", [True, False], ids=["at recorded pace", "flat out"])
def test_all_rows_and_signed_reports_of_them_are_confirmed(
    recorded_pace: bool, embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    signer, seen = SigningKey.generate(), []
    table = read_predictions(write(tmp_path, "jsonl", ROWS), MAPPING)

    done = publish(
        table, broker.connection, recorded_pace=recorded_pace, speed=2.0, signer=signer, progress=seen.append
    )

    assert (done.rows, done.failed, sum(seen)) == (40, 0, 40)
    messages = list(read_to_end(broker.connection, PREDICTIONS, 0))
    records = Records([m.value() for m in messages], [m.key() for m in messages], [listed(m.headers()) for m in messages],
                      [m.offset() or 0 for m in messages], [0] * len(messages))  # fmt: skip
    rows = [row for part in rows_of(PREDICTIONS, 0, records)["predictions"] for row in part.to_pylist()]
    assert [json.loads(row["features"])["amount"] for row in rows] == [1.5 * k for k in range(40)]
    reports = list(read_to_end(broker.connection, REPORTS, 0))
    assert sum(Report.from_bytes(m.value() or b"").asked for m in reports) == 40
    assert len(reports) == done.reports
    for message in reports:
        keyring = Keyring([signer.public_base64])
        assert keyring.verify("report", message.value() or b"", listed(message.headers())) == signer.key_id


@pytest.mark.parametrize(
    ("signed", "own", "expected"),
    [(True, None, "verified"), (False, None, "claimed"), (True, "claimed", "claimed")],
    ids=["signed", "unsigned", "the file's own word"],
)
def test_predictions_and_reports_say_the_same_of_who_authenticated_a_caller(
    signed: bool,
    own: str | None,
    expected: str,
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker],
    tmp_path: Path,
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    rows = [row | ({"caller_auth": own} if own else {}) for row in ROWS]
    table = read_predictions(write(tmp_path, "jsonl", rows), MAPPING)

    publish(table, broker.connection, recorded_pace=False, signer=SigningKey.generate() if signed else None)

    reports = [Report.from_bytes(m.value() or b"") for m in read_to_end(broker.connection, REPORTS, 0)]
    assert {caller.caller_auth for report in reports for caller in report.callers} == {expected}
    (message,) = read_to_end(broker.connection, PREDICTIONS, 0)
    assert set(pa.ipc.open_stream(message.value()).read_all()["caller_auth"].to_pylist()) == {expected}


def test_a_broker_that_dies_ends_the_publishing_and_says_how_much_was_not_sent(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    connection = broker.connection.model_copy(update={"extra": {"message.timeout.ms": 300, "log_level": 0}})
    rows = [row | {"at": 1_700_000_000 + k} for k, row in enumerate(ROWS)]
    table = read_predictions(write(tmp_path, "jsonl", rows), MAPPING)

    done = publish(table, connection, recorded_pace=True, speed=2.0, progress=lambda _: broker.down())

    assert done.failed > 0
    assert 0 < done.rows < len(ROWS)
    assert "timed out" in done.error


def test_a_pace_without_times_is_refused(tmp_path: Path) -> None:
    from streams.transport.settings import KafkaConnection

    table = read_predictions(write(tmp_path, "jsonl", ROWS), Columns("credit", drop=("at",)))
    with pytest.raises(UnusableFile, match="--flat-out"):
        publish(table, KafkaConnection(bootstrap="127.0.0.1:1"), recorded_pace=True)
