"""`palisade verify run` on Apache Kafka: a run whose workers were killed at their work is proven, from its start or a moment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from palisade.cli import main as cli
from palisade.cli import options
from palisade.dev import DevStack, prepare, role_specs
from palisade.supervisor import Supervisor
from palisade.verify.history import History
from schemas.config import EndpointConfig, PalisadeConfig
from schemas.topics import PREDICTIONS
from streams.admin import cluster_of, create_topics
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
ENDPOINTS, PARTITIONS = ("credit", "spam"), 2
ROUNDS, A_ROUND, ROWS = 6, 150, 5
EVENTS = ROUNDS * A_ROUND * ROWS
ENDED = (f"{EVENTS:,} scored, 0 dead-lettered, 0 in flight", f"{2 * EVENTS:,} that must be there")
DEADLINE_S = 240
Verified = tuple[int, dict[str, Any], str]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[DevStack]:
    """A broker of its own: the topics have fixed names."""
    config = PalisadeConfig(endpoints=tuple(EndpointConfig(name=name) for name in ENDPOINTS))
    with ApacheKafka() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        create_topics(connection, PARTITIONS, 1)
        cluster_id = cluster_of(connection).cluster_id
        yield prepare(tmp_path / "dev", config, None, broker.bootstrap, embedded=False, cluster_id=cluster_id)


def verify(capsys: pytest.CaptureFixture[str], *words: object) -> Verified:
    sys.argv = ["palisade", "verify", *map(str, words)]
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    told, errors = capsys.readouterr()
    assert status in (0, 1), errors
    return status, json.loads(told.splitlines()[-1])["verify"], told


def send(producer: Producer, first: int) -> list[dict[str, Any]]:
    """Arrays of `ROWS` events, endpoints in turn; gives what the broker said that it stored, as rows of `sent`."""
    stored: list[dict[str, Any]] = []

    def told(error: object, message: Message) -> None:
        assert error is None
        place = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        stored.append(place | {"rows": ROWS, "producer": "test"})

    for number in range(first, first + A_ROUND):
        endpoint = ENDPOINTS[number % 2]
        rows = [{"endpoint": endpoint, "caller": f"c{row}", "features": {"a": number + row}} for row in range(ROWS)]
        producer.produce(PREDICTIONS, json.dumps(rows).encode(), endpoint.encode(), on_delivery=told)
    producer.flush(30)
    return stored


def test_a_run_with_killed_workers_is_proven(
    stack: DevStack, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(options.console, "width", 200)  # sentences on one line
    producer = Producer(kafka_settings(KafkaConnection(bootstrap=stack.bootstrap), "producer"))
    config, history, middle = ("--config", stack.config_path), tmp_path / "history", 0
    sent: list[dict[str, Any]] = []
    with Supervisor(tmp_path / "logs") as supervisor:
        roles = [spec for spec in role_specs(stack) if spec.name in ("audit", "detect", "respond")]
        for name in [supervisor.spawn(spec) for spec in roles]:
            supervisor.wait_ready(name, 120)
        for turn in range(ROUNDS):
            sent += send(producer, turn * A_ROUND)
            if turn in (1, 3):
                supervisor.kill("detect")
            if turn in (2, 3):
                supervisor.kill("audit")
            middle = int(time.time() * 1000) if turn == 4 else middle

        def settled() -> Verified:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                found = verify(capsys, "run", *config, "--out", history)
                assert found[1]["I1"] != "violated", found[2]
                if all(text in found[2] for text in ENDED):
                    return found
            raise AssertionError(f"not all was scored and kept in {DEADLINE_S} s; see {tmp_path / 'logs'}")

        status, said, told = settled()
        assert status == 0, told
        assert {said[name] for name in ("I1", "I2", "I4", "I6")} == {"holds"}, told
        assert "what producers were told is stored" in told
        (history / "sent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sent))
        status, said, told = verify(capsys, "check", history, "--finished")
        assert (status, said["I1"], "what producers were told" in told) == (0, "holds", False), told

        since = ("--finished", "--since", _iso(middle))
        status, said, told = verify(capsys, "run", *config, "--out", tmp_path / "later", *since)
        assert status == 0, told
        assert {said[name] for name in ("I1", "I2", "I4")} == {"holds"}, told
        records = History.load(tmp_path / "later")["records"].to_pylist()
        assert 0 < sum(row["rows"] for row in records) < EVENTS
        assert min(row["at_ms"] for row in records) >= middle


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()
