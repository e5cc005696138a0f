"""The stage of a fault: a broker, all roles as processes of their own, a load with attacks, and the checker at the end."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, TopicPartition

from detectors.profile_build import build_profile
from palisade.demo.stage import demo_policy
from palisade.dev import DevStack, prepare, role_specs, start_broker
from palisade.operate import Operator, activate_profile
from palisade.settings import Settings, load
from palisade.supervisor import ChildFailed, ChildSpec, Supervisor
from palisade.verify.collect import GROUPS, Wanted, collect, committed_rows
from palisade.verify.finding import Verdict
from palisade.verify.history import History, table_of
from palisade.verify.invariants import judge
from palisade.verify.processes import ProcessNotes
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from schemas.roles import group_of
from schemas.signals import Signal
from schemas.topics import (
    FEEDBACK,
    SIGNALS,
    SNAPSHOTS,
    TOPICS,
)
from schemas.wire import KIND_HEADER
from streams.admin import cluster_of, create_topics
from streams.audit.rows import AUDITED
from streams.embedded_broker import EmbeddedBroker
from streams.failpoints import VARIABLE, Point
from streams.readers import READ
from streams.reading import read_newest, read_to_end
from streams.records import header_of, headers_of
from streams.transport.log_ends import log_ends
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.faults.load import GUARDED, PLAIN, VERSION, Load, training_table
from tests.support.apache_kafka import ApacheKafka
from tests.support.waiting import until

PARTITIONS = 2
SAMPLE_S = 0.1
BACK_OFF_S = 0.2
"""Who is killed again and again does not wait longer each time."""
SESSION_S = 6.0
"""The shortest: workers die all the time here."""
SETTLE_S = 240.0
READY_S = 180.0
ALL_ROLES = ("ingest", "detect", "respond", "audit")
READS: Mapping[str, tuple[str, ...]] = {**READ, "audit": (*AUDITED, FEEDBACK)}
"""What each role must have committed before it counts as settled."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What to start. `kafka`: a broker of its own on Apache Kafka, else the embedded one; `inside`: in the test's own process,
    where it can be told to refuse. `replicas`: of each role; `roles`: which run at all. `beat_s`: of the load. `env`: of all roles.
    `config`: more of it. `metrics`: ports of the workers that serve them."""

    kafka: bool = False
    inside: bool = False
    partitions: int = PARTITIONS
    replicas: Mapping[str, int] = field(default_factory=dict)
    roles: Sequence[str] = ALL_ROLES
    beat_s: float = 0.05
    env: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, int] = field(default_factory=dict)
    seed: int = 1

    @property
    def bounded(self) -> int:
        """Beats of a load that the broker keeps all of."""
        return 1_000_000 if self.kafka else 900


class Stage:
    """Everything that runs. Commits are sampled all the time; whoever is killed on purpose counts as asked to end."""

    def __init__(self, folder: Path, setup: Setup, note: Callable[[list[Verdict]], None] = lambda _: None) -> None:
        """`note` is told the verdicts of each proof."""
        self.folder = folder
        self._note = note
        self.setup = setup
        self.failpoints = folder / "failpoints"
        self.failpoints.mkdir(parents=True)
        self.ended: list[tuple[str, int]] = []
        self.outages: list[dict[str, Any]] = []
        self.broker: ApacheKafka | None = None
        self.embedded: EmbeddedBroker | None = None
        self._expected: Counter[str] = Counter()
        self._exits = ExitStack()
        self._notes = ProcessNotes(folder / "dev")
        self.supervisor = Supervisor(folder / "logs", self._on_exit, self._notes.started, (BACK_OFF_S,))
        self.stack: DevStack
        self.load: Load

    # -- start and end

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    def _start(self) -> None:
        bootstrap = self._open_broker()
        policy = self.folder / "policy.yaml"
        policy.write_text(demo_policy())
        endpoints = (EndpointConfig(name=GUARDED), EndpointConfig(name=PLAIN, guard=False, trust_requests=True))
        config = PalisadeConfig.model_validate(
            {
                "kafka": KafkaConfig(partitions=self.setup.partitions, session_timeout_s=SESSION_S),
                "endpoints": endpoints,
                **self.setup.config,
            }
        )
        cluster = cluster_of(self.connection_to(bootstrap)).cluster_id if self.setup.kafka else None
        self.stack = prepare(
            self.folder / "dev", config, policy, bootstrap, embedded=not self.setup.kafka, cluster_id=cluster
        )
        specs = [self._spec(spec) for spec in role_specs(self.stack, dict(self.setup.replicas))]
        wanted = [spec for spec in specs if spec.name.split("-")[0] in self.setup.roles]
        for name in [self.supervisor.spawn(spec) for spec in wanted]:
            self.supervisor.wait_ready(name, READY_S)
        self._activate()
        self.commits = self._exits.enter_context(CommitSampler(self.connection))
        signer = SigningKey.load(self.stack.keys.producer)
        setup = self.setup
        self.load = Load(self.connection, signer, seed=setup.seed, bounded=setup.bounded, beat_s=setup.beat_s)
        self._exits.callback(self._end_load)

    def _open_broker(self) -> str:
        if self.setup.kafka:
            self.broker = self._exits.enter_context(ApacheKafka())
            create_topics(self.connection_to(self.broker.bootstrap), self.setup.partitions, 1)
            self._exits.enter_context(self.supervisor)
            return self.broker.bootstrap
        if self.setup.inside:
            topics = {spec.name: spec.partitions(self.setup.partitions) for spec in TOPICS}
            self.embedded = self._exits.enter_context(EmbeddedBroker(topics))
            self._exits.enter_context(self.supervisor)
            return self.embedded.bootstrap
        self._exits.enter_context(self.supervisor)
        return start_broker(self.supervisor, self.setup.partitions)

    def _spec(self, spec: ChildSpec) -> ChildSpec:
        port = self.setup.metrics.get(spec.name)
        served = () if port is None else ("--metrics-port", str(port))
        return replace(spec, command=(*spec.command, *served), env=self.env)

    def _activate(self) -> None:
        operator = Operator("tests", SigningKey.load(self.stack.keys.operator))
        for endpoint in (GUARDED, PLAIN):
            activate_profile(self.connection, operator, profile(), endpoint, VERSION)

    def _end_load(self) -> None:
        if self.load.beats and not self.load.stopped:
            self.load.stop()

    @property
    def env(self) -> dict[str, str]:
        """Of every role's process."""
        return {VARIABLE: str(self.failpoints), **self.setup.env}

    @staticmethod
    def connection_to(bootstrap: str) -> KafkaConnection:
        return KafkaConnection(bootstrap=bootstrap, extra={"log_level": 0})

    @property
    def connection(self) -> KafkaConnection:
        return self.connection_to(self.stack.bootstrap)

    @property
    def settings(self) -> Settings:
        return load(self.stack.config_path)

    # -- breaking it

    def kill(self, name: str) -> None:
        """kill -9 of a worker, which the supervisor starts again; returns once it has ended. One that has just ended by a fault of
        its own is killed when it runs again."""
        ended = self.exits_of(name)
        self._expected[name] += 1

        def gone() -> bool:
            if self.exits_of(name) > ended:
                return True
            self.supervisor.kill(name)
            return False

        until(gone, f"the end of {name}", READY_S)

    def await_back(self, name: str, exits: int) -> None:
        """Until processes of that name have ended so often in this run, and the one that runs now is ready."""

        def back() -> bool:
            try:
                return self.exits_of(name) >= exits and bool(self.supervisor.wait_ready(name, 1.0))
            except ChildFailed:
                return False

        until(back, f"{name} to be back", READY_S)

    def await_saved(self, log: str) -> None:
        """Until detect has saved state of this log (`predictions`, `reports`, `labelled`) in some partition."""

        def saved() -> bool:
            if not self.setup.kafka:  # state lies in a folder there
                return any((self.stack.data / "snapshots").glob(f"{log}*/manifest.json"))
            found = (read_newest(self.connection, SNAPSHOTS, k, f"{log}|") for k in range(self.setup.partitions))
            return any(len(newest) > 1 for newest in found)  # the manifest, and a part

        until(saved, f"a saved state of {log}", READY_S, 0.5)

    def arm(self, role: str, point: Point, what: str = "kill", nth: int = 1) -> Path:
        """The next worker of the role that gets there (the n-th time) is killed, raises or hangs."""
        fresh = self.failpoints / f".{role}.{point}"
        fresh.write_text(f"{what} {nth}")
        return fresh.rename(self.failpoints / f"{role}.{point}")

    def await_tripped(self, armed: Path, within_s: float = 60.0) -> None:
        until(lambda: not armed.exists(), f"{armed.name} to be reached", within_s)

    def expect_exit(self, name: str, times: int = 1) -> None:
        """What ends a worker next is the fault itself: a failpoint, the watchdog."""
        self._expected[name] += times

    def exits_of(self, name: str) -> int:
        return sum(ended == name for ended, _ in self.ended)

    def _on_exit(self, name: str, status: int) -> None:
        asked = self._expected[name] > 0
        self._expected[name] -= asked
        self.ended.append((name, status))
        self._notes.exited(name, status, asked=asked)

    # -- settling and proof

    def settle(self, within_s: float = SETTLE_S) -> None:
        """The load ends, and each role has committed all that was there when those before it had ended.

        Detect's clock ends too, so that nothing is in flight; audit goes on, for it is asked.
        """
        if not self.load.stopped:
            self.load.stop()
        for role in ("ingest", "audit", "detect", "respond"):  # audit joins labels that detect reads
            if role in self.setup.roles:
                self._await_committed(role, READS[role], within_s)
        for name in self._names("ingest", "detect", "respond"):
            self.supervisor.retire(name)
        if "audit" in self.setup.roles:
            self._await_committed("audit", READS["audit"], within_s)

    def _names(self, *roles: str) -> list[str]:
        return [name for name in self.supervisor.names if name.split("-")[0] in roles]

    def _await_committed(self, role: str, topics: Iterable[str], within_s: float) -> None:
        """Until the group has committed what is in these topics now."""
        consumer = Consumer(kafka_settings(self.connection, "consumer", group=group_of(role)))  # type: ignore[arg-type]
        lacking: dict[tuple[str, int], tuple[int, int]] = {}
        try:
            ends = _ends(consumer, topics)

            def reached() -> bool:
                try:
                    places = [TopicPartition(*place) for place in ends]
                    found = {(one.topic, one.partition): one.offset for one in consumer.committed(places, timeout=10)}
                except KafkaException:
                    return False
                lacking.clear()  # a marker may lie at the end
                lacking.update({place: (found[place], end) for place, end in ends.items() if found[place] < end - 1})
                return not lacking

            until(reached, f"{role} to commit all; see {self.folder / 'logs'}", within_s, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; committed, end: {lacking}") from None
        finally:
            consumer.close()

    def history(self, *, finished: bool = True, recompute: bool = False, name: str = "history") -> History:
        """What this run left behind, with what only its driver knows: what was sent, commits all along, outages.

        `recompute`: with what an uninterrupted run on the same logs says, for I3 and I6.
        """
        out = self.folder / name
        collect(self.settings, out, Wanted(finished=finished, recompute=recompute), lambda _: None)
        found = History.load(out)
        commits = pa.concat_tables([table_of("commits", self.commits.rows), found["commits"]])
        more = {"commits": commits, "sent": table_of("sent", [*self.load.sent])}
        if self.outages:
            more["outages"] = table_of("outages", self.outages)
        whole = found.with_tables(**more)
        whole.save(out)
        return whole

    def prove(self, history: History | None = None, *, must: Sequence[str] = ("I1", "I2", "I4", "I6")) -> list[Verdict]:
        """The verdicts. AssertionError if one is violated, or if one that must hold does not.

        Where I3 must hold, the logs are run through the detectors again, without interruption.
        """
        verdicts = judge(history or self.history(recompute="I3" in must))
        self._note(verdicts)
        said = "\n".join(f"{each.name} {each.status}: {each.words}" for each in verdicts)
        where = f"{said}\nended: {self.ended}\n{self.folder}"
        assert not [each.name for each in verdicts if each.status == "violated"], where
        assert {each.name for each in verdicts if each.status == "holds"} >= set(must), where
        return verdicts


@cache
def profile() -> bytes:
    """Of what the load sends while nothing happens; building it takes seconds."""
    return build_profile(training_table(), prediction=("answer",), caller_column="caller").to_bytes()


def fresh_seed() -> int:
    """A seed of this run alone, which failures print."""
    return random.SystemRandom().randrange(1_000_000)


def alarms(stage: Stage) -> Counter[str]:
    """How many signals of each kind were opened."""
    kinds: Counter[str] = Counter()
    for message in read_to_end(stage.connection, SIGNALS, 0):
        if header_of(headers_of(message), KIND_HEADER) == Signal.KIND.encode():
            signal = Signal.model_validate_json(message.value() or b"")
            kinds[signal.kind] += signal.state == "opened"
    return kinds


def _ends(consumer: Consumer, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """The ends of all partitions that hold anything."""
    known = consumer.list_topics(timeout=30).topics
    places = [(topic, partition) for topic in topics for partition in known[topic].partitions]
    ends = {}
    for place in places:
        low, high = log_ends(consumer, TP(*place), 30)
        if high > low:
            ends[place] = high
    return ends


class CommitSampler:
    """Asks the broker all the time what each group has committed, as evidence for I2."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        self._thread.join()

    def _run(self) -> None:
        consumers = {group: Consumer(kafka_settings(self._connection, "consumer", group=group)) for group in GROUPS}
        places: dict[str, list[TopicPartition]] = {}
        while not self._halt.wait(SAMPLE_S):
            for group, consumer in consumers.items():
                try:
                    if group not in places:
                        known = consumer.list_topics(timeout=5).topics
                        places[group] = [TopicPartition(t, p) for t in GROUPS[group] for p in known[t].partitions]
                    self.rows += committed_rows(group, consumer, places[group], 5)
                except KafkaException:
                    continue  # the broker is away: that is the fault
        for consumer in consumers.values():
            consumer.close()
