"""A folder of `palisade dev`: what stays, what an embedded broker that begins anew must forget."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from palisade.dev import prepare
from palisade.running import refuse_second
from palisade.settings import load
from schemas.config import ClickHouseConfig, EndpointConfig, PalisadeConfig
from schemas.errors import ConfigError

CONFIG = PalisadeConfig(endpoints=(EndpointConfig(name="credit"),))


def start(folder: Path, *, embedded: bool = True) -> None:
    prepare(folder, CONFIG, None, "127.0.0.1:1", embedded=embedded)


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


def test_on_a_real_broker_state_and_audit_stay(tmp_path: Path) -> None:
    (tmp_path / "clickhouse").mkdir()

    start(tmp_path, embedded=False)

    assert (tmp_path / "clickhouse").exists()


def test_a_second_dev_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text(json.dumps({"pid": os.getpid(), "bootstrap": None}))

    with pytest.raises(ConfigError, match="runs here already"):
        refuse_second(tmp_path)


def test_files_that_the_users_configuration_names_are_found_from_the_dev_folder(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret")
    config = PalisadeConfig(clickhouse=ClickHouseConfig(url="http://127.0.0.1:1", password_file="pw"))

    stack = prepare(tmp_path / "dev", config, None, "127.0.0.1:1", embedded=True, config_home=tmp_path)

    assert load(stack.config_path).config.clickhouse.password_file == str(tmp_path / "pw")
