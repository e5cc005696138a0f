"""The command line offline: help, keys, profiles, checks; and errors that say what to do."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from detectors.profile import MAX_PROFILE_BYTES
from palisade.cli.main import app
from palisade.operate import NotConfirmed, Operator, activate_profile
from palisade.settings import default_policy, default_policy_text
from responders.signing import SigningKey
from streams.transport.settings import KafkaConnection
from tests.palisade.conftest import Run
from tests.streams.log_of_predictions import profile

COMMANDS = ["", "check", "dev", "worker", "publish", "status", "kill", "unkill", "fallback", "restore", "limit", "unlimit",
            "topics", "topics create", "topics acls", "clickhouse", "clickhouse tables", "clickhouse roles", "keys", "keys create", "keys pseudonym", "profile", "profile build", "profile show",
            "profile activate", "forensics", "forensics timeline", "forensics caller", "deadletter", "deadletter list",
            "deadletter show", "deadletter redrive", "feedback", "feedback publish", "verify", "verify run", "verify check"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])

    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 5


def test_the_list_above_is_the_whole_command_line() -> None:
    from typer.main import get_command

    def walk(command: object, path: tuple[str, ...] = ()) -> list[str]:
        children = getattr(command, "commands", {})
        return [" ".join(path)] + [name for key, child in children.items() for name in walk(child, (*path, key))]

    assert sorted(walk(get_command(app))) == sorted(COMMANDS)


def test_a_checked_configuration_says_what_it_believes(palisade: Run, tmp_path: Path) -> None:
    path = tmp_path / "palisade.yaml"
    path.write_text(
        f"endpoints:\n  - name: a\n    producer_keys: ['{SigningKey.generate().public_base64}']\n  - name: b\n"
    )

    status, out, _ = palisade("check", "--config", path)

    assert status == 0
    assert "2 endpoints" in out
    assert "a: observe; believes signed reports" in out
    assert "b: observe; believes nobody's word" in out


def test_check_says_who_carries_out_what_is_decided_where_no_guard_does(palisade: Run, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("whsec_" + "canary" * 7)
    hook = "webhook: {url: 'http://[::1]:9000/x', secret_files: [s]}"
    path = tmp_path / "palisade.yaml"
    path.write_text(
        f"endpoints: [{{name: a, guard: false, {hook}}}, {{name: b, guard: false}}, {{name: c}}, {{name: d, {hook}}}]\n"
    )

    status, out, errors = palisade("check", "--config", path)

    assert status == 0, errors
    assert "a: acts through the webhook http://[::1]:9000/x" in out
    assert "a: no fallback_health_url: without Guard, it is never put on fallback" in out
    assert "b: no Guard and no webhook: nobody carries out what is decided" in out
    assert "c: no" not in out
    assert "d: a webhook beside a Guard: both carry out what is decided" in out
    assert "a: a webhook beside a Guard" not in out
    assert "canary" not in out


def test_a_policy_can_be_checked_alone(palisade: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(default_policy_text())

    status, out, _ = palisade("check", "--policy", tmp_path / "policy.yaml")

    assert (status, f"{len(default_policy().rules)} rules" in out) == (0, True)


def test_an_error_ends_with_status_2_and_names_file_and_line(palisade: Run, tmp_path: Path) -> None:
    path = tmp_path / "palisade.yaml"
    path.write_text("endpoints:\n  - name: '[/bold] x'\n")

    status, out, errors = palisade("check", "--config", path)

    assert (status, out) == (2, "")
    assert errors.startswith("error:")
    assert f"{path}:2" in errors
    assert "[/bold] x" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("check", "--config", "none.yaml"), "name an existing file"),
        (("status",), "start `palisade dev` in this folder"),
        (("worker", "cook"), "detect, respond, audit"),
        (("dev",), "--endpoint credit"),
        (("dev", "--config", "lost.yaml"), "lost.yaml:1: policy: gone.yaml does not exist; name an existing file"),
        (("check", "--config", "keyless.yaml"), "no Ed25519 private key can be read"),
        (("profile", "build", "rows.xls"), ".csv, .jsonl or .arrow"),
        (("profile", "build", "none.csv"), "cannot be read: there is no such file"),
        (("profile", "build", "none.parquet"), "cannot be read: there is no such file"),
        (("profile", "show", "none.json"), "cannot be read"),
        (("kill", "--config", "some.yaml"), "operator.pem"),
        (("forensics", "timeline", "--config", "some.yaml"), "palisade worker audit"),
        (("forensics", "timeline", "--config", "stale.yaml"), "127.0.0.1:1 does not answer: start `palisade dev`"),
        (("status", "--config", "away.yaml"), "check kafka.bootstrap"),
        (("deadletter", "list", "--config", "away.yaml"), "check kafka.bootstrap"),
        (("topics", "create", "--config", "away.yaml"), "check kafka.bootstrap"),
        (("publish", "rows.xls", "--config", "some.yaml"), ".csv, .jsonl or .arrow"),
    ],
)
def test_errors_say_what_to_do(
    palisade: Run, words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALISADE_CONFIG", raising=False)
    for module in ("streams.reading", "streams.admin"):
        monkeypatch.setattr(f"{module}.TIMEOUT_S", 0.3, raising=False)
    monkeypatch.setattr("palisade.cli.options.REACHED_S", 0.3)
    (tmp_path / "some.yaml").write_text("endpoints: [{name: a}]\n")
    (tmp_path / "lost.yaml").write_text("policy: gone.yaml\nendpoints: [{name: a}]\n")
    (tmp_path / "keyless.yaml").write_text("signing_key_file: some.yaml\n")
    (tmp_path / "stale.yaml").write_text("data_dir: .\nendpoints: [{name: a}]\n")
    (tmp_path / "clickhouse.json").write_text('{"url": "http://127.0.0.1:1", "user": "reader", "token_file": "token"}')
    (tmp_path / "token").write_text("x")
    (tmp_path / "away.yaml").write_text("kafka: {bootstrap: '127.0.0.1:1'}\nendpoints: [{name: a}]\n")

    status, _, errors = palisade(*words)

    assert status == 2
    assert told in errors.replace("\n", " ")
    assert "Traceback" not in errors


def test_a_key_pair_is_made_once_and_its_private_half_is_for_its_owner_alone(palisade: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "ann.pem"

    status, out, _ = palisade("keys", "create", path)
    public = path.with_name("ann.pem.pub").read_text().strip()

    assert status == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public_base64 == public
    assert public in out
    before = path.read_bytes()
    assert palisade("keys", "create", path)[0] == 2
    assert path.read_bytes() == before


def test_a_profile_is_built_and_shown(palisade: Run, tmp_path: Path) -> None:
    rng_rows = 3_000
    table = pa.table({"x": [float(k * 37 % 101) for k in range(rng_rows)], "kind": ["a", "b", "c"] * (rng_rows // 3),
                      "target": [0.0] * rng_rows})  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")

    status, out, _ = palisade("profile", "build", tmp_path / "train.parquet", "--exclude", "target")
    assert status == 0
    assert "3,000 rows, 2 features" in out
    status, out, _ = palisade("profile", "show", tmp_path / "train.profile.json")
    assert status == 0
    (numbers,) = (line.split() for line in out.splitlines() if line.startswith("x "))
    assert numbers[1] == "0.0%"
    assert [float(word) for word in numbers[2:]] == pytest.approx([50, 29.2, 5, 50, 95], abs=1)
    (categories,) = (line.rstrip().split(None, 3) for line in out.splitlines() if line.startswith("kind"))
    assert categories[1:3] == ["0.0%", "3"]
    assert set(categories[3].split(", ")) == {"a", "b", "c"}
    assert "target" not in out


def test_a_profile_holds_what_the_model_answers_if_the_table_does(palisade: Run, tmp_path: Path) -> None:
    rows = 3_000
    table = pa.table(
        {"x": [float(k % 101) for k in range(rows)], "yes": [0.25, 0.75] * 1_500, "no": [0.75, 0.25] * 1_500}
    )
    pq.write_table(table, tmp_path / "train.parquet")

    status, out, _ = palisade("profile", "build", tmp_path / "train.parquet", "--exclude", "yes,no")
    assert status == 0
    assert "outputs: none" in out
    assert "--prediction" in out
    status, out, _ = palisade("profile", "build", tmp_path / "train.parquet", "--prediction", "yes,no")
    assert status == 0
    assert "1 features" in out
    assert "outputs: confidence, label" in out
    status, out, _ = palisade("profile", "show", tmp_path / "train.profile.json")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("confidence", "label"))] == [
        "confidence",
        "label",
    ]
    status, _, errors = palisade("profile", "build", tmp_path / "train.parquet", "--prediction", "maybe")
    assert status == 2
    assert "no column 'maybe'" in errors


def test_columns_that_are_hardly_features_are_named_when_a_profile_is_built(palisade: Run, tmp_path: Path) -> None:
    rows = 1_000
    table = pa.table({"at": list(range(rows)), "customer": [k % 7 for k in range(rows)], "target": [0] * rows,
                      "x": [float(k * 37 % 101) for k in range(rows)]})  # fmt: skip
    pq.write_table(table, tmp_path / "train.parquet")

    status, out, _ = palisade("profile", "build", tmp_path / "train.parquet", "--exclude", "target,customer")
    assert status == 0
    assert "warning: at only rises or only falls from row to row, like a clock" in out
    assert "build again with --exclude at" in out

    words = ("profile", "build", tmp_path / "train.parquet", "--order-by", "at", "--exclude", "customer")
    status, out, _ = palisade(*words, "--exclude", "target")
    assert "warning" not in out
    assert "features: x" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--time-column, or use --flat-out"),
        (("--flat-out", "--drop", "none"), "has no column 'none'"),
        (("--flat-out", "--field", "prediction"), "give it as FIELD=COLUMN"),
        (("--flat-out", "--endpoint", "b"), "'b' is no endpoint of the configuration; there are a"),
    ],
)
def test_what_publishing_would_need_is_said_before_a_broker_is_asked(
    words: tuple[str, ...], told: str, palisade: Run, tmp_path: Path
) -> None:
    (tmp_path / "away.yaml").write_text("kafka: {bootstrap: '127.0.0.1:1'}\nendpoints: [{name: a}]\n")
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "live.parquet")
    ours = (tmp_path / "live.parquet", "--config", tmp_path / "away.yaml", "--endpoint", "a")

    status, out, errors = palisade("publish", *ours, *words)

    assert (status, out) == (2, "")
    assert told in errors.replace("\n", " ")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "arrow"])
def test_a_profile_is_built_from_each_format(kind: str, palisade: Run, tmp_path: Path) -> None:
    rows = [{"x": k * 37 % 101, "kind": "abc"[k % 3]} for k in range(1_000)]
    path, table = tmp_path / f"train.{kind}", pa.Table.from_pylist(rows)
    match kind:
        case "csv":
            pacsv.write_csv(table, path)
        case "arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        case _:
            path.write_text("\n".join(map(json.dumps, rows)))

    status, out, errors = palisade("profile", "build", path)

    assert status == 0, errors
    assert "1,000 rows, 2 features" in out


def test_a_profile_that_its_topic_would_not_take_is_refused_before_anything_is_sent() -> None:
    nowhere = KafkaConnection(bootstrap="127.0.0.1:1")
    operator = Operator("person:ann", SigningKey.generate())

    too_large = MAX_PROFILE_BYTES + 1
    with pytest.raises(NotConfirmed, match=rf"{too_large:,} bytes, at most {MAX_PROFILE_BYTES:,}: exclude features"):
        activate_profile(nowhere, operator, b" " * too_large, "credit", "v1")


def test_the_version_is_told(palisade: Run) -> None:
    status, out, _ = palisade("--version")

    assert (status, out.split()[0]) == (0, "palisade")


def test_help_comes_without_the_heavy_libraries() -> None:
    program = """
import sys
from typer.testing import CliRunner
from palisade.cli.main import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    heavy = {"faust", "pyarrow", "numpy", "scipy", "sklearn", "river", "confluent_kafka", "clickhouse_connect", "chdb"}
    assert heavy & set(done.stdout.split()) == set()


def test_a_damaged_profile_is_refused(palisade: Run, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(profile().to_bytes()[:-20])

    assert palisade("profile", "show", tmp_path / "p.json")[0] == 2
