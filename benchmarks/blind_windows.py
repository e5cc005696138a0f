"""How long nothing is seen after a kill -9 of a role: `make bench-blind`.

Real processes. While events are sent ten times a second, one process of a role is killed; measured is, for every partition,
from the kill to the first outcome of an event that was sent after it: a prediction (ingest), a verdict (detect), a journaled
decision (respond), a row in the audit's ClickHouse (audit). The longest of the partitions counts. `second`: another process
of the role runs beside, and the killed one is started again; `restart`: it is alone, and the supervisor starts it again.
The windows follow the session timeout, after which the group gives a dead member's partitions away. The last figure is a
restart of detect that takes up the state of 1,000 endpoints: from the start of the process to the first verdicts of both
partitions.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from detectors.profile_build import build_profile
from palisade.dev import DevStack, prepare, role_specs, start_broker
from palisade.operate import Operator, order, send
from palisade.operate import Wanted as Ordered
from palisade.queries import Query, ask, reader
from palisade.settings import load
from palisade.supervisor import Supervisor
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.events import ProfileActivated
from schemas.topics import ACTIONS, PREDICTIONS, REQUESTS, RESPONSES, VERDICTS
from schemas.wire import KIND_HEADER
from streams.admin import create_topics
from streams.app import WorkerSettings
from streams.profiles import profile_record
from streams.records import Outgoing
from streams.respond import SESSION_S
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable

Role = Literal["ingest", "detect", "respond", "audit"]
Broker = Literal["kafka", "embedded"]
ROLES: tuple[Role, ...] = ("ingest", "detect", "respond", "audit")
PARTITIONS = 2
ENDPOINTS = ("a", "b", "c", "d", "e", "f")
"""Enough names that each partition has one."""
BEAT_S = 0.1
STEADY_S = 3.0
VERSION, FEATURES = "v1", tuple(f"x{number}" for number in range(8))
A_BEAT = 100
"""Events of a beat at most."""
WITHIN_S = 90.0
MANY = 1_000
SETTLED_S = 12.0
"""What detect has to save all parts once: a round each 5 s."""
NEWEST = Query(
    "newest",
    "the last row of each partition",
    "SELECT partition, max(offset) AS last FROM palisade.predictions GROUP BY partition",
)


class Overdue(RuntimeError):
    """Nothing came."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that the broker has: where it lies, or under which id; and when it was sent (monotonic seconds)."""

    partition: int
    offset: int
    name: str
    at: float


class Stream:
    """Sends an event for each endpoint ten times a second, and hears of outcomes of one role."""

    def __init__(self, stack: DevStack, role: Role, endpoints: tuple[str, ...]) -> None:
        self.role = role
        self._stack = stack
        self._connection = KafkaConnection(bootstrap=stack.bootstrap, extra={"log_level": 0})
        self._producer = Producer(kafka_settings(self._connection, "producer") | {"linger.ms": 0})
        self._operator = Operator("person:benchmark", SigningKey.load(stack.keys.operator))
        self._endpoints = endpoints
        self._number = 0
        self._random = np.random.default_rng(1)
        self._boot = f"b{time.time_ns()}"
        self.sent: dict[tuple[int, int] | str, Sent] = {}
        self._outcomes = self._listen()
        self._audit: Any = None

    def close(self) -> None:
        self._producer.flush(10)
        if self._outcomes is not None:
            self._outcomes.close()

    def beat(self) -> None:
        """One event of each endpoint; of very many endpoints some in turn."""
        self._number += 1
        if self.role == "respond":
            self._order()
        elif self.role == "ingest":
            self._calls()
        else:
            turns = max(1, len(self._endpoints) // A_BEAT)
            for endpoint in self._endpoints[self._number % turns :: turns]:
                event = {"endpoint": endpoint, "model_version": VERSION, "caller": "c", "features": self._features()}
                self._produce(PREDICTIONS, endpoint, event, "prediction", f"{self._boot}-{self._number}-{endpoint}")
        self._producer.poll(0)

    def heard(self) -> list[Sent]:
        """Events whose outcome came since the last call."""
        if self.role == "audit":
            return self._audited()
        assert self._outcomes is not None
        found = []
        messages = self._outcomes.consume(1_000, 0.02)
        self._producer.poll(0)  # where the events lie must be known before what they led to
        for message in messages:
            if message.error() is None:
                found += [self.sent[key] for key in _KEYS_OF[self.role](message) if key in self.sent]
        return found

    def _listen(self) -> Consumer | None:
        topic = {"ingest": PREDICTIONS, "detect": VERDICTS, "respond": ACTIONS, "audit": None}[self.role]
        if topic is None:
            return None
        consumer = Consumer(kafka_settings(self._connection, "consumer", group="palisade.reader"))
        places = [TopicPartition(topic, number) for number in consumer.list_topics(topic, 30).topics[topic].partitions]
        for place in places:
            place.offset = consumer.get_watermark_offsets(place, timeout=30)[1]
        consumer.assign(places)
        return consumer

    def _features(self) -> dict[str, float]:
        return dict(zip(FEATURES, self._random.normal(size=len(FEATURES)).tolist(), strict=True))

    def _order(self) -> None:
        """A person's command: decided and journaled at once, whatever the caps say."""
        caller, at = f"{self._boot}-{self._number}", time.monotonic()
        order(self._connection, self._operator, Ordered("limit", self._endpoints[0], caller, 5.0), for_s=5)
        self.sent[caller] = Sent(0, 0, caller, at)

    def _calls(self) -> None:
        for endpoint in self._endpoints:
            name = f"{self._boot}-{self._number}-{endpoint}"
            about = {"endpoint": endpoint, "request_id": name, "producer": "benchmark"}
            self._produce(REQUESTS, name, about | {"caller": "c", "features": {"x": 1.0}}, "request", name)
            self._produce(RESPONSES, name, about | {"prediction": 0.5, "model_version": "v1"}, "response", name)

    def _produce(self, topic: str, key: str, event: dict[str, Any], kind: str, name: str) -> None:
        at = time.monotonic()

        def told(error: object, message: Message) -> None:
            if error is None and topic != REQUESTS:
                sent = Sent(message.partition() or 0, message.offset() or 0, name, at)
                self.sent[name] = sent
                self.sent[sent.partition, sent.offset] = sent

        headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, kind.encode())]
        self._producer.produce(topic, json.dumps(event).encode(), key.encode(), headers=headers, on_delivery=told)

    def _audited(self) -> list[Sent]:
        """What ClickHouse has, by its last row of each partition: rows are inserted in the order of the log."""
        self._producer.poll(0)
        try:
            if self._audit is None:
                self._audit = reader(load(self._stack.config_path))
            rows = ask(self._audit, NEWEST, {}).to_pylist()
        except Exception:  # noqa: BLE001 - it is away, at an old port, or begins: asked again
            self._audit = None
            time.sleep(0.05)
            return []
        last = {row["partition"]: row["last"] for row in rows}
        return [
            each for key, each in self.sent.items() if key == each.name and each.offset <= last.get(each.partition, -1)
        ]


def _verdict_keys(message: Message) -> list[tuple[int, int] | str]:
    try:
        found = pa.ipc.open_stream(message.value() or b"").read_all()
        said = found.schema.metadata
        if said[b"topic"].decode() != PREDICTIONS:
            return []
        return [(int(said[b"partition"]), offset) for offset in found["offset"].to_pylist()]
    except (pa.ArrowException, KeyError):  # no verdict on rows
        return []


def _prediction_keys(message: Message) -> list[tuple[int, int] | str]:
    value = message.value() or b""
    try:
        return list(pa.ipc.open_stream(value).read_all()["request_id"].to_pylist())
    except (pa.ArrowException, KeyError):
        return [json.loads(value).get("request_id", "")] if value.startswith(b"{") else []


def _decision_keys(message: Message) -> list[tuple[int, int] | str]:
    decisions = json.loads(message.value() or b"{}").get("decisions", [])
    return [each["caller"] for each in decisions if each["kind"] == "limit" and each["caller"]]


_KEYS_OF: dict[str, Callable[[Message], list[tuple[int, int] | str]]] = {
    "detect": _verdict_keys,
    "ingest": _prediction_keys,
    "respond": _decision_keys,
}


class Events(Protocol):
    """Events of one role that are sent, and those whose outcome came."""

    role: Role
    sent: dict[tuple[int, int] | str, Sent]

    def beat(self) -> None: ...

    def heard(self) -> list[Sent]: ...


class Killing(Protocol):
    """Where a process can be killed."""

    def kill(self, name: str) -> int: ...


class Trial:
    """One role under a supervisor, a stream beside it, and kills."""

    def __init__(self, supervisor: Killing, stream: Events) -> None:
        self._supervisor = supervisor
        self._stream = stream

    def steady(self, for_s: float = STEADY_S) -> None:
        """Until each partition has outcomes, and for a while on."""
        self.until_all_heard(time.monotonic())
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            self._beat()
            self._stream.heard()

    def blind_s(self, name: str) -> float:
        """Kills it; seconds until every partition had an outcome of an event sent after that."""
        self._supervisor.kill(name)
        killed = time.monotonic()
        return max(self.until_all_heard(killed).values()) - killed

    def until_all_heard(self, since: float) -> dict[int, float]:
        """Partition -> when its first outcome of an event sent after `since` came."""
        first: dict[int, float] = {}
        while True:
            self._beat()
            for each in self._stream.heard():
                if each.at > since:
                    first.setdefault(each.partition, time.monotonic())
            sent_to = {each.partition for each in list(self._stream.sent.values()) if each.at > since}
            if sent_to and first.keys() >= sent_to and time.monotonic() - since > 1.0:
                return first
            if time.monotonic() - since > WITHIN_S:
                raise Overdue(f"no {self._stream.role} in {WITHIN_S:.0f} s")

    def _beat(self) -> None:
        began = time.monotonic()
        self._stream.beat()
        time.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))


@contextmanager
def running(
    broker: Broker, kafka: ApacheKafka | None, role: Role, members: int, endpoints: tuple[str, ...]
) -> Iterator[tuple[DevStack, Supervisor]]:
    """A stack of its own with so many processes of this role; a broker of its own where it is embedded."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blind-", ignore_cleanup_errors=True)))
        supervisor = stack.enter_context(Supervisor(folder / "logs"))
        bootstrap = kafka.bootstrap if kafka else start_broker(supervisor, PARTITIONS)
        policy = folder / "policy.yaml"
        config = PalisadeConfig(
            kafka=KafkaConfig(partitions=PARTITIONS),
            endpoints=tuple(EndpointConfig(name=name, guard=role != "ingest", mode="enforce") for name in endpoints),
        )
        made = prepare(
            folder / "dev", config, None, bootstrap, embedded=broker == "embedded", config_home=policy.parent
        )
        wanted = [spec for spec in role_specs(made, {role: members}) if spec.name.split("-")[0] == role]
        for name in [supervisor.spawn(spec) for spec in wanted]:
            supervisor.wait_ready(name, WITHIN_S)
        yield made, supervisor


def windows(broker: Broker, role: Role, members: int, trials: int) -> list[float]:
    """Seconds of each kill."""
    with ExitStack() as stack:
        kafka = stack.enter_context(ApacheKafka(lasts=True)) if broker == "kafka" else None
        if kafka is not None:
            create_topics(KafkaConnection(bootstrap=kafka.bootstrap), PARTITIONS, 1)
        made, supervisor = stack.enter_context(running(broker, kafka, role, members, ENDPOINTS))
        stream = Stream(made, role, ENDPOINTS)
        stack.callback(stream.close)
        trial = Trial(supervisor, stream)
        found = []
        for _ in range(trials):
            trial.steady()
            found.append(trial.blind_s(_active(supervisor) if role == "respond" else role))
        return found


def _active(supervisor: Supervisor) -> str:
    """The respond process that took over last, by the logs."""

    def took_over(name: str) -> str:
        lines = supervisor.log(name).read_text(errors="replace").splitlines()
        return max((line[:23] for line in lines if "respond is active" in line), default="")

    return max(supervisor.names, key=took_over)


def restart_with_state(endpoints: int) -> float:
    """Seconds from the start of a detect worker that takes up the state of so many endpoints to its first verdict: it was
    stopped in order, so that no session has to run out."""
    names = tuple(f"e{number}" for number in range(endpoints))
    with ExitStack() as stack:
        kafka = stack.enter_context(ApacheKafka(lasts=True))
        create_topics(KafkaConnection(bootstrap=kafka.bootstrap), PARTITIONS, 1)
        made, supervisor = stack.enter_context(running("kafka", kafka, "detect", 1, names))
        switch_profile_on(made, names)
        stream = Stream(made, "detect", names)
        stack.callback(stream.close)
        trial = Trial(supervisor, stream)
        trial.steady(SETTLED_S)
        supervisor.retire("detect")
        began = time.monotonic()
        (spec,) = (each for each in role_specs(made) if each.name == "detect")
        supervisor.spawn(spec)
        return max(trial.until_all_heard(began).values()) - began


def switch_profile_on(stack: DevStack, endpoints: Sequence[str]) -> None:
    """One profile in force for all of them, so that each has the state of every detector."""
    rows = np.random.default_rng(2).normal(size=(6_000, len(FEATURES)))
    profile = build_profile(pa.table(dict(zip(FEATURES, rows.T, strict=True))), seed=1).to_bytes()
    name, record = profile_record(profile)
    key, at_ms = SigningKey.load(stack.keys.operator), int(time.time() * 1000)
    records = [record]
    for endpoint in endpoints:
        said = ProfileActivated(endpoint=endpoint, version=VERSION, profile_hash=name, actor="benchmark", at_ms=at_ms)
        value = said.to_bytes()
        headers = ((KIND_HEADER, said.KIND.encode()), *key.headers(said.KIND, value))
        records.append(Outgoing(PREDICTIONS, endpoint.encode(), value, headers))
    send(KafkaConnection(bootstrap=stack.bootstrap), records)


def main() -> None:
    parser = argparse.ArgumentParser(description="Blind windows after a kill -9 of each role")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--roles", default=",".join(ROLES))
    parser.add_argument("--brokers", default="kafka,embedded")
    parser.add_argument("--endpoints", type=int, default=MANY, help="of the restart with state; 0: none")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    sessions = {"respond": SESSION_S}
    results = []
    for broker in given.brokers.split(","):
        for role in given.roles.split(","):
            for members in (2, 1) if broker == "kafka" and role != "audit" else (1,):
                session_s = sessions.get(role, WorkerSettings().session_s)
                found = windows(broker, role, members, given.trials)
                one = {
                    "broker": broker, "role": role, "after": "second" if members == 2 else "restart",
                    "p50_s": round(float(np.median(found)), 1), "max_s": round(max(found), 1), "trials": len(found),
                    "session_s": session_s, "p50_of_session": round(float(np.median(found)) / session_s, 2),
                    "load": round(os.getloadavg()[0], 1),
                }  # fmt: skip
                sys.stdout.write(f"{one}\n")
                sys.stdout.flush()
                results.append(one)
    line: dict[str, Any] = {"blind_windows": results}
    if given.endpoints:
        line |= {"restart_endpoints": given.endpoints, "restart_s": round(restart_with_state(given.endpoints), 1)}
    sys.stdout.write(json.dumps(line | {"load": round(os.getloadavg()[0], 1)}) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KafkaUnavailable as error:
        raise SystemExit(f"{error}") from error
