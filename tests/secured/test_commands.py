"""Every command that asks Kafka, and role ingest, at work under the ACLs, each as the principal that the contracts name for it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from palisade.queries import reader
from palisade.settings import load
from palisade.supervisor import Supervisor
from schemas.roles import Role
from schemas.tables import TABLES
from schemas.topics import DEAD_LETTERS, PREDICTIONS, REQUESTS, RESPONSES, TOPICS
from streams.reading import read_to_end
from streams.transport.settings import kafka_settings
from tests.palisade.conftest import Run
from tests.secured.conftest import name_of
from tests.secured.connecting import connection_as
from tests.secured.test_workers import CANARY, Site, leaks, spawn, until
from tests.streams.log_of_predictions import profile
from tests.support.ports import free_ports
from tests.support.secured_kafka import SUPER, SecuredKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
WORKERS: tuple[Role, ...] = ("audit", "ingest", "detect", "respond")
METRICS: dict[Role, int] = dict(zip(WORKERS, free_ports(len(WORKERS)), strict=True))
CALLS = 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, secured: SecuredKafka) -> Iterator[Site]:
    """All four workers; `credit` has a Guard, `plain` has none."""
    folder = tmp_path_factory.mktemp("commands")
    made = Site(folder, secured, "scram")
    with Supervisor(folder / "logs") as supervisor:
        spawn(supervisor, made, WORKERS, METRICS)
        yield made
    assert leaks(made) == set()


def told(palisade: Run, site: Site, role: Role, *words: object) -> str:
    """What a command said that succeeded as the principal of a role."""
    status, said, errors = palisade(*words, "--config", site.config(role))
    assert status == 0, f"{words}: {said}{errors}"
    return said + errors


def in_audit(site: Site, sql: str) -> None:
    until(lambda: (site.folder / "palisade-data" / "clickhouse.json").exists(), "the audit")
    engine = reader(load(site.config("audit")))
    until(lambda: engine.query_arrow(f"SELECT count() AS n FROM palisade.{sql}").to_pylist()[0]["n"], sql)
    engine.close()


def test_ingest_makes_predictions_of_what_a_service_writes(site: Site, secured: SecuredKafka) -> None:
    producer = Producer(kafka_settings(connection_as(secured, name_of("services")), "producer"))
    for number in range(CALLS):
        asked = {
            "endpoint": "plain",
            "request_id": f"r{number}",
            "producer": "scorer",
            "features": {"a": number, "email": "e@example"},
        }
        producer.produce(REQUESTS, json.dumps(asked | {"caller": "carol"}), f"r{number}")
        answered = {"endpoint": "plain", "request_id": f"r{number}", "producer": "scorer", "prediction": 0.5}
        producer.produce(RESPONSES, json.dumps(answered), f"r{number}")
    assert producer.flush(60) == 0

    in_audit(site, "predictions WHERE endpoint = 'plain' AND caller = 'carol' AND status = 'ok'")
    in_audit(site, "reports WHERE endpoint = 'plain'")


def test_a_file_is_published_and_labelled_later(site: Site, palisade: Run) -> None:
    rows = {"who": ["dave"] * CALLS, "id": [f"p{number}" for number in range(CALLS)], "amount": [1.5] * CALLS}
    pq.write_table(pa.table(rows | {"score": [0.5] * CALLS, "paid": [1.0] * CALLS}), site.folder / "rows.parquet")
    named = ("--field", "request_id=id", "--field", "prediction=score", "--drop", "paid", "--flat-out")
    told(palisade, site, "serving", "publish", site.folder / "rows.parquet", "--endpoint", "credit", "--caller-column", "who", *named)  # fmt: skip
    in_audit(site, "predictions WHERE endpoint = 'credit' AND caller = 'dave'")

    columns = ("--request-id-column", "id", "--label-column", "paid")
    told(
        palisade,
        site,
        "services",
        "feedback",
        "publish",
        site.folder / "rows.parquet",
        "--endpoint",
        "credit",
        *columns,
    )
    in_audit(site, "feedback WHERE endpoint = 'credit' AND request_id = 'p1'")


def test_an_operator_orders_activates_and_stops_everything_and_a_viewer_sees_it(site: Site, palisade: Run) -> None:
    ours = ("--reason", "a drill", "--key", site.folder / "keys" / "operator.pem")
    (site.folder / "a.profile.json").write_bytes(profile().to_bytes())

    assert "done" in told(palisade, site, "operators", "restore", "credit", *ours)
    told(palisade, site, "operators", "profile", "activate", site.folder / "a.profile.json", "--endpoint", "credit", *ours[2:])  # fmt: skip
    told(palisade, site, "operators", "kill", *ours)
    assert "a drill" in told(palisade, site, "viewers", "status")
    assert "a drill" in told(palisade, site, "operators", "status")
    told(palisade, site, "operators", "unkill", *ours)
    assert "nothing" in told(palisade, site, "viewers", "status")


def test_dead_letters_are_listed_by_a_viewer_and_sent_again_by_a_redriver(
    site: Site,
    secured: SecuredKafka,
    palisade: Run,
) -> None:
    producer = Producer(kafka_settings(connection_as(secured, name_of("serving")), "producer"))
    producer.produce(PREDICTIONS, b"no event", b"key")
    assert producer.flush(60) == 0
    until(lambda: list(read_to_end(connection_as(secured, SUPER), DEAD_LETTERS, 0)), "the dead letter")

    assert PREDICTIONS in told(palisade, site, "viewers", "deadletter", "list")
    said = told(palisade, site, "redrivers", "deadletter", "redrive", "--filter", f"topic={PREDICTIONS}")
    again = re.search(r"(\d+) of (\d+) sent again", said)  # other tests leave letters, too
    assert again is not None, said
    assert again[1] == again[2]


def test_a_run_is_verified(site: Site, palisade: Run) -> None:
    out = site.folder / "history"
    status, said, errors = palisade("verify", "run", "--out", out, "--watch", 1, "--config", site.config("verifiers"))
    assert (status, errors) == (0, "")
    assert "did not answer" not in said


def test_topics_are_made_and_compared_by_the_admin(site: Site, palisade: Run) -> None:
    assert "exists" in told(palisade, site, "admin", "topics", "create")


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("viewers", ("kill", "--reason", "a coup", "--key", "keys/operator.pem")),
        ("viewers", ("limit", "credit", "--caller", "bob", "--key", "keys/operator.pem")),
        ("viewers", ("deadletter", "redrive", "--filter", f"topic={PREDICTIONS}", "--again")),
        ("viewers", ("topics", "acls", "--apply")),
        ("services", ("status",)),
        ("services", ("deadletter", "list")),
        ("services", ("publish", "rows.parquet", "--endpoint", "credit", "--flat-out")),
        ("serving", ("feedback", "publish", "rows.parquet", "--endpoint", "credit", "--request-id-column", "id",
                     "--label-column", "paid")),
        ("serving", ("verify", "run")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)  # fmt: skip
def test_a_command_that_its_role_has_no_right_to_says_so(
    role: Role,
    words: tuple[str, ...],
    site: Site,
    palisade: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(site.folder)
    pq.write_table(pa.table({"id": ["p"], "amount": [1.5], "paid": [1.0]}), site.folder / "rows.parquet")

    status, said, errors = palisade(*words, "--config", site.config(role))

    assert status in (1, 2), said
    assert "topics acls" in errors or "uthoriz" in errors
    assert "HeapByteBuffer" not in errors


def told_everywhere(site: Site, secured: SecuredKafka) -> Iterator[tuple[str, str]]:
    """Where the run left or tells anything, and what: topics, the audit, metrics, logs."""
    for topic in TOPICS:
        for message in read_to_end(connection_as(secured, SUPER), topic.name, 0):
            value = message.value() or b""
            yield "topics", f"{message.key()!r} {message.headers()!r} {value!r} {value.decode('latin-1')}"
    engine = reader(load(site.config("audit")))
    for table in TABLES:
        yield "audit", str(engine.query_arrow(f"SELECT * FROM palisade.{table.name}").to_pylist())
    engine.close()
    for port in METRICS.values():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            yield "metrics", answer.read().decode()
    for log in (site.folder / "logs").iterdir():
        yield "logs", log.read_text()


def test_no_secret_is_on_a_topic_in_the_audit_in_metrics_or_in_a_log(site: Site, secured: SecuredKafka) -> None:
    places = list(told_everywhere(site, secured))

    assert {where for where, what in places if "plain" in what or "palisade_" in what} >= {"topics", "audit", "metrics"}
    token = (site.folder / "palisade-data" / "clickhouse-reader.token").read_text().strip()
    assert {where for where, what in places if token in what} == set()
    assert {where for where, what in places if CANARY.decode() in what or site.canaries.in_text(what)} == set()
    assert {where for where, what in places if "e@example" in what} == {"topics"}
