"""The transport in worker processes, on Apache Kafka: kills, rebalances, outage, transactions."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.kafka import RealKafka
from tests.transport.bench import Bench, exactly, fill
from tests.transport.worker import Spec, Topic

pytestmark = pytest.mark.kafka
CLEAN = {0, -signal.SIGTERM}  # the second: stopped before it had begun


@pytest.fixture
def topic(kafka: RealKafka) -> str:
    """A topic of four partitions that no other test uses."""
    name = kafka.unique("t")
    kafka.create_topics({name: 4})
    return name


def bench(kafka: RealKafka, out: Path, name: str, topic: Topic, partitions: int = 4) -> Bench:
    return Bench(Spec(kafka.bootstrap, kafka.unique("g"), str(out), {name: topic}, fetch_wait_ms=100), partitions)


def test_three_kills_lose_nothing_and_no_commit_passes_an_unfinished_offset(
    kafka: RealKafka, topic: str, tmp_path: Path
) -> None:
    moments = random.Random(7)
    with bench(kafka, tmp_path, topic, Topic(run_max=100, sleep_s=0.003, late_s=0.05)) as b:
        for _ in range(3):
            fill(kafka.bootstrap, topic, 4, 2_000)
            before, worker = b.total(), b.start()
            goal = before + moments.randint(2_000, 5_000)
            b.until(lambda goal=goal: b.total() > goal, "at work")
            worker.kill()
        fill(kafka.bootstrap, topic, 4, 2_000)
        last = b.start()
        b.until(b.all_seen(8_000), "everything read")
        assert last.stop() == 0
        assert b.committed() == exactly(b.tps, 8_000)
    assert b.samples > 10
    assert b.violations == []


def test_a_worker_that_joins_and_leaves_costs_no_record_twice(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    written = 500
    fill(kafka.bootstrap, topic, 4, written)
    # Exactly once holds as long as no session runs out; a short heartbeat tells the first that the second is there.
    flood = {topic: Topic(run_max=100, sleep_s=0.02)}
    spec = Spec(kafka.bootstrap, kafka.unique("g"), str(tmp_path), flood, 30.0, heartbeat_s=1.0, fetch_wait_ms=100)
    with Bench(spec, 4) as b:
        first = b.start()
        b.until(lambda: b.total() > 1_000, "the first at work")
        second = b.start()
        deadline = time.monotonic() + 120
        while b.shares() != [2, 2]:  # records all the while
            assert time.monotonic() < deadline, f"no two partitions each\n{b.errors()}"
            fill(kafka.bootstrap, topic, 4, 100)
            written += 100
            time.sleep(0.05)
        done = b.total()
        fill(kafka.bootstrap, topic, 4, 2_000)
        written += 2_000
        b.until(lambda: b.total() > done + 2_000, "both at work")
        assert first.stop() == 0
        b.until(b.all_seen(written), "everything read")
        assert second.stop() == 0
        assert b.committed() == exactly(b.tps, written)
        assert set().union(*(set(seen.values()) for seen in b.seen().values())) == {1}, "something was delivered twice"
    assert b.violations == []


def test_an_exception_ends_the_worker_with_1_and_its_run_is_read_again(
    kafka: RealKafka, topic: str, tmp_path: Path
) -> None:
    fill(kafka.bootstrap, topic, 4, 1_000)
    with bench(kafka, tmp_path, topic, Topic(run_max=100, fail_at=777)) as b:
        assert b.start().wait(120) == 1
        assert all(end in range(0, 701, 100) for end in b.committed().values())
        b.spec.topics[topic] = Topic(run_max=100)
        healed = b.start()
        b.until(b.all_seen(1_000), "everything read")
        assert healed.stop() == 0
        assert b.committed() == exactly(b.tps, 1_000)
    assert b.violations == []


def test_a_broker_that_restarts_costs_nothing(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    if kafka.broker is None:
        pytest.skip("the broker is not ours to restart")
    fill(kafka.bootstrap, topic, 4, 3_000)
    with bench(kafka, tmp_path, topic, Topic(run_max=100, sleep_s=0.02)) as b:
        workers = [b.start(), b.start()]
        b.until(lambda: b.total() > 1_000, "at work")
        kafka.broker.stop()
        time.sleep(3)
        kafka.broker.start()
        fill(kafka.bootstrap, topic, 4, 1_000)
        b.until(b.all_seen(4_000), "everything read")
        assert [worker.stop() for worker in workers] == [0, 0]
        assert b.committed() == exactly(b.tps, 4_000)
    assert b.violations == []


def test_a_stop_waits_for_the_run_that_is_being_worked_on(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    fill(kafka.bootstrap, topic, 1, 10)
    with bench(kafka, tmp_path, topic, Topic(sleep_s=2.0), 1) as b:
        worker = b.start()
        b.until(lambda: b.told("begin"), "in the body")
        assert worker.stop() == 0
        assert b.committed() == {TP(topic, 0): 10}


def test_a_body_longer_than_the_drain_bound_is_left_uncommitted(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    fill(kafka.bootstrap, topic, 1, 10)
    spec = Spec(kafka.bootstrap, kafka.unique("g"), str(tmp_path), {topic: Topic(sleep_s=600.0)}, drain_s=1.0)
    with Bench(spec, 1) as b:
        worker = b.start()
        b.until(lambda: b.told("begin"), "in the body")
        assert worker.stop() == 0
        assert b.committed() == {}


def test_aborted_records_are_skipped_and_a_marker_at_the_end_is_no_hole(
    kafka: RealKafka, topic: str, tmp_path: Path
) -> None:
    settings = kafka_settings(KafkaConnection(bootstrap=kafka.bootstrap), "producer")
    producer = Producer(settings | {"transactional.id": kafka.unique("tx"), "message.timeout.ms": 20_000})
    producer.init_transactions(60)
    kept: list[int] = []
    for number in range(12):
        producer.begin_transaction()
        for _ in range(5):
            producer.produce(topic, b"%d" % number, partition=0)
        if number % 3 == 2:
            producer.flush(60)
            producer.abort_transaction(60)
        else:
            kept += range(number * 6, number * 6 + 5)  # five records and one marker
            producer.commit_transaction(60)
    with bench(kafka, tmp_path, topic, Topic(), 1) as b:
        worker = b.start()
        b.until(lambda: sorted(b.seen().get(TP(topic, 0), ())) == kept, "all committed records")
        assert worker.stop() == 0
        assert b.committed() == {TP(topic, 0): kept[-1] + 1}


def test_keys_headers_tombstones_and_every_codec_arrive(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        settings = kafka_settings(
            KafkaConnection(bootstrap=kafka.bootstrap), "producer", overrides={"compression.type": codec}
        )
        producer = Producer(settings)
        for _ in range(50):
            producer.produce(topic, b"x" * 500, key=b"k", headers=[("h", None), ("h", b"1")], partition=0)
        producer.produce(topic, None, key=b"k", partition=0)
        assert producer.flush(60) == 0
    with bench(kafka, tmp_path, topic, Topic(), 1) as b:
        worker = b.start()
        b.until(b.all_seen(255), "everything read")
        assert worker.stop() == 0
        assert b.committed() == {TP(topic, 0): 255}


def test_a_storm_of_joins_stops_and_kills_loses_nothing(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    """Two or three workers for 25 s, one of them started, stopped or killed every two seconds, records all the while."""
    moments = random.Random(11)
    written = 0
    with bench(kafka, tmp_path, topic, Topic(run_max=100, sleep_s=0.005, late_s=0.05)) as b:
        alive = [b.start(), b.start()]
        deadline = time.monotonic() + 25
        while time.monotonic() < deadline:
            fill(kafka.bootstrap, topic, 4, 500)
            written += 500
            time.sleep(moments.uniform(0.5, 2.0))
            if len(alive) < 2 or (len(alive) == 2 and moments.random() < 0.4):
                alive.append(b.start())
            elif moments.random() < 0.3:
                alive.pop(moments.randrange(len(alive))).kill()
            else:
                assert alive.pop(moments.randrange(len(alive))).stop() in CLEAN
        b.until(b.all_seen(written), "everything read")
        b.until(lambda: b.committed() == exactly(b.tps, written), "everything committed")
        assert {worker.stop() for worker in alive} <= CLEAN
        assert b.committed() == exactly(b.tps, written)
    assert b.samples > 20
    assert b.violations == []
    assert b.moved_back == []


def test_a_corrupted_batch_ends_the_worker_before_it_is_committed(kafka: RealKafka, topic: str, tmp_path: Path) -> None:
    if kafka.broker is None:
        pytest.skip("the broker's files are not ours to damage")
    for _ in range(3):
        fill(kafka.bootstrap, topic, 1, 50)  # one batch each
    damage_second_batch(kafka.broker.segment(topic, 0))
    with bench(kafka, tmp_path, topic, Topic(), 1) as b:
        assert b.start().wait(120) == 1
        assert b.committed().get(TP(topic, 0), 0) <= 50
        assert "_BAD_MSG" in b.errors() or "CRC" in b.errors()


def damage_second_batch(segment: Path) -> None:
    """Flip one byte of its records. A batch is: base offset (8 bytes), length (4), then so many bytes."""
    with segment.open("r+b") as file:
        file.seek(8)
        second = 12 + int.from_bytes(file.read(4), "big")
        file.seek(second + 8)
        end = second + 12 + int.from_bytes(file.read(4), "big")
        file.seek(end - 20)
        byte = file.read(1)[0]
        file.seek(end - 20)
        file.write(bytes([byte ^ 1]))


def test_flooded_predictions_do_not_delay_reports(kafka: RealKafka, tmp_path: Path) -> None:
    """A backlog of 200,000 predictions far above its byte bound, and rounds of 100 reports beside it."""
    predictions, reports = kafka.unique("predictions"), kafka.unique("reports")
    kafka.create_topics({predictions: 4, reports: 1})
    fill(kafka.bootstrap, predictions, 4, 50_000, 700)
    flood = Topic(run_max=2_000, linger_s=0.05, max_bytes=8 << 20, cpu_s=0.01, sleep_s=0.1)
    spec = Spec(
        kafka.bootstrap, kafka.unique("g"), str(tmp_path), {predictions: flood, reports: Topic()}, fetch_wait_ms=100
    )
    with Bench(spec, 1) as b:
        worker = b.start()
        b.until(lambda: b.total() > 2_000, "flooded")
        assert any(b.one_round_within(TP(reports, 0), 100, 100) for _ in range(10))
        assert b.total() < 200_000, "the flood was over too soon to prove anything"
        assert worker.stop() == 0
