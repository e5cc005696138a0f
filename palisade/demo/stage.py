"""The demo's stage: models, profiles, broker, roles, serving processes and callers, each a process of its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from detectors.profile_build import build_profile
from palisade.demo.children import Child
from palisade.demo.city import City
from palisade.demo.data import (
    ANSWER_COLUMN,
    CALLER_COLUMN,
    CITY,
    LABEL_COLUMN,
    ORDER_COLUMN,
    ORIGINS,
    caller_shares,
    endpoint_of,
    training_table,
)
from palisade.demo.load import Answer
from palisade.demo.models import train, with_answers
from palisade.dev import DevStack, prepare, start_broker, start_roles
from palisade.operate import Operator, activate_profile
from palisade.settings import default_policy_text
from palisade.supervisor import Supervisor
from responders.signing import SigningKey
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig
from streams.admin import create_topics
from streams.transport.settings import KafkaConnection

ENDPOINTS = tuple(map(endpoint_of, ORIGINS))
"""Those whose serving processes embed Guard."""
CITY_ENDPOINT = endpoint_of(CITY)
"""The one that is served without it."""
VERSION = "v1"
ELSEWHERE = tuple(endpoint_of(airport) for airport in ("ATL", "BOS", "CLT", "DTW", "ORD", "SFO"))
"""The rest of the fleet: known to Palisade, served by nobody here. A fleet of four would rightly be left alone when the
third of them trips within five minutes (rail R4: doubt the monitor), as the demo makes them."""
PARTITIONS = 4
EVENTS_PER_DAY = 50 * 86_400.0
"""What the replay sends to each endpoint."""
DURATIONS = {"action_s": 45, "recover_for_s": 2.5, "cool_down_s": 2}
"""The shipped policy's are 600, 30 and 60: a demo has no ten minutes."""


@dataclass(frozen=True, slots=True)
class StageOptions:
    """`kafka`: an address, or None for the embedded broker. `replicas`: of each role, standbys included."""

    folder: Path
    seed: int
    kafka: str | None = None
    replicas: dict[str, int] | None = None


class Stage:
    """Everything that runs. `on_answer` is called for each call of a client, on a reader's thread."""

    def __init__(
        self, options: StageOptions, on_answer: Callable[[Answer], None], on_exit: Callable[[str, int], None]
    ) -> None:
        self._options = options
        self._on_answer = on_answer
        self._exits = ExitStack()
        self.supervisor = Supervisor(options.folder / "logs", on_exit)
        self.servers: dict[str, Child] = {}
        self.stack: DevStack
        self.city: City
        self.load: Child

    def __enter__(self) -> Self:
        self._exits.enter_context(self.supervisor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    @property
    def connection(self) -> KafkaConnection:
        return KafkaConnection(bootstrap=self.stack.bootstrap)

    def open_broker(self) -> None:
        """The broker and its topics, keys and configuration: what an observer needs before anything happens."""
        folder, given = self._options.folder, self._options.kafka
        self.city = self._exits.enter_context(City(folder, CITY_ENDPOINT))
        guarded = [EndpointConfig(name=name, events_per_day=EVENTS_PER_DAY) for name in (*ENDPOINTS, *ELSEWHERE)]
        config = PalisadeConfig(
            kafka=KafkaConfig(partitions=PARTITIONS),
            endpoints=(*guarded, self.city.endpoint_config(EVENTS_PER_DAY)),
        )
        if given is None:
            bootstrap = start_broker(self.supervisor, PARTITIONS)
        else:
            bootstrap = given
            create_topics(KafkaConnection(bootstrap=given), PARTITIONS, 1)
        policy = folder / "policy-of-the-demo.yaml"
        policy.write_text(demo_policy())
        self.stack = prepare(folder, config, policy, bootstrap, embedded=given is None)

    def start(self, say: Callable[[str], None]) -> None:
        """Roles, models, profiles and serving processes, side by side; returns when all are ready."""
        folder = self._options.folder
        with ThreadPoolExecutor(2) as pool:
            roles = pool.submit(start_roles, self.supervisor, self.stack, self._options.replicas)
            profiles = {}
            for origin in (*ORIGINS, CITY):
                table = training_table(origin)
                artifact = train(table)
                digest = artifact.save(folder / f"{endpoint_of(origin)}.model.json")
                profile = build_profile(
                    with_answers(table, artifact.model),
                    order_by=ORDER_COLUMN,
                    exclude=(LABEL_COLUMN,),
                    caller_column=CALLER_COLUMN,
                    prediction=(ANSWER_COLUMN,),
                )
                profiles[endpoint_of(origin)] = profile
                say(
                    f"trained {endpoint_of(origin)} on {table.num_rows:,} flights ({digest[7:19]}), profile {profile.hash[:12]}"
                )
            roles.result()
        operator = Operator("demo", SigningKey.load(self.stack.keys.operator))
        for endpoint, profile in profiles.items():
            activate_profile(self.connection, operator, profile.to_bytes(), endpoint, VERSION)
        keys = folder / "api-keys.json"
        keys.write_text(json.dumps({secrets.token_hex(16): caller for caller in caller_shares()}))
        keys.chmod(0o600)
        for endpoint in ENDPOINTS:
            self.servers[endpoint] = self._exits.enter_context(self._server(endpoint, keys))
        self.city.serve(self.stack.bootstrap, VERSION, keys)
        ports = {endpoint: server.wait("ready")["port"] for endpoint, server in self.servers.items()}
        ports[CITY_ENDPOINT] = self.city.wait()
        addresses = [f"--server={endpoint}=127.0.0.1:{port}" for endpoint, port in ports.items()]
        arguments = ["--seed", str(self._options.seed), "--keys", str(keys), *addresses]
        self.load = Child("palisade.demo.load", arguments, folder / "logs" / "load.log", self._take_line)
        self._exits.enter_context(self.load)
        self.load.wait("ready")
        say(
            f"three serving processes with Guard; one without, and its fallback, behind nginx; {len(caller_shares())} callers"
        )

    def close_load(self) -> None:
        """No call is sent any more, and every answer is in."""
        self.load.stop()

    def _server(self, endpoint: str, keys: Path) -> Child:
        folder, stack = self._options.folder, self.stack
        arguments = [
            *("--endpoint", endpoint, "--model", str(folder / f"{endpoint}.model.json"), "--version", VERSION),
            *("--bootstrap", stack.bootstrap, "--keys", str(keys)),
            *("--directive-keys", stack.client_env["PALISADE_DIRECTIVE_KEYS"]),
            *("--producer-key", stack.client_env["PALISADE_PRODUCER_KEY"]),
        ]
        return Child("palisade.demo.serve", arguments, folder / "logs" / f"{endpoint}.log")

    def _take_line(self, line: Any) -> None:
        self._on_answer(Answer.from_line(line))


def demo_policy() -> str:
    """The shipped policy with shorter durations, and enforced."""
    policy = yaml.safe_load(default_policy_text())
    policy |= {"mode": "enforce", "durations": DURATIONS}
    return str(yaml.safe_dump(policy, sort_keys=False))


def policy_difference() -> str:
    """How the demo's policy differs from the shipped one, as a unified diff of their canonical form."""
    shipped = yaml.safe_dump(yaml.safe_load(default_policy_text()), sort_keys=False)
    lines = unified_diff(
        shipped.splitlines(), demo_policy().splitlines(), "shipped policy", "the demo's", lineterm="", n=0
    )
    return "\n".join(lines)
