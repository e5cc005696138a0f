"""No secret of a configuration is ever said: not by an object that holds it, a command, an error, a log or a help text."""

from __future__ import annotations

import inspect
import json
import logging
import pprint
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from palisade_client import Emitter, Guard, PalisadeMiddleware
from palisade_client._guard import GuardOptions
from typer.testing import CliRunner

from palisade.cli import options
from palisade.cli.main import app
from palisade.queries import reader
from palisade.settings import load, load_connection, load_site
from palisade.workers import audit
from responders.signing import SigningKey
from responders.webhooks import load_secrets
from streams import admin
from streams.audit.engine import ClickHouseError
from streams.transport.settings import KafkaConnection, kafka_settings
from tests.palisade.conftest import Run
from tests.palisade.test_cli import COMMANDS
from tests.streams.log_of_predictions import profile
from tests.support.canaries import OPEN, SECRETS, Canaries, settings_that_look_secret

CLIENT_SECRETS = {"producer_key", "sensitive_key_file", "kafka_settings", "api_keys"}
CLIENT_OPEN = {"directive_keys", "kill_file", "key_header"}


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canaries:
    monkeypatch.setattr(options, "REACHED_S", 0.3)
    monkeypatch.setattr(admin, "TIMEOUT_S", 0.3)
    monkeypatch.chdir(tmp_path)
    return Canaries(tmp_path)


def test_each_setting_that_looks_secret_has_a_canary_or_a_reason_to_have_none(canaries: Canaries) -> None:
    assert set(settings_that_look_secret()) == SECRETS | OPEN.keys()
    assert canaries.names == SECRETS


def test_each_argument_of_the_client_that_looks_secret_is_known_here() -> None:
    named = {
        *GuardOptions.__annotations__,
        *inspect.signature(Emitter).parameters,
        *inspect.signature(PalisadeMiddleware).parameters,
    }
    looks = {name for name in named if any(word in name for word in ("key", "secret", "password", "token", "file"))}
    assert looks | {"kafka_settings"} == CLIENT_SECRETS | CLIENT_OPEN


def test_the_search_finds_what_is_planted(canaries: Canaries) -> None:
    for setting in SECRETS:
        content = Path(canaries.file(setting)).read_text() if setting != "kafka.ssl_key_location" else None
        if content is not None:
            assert canaries.in_text(f"log: {content}") == {setting}
    (canaries.folder / "a.log").write_text(Path(canaries.file("clickhouse.password_file")).read_text())
    assert canaries.in_files(canaries.folder) == {("a.log", "clickhouse.password_file")}


def test_no_object_that_holds_a_secret_shows_it(canaries: Canaries) -> None:
    settings, site = load(canaries.config), load_site(canaries.config)
    connection, _ = load_connection(canaries.config)
    assert (
        kafka_settings(connection, "admin")["sasl.password"]
        in Path(canaries.file("kafka.sasl_password_file")).read_text()
    )
    endpoint = settings.config.endpoints[0]
    hooks = load_secrets([Path(canaries.file("endpoints.webhook.secret_files"))])
    holders = [settings, site, connection, settings.config, settings.config.kafka, settings.redactor(endpoint), hooks]
    holders += [SigningKey.load(canaries.file("signing_key_file")), audit._clickhouse(settings)[0]]
    for holder in holders:
        shown = f"{holder!r} {holder} {pprint.pformat(holder)}"
        assert canaries.in_text(shown) == set(), type(holder)
    for model in (connection, settings.config):
        assert canaries.in_text(model.model_dump_json() + str(model.model_dump()) + str(dict(model))) == set()
    assert KafkaConnection.model_validate(connection.model_dump()).sasl_password == connection.sasl_password


def commands(canaries: Canaries) -> Iterator[tuple[object, ...]]:
    """Every command that reads a configuration, with all that it needs to go as far as it can."""
    pq.write_table(pa.table({"id": ["a"], "x": [1.0], "paid": [1.0]}), canaries.folder / "rows.parquet")
    (canaries.folder / "p.json").write_bytes(profile().to_bytes())
    key = ("--key", canaries.file("signing_key_file"))
    labels = ("--request-id-column", "id", "--label-column", "paid")
    yield from (
        ("check",),
        ("status",),
        ("kill", "--reason", "a drill", *key),
        ("unkill", "--reason", "a drill", *key),
        ("limit", "credit", "--caller", "bob", *key),
        ("unlimit", "credit", "--caller", "bob", *key),
        ("fallback", "credit", *key),
        ("restore", "credit", *key),
        ("topics", "create"),
        ("topics", "acls"),
        ("topics", "acls", "--apply"),
        ("clickhouse", "tables"),
        ("clickhouse", "roles"),
        ("profile", "build", "rows.parquet", "--endpoint", "credit"),
        ("profile", "activate", "p.json", "--endpoint", "credit", *key),
        ("publish", "rows.parquet", "--endpoint", "credit", "--flat-out"),
        ("feedback", "publish", "rows.parquet", "--endpoint", "credit", *labels),
        ("forensics", "timeline"),
        ("forensics", "caller", "bob"),
        ("deadletter", "list"),
        ("deadletter", "show", "palisade.predictions", "0", "0"),
        ("deadletter", "redrive", "--filter", "reason=not_json"),
        ("keys", "pseudonym", "bob"),
        ("verify", "run"),
        ("keys", "create", canaries.folder / "new.pem"),
        ("profile", "show", "p.json"),
        ("verify", "check", canaries.folder),
    )


def test_no_command_says_a_secret_however_it_ends(
    canaries: Canaries, palisade: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tried = set()
    for words in commands(canaries):
        configured = "--config" not in words and words[0] not in ("clickhouse",) and words[:2] not in NO_CONFIG
        status, said, errors = palisade(*words, *(("--config", canaries.config) if configured else ()))
        assert status in (0, 1, 2), (words, errors)
        assert canaries.in_text(said + errors) == set(), words
        assert "No such option" not in errors, (words, errors)
        tried |= {words[0], " ".join(map(str, words[:2]))}
    assert canaries.in_text(caplog.text) == set()
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    assert set(COMMANDS) - tried == {"", "dev", "worker"} | (groups - tried)


NO_CONFIG = {("keys", "create"), ("profile", "show"), ("verify", "check")}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_says_what_the_environment_holds(
    command: str, canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Path(canaries.file("redaction_key_file")).read_text().strip()
    monkeypatch.setenv("PALISADE_REDACTION_KEY", key)
    monkeypatch.setenv("PALISADE_CONFIG", str(canaries.config))
    assert canaries.in_text(CliRunner().invoke(app, [*command.split(), "--help"]).output) == set()


@pytest.mark.parametrize("setting", sorted(SECRETS))
@pytest.mark.parametrize(
    "damage", [b"not what it should be: ", b"\xff\xfe\x00", b"", None], ids=["other", "bytes", "empty", "folder"]
)
def test_an_error_about_a_file_of_a_secret_names_the_file_and_says_nothing_of_it(
    setting: str, damage: bytes | None, canaries: Canaries, palisade: Run, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(str(canaries.section["ssl_key_location"] if "ssl_key_loc" in setting else canaries.file(setting)))
    content = file.read_bytes()
    file.unlink()
    if damage is None:
        file.mkdir()
    else:
        file.write_bytes(damage + content if damage else b"")

    for words in (("check",), ("status",), ("forensics", "timeline"), ("keys", "pseudonym", "bob")):
        status, said, errors = palisade(*words, "--config", canaries.config)
        assert status in (0, 2), (words, errors)
        assert canaries.in_text(said + errors + caplog.text) == set(), words
        assert "Traceback" not in errors


def test_an_audit_that_refuses_the_password_does_not_repeat_it(canaries: Canaries) -> None:
    engine = reader(load_site(canaries.config))
    with pytest.raises(ClickHouseError) as refused:
        engine.command("SELECT 1")
    chain: list[BaseException | None] = [refused.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert canaries.in_text(" ".join(f"{error!r} {error}" for error in chain)) == set()


def test_guard_and_emitter_show_no_setting_of_kafka_and_no_key(
    canaries: Canaries, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connection, _ = load_connection(canaries.config)
    given = {
        name: value for name, value in kafka_settings(connection, "admin").items() if name[:3] in ("sas", "ssl", "sec")
    }
    guard = Guard("credit", fallback=0.5, bootstrap="127.0.0.1:1", kafka_settings=given | {"no.such.setting": 1},
                  producer_key=canaries.file("ingest.producer_key_file"), sensitive={"email": "hash"},
                  sensitive_key_file=canaries.file("redaction_key_file"))  # fmt: skip
    assert guard.call(lambda features: 0.9, {"email": "a@b"}, caller="bob") == 0.9
    emitter = guard.emitter
    middleware = PalisadeMiddleware(lambda *_: None, api_keys={"canary-api-key": "bob"})  # type: ignore[arg-type]
    shown = " ".join(f"{one!r} {one}" for one in (guard, emitter, middleware, guard._kafka)) + json.dumps(
        guard.status()
    )
    guard.close()

    assert "KAFKA SETTINGS ARE REFUSED" in caplog.text
    assert canaries.in_text(shown + caplog.text) == set()
    assert "canary-api-key" not in shown
