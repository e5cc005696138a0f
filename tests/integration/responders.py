"""Two respond processes on Apache Kafka, one active and one standing by; signals said as detect says them; a webhook receiver
that notes what it is told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from palisade.dev import DevStack, prepare, role_specs
from palisade.settings import default_policy_text
from palisade.supervisor import Supervisor
from schemas.actions import Decision, Directive, JournalEntry
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig, WebhookConfig
from schemas.topics import ACTIONS, DIRECTIVES, SIGNALS
from schemas.wire import KIND_HEADER, Wire
from streams.admin import create_topics
from streams.reading import read_to_end
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.responders.given import caller_signal, drifted, view
from tests.support.apache_kafka import ApacheKafka
from tests.support.waiting import until as until_within

until = partial(until_within, within_s=90.0, every_s=0.05)
ENDPOINT = "credit"
SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ="
ACTIVE = "respond is active"
NAMES = ("respond", "respond-2")
POLICY = (
    default_policy_text()
    .replace("mode: observe\n", "mode: enforce\n", 1)
    .replace("endpoints_share: 0.2", "endpoints_share: 1.0")
    .replace("cool_down_s: 60", "cool_down_s: 0")
)


@dataclass
class Told:
    """A webhook that came: when, under which id, what it says."""

    at: float
    id: str
    data: dict[str, Any]


@dataclass
class Hook:
    """A receiver on loopback. `status`: what it answers. `before`: called in each request, before the answer."""

    status: int = 204
    before: Callable[[], None] = lambda: None
    told: list[Told] = field(default_factory=list)
    port: int = 0


@contextmanager
def hook(status: int = 204) -> Iterator[Hook]:
    made = Hook(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.told.append(Told(time.monotonic(), self.headers["webhook-id"], json.loads(body)["data"]))
            made.before()
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def webhook(port: int) -> WebhookConfig:
    return WebhookConfig(
        url=f"http://127.0.0.1:{port}/", secret_files=("hook.secret",), allow_private=True, alert_after_s=30
    )


class Pair:
    """Both processes, and what they did."""

    def __init__(self, stack: DevStack, supervisor: Supervisor, ended: list[str]) -> None:
        self.stack = stack
        self.ended = ended
        self.supervisor = supervisor
        self.connection = KafkaConnection(bootstrap=stack.bootstrap)
        self._producer = Producer(kafka_settings(self.connection, "producer") | {"linger.ms": 0})
        self._number = 0

    def say(self, *records: Wire) -> None:
        """As the detect workers do."""
        for record in records:
            self._producer.produce(SIGNALS, record.to_bytes(), b"x", headers=[(KIND_HEADER, record.KIND.encode())])
        assert self._producer.flush(30) == 0

    def callers_flood(self, *callers: str, endpoint: str = ENDPOINT) -> None:
        """Guards report, and each of these callers asks far too much: all in one batch of the log."""
        at, self._number = _now_ms(), self._number + 1
        signals = [
            caller_signal(
                caller, endpoint, incident_id=f"{caller}-{self._number}", signal_id=f"{caller}-{self._number}",
                first_ms=at, at_ms=at,
            )
            for caller in callers
        ]  # fmt: skip
        self.say(view(endpoint, at, active_callers=200), *signals)

    def knocks(self, caller: str, endpoint: str = ENDPOINT) -> None:
        self.say(view(endpoint, _now_ms(), knocking={caller: 500.0}, active_callers=200))

    def drifts(self, endpoint: str = ENDPOINT) -> Callable[[], None]:
        """Its inputs leave the profile; gives what says that this is over."""
        at, self._number = _now_ms(), self._number + 1
        about = {"incident_id": f"drift-{self._number}", "first_ms": at, "at_ms": at}
        self.say(view(endpoint, at), drifted(endpoint, **about, signal_id=f"opened-{self._number}"))
        over = drifted(endpoint, **about, state="recovered", seq=1, signal_id=f"over-{self._number}")
        return lambda: self.say(over)

    def journal(self) -> list[JournalEntry]:
        return [JournalEntry.from_bytes(m.value() or b"") for m in read_to_end(self.connection, ACTIONS, 0)]

    def decided(self, *kinds: str) -> list[Decision]:
        return [decision for entry in self.journal() for decision in entry.decisions if decision.kind in kinds]

    def limited(self) -> list[str]:
        return [
            str(d.caller) for d in self.decided("limit") if d.outcome == "published" and d.reason != "evidence_renewed"
        ]

    def directives(self, endpoint: str = ENDPOINT) -> list[Directive]:
        """In their order on the topic."""
        found = [Directive.from_bytes(m.value() or b"") for m in read_to_end(self.connection, DIRECTIVES, 0)]
        return [directive for directive in found if directive.endpoint == endpoint]

    def takeovers(self, name: str) -> int:
        return self.supervisor.log(name).read_text(errors="replace").count(ACTIVE)

    def active(self) -> str:
        """Who took over last."""

        def last(name: str) -> str:
            lines = self.supervisor.log(name).read_text(errors="replace").splitlines()
            return max((line[:23] for line in lines if ACTIVE in line), default="")

        return max(NAMES, key=last)

    def await_takeover(self, count: int) -> str:
        """Waits until there were more takeovers than `count`; gives who is active."""
        until(lambda: self.count() > count, f"a takeover\n{self.tails()}")
        return self.active()

    def count(self) -> int:
        """Takeovers so far."""
        return sum(map(self.takeovers, NAMES))

    def kill(self, name: str) -> int:
        return self.supervisor.kill(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.supervisor.pid(name), number)

    def tails(self) -> str:
        return "\n".join(f"--- {name}\n{self.supervisor.tail(name)}" for name in NAMES)


@contextmanager
def pair_on(kafka: ApacheKafka, folder: Path, port: int, *, env: dict[str, str] | None = None) -> Iterator[Pair]:
    """Fresh topics on this broker; returns when one process is active and the other stands by."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hook.secret").write_text(SECRET)
    (folder / "given.yaml").write_text(POLICY)
    create_topics(KafkaConnection(bootstrap=kafka.bootstrap), 1, 1)
    others = [EndpointConfig(name=f"other-{number}") for number in range(5)]
    config = PalisadeConfig(
        endpoints=(EndpointConfig(name=ENDPOINT, webhook=webhook(port)), *others), kafka=KafkaConfig(partitions=1)
    )
    ended: list[str] = []
    with Supervisor(folder / "logs", on_exit=lambda name, _: ended.append(name)) as supervisor:
        stack = prepare(folder, config, folder / "given.yaml", kafka.bootstrap, embedded=False, config_home=folder)
        specs = [spec for spec in role_specs(stack, {"respond": 2}) if spec.name in NAMES]
        for name in [supervisor.spawn(spec) for spec in specs]:
            supervisor.wait_ready(name, 90)
        pair = Pair(stack, supervisor, ended)
        until(pair.count, f"the first one\n{pair.tails()}")
        yield pair


def _now_ms() -> int:
    return int(time.time() * 1000)
