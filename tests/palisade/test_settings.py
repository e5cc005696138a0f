"""`palisade check`: what is wrong is named by file and line, in words that say what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from palisade.settings import connection_of, default_policy, default_policy_text, load, policy_hash, read_yaml
from responders.signing import SigningKey
from schemas.config import KafkaConfig, PalisadeConfig, PolicyConfig
from schemas.errors import ConfigError
from schemas.ids import clean_id

GOOD = """\
kafka:
  bootstrap: 127.0.0.1:9092
endpoints:
  - name: credit
    caller_rate_max: 50
"""

BAD_CONFIGS: dict[str, tuple[str, int, str]] = {
    "a misspelt key": ("endpoints:\n  - name: a\n    mod: enforce\n", 3, "correct its spelling"),
    "a misspelt section": ("kafak:\n  bootstrap: x\n", 1, "kafak"),
    "a word that is no mode": ("endpoints:\n  - name: a\n    mode: shout\n", 3, "observe"),
    "a negative bound": ("endpoints:\n  - name: a\n\n    caller_rate_max: -1\n", 4, "greater than 0"),
    "text for a number": ("kafka:\n  partitions: many\n", 2, "integer"),
    "a list for a mapping": ("kafka:\n  - bootstrap\n", 1, "kafka"),
    "an endpoint without a name": ("endpoints:\n  - name: a\n  - mode: observe\n", 3, "name"),
    "an odd endpoint name": ("endpoints:\n  - name: 'a b'\n", 2, "A-Za-z0-9"),
    "two endpoints of one name": ("endpoints:\n  - name: a\n  - name: a\n", 3, "two endpoints are named 'a'"),
    "an allowlist entry that is empty": (
        "endpoints:\n  - name: a\n    allowlist:\n      - b\n      - ''\n",
        5,
        "at least 1",
    ),
    "a list that holds itself": ("data_dir: x\nendpoints: &a [*a]\n", 2, "endpoints.0"),
    "a policy that is missing": ("data_dir: x\npolicy: gone.yaml\n", 2, "policy: gone.yaml does not exist"),
    "a certificate that is missing": (
        "kafka:\n  security_protocol: SSL\n  ssl_ca_location: gone.pem\n",
        3,
        "gone.pem does not exist",
    ),
    "a setting that librdkafka has not": (
        "kafka:\n  extra:\n    linger.ms: 5\n    no.such.setting: 1\n",
        4,
        'No such configuration property: "no.such',
    ),
    "a value that librdkafka refuses": ("kafka:\n  extra:\n    linger.ms: often\n", 3, "Invalid value"),
    "a setting that is ours": ("kafka:\n  extra:\n    acks: 0\n", 2, "not open to change: acks"),
    "a password among the further settings": (
        "kafka:\n  extra:\n    sasl.password: hunter2\n",
        2,
        "not open to change: sasl.password",
    ),
    "a way around TLS": (
        "kafka:\n  security_protocol: SSL\n  extra:\n    security.protocol: plaintext\n",
        3,
        "not open to change: security.protocol",
    ),
    "a mechanism without a user": (
        "kafka:\n  security_protocol: SASL_SSL\n  sasl_mechanism: PLAIN\n",
        1,
        "sasl.username and sasl.password",
    ),
    "an audit that is no URL": ("clickhouse:\n  url: localhost:8123\n", 2, "https?"),
    "an audit without TLS off this machine": (
        "clickhouse:\n  url: http://ch:8123\n",
        1,
        "use https, or set allow_plaintext to true",
    ),
    "a key given twice": ("endpoints:\n  - name: a\nkafka: {}\nendpoints:\n  - name: b\n", 4, "given twice"),
    "a nested key given twice": ("kafka:\n  partitions: 1\n  replication: 1\n  partitions: 2\n", 4, "given twice"),
    "a tab": ("kafka:\n\tbootstrap: x\n", 2, "not YAML"),
    "an open bracket": ("endpoints: [\n  {name: a}\n", 3, "not YAML"),
    "two documents": ("kafka: {}\n---\nkafka: {}\n", 2, "not YAML"),
    "a list at the top": ("- kafka\n", 1, "the file"),
    "a missing signing key": ("\nsigning_key_file: keys/none.pem\n", 2, "palisade keys create"),
    "a missing redaction key": ("\nredaction_key_file: none.key\n", 2, "openssl rand -hex 32"),
    "a rule that is none": (
        "endpoints:\n  - name: a\n    sensitive:\n      ssn: hide\n",
        4,
        "sensitive.ssn: Value error, a rule is drop, hash, or {bucket: width}",
    ),
    "a bucket of no width": ("endpoints:\n  - name: a\n    sensitive:\n      age: {bucket: 0}\n", 4, "width above 0"),
    "a missing password": ("clickhouse:\n  url: https://x\n  password_file: none\n", 3, "does not exist"),
    "a missing broker password": ("kafka:\n  sasl_password_file: none\n", 2, "does not exist"),
    "a key that is none": ("operator_keys:\n  - bm8=\n", 2, "operator_keys"),
    "a producer key that is none": ("endpoints:\n  - name: a\n    producer_keys:\n      - '!!'\n", 4, "producer_keys"),
    "a webhook with a password in it": (
        "endpoints:\n  - name: a\n    webhook:\n      url: https://u:hunter2@x.example/\n      secret_files: [s]\n",
        4,
        "holds a user or password; remove it",
    ),
    "a webhook without a secret": (
        "endpoints:\n  - name: a\n    webhook:\n      url: https://x.example/\n      secret_files: []\n",
        5,
        "at least 1",
    ),
    "a webhook whose secret is missing": (
        "endpoints:\n  - name: a\n    webhook:\n      url: https://x.example/\n      secret_files:\n        - none\n",
        6,
        "name an existing file",
    ),
    "a webhook with a network that is none": (
        "endpoints:\n  - name: a\n    webhook:\n      url: https://x.example/\n      secret_files: [s]\n"
        "      allow_networks:\n        - 10.0.0.1/8\n",
        7,
        "has host bits set",
    ),
    "a webhook with certificates that are missing": (
        "endpoints:\n  - name: a\n    webhook:\n      url: https://x.example/\n      secret_files: [hook.secret]\n"
        "      ca_file: none.pem\n",
        6,
        "name the file of the authority",
    ),
    "plaintext off this machine": ("data_dir: x\nkafka:\n  bootstrap: kafka.example:9092\n", 2, "not encrypted"),
}
BAD_POLICIES: dict[str, tuple[str, int, str]] = {
    "no rules": ("name: p\n", 1, "rules"),
    "an unknown kind": ("rules:\n  - name: a\n    when: {kinds: [nonsense]}\n    then: notify\n", 3, "feature_drift"),
    "an unknown answer": ("rules:\n  - name: a\n    when: {kinds: [errors]}\n    then: explode\n", 4, "fallback"),
    "too long an action": ("durations:\n  action_s: 999999\nrules:\n  - name: a\n    when: {kinds: [errors]}\n    then: notify\n", 2, "3600"),
    "two rules of one name": (
        "rules:\n" + 2 * "  - name: a\n    when: {kinds: [errors]}\n    then: notify\n", 5, "two rules",
    ),
}  # fmt: skip


def write(folder: Path, text: str, name: str = "palisade.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_good_file_is_read_and_takes_the_shipped_policy(tmp_path: Path) -> None:
    settings = load(write(tmp_path, GOOD))

    assert settings.config.endpoints[0].caller_rate_max == 50
    assert settings.policy == default_policy()
    assert settings.policy.mode == "observe"
    assert settings.data_dir == tmp_path.resolve() / "palisade-data"
    assert settings.connection.bootstrap == "127.0.0.1:9092"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).config == PalisadeConfig()


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_configuration_is_named_by_file_and_line(case: str, tmp_path: Path) -> None:
    text, line, words = BAD_CONFIGS[case]
    write(tmp_path, "whsec_" + "a" * 44, "hook.secret")
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.where == f"{path}:{line}"
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_bad_policy_is_named_by_its_own_file_and_line(case: str, tmp_path: Path) -> None:
    text, line, words = BAD_POLICIES[case]
    policy = write(tmp_path, text, "policy.yaml")

    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "policy: policy.yaml\n"))
    assert caught.value.where == f"{policy}:{line}"
    assert words in str(caught.value)


def test_several_faults_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        load(write(tmp_path, "a: 1\nb: 2\n"))


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="name an existing file"):
        load(write(tmp_path, "policy: gone.yaml\n"))
    (tmp_path / "latin.yaml").write_bytes(b"kafka: {}\n# caf\xe9\n")
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        load(tmp_path / "latin.yaml")
    assert caught.value.where.endswith(":2")


def test_the_hash_of_a_policy_names_its_content_and_not_its_spelling(tmp_path: Path) -> None:
    shipped = default_policy()
    respelt = read_yaml(
        write(tmp_path, "# a comment\n" + default_policy_text().replace(": 600 ", ": 600.0 ")), PolicyConfig
    )
    other = shipped.model_copy(update={"mode": "enforce"})

    assert policy_hash(respelt) == policy_hash(shipped)
    assert policy_hash(other) != policy_hash(shipped)
    assert len(policy_hash(shipped)) == 32


def test_secrets_are_read_from_files_and_never_shown(tmp_path: Path) -> None:
    write(tmp_path, "hunter2\n", "password")
    text = "kafka:\n  security_protocol: SASL_SSL\n  sasl_mechanism: PLAIN\n  sasl_username: u\n  sasl_password_file: password\n"
    settings = load(write(tmp_path, text))

    assert settings.connection.sasl_password is not None
    assert settings.connection.sasl_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


def test_a_webhook_is_taken_and_its_secret_is_nowhere_to_be_read(tmp_path: Path) -> None:
    write(tmp_path, "whsec_" + "canary" * 7, "hook.secret")
    text = "endpoints: [{name: a, webhook: {url: 'https://x.example/', secret_files: [hook.secret]}}]\n"

    settings = load(write(tmp_path, text))
    assert settings.config.endpoints[0].webhook is not None
    assert "canary" not in repr(settings)
    write(tmp_path, "canary-without-a-prefix", "hook.secret")
    with pytest.raises(
        ConfigError, match=r"webhook\.secret_files: .*hook\.secret: .* must begin with whsec_"
    ) as caught:
        load(write(tmp_path, text))
    assert "canary" not in str(caught.value)


def test_a_good_key_is_taken(tmp_path: Path) -> None:
    key = SigningKey.generate().public_base64

    assert load(write(tmp_path, f"operator_keys: ['{key}']\n")).config.operator_keys == (key,)


def test_a_caller_on_the_allowlist_is_the_one_that_the_log_names(tmp_path: Path) -> None:
    (endpoint,) = load(write(tmp_path, "endpoints: [{name: a, allowlist: [ann, 'Acme Corp!']}]\n")).config.endpoints

    assert endpoint.allowlist == ("ann", clean_id("Acme Corp!"))


def test_certificates_are_found_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, "", "ca.pem")

    kafka = KafkaConfig(security_protocol="SSL", ssl_ca_location="ca.pem")
    assert connection_of(kafka, tmp_path).ssl_ca_location == str(tmp_path / "ca.pem")
    probed = KafkaConfig(security_protocol="SSL", ssl_ca_location="probe")
    assert connection_of(probed, tmp_path).ssl_ca_location == "probe"


def test_a_document_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nests too deeply"):
        load(write(tmp_path, "endpoints: " + "[" * 5_000))
