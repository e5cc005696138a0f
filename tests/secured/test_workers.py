"""The workers, a service and people at work under the ACLs, each as its own principal, with passwords and with certificates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml
from palisade_client import CallerLimited, Guard

from palisade.queries import reader
from palisade.settings import load
from palisade.supervisor import ChildSpec, Supervisor, python_module
from responders.signing import SigningKey
from schemas.roles import Role
from streams.transport.settings import kafka_settings
from tests.palisade.conftest import Run
from tests.secured.conftest import name_of
from tests.secured.connecting import connection_as
from tests.support.canaries import Canaries
from tests.support.secured_kafka import SecuredKafka, Way
from tests.support.told import telling_logs
from tests.support.waiting import until as until_within

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
WORKERS: tuple[Role, ...] = ("audit", "detect", "respond")
DEADLINE_S = 120
until = partial(until_within, within_s=DEADLINE_S, every_s=0.1)
NOBODY = "https://127.0.0.1:1025/hook"
"""Where nobody listens: delivery fails, and failures are told."""
CANARY = b"canary-"
"""Begins each password that the broker's principals have."""


class Site:
    """A folder with keys, and one configuration for each role."""

    def __init__(self, folder: Path, broker: SecuredKafka, way: Way) -> None:
        self.folder = folder
        self._broker = broker
        self.way = way
        self.keys = {name: SigningKey.generate() for name in ("signing", "operator", "producer")}
        (folder / "keys").mkdir()
        for name, key in self.keys.items():
            key.save(folder / "keys" / f"{name}.pem")
        self.canaries = Canaries(folder / "canaries")

    def config(self, role: Role) -> Path:
        path = self.folder / f"{role}.yaml"
        endpoint = {"name": "credit", "mode": "enforce", "producer_keys": [self.keys["producer"].public_base64]}
        webhook = {"url": NOBODY, "allow_private": True,
                   "secret_files": [self.canaries.file("endpoints.webhook.secret_files")]}  # fmt: skip
        sensitive = {"email": "hash"}
        without_guard = endpoint | {"name": "plain", "guard": False, "webhook": webhook, "sensitive": sensitive}
        path.write_text(yaml.safe_dump({
            "kafka": self._broker.section(name_of(role), self.way),
            "signing_key_file": "keys/signing.pem",
            "redaction_key_file": self.canaries.file("redaction_key_file"),
            "operator_keys": [self.keys["operator"].public_base64],
            "ingest": {"producer_key_file": "keys/producer.pem"},
            "endpoints": [endpoint, without_guard],
        }))  # fmt: skip
        return path

    def guard(self) -> Guard:
        connection = connection_as(self._broker, name_of("serving"), self.way)
        every = kafka_settings(connection, "admin")
        ours = {name: value for name, value in every.items() if name.startswith(("sasl", "ssl", "security"))}
        trusted = ",".join(self.keys[name].public_base64 for name in ("signing", "operator"))
        return Guard("credit", fallback=0.5, bootstrap=connection.bootstrap, kafka_settings=ours, directive_keys=trusted,
                     producer_key=self.folder / "keys" / "producer.pem")  # fmt: skip


def spawn(supervisor: Supervisor, site: Site, roles: Sequence[Role], metrics: Mapping[Role, int] | None = None) -> None:
    """Starts the workers of these roles; returns once each is ready. `metrics`: the port of each."""
    for role in roles:
        served = ("--metrics-port", str(metrics[role])) if metrics else ()
        command = python_module("palisade.cli.main", "worker", role, "--config", str(site.config(role)), *served)
        supervisor.spawn(ChildSpec(role, command, ready='"ready"'))
    for role in roles:
        supervisor.wait_ready(role, DEADLINE_S)


@pytest.fixture(params=["scram", "mtls"])
def site(request: pytest.FixtureRequest, tmp_path: Path, secured: SecuredKafka) -> Iterator[Site]:
    made = Site(tmp_path, secured, request.param)
    ended: list[tuple[str, int]] = []
    with Supervisor(tmp_path / "logs", on_exit=lambda name, code: ended.append((name, code))) as supervisor:
        spawn(supervisor, made, WORKERS)
        yield made
        assert ended == []
    assert leaks(made) == set()
    planted = tmp_path / "logs" / "planted.log"
    planted.write_text(f"password={secured.proofs[name_of('audit')].password}")
    assert leaks(made) == {"planted.log"}
    assert [line for line in telling_logs(tmp_path) if "canary-password" in line]
    planted.unlink()


def leaks(site: Site) -> set[str]:
    """Names of files of the run in which a secret stands: a password of a principal or of its key, or another canary."""
    texts = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    where = {path.name for path, content in texts.items() if CANARY in content and not site.canaries.keeps(path)}
    return where | {name for name, _ in site.canaries.in_files(site.folder)}


def test_an_event_is_judged_an_order_carried_out_and_both_are_in_the_audit(site: Site, palisade: Run) -> None:
    guard = site.guard().start()

    def asked() -> bool:
        try:
            guard.call(lambda features: 0.9, {"amount": 1.0}, caller="bob", caller_auth="verified")
        except CallerLimited:
            return True
        return False

    assert not asked()
    guard.flush()
    ours = ("--key", site.folder / "keys" / "operator.pem", "--config", site.config("operators"))

    def ordered() -> bool:
        return palisade("limit", "credit", "--caller", "bob", "--rate", "1", "--reason", "a drill", *ours)[0] == 0

    until(ordered, f"the order; see {site.folder / 'logs'}")
    until(asked, "the refused caller")
    guard.close(10)
    status, said, errors = palisade("check", "--config", site.config("audit"))
    assert (status, "canary-" in said + errors) == (0, False)
    assert "bob" in palisade("status", "--config", site.config("viewers"))[1]
    until(lambda: (site.folder / "palisade-data" / "clickhouse.json").exists(), "the audit")
    engine = reader(load(site.config("audit")))
    for view, where in (("predictions", "caller = 'bob'"), ("verdicts", "outcome = 0"), ("decisions", "caller = 'bob'"),
                        ("directives", "endpoint = 'credit'"), ("reports", "endpoint = 'credit'")):  # fmt: skip
        sql = f"SELECT count() AS n FROM palisade.{view} WHERE {where}"
        until(lambda sql=sql: engine.query_arrow(sql).to_pylist()[0]["n"], f"{view} in the audit")
    engine.close()
