"""The demo's processes as they run: real HTTP, real Kafka protocol, commands over pipes."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer
from palisade_client.testing import ThrowawayKey, directive

from palisade.demo.checks import EventCount, rejected
from palisade.demo.children import Child, ChildFailed
from palisade.demo.data import caller_shares
from palisade.demo.load import Answer
from palisade.demo.models import Artifact
from palisade.demo.tap import Tap
from schemas.topics import DIRECTIVES, PREDICTIONS, REPORTS

ENDPOINT = "flights-ewr"
TOPICS = {PREDICTIONS: 1, REPORTS: 1, DIRECTIVES: 1}


class Answers:
    """The clients' log, as the load generator's lines come in."""

    def __init__(self) -> None:
        self.all: list[Answer] = []
        self._more = threading.Condition()

    def take(self, line: object) -> None:
        with self._more:
            self.all.append(Answer.from_line(line))
            self._more.notify_all()

    def until(self, ready: Callable[[list[Answer]], bool]) -> None:
        with self._more:
            assert self._more.wait_for(lambda: ready(self.all), 120)


class Stage:
    """A broker, one serving process and the load generator, with the keys they need."""

    def __init__(self, bootstrap: str, folder: Path, artifact: Artifact) -> None:
        self.bootstrap = bootstrap
        self.signer = ThrowawayKey()
        self.answers = Answers()
        keys = {f"key-{caller}": caller for caller in caller_shares()}
        (folder / "keys.json").write_text(json.dumps(keys))
        (folder / "producer.pem").write_bytes(ThrowawayKey().pem)
        artifact.save(folder / "model.json")
        self.folder = folder

    def serve(self) -> Child:
        arguments = ["--endpoint", ENDPOINT, "--model", str(self.folder / "model.json"), "--bootstrap", self.bootstrap]
        arguments += ["--keys", str(self.folder / "keys.json"), "--directive-keys", self.signer.public]
        arguments += ["--producer-key", str(self.folder / "producer.pem")]
        return Child("palisade.demo.serve", arguments, self.folder / "serve.log")

    def load(self, port: int) -> Child:
        arguments = ["--seed", "1", "--keys", str(self.folder / "keys.json")]
        arguments += ["--server", f"{ENDPOINT}=127.0.0.1:{port}"]
        return Child("palisade.demo.load", arguments, self.folder / "load.log", self.answers.take)

    def order(self, epoch: int, **wanted) -> None:
        record = directive(ENDPOINT, self.signer, epoch=epoch, timestamp_ms=time.time_ns() // 1_000_000, **wanted)
        producer = Producer({"bootstrap.servers": self.bootstrap})
        producer.produce(DIRECTIVES, record.value, key=record.key, headers=list(record.headers.items()))
        assert producer.flush(10) == 0


@pytest.fixture
def stage(embedded_broker, tmp_path, artifact) -> Stage:
    return Stage(embedded_broker(TOPICS).bootstrap, tmp_path, artifact)


def last(answers: list[Answer], count: int) -> set[tuple[str, str]]:
    return {(answer.served_by, answer.cause) for answer in answers[-count:]}


def test_every_answered_call_is_one_event_through_flood_break_hang_and_fallback(stage):
    events = EventCount()
    answers = stage.answers
    with Tap({"bootstrap.servers": stage.bootstrap}, [PREDICTIONS], events.add) as tap, stage.serve() as service:
        with stage.load(service.wait("ready")["port"]) as load:
            load.wait("ready")
            load.ask({"do": "replay"}, "replay")
            answers.until(lambda all_: len(all_) > 50 and last(all_, 20) == {("primary", "")})

            load.ask({"do": "scene", "name": "flood"}, "scene")
            load.ask({"do": "flood", "endpoint": ENDPOINT, "caller": "VX@EWR", "rate": 300, "seconds": 10}, "flood")
            answers.until(lambda all_: sum(a.hostile for a in all_) > 100)
            stage.order(1, limits={"VX@EWR": 1.0})
            answers.until(lambda all_: sum(a.status == 429 for a in all_) > 50)
            load.ask({"do": "calm"}, "calm")
            stage.order(2)

            load.ask({"do": "scene", "name": "hang"}, "scene")
            service.ask({"do": "hang"}, "hang")
            answers.until(lambda all_: ("fallback", "timeout") in last(all_, 5))
            stage.order(3, route="fallback", probe_share=0.0)
            answers.until(lambda all_: last(all_, 20) == {("fallback", "directive")})
            service.ask({"do": "clear"}, "clear")
            stage.order(4)
            answers.until(lambda all_: last(all_, 20) == {("primary", "")})
            assert load.ask({"do": "stop"}, "stop")["at"] > 0
        assert service.stop() == 0
        assert tap.drain(PREDICTIONS)

    assert {a.caller for a in answers.all if a.status == 429} == {"VX@EWR"}
    assert {a.status for a in answers.all} == {200, 429}
    assert rejected(answers.all, events) == 0
    assert {a.scene for a in answers.all} == {"", "flood", "hang"}


def test_a_serving_process_ends_with_who_started_it(stage):
    service = stage.serve()
    service.wait("ready")

    assert service.stop() == 0
    assert not service.running


def test_a_command_that_nobody_knows_ends_the_load_generator_loudly(stage):
    with stage.load(port=9) as load:
        load.wait("ready")
        load.tell({"do": "dance"})
        with pytest.raises(ChildFailed, match=r"load\.log"):
            load.wait("dance")
        assert "no command 'dance'" in (stage.folder / "load.log").read_text()


def test_a_child_that_ends_before_it_speaks_is_named_with_its_log(tmp_path):
    with (
        Child("palisade.demo.serve", ["--nonsense"], tmp_path / "log") as child,
        pytest.raises(ChildFailed, match=r"palisade\.demo\.serve --nonsense ended before 'ready', see .*log"),
    ):
        child.wait("ready")
    assert "usage" in (tmp_path / "log").read_text()


def test_no_child_outlives_a_parent_that_was_killed(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from palisade.demo.children import Child\n"
        f"child = Child('palisade.demo.load', {['--keys', str(tmp_path / 'k'), '--server', 'flights-ewr=127.0.0.1:9']!r},"
        f" pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "child.wait('ready')\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    (tmp_path / "k").write_text("{}")
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended but waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
