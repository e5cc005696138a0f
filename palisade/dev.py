"""A whole Palisade on one machine: keys, an effective configuration, an embedded broker, the roles as processes.

Used by `palisade dev` and by the demo. Everything lies under one folder; nothing outside it is touched.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from palisade.running import announce
from palisade.settings import FILES, PROBE
from palisade.supervisor import ChildSpec, Supervisor, python_module
from responders.signing import SigningKey
from schemas.config import PalisadeConfig
from schemas.errors import ConfigError
from schemas.ids import clean_id
from schemas.topics import TOPICS
from streams.admin import Cluster

ROLES = ("audit", "detect", "respond", "ingest")
"""In the order of their start: what is said before audit listens is still on Kafka, but a demo's clock runs."""


@dataclass(frozen=True, slots=True)
class DevKeys:
    """The key pairs that `palisade dev` makes: private files and public keys."""

    signing: Path
    operator: Path
    producer: Path

    @staticmethod
    def public(path: Path) -> str:
        return SigningKey.load(path).public_base64


@dataclass(frozen=True, slots=True)
class DevStack:
    """A prepared folder. `embedded`: the broker is ours, in memory, and dies with us. `data`: where audit and state lie."""

    folder: Path
    data: Path
    config_path: Path
    bootstrap: str
    keys: DevKeys
    embedded: bool

    @property
    def client_env(self) -> dict[str, str]:
        """What a serving process needs in its environment to be watched and protected."""
        return {
            "PALISADE_BOOTSTRAP": self.bootstrap,
            "PALISADE_DIRECTIVE_KEYS": ",".join(map(DevKeys.public, (self.keys.signing, self.keys.operator))),
            "PALISADE_PRODUCER_KEY": str(self.keys.producer.resolve()),
        }

    def clickhouse(self, config: PalisadeConfig) -> str:
        """Where the audit answers, and how to log in there."""
        if config.clickhouse.url is not None:
            return f"{config.clickhouse.url}, user {config.clickhouse.user}"
        at = json.loads((self.data / "clickhouse.json").read_text())
        return f"{at['url']}, user {at['user']}, password in {self.data / at['token_file']}"


def require_topics(cluster: Cluster, stack: DevStack) -> None:
    """Raises ConfigError if the cluster lacks topics of ours."""
    missing = [spec.name for spec in TOPICS if spec.name not in cluster.partitions]
    if missing:
        raise ConfigError(
            f"{stack.bootstrap} has no topic {missing[0]} ({len(missing)} are missing): "
            f"make them with `palisade topics create --config {stack.config_path}`"
        )


def start_broker(supervisor: Supervisor, partitions: int) -> str:
    """Starts the embedded broker as a child; returns its bootstrap address."""
    topics = ",".join(f"{spec.name}:{spec.partitions(partitions)}" for spec in TOPICS)
    command = python_module("streams.embedded_broker", "--topics", topics)
    line = supervisor.start(
        ChildSpec("broker", command, ready="bootstrap", restart=False, leaned_on=True), timeout_s=30
    )
    return str(json.loads(line)["bootstrap"])


def prepare(
    folder: Path,
    config: PalisadeConfig,
    policy: Path | None,
    bootstrap: str,
    *,
    embedded: bool,
    config_home: Path = Path(),
    cluster_id: str | None = None,
) -> DevStack:
    """Writes keys (once) and the effective configuration: this broker, these keys, every endpoint believes our producer.

    config_home: the folder that the paths of `config` are relative to. cluster_id: state and audit of a real cluster lie
    in a folder of their own, since offsets of another broker, the embedded one above all, would pass for its own. Keys
    are the folder's, whatever the broker: serving processes know them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if embedded:
        _forget_last_broker(folder)
    keys = DevKeys(*(_key(folder / "keys" / f"{name}.pem") for name in ("signing", "operator", "producer")))
    producer = DevKeys.public(keys.producer)
    effective = config.model_dump(mode="json", exclude_none=True)
    _absolute(effective, config_home)
    if embedded:  # how to log in to the user's own brokers is of no use there
        kept = ("partitions", "session_timeout_s")
        effective["kafka"] = {name: effective["kafka"][name] for name in kept} | {"replication": 1}
    effective["kafka"] |= {"bootstrap": bootstrap, "embedded": embedded}
    effective["data_dir"] = "." if cluster_id is None else f"kafka-{clean_id(cluster_id).replace(':', '_')}"
    effective["operator_keys"] = [*config.operator_keys, DevKeys.public(keys.operator)]
    effective["signing_key_file"] = str(keys.signing.relative_to(folder))
    effective["ingest"] = {"producer_key_file": str(keys.producer.relative_to(folder))}
    for endpoint in effective["endpoints"]:
        endpoint["producer_keys"] = [*endpoint.get("producer_keys", []), producer]
    if policy is not None:
        (folder / "policy.yaml").write_text(policy.read_text())
        effective["policy"] = "policy.yaml"
    config_path = folder / "palisade.yaml"
    config_path.write_text(yaml.safe_dump(effective, sort_keys=False))
    return DevStack(folder, folder / effective["data_dir"], config_path, bootstrap, keys, embedded)


def role_specs(stack: DevStack, replicas: dict[str, int] | None = None) -> list[ChildSpec]:
    """The roles as children; the first of each is named after its role, standbys `role-2`, ...."""
    specs = []
    for role in ROLES:
        for number in range(1, (replicas or {}).get(role, 1) + 1):
            name = role if number == 1 else f"{role}-{number}"
            command = python_module(
                "palisade.cli.main", "worker", role, "--config", str(stack.config_path), "--name", name
            )
            specs.append(ChildSpec(name, command, ready='"ready"'))
    return specs


def start_roles(supervisor: Supervisor, stack: DevStack, replicas: dict[str, int] | None = None) -> None:
    """Starts all roles side by side and waits until each is ready."""
    names = [supervisor.spawn(spec) for spec in role_specs(stack, replicas)]
    for name in names:
        supervisor.wait_ready(name, timeout_s=90)
    announce(stack.folder, stack.bootstrap)


def _forget_last_broker(folder: Path) -> None:
    """An embedded broker begins at offset 0: state and audit of the one before would take its rows for known ones.

    The audit of the last run is kept beside, until the next start.
    """
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    audit, before = folder / "clickhouse", folder / "clickhouse-of-last-run"
    if audit.exists():
        shutil.rmtree(before, ignore_errors=True)
        audit.rename(before)


def _absolute(effective: dict[str, Any], home: Path) -> None:
    """Files that the user's configuration names are found from the folder of the effective one too."""
    for section, names in FILES.items():
        for name in names:
            if effective.get(section, {}).get(name) not in (None, PROBE):
                effective[section][name] = str((home / effective[section][name]).resolve())
    for webhook in (endpoint["webhook"] for endpoint in effective["endpoints"] if "webhook" in endpoint):
        webhook["secret_files"] = [str((home / file).resolve()) for file in webhook["secret_files"]]
        if "ca_file" in webhook:
            webhook["ca_file"] = str((home / webhook["ca_file"]).resolve())


def _key(path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        SigningKey.generate().save(path)
    return path
