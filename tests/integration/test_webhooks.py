"""Endpoints without Guard, from the signal to a real nginx and back: respond as a process of its own that dies on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer

from palisade.dev import DevStack, prepare, role_specs, start_broker
from palisade.settings import default_policy_text
from palisade.supervisor import Supervisor
from schemas.actions import Decision, JournalEntry
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig, WebhookConfig
from schemas.topics import ACTIONS, SIGNALS
from schemas.wire import KIND_HEADER, Wire
from streams.embedded_broker import FETCH_WAIT_MS
from streams.reading import read_to_end
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.palisade.conftest import Run, palisade
from tests.palisade.nginx_scene import SECRET, Scene, receiving, upstream
from tests.responders.given import drifted, view
from tests.support.ports import free_port
from tests.support.waiting import until as until_within

__all__ = ["palisade"]
pytestmark = pytest.mark.slow
DEADLINE_S = 60.0
until = partial(until_within, within_s=DEADLINE_S, every_s=0.02)
POLICY = (
    default_policy_text()
    .replace("endpoints_share: 0.2", "endpoints_share: 1.0")
    .replace("cool_down_s: 60", "cool_down_s: 0")
    .replace("mode: observe\n", "mode: enforce\n", 1)
    .replace("trips_before_hold: 3", "trips_before_hold: 9")
)


class Fleet:
    """Broker and respond as processes, and a port for the receiver of each endpoint. `log`: where respond writes."""

    def __init__(self, stack: DevStack, supervisor: Supervisor, ports: dict[str, int], ended: list[str]) -> None:
        self.stack = stack
        self.ports = ports
        self.ended = ended
        self._supervisor = supervisor
        self._connection = KafkaConnection(bootstrap=stack.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)
        self._producer = Producer(kafka_settings(self._connection, "producer") | {"linger.ms": 0})
        self._incident = 0

    def say(self, *records: Wire) -> None:
        """As the detect workers do."""
        for record in records:
            self._producer.produce(SIGNALS, record.to_bytes(), b"x", headers=[(KIND_HEADER, record.KIND.encode())])
        assert self._producer.flush(20) == 0

    def drifts(self, endpoint: str) -> Callable[[], None]:
        """Its inputs leave the profile while its fallback works; gives what says that this is over."""
        at, self._incident = int(time.time() * 1000), self._incident + 1
        about = {"incident_id": f"drift-{self._incident}", "first_ms": at, "at_ms": at}
        self.say(view(endpoint, at), drifted(endpoint, **about, signal_id=f"opened-{self._incident}"))
        over = drifted(endpoint, **about, state="recovered", seq=1, signal_id=f"over-{self._incident}")
        return lambda: self.say(over)

    def journaled(self, endpoint: str) -> list[Decision]:
        entries = [JournalEntry.from_bytes(m.value() or b"") for m in read_to_end(self._connection, ACTIONS, 0)]
        return [decision for entry in entries for decision in entry.decisions if decision.endpoint == endpoint]

    def count(self, endpoint: str, reason: str) -> int:
        return sum(decision.reason == reason for decision in self.journaled(endpoint))

    def kill_respond(self) -> None:
        """SIGKILL; the supervisor starts it again."""
        os.kill(self._supervisor._children["respond"].process.pid, signal.SIGKILL)
        until(lambda: "respond" in self.ended, "the end of respond")

    def log(self) -> str:
        return self._supervisor.log("respond").read_text()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("dev")
    (folder / "hook.secret").write_text(SECRET)
    (folder / "given.yaml").write_text(POLICY)
    ports = {"credit": free_port(), "fraud": free_port()}
    endpoints = [EndpointConfig(name=name, webhook=_webhook(port)) for name, port in ports.items()]
    others = [EndpointConfig(name=f"other-{number}") for number in range(5)]  # of two, two are a mass trip (R4)
    config = PalisadeConfig(endpoints=(*endpoints, *others), kafka=KafkaConfig(partitions=1))
    ended: list[str] = []
    with Supervisor(folder / "logs", on_exit=lambda name, code: ended.append(name)) as supervisor:
        bootstrap = start_broker(supervisor, 1)
        stack = prepare(folder, config, folder / "given.yaml", bootstrap, embedded=True, config_home=folder)
        (respond,) = (spec for spec in role_specs(stack) if spec.name == "respond")
        supervisor.start(respond, timeout_s=DEADLINE_S)
        yield Fleet(stack, supervisor, ports, ended)


def _webhook(port: int) -> WebhookConfig:
    return WebhookConfig(
        url=f"http://127.0.0.1:{port}/", secret_files=("hook.secret",), allow_private=True, alert_after_s=1
    )


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[int, int]]:
    with upstream("primary") as primary, upstream("fallback") as fallback:
        yield primary, fallback


def served_by(scene: Scene, name: str) -> None:
    until(lambda: scene.held()["route"] == name, f"{name}; the receiver holds {scene.held()}")
    assert {scene.asked() for _ in range(10)} == {name}


def test_a_drift_is_journaled_told_and_answered_from_the_fallback_until_it_is_over(
    fleet: Fleet, upstreams: tuple[int, int], tmp_path: Path
) -> None:
    with receiving(tmp_path, *upstreams, port=fleet.ports["credit"]) as credit:
        assert credit.asked() == "primary"
        over = fleet.drifts("credit")
        served_by(credit, "fallback")
        (flip,) = (decision for decision in fleet.journaled("credit") if decision.kind == "fallback")
        assert credit.held()["epoch"] == flip.epoch
        assert credit.held()["expires_s"] * 1000 == pytest.approx(flip.expires_ms)
        over()
        served_by(credit, "primary")
        until(lambda: fleet.count("credit", "webhook_delivered") == 2, "both deliveries in the journal")


def test_respond_is_killed_between_journal_and_delivery_and_other_endpoints_are_not_delayed(
    fleet: Fleet, upstreams: tuple[int, int], tmp_path: Path, palisade: Run
) -> None:
    over_fraud = fleet.drifts("fraud")  # nobody listens on its port
    until(lambda: fleet.count("fraud", "inputs_left_profile"), "the flip of fraud in the journal")
    with receiving(tmp_path / "credit", *upstreams, port=fleet.ports["credit"]) as credit:
        over_credit = fleet.drifts("credit")
        served_by(credit, "fallback")
        over_credit()
        served_by(credit, "primary")
        until(lambda: fleet.count("credit", "webhook_delivered") == 4, "all deliveries to credit in the journal")
    assert fleet.count("fraud", "webhook_delivered") == 0
    until(lambda: fleet.count("fraud", "webhook_failing") == 1, "the alarm in the journal")
    assert "FAILING since" in palisade("status", "--config", fleet.stack.config_path)[1]
    journaled = max(decision.epoch for decision in fleet.journaled("fraud"))

    fleet.kill_respond()
    with receiving(tmp_path / "fraud", *upstreams, port=fleet.ports["fraud"], endpoint="fraud") as fraud:
        served_by(fraud, "fallback")
        assert fraud.held()["epoch"] > journaled, "the new responder speaks under its own epoch"
        assert fleet.count("fraud", "inputs_left_profile") == 1, "decided once, told again"
        until(lambda: fleet.count("fraud", "webhook_delivered") == 1, "the delivery in the journal")
        status = palisade("status", "--config", fleet.stack.config_path)[1]
        assert "FAILING" not in status
        assert status.count("webhook: delivered") == 2
        over_fraud()
        served_by(fraud, "primary")


def test_a_receiver_that_was_down_is_told_once_it_is_back(
    fleet: Fleet, upstreams: tuple[int, int], tmp_path: Path
) -> None:
    failing, delivered = (fleet.count("credit", f"webhook_{word}") for word in ("failing", "delivered"))
    over = fleet.drifts("credit")
    until(lambda: fleet.count("credit", "webhook_failing") == failing + 1, "the alarm in the journal")
    assert "critical webhook_failing: credit" in fleet.log()
    with receiving(tmp_path, *upstreams, port=fleet.ports["credit"]) as credit:
        served_by(credit, "fallback")
        until(lambda: fleet.count("credit", "webhook_delivered") == delivered + 1, "the delivery in the journal")
        over()
        served_by(credit, "primary")
    assert SECRET[6:20] not in fleet.log()
