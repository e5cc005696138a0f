"""One seam, two implementations: the same calls against the embedded engine and over HTTP, and what each says on failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.tables import RAW, TABLES
from streams.audit import engine
from streams.audit.engine import (
    ENGINE_SETTINGS,
    PURGE,
    ClickHouse,
    ClickHouseError,
    EmbeddedClickHouse,
    EngineMissing,
    LimitExceeded,
    NotAuthenticated,
    NotPermitted,
    Parameter,
    PathInUse,
    ServerClickHouse,
    StatementRefused,
    StorageFull,
    Unavailable,
    error_for,
    qualified,
)
from streams.audit.http_port import HttpPort
from streams.audit.schema import OFTEN, prepare_tables
from tests.audit.http_asking import READER_TOKEN, WRITER_TOKEN

DDL = (
    "CREATE TABLE palisade.rows (id UInt64, name String, kind LowCardinality(String), score Nullable(Float64),"
    " ts DateTime64(3, 'UTC'), parts Array(String)) ENGINE = ReplacingMergeTree ORDER BY id"
    " SETTINGS non_replicated_deduplication_window = 1000"
)


@pytest.fixture(params=["embedded", "over http"])
def clickhouse(
    request: pytest.FixtureRequest, fresh_tables: EmbeddedClickHouse, clickhouse_port: HttpPort, tmp_path: Path
) -> ClickHouse:
    if request.param == "embedded":
        return fresh_tables
    (tmp_path / "password").write_text(WRITER_TOKEN + "\n")
    return ServerClickHouse(clickhouse_port.url, "writer", tmp_path / "password")


def rows(first: int, count: int) -> pa.Table:
    ids = range(first, first + count)
    return pa.table(
        {
            "id": pa.array(ids, pa.uint64()),
            "name": [f"naïve '{i}'\t\\" for i in ids],
            "kind": pa.array([f"k{i % 3}" for i in ids]).dictionary_encode(),
            "score": pa.array([None if i % 5 == 0 else i / 4 for i in ids], pa.float64()),
            "ts": pa.array([1_760_000_000_000 + i for i in ids], pa.timestamp("ms", "UTC")),
            "parts": [[str(i), "x"] if i % 2 else [] for i in ids],
        }
    )


def test_both_implementations_are_the_seam(clickhouse: ClickHouse) -> None:
    assert isinstance(clickhouse, ClickHouse)


def test_rows_come_back_as_they_went_in(clickhouse: ClickHouse) -> None:
    clickhouse.command(DDL)
    sent = rows(0, 20)

    clickhouse.insert_arrow("rows", sent)

    back = clickhouse.query_arrow("SELECT * FROM palisade.rows ORDER BY id")
    assert back.to_pylist() == sent.to_pylist()


def test_a_token_is_stored_once_and_another_token_again(clickhouse: ClickHouse) -> None:
    clickhouse.command(DDL)

    for token in ("run-0-99", "run-0-99", "run-100-199"):
        clickhouse.insert_arrow("palisade.rows", rows(0, 100), token)

    assert clickhouse.command("SELECT count() FROM palisade.rows") == "200"
    assert clickhouse.command("SELECT count() FROM palisade.rows FINAL") == "100"


def test_a_table_of_many_chunks_is_still_one_block_under_its_token(clickhouse: ClickHouse) -> None:
    clickhouse.command(DDL)
    many = pa.concat_tables([rows(i * 10, 10) for i in range(5)])

    for _ in range(2):
        clickhouse.insert_arrow("rows", many, "token")

    assert clickhouse.command("SELECT count() FROM palisade.rows") == "50"


def test_no_rows_are_no_insert(clickhouse: ClickHouse) -> None:
    clickhouse.insert_arrow("there_is_no_such_table", rows(0, 0))


def test_parameters_arrive_whatever_is_in_them(clickhouse: ClickHouse) -> None:
    sent: dict[str, Parameter] = {
        "text": "it's \t\n\\ {x:Int8} '; DROP TABLE t; -- é",
        "number": 2**63,
        "at": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        "missing": None,
        "many": ["a'b", "c\\", ""],
    }

    back = clickhouse.query_arrow(
        "SELECT {text:String} AS text, {number:UInt64} AS number, {at:DateTime64(3, 'UTC')} AS at, "
        "{missing:Nullable(String)} AS missing, {many:Array(String)} AS many",
        sent,
    )

    assert back.to_pylist() == [sent]


def test_an_empty_answer_keeps_its_columns(clickhouse: ClickHouse) -> None:
    answer = clickhouse.query_arrow("SELECT 1 AS a, 'x' AS b WHERE 0")

    assert (answer.column_names, answer.num_rows) == (["a", "b"], 0)


def test_a_wrong_statement_is_refused_with_its_code_and_is_not_worth_repeating(clickhouse: ClickHouse) -> None:
    with pytest.raises(StatementRefused, match="no_such_table") as refused:
        clickhouse.query_arrow("SELECT * FROM palisade.no_such_table")

    assert (refused.value.code, refused.value.retryable) == (60, False)


def test_a_table_name_cannot_smuggle_sql(clickhouse: ClickHouse) -> None:
    with pytest.raises(ValueError, match="no table name"):
        clickhouse.insert_arrow("t (a) SELECT 1; --", rows(0, 1))


def test_threads_share_it(clickhouse: ClickHouse) -> None:
    clickhouse.command(DDL)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for batch in range(5):
                clickhouse.insert_arrow("rows", rows(worker * 1000 + batch * 10, 10), f"{worker}-{batch}")
                clickhouse.query_arrow(
                    "SELECT count() FROM palisade.rows WHERE id >= {id:UInt64}", {"id": worker * 1000}
                )
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert clickhouse.command("SELECT count() FROM palisade.rows") == "200"


def test_a_slow_query_delays_no_insert(fresh_tables: EmbeddedClickHouse) -> None:
    fresh_tables.command(DDL)
    done: list[str] = []

    def slow() -> None:
        fresh_tables.query_arrow("SELECT sleep(1.5)")
        done.append("query")

    thread = threading.Thread(target=slow)
    thread.start()
    fresh_tables.insert_arrow("rows", rows(0, 10))
    done.append("insert")
    thread.join()

    assert done == ["insert", "query"]


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (243, StorageFull, True),
        (241, LimitExceeded, False),
        (159, LimitExceeded, False),
        (164, NotPermitted, False),
        (497, NotPermitted, False),
        (516, NotAuthenticated, False),
        (202, Unavailable, True),
        (252, Unavailable, True),
        (62, StatementRefused, False),
    ],
)
def test_an_engines_code_becomes_a_typed_error(code: int, kind: type[ClickHouseError], retryable: bool) -> None:
    error = error_for(f"Failed. Code: {code}. DB::Exception: why (NAME)")

    assert (type(error), error.code, error.retryable) == (kind, code, retryable)


@pytest.mark.parametrize("code", [75, 74, 1001])
def test_a_disk_that_is_full_in_the_middle_of_a_write_is_full_whatever_the_number(code: int) -> None:
    text = f"Code: {code}. DB::Exception: Cannot write: errno: 28, strerror: No space left on device. (NAME)"

    assert isinstance(error_for(text), StorageFull)


@pytest.mark.parametrize("table", ["", "a b", "a.b.c", "`a`", "1a", "a;", "a.", "ä"])
def test_what_is_no_plain_name_is_no_table(table: str) -> None:
    with pytest.raises(ValueError, match="no table name"):
        qualified(table)


# ------------------------------------------------------------------------------------------------------- embedded


def test_its_caches_have_bounds_of_their_own(embedded_clickhouse: EmbeddedClickHouse) -> None:
    found = embedded_clickhouse.query_arrow("SELECT name, value FROM system.server_settings").to_pylist()
    settings = {row["name"]: row["value"] for row in found}
    assert {name: int(settings[name]) for name in ENGINE_SETTINGS} == dict(ENGINE_SETTINGS)


def test_it_looks_often_for_parts_that_were_merged(embedded_clickhouse: EmbeddedClickHouse) -> None:
    prepare_tables(embedded_clickhouse)
    made = "SELECT name, create_table_query AS ddl FROM system.tables WHERE database = {raw:String}"
    found = {row["name"]: row["ddl"] for row in embedded_clickhouse.query_arrow(made, {"raw": RAW}).to_pylist()}
    assert found.keys() >= {table.name for table in TABLES}
    for table in TABLES:
        assert OFTEN in found[table.name]


def test_it_gives_back_memory_that_is_free(embedded_clickhouse: EmbeddedClickHouse) -> None:
    assert embedded_clickhouse.command(PURGE) == ""


def test_rows_are_in_where_memory_cannot_be_given_back(
    fresh_tables: EmbeddedClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_tables.command(DDL)
    monkeypatch.setattr(engine, "PURGE_S", 0.0)
    monkeypatch.setattr(engine, "PURGE", "SYSTEM UNHEARD OF")
    fresh_tables.insert_arrow("rows", rows(0, 3))
    assert fresh_tables.query_arrow("SELECT count() AS n FROM palisade.rows").to_pylist() == [{"n": 3}]


def test_a_second_directory_in_the_process_is_refused_with_the_way_out(
    embedded_clickhouse: EmbeddedClickHouse, tmp_path: Path
) -> None:
    with pytest.raises(PathInUse, match="one directory a process"):
        EmbeddedClickHouse(tmp_path / "other")


def test_another_process_is_told_who_owns_the_directory(embedded_clickhouse: EmbeddedClickHouse) -> None:
    answer = in_a_process(
        "from streams.audit.engine import EmbeddedClickHouse, PathInUse\n"
        "try:\n    EmbeddedClickHouse(sys.argv[1])\nexcept PathInUse as refused:\n    print(refused)",
        str(embedded_clickhouse.path),
    )

    assert "another process owns it (read through the HTTP port of that process, or stop it)" in answer


def test_a_forked_child_gets_an_error_instead_of_hanging(tmp_path: Path) -> None:
    answer = in_a_process(
        "import os\n"
        "from streams.audit.engine import EmbeddedClickHouse, EngineClosed\n"
        "engine = EmbeddedClickHouse(sys.argv[1])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n        engine.command('SELECT 1')\n    except EngineClosed as closed:\n        os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.command('SELECT 2'))",
        str(tmp_path),
    )

    assert answer == "7 2"


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + _INSERT_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(5)][-1]
    writer.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in writer.stdout)])
    writer.wait()
    writer.stdout.close()

    answer = in_a_process(
        "from streams.audit.engine import EmbeddedClickHouse\n"
        "engine = EmbeddedClickHouse(sys.argv[1])\n"
        "print(engine.command('SELECT uniqExact(id) FROM palisade.t'))\n"
        "engine.close()\n"
        "again = EmbeddedClickHouse(sys.argv[1])\n"
        "print(again.command('SELECT 1'))\n",
        str(tmp_path),
    )

    stored, reopened = answer.split()
    assert int(stored) >= acknowledged * 100
    assert reopened == "1"


def test_the_directory_is_for_its_owner_only(embedded_clickhouse: EmbeddedClickHouse) -> None:
    assert os.stat(embedded_clickhouse.path).st_mode & 0o077 == 0


def test_a_missing_engine_says_what_to_install(
    embedded_clickhouse: EmbeddedClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "chdb", None)

    with pytest.raises(EngineMissing, match=r"pip install .palisade\[embedded\]"):
        embedded_clickhouse.session()


# --------------------------------------------------------------------------------------------------------- server


def test_a_server_that_is_down_is_worth_waiting_for(clickhouse_port: HttpPort) -> None:
    server = ServerClickHouse("http://127.0.0.1:1", "writer")

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 does not answer") as down:
        server.command("SELECT 1")

    assert down.value.retryable


def test_a_rotated_password_is_picked_up(clickhouse_port: HttpPort, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("of yesterday")
    server = ServerClickHouse(clickhouse_port.url, "writer", password)
    with pytest.raises(NotAuthenticated):
        server.command("SELECT 1")

    password.write_text(WRITER_TOKEN)

    assert server.command("SELECT 1") == "1"
    server.close()


def test_the_readers_password_does_not_write(clickhouse_port: HttpPort, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(READER_TOKEN)
    reader = ServerClickHouse(clickhouse_port.url, "reader", tmp_path / "password")

    with pytest.raises(NotPermitted):
        reader.command("DROP TABLE palisade.rows")
    reader.close()


@pytest.mark.parametrize("url", ["clickhouse:8123", "ftp://h", "http://", "http://user:secret@h:8123"])
def test_a_url_with_a_secret_or_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http") as refused:
        ServerClickHouse(url)

    assert "secret" not in str(refused.value)


_PRELUDE = "import sys\n"
_INSERT_FOR_EVER = """
import pyarrow as pa
from streams.audit.engine import EmbeddedClickHouse
engine = EmbeddedClickHouse(sys.argv[1])
engine.command("CREATE TABLE palisade.t (id UInt64) ENGINE = MergeTree ORDER BY id")
for batch in range(1, 100_000):
    engine.insert_arrow("t", pa.table({"id": pa.array(range(batch * 100, batch * 100 + 100), pa.uint64())}))
    print(batch, flush=True)
"""


def in_a_process(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
