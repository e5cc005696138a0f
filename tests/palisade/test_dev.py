"""A folder of `palisade dev`: what stays, what an embedded broker that begins anew must forget."""

from __future__ import annotations

from pathlib import Path

import pytest

from palisade.dev import DevStack, prepare, require_topics
from palisade.running import DEFAULT_FOLDER, RUNNING, announce, find_config, refuse_second
from palisade.settings import load
from schemas.config import ClickHouseConfig, EndpointConfig, KafkaConfig, PalisadeConfig, WebhookConfig
from schemas.errors import ConfigError
from schemas.topics import TOPICS
from streams.admin import Cluster

CONFIG = PalisadeConfig(endpoints=(EndpointConfig(name="credit"),))


def start(folder: Path, *, cluster_id: str | None = None) -> DevStack:
    return prepare(folder, CONFIG, None, "127.0.0.1:1", embedded=cluster_id is None, cluster_id=cluster_id)


def test_an_embedded_broker_that_begins_anew_finds_no_state_of_the_one_before(tmp_path: Path) -> None:
    start(tmp_path)
    for name in ("snapshots", "clickhouse"):
        (tmp_path / name).mkdir()
    key = (tmp_path / "keys" / "signing.pem").read_bytes()

    start(tmp_path)

    assert not (tmp_path / "snapshots").exists()
    assert not (tmp_path / "clickhouse").exists()
    assert (tmp_path / "clickhouse-of-last-run").exists()
    assert (tmp_path / "keys" / "signing.pem").read_bytes() == key


def test_each_real_cluster_has_state_and_audit_of_its_own_which_stay(tmp_path: Path) -> None:
    """Rows of one broker would pass for those of another: they are told by topic, partition and offset."""
    embedded, one, other = start(tmp_path), start(tmp_path, cluster_id="Xu-1"), start(tmp_path, cluster_id="Xu-2")
    assert len({embedded.data, one.data, other.data}) == 3
    assert load(one.config_path).data_dir == other.data.resolve()
    (one.data / "clickhouse").mkdir(parents=True)

    start(tmp_path)
    assert start(tmp_path, cluster_id="Xu-1").data == one.data

    assert (one.data / "clickhouse").exists()
    assert not (one.data / "clickhouse-of-last-run").exists()


def test_keys_are_the_same_on_every_broker_for_serving_processes_know_them(tmp_path: Path) -> None:
    embedded = start(tmp_path).client_env
    real = start(tmp_path, cluster_id="Xu-1").client_env

    assert embedded == real


def test_the_embedded_broker_is_reached_without_the_login_of_the_users_own(tmp_path: Path) -> None:
    kafka = KafkaConfig(bootstrap="kafka.example:9093", security_protocol="SSL", ssl_ca_location="ca.pem", partitions=3)

    stack = prepare(tmp_path, CONFIG.model_copy(update={"kafka": kafka}), None, "127.0.0.1:1", embedded=True)

    found = load(stack.config_path).config.kafka
    assert (found.security_protocol, found.ssl_ca_location, found.partitions) == ("PLAINTEXT", None, 3)


def test_a_cluster_without_our_topics_is_told_apart_before_anything_starts(tmp_path: Path) -> None:
    stack = start(tmp_path, cluster_id="Xu-1")
    there = {spec.name: 1 for spec in TOPICS}

    require_topics(Cluster("Xu-1", there), stack)
    del there["palisade.actions"]
    with pytest.raises(ConfigError, match=r"no topic palisade.actions \(1 are missing\).*topics create --config"):
        require_topics(Cluster("Xu-1", there), stack)


def test_a_second_dev_in_the_folder_is_refused(tmp_path: Path) -> None:
    announce(tmp_path)

    with pytest.raises(ConfigError, match="runs here already"):
        refuse_second(tmp_path)


def test_files_that_the_users_configuration_names_are_found_from_the_dev_folder(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret")
    config = PalisadeConfig(clickhouse=ClickHouseConfig(url="http://127.0.0.1:1", password_file="pw"))

    stack = prepare(tmp_path / "dev", config, None, "127.0.0.1:1", embedded=True, config_home=tmp_path)

    assert load(stack.config_path).config.clickhouse.password_file == str(tmp_path / "pw")


def test_commands_find_a_dev_that_runs_and_are_told_to_wait_for_one_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    announce(DEFAULT_FOLDER)
    with pytest.raises(ConfigError, match="still starting"):
        find_config(None)
    assert find_config(None, while_starting=True) == DEFAULT_FOLDER / "palisade.yaml"

    announce(DEFAULT_FOLDER, "127.0.0.1:1")

    assert find_config(None) == DEFAULT_FOLDER / "palisade.yaml"


@pytest.mark.parametrize("said", ["", "{", "[]", '{"pid": "1"}', '{"pid": 2147483646, "bootstrap": "x"}'])
def test_the_word_of_a_dev_that_is_gone_or_was_never_written_whole_counts_for_nothing(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DEFAULT_FOLDER.mkdir(parents=True)
    (DEFAULT_FOLDER / RUNNING).write_text(said)
    (tmp_path / "palisade.yaml").touch()

    refuse_second(DEFAULT_FOLDER)

    assert find_config(None) == Path("palisade.yaml")


def test_the_files_of_a_webhook_are_found_from_the_folder_of_the_effective_configuration(tmp_path: Path) -> None:
    (tmp_path / "hook.secret").write_text("whsec_" + "a" * 44)
    webhook = WebhookConfig(url="http://127.0.0.1:9000/", secret_files=("hook.secret",))
    config = PalisadeConfig(endpoints=(EndpointConfig(name="credit", webhook=webhook), EndpointConfig(name="other")))

    stack = prepare(tmp_path / "dev", config, None, "127.0.0.1:1", embedded=True, config_home=tmp_path)

    effective = load(stack.config_path).config.endpoints[0].webhook
    assert effective is not None
    assert effective.secret_files == (str(tmp_path / "hook.secret"),)


def test_how_long_a_session_lasts_is_the_users_word_on_either_broker(tmp_path: Path) -> None:
    config = PalisadeConfig(kafka=KafkaConfig(session_timeout_s=6.0))
    for embedded in (True, False):
        stack = prepare(tmp_path, config, None, "127.0.0.1:1", embedded=embedded)
        assert load(stack.config_path).config.kafka.session_timeout_s == 6.0
