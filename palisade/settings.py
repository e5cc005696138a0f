"""Configuration files: read, checked whole, and faults named by file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from responders.signing import Keyring
from schemas.config import EndpointConfig, KafkaConfig, PalisadeConfig, PolicyConfig, WebhookConfig
from schemas.errors import ConfigError
from streams.redaction import HOW_TO_MAKE_KEY, Redactor, redaction_key, redactor_of
from streams.transport.settings import KafkaConnection, Setting, kafka_settings

Model = TypeVar("Model", bound=BaseModel)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it, as its wheels do: a thousand endpoints are read in 0.5 s of CPU time instead of 3.4."""
PROBE = "probe"
"""What librdkafka takes for `ssl_ca_location` to look for the system's certificates itself."""
ADVICE_ON_NESTING = "nests too deeply, or contains itself; write it out flat"
ADVICE_ON_FILES = "; name an existing file, relative to this one"
ADVICE_ON_MAKING: dict[tuple[str, ...], str] = {
    ("signing_key_file",): "; make it with `palisade keys create`",
    ("redaction_key_file",): "; " + HOW_TO_MAKE_KEY,
}
TLS_FILES = ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location")
SECRET_FILES = {"sasl_password_file": "sasl_password", "ssl_key_password_file": "ssl_key_password"}
"""Files of secrets in the section `kafka`, and the secret of the connection that each holds."""
FILES = {
    "ingest": ("producer_key_file",),
    "clickhouse": ("password_file",),
    "kafka": (*SECRET_FILES, *TLS_FILES),
}
"""Settings of a configuration's sections that name files, which are found from its folder."""


class _Document(NamedTuple):
    """A YAML file: its nodes, which know their lines (None if it is empty), and what they say."""

    root: yaml.Node | None
    value: object


@dataclass(frozen=True, slots=True)
class Site:
    """A configuration and the folder that its paths are relative to: enough to look, and to give orders."""

    config: PalisadeConfig
    home: Path

    @property
    def data_dir(self) -> Path:
        return self.home / self.config.data_dir

    @property
    def connection(self) -> KafkaConnection:
        return connection_of(self.config.kafka, self.home)

    def redactor(self, endpoint: EndpointConfig) -> Redactor | None:
        """What makes sensitive features of the endpoint unreadable; None without rules. Raises ConfigError."""
        return redactor_of(endpoint, self.redaction_key() if "hash" in endpoint.sensitive.values() else None)

    def redaction_key(self) -> bytes | None:
        """The secret of `hash`; None if there is none. Raises ConfigError."""
        file = self.config.redaction_key_file
        return redaction_key(self.home / file if file else None)


@dataclass(frozen=True, slots=True)
class Settings(Site):
    """A configuration that was checked whole, with its policy: what the roles run by."""

    policy: PolicyConfig


def load(path: Path) -> Settings:
    """The configuration of `path` and the policy that it names (the shipped one if none). Raises ConfigError."""
    document = _document(path)
    config = _checked(document, path, PalisadeConfig)
    _check_across(config, path, document.root)
    return Settings(config, path.parent.resolve(), policy_of(config, path))


def load_site(path: Path) -> Site:
    """The configuration of `path` without its policy, which may be broken while people look and act. Raises ConfigError."""
    return Site(read_yaml(path, PalisadeConfig), path.parent.resolve())


def policy_of(config: PalisadeConfig, path: Path) -> PolicyConfig:
    """The policy that the configuration at `path` names; the shipped one if none. Raises ConfigError."""
    if config.policy is None:
        return default_policy()
    file = path.parent / config.policy
    if not file.exists():
        line = line_of(_document(path).root, ("policy",))
        raise ConfigError(f"policy: {config.policy} does not exist{ADVICE_ON_FILES}", f"{path}:{line}")
    return read_yaml(file, PolicyConfig)


def load_connection(path: Path) -> tuple[KafkaConnection, Path]:
    """Only how to reach Kafka, and the folder that paths are relative to. Raises ConfigError.

    For the kill switch: a policy that does not parse or a key that is missing must not keep anybody from throwing it.
    """
    kafka = read_yaml(path, _KafkaSection).kafka
    return connection_of(kafka, path.parent, str(path)), path.parent.resolve()


class _KafkaSection(BaseModel):
    model_config = ConfigDict(extra="ignore")

    kafka: KafkaConfig = KafkaConfig()


def default_policy() -> PolicyConfig:
    """The policy that ships with Palisade: observe."""
    return PolicyConfig.model_validate(yaml.safe_load(default_policy_text()))


def default_policy_text() -> str:
    return resources.files("palisade").joinpath("default_policy.yaml").read_text()


def policy_hash(policy: PolicyConfig) -> str:
    """32 hex digits that name the policy's whole content."""
    content = json.dumps(policy.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def read_yaml(path: Path, model: type[Model]) -> Model:
    """The YAML file as `model`. Raises ConfigError that names file, line and what to change."""
    return _checked(_document(path), path, model)


def _document(path: Path) -> _Document:
    """A YAML file, parsed. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}); name an existing file", str(path)) from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ConfigError("not text in UTF-8; save it as UTF-8", f"{path}:{number}") from error
    try:
        return _Document(yaml.compose(text, Loader=LOADER), yaml.load(text, Loader=LOADER))
    except RecursionError as error:
        raise ConfigError(ADVICE_ON_NESTING, str(path)) from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", error))
        line = f":{mark.line + 1}" if mark is not None else ""
        why = ADVICE_ON_NESTING if "nesting depth" in problem else f"not YAML: {problem}"  # as libyaml says it
        raise ConfigError(why, f"{path}{line}") from error


def _checked(document: _Document, path: Path, model: type[Model]) -> Model:
    """What a document says, as `model`. Raises ConfigError."""
    root, value = document
    twice = _key_given_twice(root)
    if twice is not None:
        key, line_number = twice
        raise ConfigError(f"{key} is given twice, and only the last would count; merge them", f"{path}:{line_number}")
    try:
        return model.model_validate(value if value is not None else {})
    except ValidationError as error:
        fault = error.errors()[0]
        steps = (*fault["loc"], *fault.get("ctx", {}).get("steps", ()))
        name = ".".join(map(str, steps)) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        where = f"{path}:{line_of(root, steps)}"
        raise ConfigError(f"{name}: {fault['msg']}{_advice(fault['type'])}{more}", where) from error


def line_of(root: yaml.Node | None, steps: tuple[int | str, ...]) -> int:
    """The line (from 1) of the deepest node along `steps` that the document has."""
    node, line = root, 1
    for step in steps:
        found = _child(node, step)
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line


def _key_given_twice(node: yaml.Node | None) -> tuple[str, int] | None:
    """The first repeated key of a mapping anywhere in the document, and its line. An alias may lead back to its anchor."""
    waiting, known = [node], set()
    while waiting:
        current = waiting.pop()
        if id(current) in known:
            continue
        known.add(id(current))
        if isinstance(current, yaml.SequenceNode):
            waiting += current.value
        if isinstance(current, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in current.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    return str(key.value), key.start_mark.line + 1
                seen.add(str(key.value))
                waiting.append(value)
    return None


def _child(node: yaml.Node | None, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _advice(kind: str) -> str:
    return "; remove it or correct its spelling" if kind == "extra_forbidden" else ""


def _check_across(config: PalisadeConfig, path: Path, root: yaml.Node | None) -> None:
    """What no single field shows: files that must exist, keys that must be keys. Raises ConfigError."""

    def where(*steps: int | str) -> str:
        return f"{path}:{line_of(root, steps)}"

    files: list[tuple[str | None, tuple[str, ...]]] = [
        (config.signing_key_file, ("signing_key_file",)),
        (config.redaction_key_file, ("redaction_key_file",)),
    ]
    files += [
        (getattr(getattr(config, section), name), (section, name)) for section, names in FILES.items() for name in names
    ]
    for file, steps in files:
        if file is not None and file != PROBE and not (path.parent / file).exists():
            advice = ADVICE_ON_MAKING.get(steps, ADVICE_ON_FILES)
            raise ConfigError(f"{'.'.join(steps)}: {file} does not exist{advice}", where(*steps))
    listed: list[tuple[tuple[str, ...], tuple[int | str, ...]]] = [(config.operator_keys, ("operator_keys",))]
    listed += [
        (endpoint.producer_keys, ("endpoints", k, "producer_keys")) for k, endpoint in enumerate(config.endpoints)
    ]
    for keys, places in listed:
        for number, key in enumerate(keys):
            try:
                Keyring([key])
            except ConfigError as error:
                raise ConfigError(f"{places[-1]}: {error}", where(*places, number)) from error
    for number, endpoint in enumerate(config.endpoints):
        if endpoint.webhook is not None:
            _check_webhook(endpoint.webhook, path.parent, where, ("endpoints", number, "webhook"))
    _check_librdkafka(connection_of(config.kafka, path.parent, where("kafka")), where)


def _check_webhook(webhook: WebhookConfig, home: Path, where: Callable[..., str], steps: tuple[int | str, ...]) -> None:
    """Files of secrets that hold secrets, a file of certificates that holds some. Raises ConfigError."""
    # imported here: no other role needs what respond calls webhooks with, and each pays for its imports at every start
    from responders.http import tls_context
    from responders.webhooks import load_secrets

    for number, file in enumerate(webhook.secret_files):
        try:
            load_secrets([home / file])
        except ConfigError as error:
            raise ConfigError(f"webhook.secret_files: {error}", where(*steps, "secret_files", number)) from None
    if webhook.ca_file is not None:
        try:
            tls_context(home / webhook.ca_file)
        except ConfigError as error:
            raise ConfigError(f"webhook.ca_file: {error}", where(*steps, "ca_file")) from error


def _check_librdkafka(connection: KafkaConnection, where: Callable[..., str]) -> None:
    """Whether librdkafka takes the settings of the connection: names, values, certificates. It connects to nobody."""
    try:
        settings = kafka_settings(connection, "admin")
    except ValueError as error:
        raise ConfigError(f"kafka.extra: {error}", where("kafka", "extra")) from error
    settings.pop("bootstrap.servers")
    reason = _refused(settings)
    if reason is not None:
        alone = next((name for name, value in connection.extra.items() if _refused({name: value})), None)
        steps = ("kafka",) if alone is None else ("kafka", "extra", alone)
        raise ConfigError(f"{'.'.join(steps)}: {reason}", where(*steps))


def _refused(settings: Mapping[str, Setting]) -> str | None:
    """Why librdkafka does not take these settings; None if it does."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        AdminClient({"log_level": 0, **settings})
    except KafkaException as error:
        return str(error.args[0].str())
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def connection_of(kafka: KafkaConfig, home: Path, where: str = "") -> KafkaConnection:
    """The connection that a configuration describes. Raises ConfigError."""
    ours = {"partitions", "replication", "session_timeout_s", "embedded"}
    fields: dict[str, Any] = kafka.model_dump(exclude={*ours, *SECRET_FILES})
    for name, secret in SECRET_FILES.items():
        if (file := getattr(kafka, name)) is not None:
            try:
                fields[secret] = SecretStr((home / file).read_text().strip())
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
                # without what was raised: that carries what was read
                raise ConfigError(
                    f"kafka.{name}: {file} cannot be read: {why}; put the secret alone in it", where
                ) from None
    for name in TLS_FILES:
        if fields[name] not in (None, PROBE):
            fields[name] = str(home / fields[name])
    try:
        return KafkaConnection(**fields)
    except ValidationError as error:
        raise ConfigError(f"kafka: {error.errors()[0]['msg']}", where) from error
