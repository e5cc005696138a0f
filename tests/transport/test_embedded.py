"""The transport in worker processes, on the embedded broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from streams import embedded_broker as embedded_broker_module
from streams.app import make_app, outbox_of
from streams.embedded_broker import EmbeddedBroker, parse_topics
from streams.transport import producer as producer_module
from streams.transport.outbox import Outbox, OutboxClosed, OutboxFull
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.transport.bench import Bench, exactly, fill, passed_over
from tests.transport.worker import Spec, Topic

SESSION_S = 4.0  # the embedded broker lets a group that somebody left wait about so long for its next member
Start = Callable[[Mapping[str, int]], EmbeddedBroker]


def bench(broker: EmbeddedBroker, out: Path, partitions: int = 2, **topics: Topic) -> Bench:
    return Bench(Spec(broker.bootstrap, "g", str(out), topics, session_s=SESSION_S), partitions)


def twice(b: Bench) -> dict[TP, list[int]]:
    """Offsets that were finished twice."""
    found = {tp: sorted(offset for offset, times in seen.items() if times == 2) for tp, seen in b.seen().items()}
    return {tp: offsets for tp, offsets in found.items() if offsets}


def test_the_checker_finds_a_planted_violation() -> None:
    tp = TP("t", 0)
    assert passed_over({tp: 3}, {tp: Counter([0, 2])}) == {tp: [1]}
    assert passed_over({tp: 3}, {tp: Counter([0, 1, 2])}) == {}


def test_a_stopped_worker_has_committed_what_it_finished_and_the_next_one_reads_from_its_state(
    embedded_broker: Start, tmp_path: Path
) -> None:
    broker = embedded_broker({"t": 2, "sink": 1})
    fill(broker.bootstrap, "t", 2, 3_000)
    spec = Spec(
        broker.bootstrap, "g", str(tmp_path), {"t": Topic(sink="sink", sleep_s=0.02)}, back=30, session_s=SESSION_S
    )
    with Bench(spec, 2) as b:
        first = b.start()
        b.until(lambda: b.total() > 1_000, "the first worker at work")
        assert first.stop() == 0
        committed = b.committed()
        assert committed == {tp: len(seen) for tp, seen in b.seen().items()}
        again = {tp: list(range(max(0, end - 30), end)) for tp, end in committed.items()}
        second = b.start()
        b.until(
            lambda: b.all_seen(3_000)() and twice(b) == again, "everything read, 30 records of each partition again"
        )
        assert second.stop() == 0
        assert b.committed() == exactly(b.tps, 3_000)
        assert [line["committed"] for line in b.told("start_at")] == [
            [],
            sorted([*tp, end] for tp, end in committed.items()),
        ]
        assert twice(b) == again
        kinds = [line["event"] for line in b.events() if line["event"] != "run"]
        assert kinds == ["assigned", "start_at", "revoked", "end"] * 2


def test_runs_that_finish_out_of_order_are_never_committed_past_a_hole(embedded_broker: Start, tmp_path: Path) -> None:
    broker = embedded_broker({"t": 2})
    fill(broker.bootstrap, "t", 2, 2_000)
    spec = Spec(broker.bootstrap, "g", str(tmp_path), {"t": Topic(run_max=50, late_s=0.2)}, session_s=SESSION_S)
    with Bench(spec, 2) as b:
        worker = b.start()
        b.until(lambda: b.total() > 1_000, "at work")
        worker.kill()
        again = b.start()
        b.until(lambda: len(b.told("assigned")) > 1 and b.all_seen(2_000)(), "everything read")
        b.until(lambda: b.committed() == exactly(b.tps, 2_000), "everything committed")
        assert again.stop() == 0
        assert b.committed() == exactly(b.tps, 2_000)
    assert b.samples > 3
    assert b.violations == []


def test_an_exception_ends_the_worker_with_1_and_loses_nothing(embedded_broker: Start, tmp_path: Path) -> None:
    broker = embedded_broker({"t": 1})
    fill(broker.bootstrap, "t", 1, 1_000)
    with bench(broker, tmp_path, 1, t=Topic(run_max=100, fail_at=555)) as b:
        assert b.start().wait(120) == 1
        assert b.committed() == {TP("t", 0): 500}
        assert "poison at 555" in b.errors()
        assert b.violations == []


def test_a_broker_that_goes_and_comes_back_costs_nothing(embedded_broker: Start, tmp_path: Path) -> None:
    broker = embedded_broker({"t": 2})
    fill(broker.bootstrap, "t", 2, 500)
    with bench(broker, tmp_path, t=Topic(run_max=50, sleep_s=0.01)) as b:
        worker = b.start()
        b.until(lambda: b.total() > 100, "at work")
        broker.down()
        time.sleep(1)
        broker.up()
        fill(broker.bootstrap, "t", 2, 500)
        b.until(b.all_seen(1_000), "everything read")
        assert worker.stop() == 0
        assert b.committed() == exactly(b.tps, 1_000)
    assert b.violations == []


def test_flooded_predictions_do_not_delay_reports(embedded_broker: Start, tmp_path: Path) -> None:
    """A flood at its byte bound, a handler that blocks the loop 10 ms and then waits; rounds of 200 reports."""
    broker = embedded_broker({"predictions": 2, "reports": 1})
    connection = KafkaConnection(bootstrap=broker.bootstrap)
    ending = threading.Event()

    def flood() -> None:
        producer = Producer(kafka_settings(connection, "producer"))
        while not ending.wait(0.01):
            for number in range(400):
                producer.produce("predictions", b"x" * 700, partition=number % 2)
            producer.flush(5)

    topics = {
        "predictions": Topic(run_max=2_000, linger_s=0.05, max_bytes=4 << 20, cpu_s=0.01, sleep_s=0.1),
        "reports": Topic(),
    }
    thread = threading.Thread(target=flood)
    with Bench(Spec(broker.bootstrap, "g", str(tmp_path), topics), 1) as b:
        thread.start()
        try:
            worker = b.start()
            b.until(lambda: b.total() > 2_000, "flooded")
            assert any(b.one_round_within(TP("reports", 0), 200, 100) for _ in range(10))
        finally:
            ending.set()
            thread.join()
        assert worker.stop() == 0


@pytest.mark.slow
def test_a_second_worker_takes_its_share_and_gives_it_back(embedded_broker: Start, tmp_path: Path) -> None:
    """Without counting what comes twice: the embedded broker refuses commits while a group moves."""
    broker = embedded_broker({"t": 4})
    with bench(broker, tmp_path, 4, t=Topic(run_max=100, sleep_s=0.005)) as b:
        first = b.start()
        b.until(lambda: b.told("assigned"), "the first has joined")
        second = b.start()
        b.until(lambda: b.shares() == [2, 2], "two partitions each")
        fill(broker.bootstrap, "t", 4, 500)
        b.until(b.all_seen(500), "everything read")
        assert second.stop() == 0
        b.until(lambda: b.shares() == [0, 4], "the first has all again")
        assert first.stop() == 0
    assert b.violations == []


@pytest.mark.anyio
async def test_the_outbox_confirms_each_record_and_tells_each_failure(embedded_broker: Start) -> None:
    broker = embedded_broker({"out": 3})
    connection = KafkaConnection(bootstrap=broker.bootstrap)
    outbox = Outbox(kafka_settings(connection, "producer"))
    with pytest.raises(OutboxClosed):
        outbox.send("out", b"k", b"v")
    outbox.start()
    sent = [outbox.send("out", b"k", b"v%d" % n, {"palisade-kind": b"x"}, 2, 1_700_000_000_000 + n) for n in range(50)]
    confirmed = await asyncio.gather(*sent)
    assert [(at.partition, at.offset) for at in confirmed] == [(2, n) for n in range(50)]
    too_big = outbox.send("out", b"k", b"x" * 2_000_000)
    refused = too_big.exception()
    assert isinstance(refused, KafkaException)
    assert refused.__traceback__ is None, "it would keep the producer alive after its broker"
    assert outbox.pending == 0
    late = outbox.send("out", None, None, [("h", None)], partition=0)
    await outbox.close()
    assert (await late).topic == "out"
    reader = Consumer(kafka_settings(connection, "consumer", group="r"))
    reader.subscribe(["out"])
    first = min(reader.consume(51, 60), key=lambda record: record.timestamp()[1])
    assert (first.headers(), first.timestamp()[1]) == ([("palisade-kind", b"x")], 1_700_000_000_000)
    reader.close()


@pytest.mark.anyio
async def test_a_full_outbox_says_so_instead_of_blocking() -> None:
    overrides = {"queue.buffering.max.messages": 10, "message.timeout.ms": 200}
    outbox = Outbox(kafka_settings(KafkaConnection(bootstrap="127.0.0.1:1"), "producer", overrides=overrides))
    outbox.start()
    outcomes = await asyncio.gather(*(outbox.send("t", None, b"v") for _ in range(12)), return_exceptions=True)
    await outbox.close()
    assert [type(outcome) for outcome in outcomes] == [KafkaException] * 10 + [OutboxFull] * 2


@pytest.mark.anyio
async def test_who_waits_for_room_never_finds_the_outbox_full(embedded_broker: Start) -> None:
    broker = embedded_broker({"out": 1})
    overrides = {"queue.buffering.max.messages": 10, "queue.buffering.max.kbytes": 100}
    outbox = Outbox(kafka_settings(KafkaConnection(bootstrap=broker.bootstrap), "producer", overrides=overrides))
    outbox.start()
    sent = []
    for size in [10] * 50 + [20_000] * 50:
        await outbox.room(size)
        sent.append(outbox.send("out", None, b"x" * size, partition=0))
        assert outbox.pending <= 5
    assert [at.offset for at in await asyncio.gather(*sent)] == list(range(100))
    await outbox.close()


@pytest.mark.anyio
async def test_who_waits_for_room_goes_on_when_the_broker_stays_away() -> None:
    overrides = {"queue.buffering.max.messages": 2, "message.timeout.ms": 100}
    outbox = Outbox(kafka_settings(KafkaConnection(bootstrap="127.0.0.1:1"), "producer", overrides=overrides))
    outbox.start()
    first = outbox.send("t", None, b"v")
    await asyncio.wait_for(outbox.room(1), 60)
    assert first.exception() is not None
    await outbox.close()


def test_the_broker_process_prints_its_address_and_ends_on_sigterm() -> None:
    command = [sys.executable, "-m", "streams.embedded_broker", "--topics", "a:1,b.c:3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        reader = Consumer(kafka_settings(KafkaConnection(bootstrap=said["bootstrap"]), "consumer", group="g"))
        topics = {name: len(topic.partitions) for name, topic in reader.list_topics(timeout=60).topics.items()}
        reader.close()
        process.terminate()
        assert process.wait(60) == 0
    assert topics == said["topics"] == {"a": 1, "b.c": 3}


def test_without_the_c_functions_a_plain_mock_cluster_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("no such function")

    monkeypatch.setattr(embedded_broker_module, "_load", missing)
    with EmbeddedBroker({"t": 1}) as broker:
        fill(broker.bootstrap, "t", 1, 1)
        with pytest.raises(RuntimeError, match="C functions"):
            broker.down()


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:0", "a:x", "a:1,b"])
def test_topics_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name:partitions"):
        parse_topics(text)


def test_a_flush_of_what_the_broker_does_not_take_ends_long_before_its_records_do(
    embedded_broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "FLUSH_S", 0.2)
    broker = embedded_broker({"t": 1})
    app = make_app("flushes", connection=broker.connection)

    async def story() -> None:
        outbox = outbox_of(app)
        outbox.start()
        await outbox.send("t", b"k", b"v")
        broker.down()
        sent = outbox.send("t", b"k", b"v")
        await asyncio.wait_for(app.producer.flush(), 60)
        assert not sent.done()
        assert (outbox.held_s(monotonic() + 100.0) or 0.0) >= 100.0
        broker.up()
        await asyncio.wait_for(sent, 60)
        assert outbox.held_s(monotonic()) is None
        await outbox.close()

    asyncio.run(story())
