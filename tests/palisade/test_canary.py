"""A secret value in each sensitive field is searched for in all that a run through Guard leaves behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaException
from palisade_client import Guard

from palisade.queries import reader
from palisade.settings import load
from schemas.tables import TABLES
from schemas.topics import PREDICTIONS, TOPICS
from streams.embedded_broker import FETCH_WAIT_MS
from streams.reading import read_to_end
from streams.transport.settings import KafkaConnection
from tests.client.test_redaction import CALLER, EMAIL, FEATURES, KEY, ODD, RULES, SSN
from tests.palisade.conftest import Stack
from tests.palisade.test_stack import until

pytestmark = pytest.mark.slow
SECRETS = (SSN, EMAIL, CALLER, "canary")
CONTROL = "not-a-secret"
"""A value that no rule speaks of: where it is not found, nothing would be."""
CALLS = 600


@pytest.fixture(scope="module")
def run(stack: Stack) -> Stack:
    """Usual and odd calls through a Guard with rules, all of them scored and in the audit."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (stack.dev.client_env | {"PALISADE_REDACTION_KEY": KEY}).items():
            patch.setenv(name, value)
        guard = Guard("credit", fallback=0.5, sensitive=RULES, bootstrap=stack.dev.bootstrap)
    for k in range(CALLS):
        guard.call(lambda features: 0.5, FEATURES | {"other": f"{CONTROL}-{k % 7}", "income": k * 1.5}, caller=CALLER)
    for features in ODD.values():
        guard.call(lambda features: 0.5, features, caller=CALLER)
        guard.call(lambda features: 0.5, features, caller=CALLER)
    guard.close(20)
    last = max(message.offset() or 0 for message in read_to_end(connection(stack), PREDICTIONS, 0))
    engine = reader(load(stack.config))

    def scored() -> int:
        sql = f"SELECT max(offset) AS last, count() AS n FROM palisade.verdicts WHERE topic = '{PREDICTIONS}'"
        (row,) = engine.query_arrow(sql).to_pylist()
        return int(row["last"]) >= last - 2 and int(row["n"]) >= CALLS

    until(scored, "the rows in the audit")
    engine.close()
    return stack


def connection(stack: Stack) -> KafkaConnection:
    return KafkaConnection(bootstrap=stack.dev.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)


def on_kafka(stack: Stack) -> Iterator[tuple[str, str]]:
    """Each record of each topic: key, headers and value, decoded too where it is Arrow, which may compress."""
    for topic in TOPICS:
        try:
            messages = list(read_to_end(connection(stack), topic.name, 0))
        except KafkaException:
            continue  # of a role that does not run here
        for message in messages:
            value = message.value() or b""
            yield topic.name, f"{message.key()!r} {message.headers()!r} {value!r} {value.decode('utf-8', 'replace')}"
            if value.startswith(b"\xff\xff\xff\xff"):
                yield topic.name, str(pa.ipc.open_stream(io.BytesIO(value)).read_all().to_pylist())


def in_clickhouse(stack: Stack) -> Iterator[tuple[str, str]]:
    engine = reader(load(stack.config))
    for table in TABLES:
        yield table.name, str(engine.query_arrow(f"SELECT * FROM palisade.{table.name}").to_pylist())
    engine.close()


def in_files(stack: Stack) -> Iterator[tuple[str, str]]:
    """Logs of all roles, and whatever else lies in the folder."""
    for path in sorted(stack.dev.folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(stack.dev.folder)), path.read_bytes().decode("latin-1")


def holding(places: Iterator[tuple[str, str]], what: str) -> set[str]:
    return {name for name, content in places if what in content}


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_lies_on_the_broker_in_the_audit_or_in_a_file(run: Stack, secret: str) -> None:
    assert holding(on_kafka(run), secret) == set()
    assert holding(in_clickhouse(run), secret) == set()
    assert holding(in_files(run), secret) == set()


def test_what_is_no_secret_is_found_in_each_so_the_search_can_find(run: Stack) -> None:
    assert PREDICTIONS in holding(on_kafka(run), CONTROL)
    assert "predictions" in holding(in_clickhouse(run), CONTROL)
    logs = {Path(name).parts[0] for name, content in in_files(run) if content}
    assert "logs" in logs
    assert run.ended == []


def test_rows_of_one_person_are_still_one_persons(run: Stack) -> None:
    sql = "SELECT DISTINCT caller, JSONExtractString(features, 'email') AS email FROM palisade.predictions"
    engine = reader(load(run.config))
    rows: list[dict[str, Any]] = engine.query_arrow(f"{sql} WHERE features LIKE '%{CONTROL}%'").to_pylist()
    engine.close()
    assert len(rows) == 1
    assert all(value.startswith("r:") for value in rows[0].values())
