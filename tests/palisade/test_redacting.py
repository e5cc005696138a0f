"""Sensitive features by the command line: training tables and recorded files come out as live events do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detectors.profile import Profile
from palisade.redacting import redact_training
from palisade.tables import UnusableFile
from schemas.events import Report
from schemas.topics import PREDICTIONS, PROFILES, REPORTS
from streams.embedded_broker import EmbeddedBroker
from streams.reading import read_to_end
from streams.redaction import Pseudonyms, Redactor
from tests.palisade.conftest import Run

KEY = "5e" * 32
PSEUDONYM = Pseudonyms(bytes.fromhex(KEY)).of
SSN = "078-05-1120"
RULES = "{ssn: drop, plan: hash, age: {bucket: 10}, '@caller': hash}"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {"ssn": SSN, "plan": ("pro", "free")[k % 2], "age": 20 + k % 60, "income": k * 1.5, "who": "carol"}
        for k in range(4096)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def config(folder: Path, rules: str = RULES, bootstrap: str = "127.0.0.1:9", key: str = KEY) -> Path:
    (folder / "redaction.key").write_text(key)
    path = folder / "palisade.yaml"
    path.write_text(
        f"kafka: {{bootstrap: '{bootstrap}'}}\nredaction_key_file: redaction.key\n"
        f"endpoints: [{{name: credit, sensitive: {rules}}}]\n"
    )
    return path


def test_a_profile_is_built_of_what_the_rules_leave(palisade: Run, table: Path, tmp_path: Path) -> None:
    words = ("profile", "build", table, "--exclude", "who", "--endpoint", "credit", "--config", config(tmp_path))
    status, out, errors = palisade(*words)

    assert status == 0, errors
    assert "redacted: ssn drop, plan hash, age in buckets of 10, @caller hash" in out
    content = table.with_suffix(".profile.json").read_bytes()
    profile = Profile.from_bytes(content)
    assert profile.order == ("plan", "age", "income")
    (plan,) = profile.categorical
    assert set(plan.categories) == {PSEUDONYM("pro"), PSEUDONYM("free")}
    assert SSN.encode() not in content
    age = next(feature for feature in profile.numeric if feature.name == "age")
    assert {quantile % 10 for quantile in age.quantiles} == {0.0}


def test_recorded_rows_are_redacted_before_they_are_sent_and_so_are_their_reports(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], palisade: Run, table: Path, tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1, PROFILES: 1})
    path = config(tmp_path, bootstrap=broker.bootstrap)

    status, out, errors = palisade(
        "publish", table, "--endpoint", "credit", "--caller-column", "who", "--flat-out", "--config", path
    )

    assert status == 0, errors
    assert "credit: ssn drop, plan hash" in out
    records = [message.value() or b"" for message in read_to_end(broker.connection, PREDICTIONS, 0)]
    rows = [row for record in records for row in pa.ipc.open_stream(record).read_all().to_pylist()]
    assert len(rows) == 4096
    assert rows[1]["features"] == {"plan": PSEUDONYM("free"), "age": 20.0, "income": 1.5}
    assert {row["caller"] for row in rows} == {PSEUDONYM("carol")}
    reports = [Report.from_bytes(message.value() or b"") for message in read_to_end(broker.connection, REPORTS, 0)]
    assert {caller.caller for report in reports for caller in report.callers} == {PSEUDONYM("carol")}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("{SSN: drop}", "no feature 'SSN' in the file, but in the rules"),
        ("{plan: {bucket: 10}}", "buckets are for numbers, and 'plan' is string: use hash or drop"),
    ],
)
def test_a_rule_that_does_not_fit_the_file_is_refused_before_anything_is_sent(
    rules: str, said: str, palisade: Run, table: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, rules)
    status, _, errors = palisade("publish", table, "--endpoint", "credit", "--flat-out", "--config", path)
    assert status == 2
    assert said in errors


def test_a_training_table_may_lack_what_is_dropped_and_nothing_else() -> None:
    rows = pa.table({"age": [37], "who": ["carol"]})
    assert redact_training(rows, Redactor({"ssn": "drop"}, None), aside={"who", None}) == rows
    with pytest.raises(UnusableFile, match="no feature 'email'"):
        redact_training(rows, Redactor({"email": "hash"}, bytes(32)), aside={"who", None})


def test_check_shows_the_rules_and_a_bad_key_is_named_and_not_shown(palisade: Run, tmp_path: Path) -> None:
    status, out, errors = palisade("check", "--config", config(tmp_path))
    assert status == 0, errors
    assert "credit: redacted before Kafka: ssn drop" in out

    status, out, errors = palisade("check", "--config", config(tmp_path, key=KEY[:-1]))
    assert status == 2
    assert "redaction.key: does not hold 64 hex digits" in errors
    assert KEY[:-1] not in out + errors


def test_the_pseudonym_of_a_caller_is_told_to_who_has_the_key(palisade: Run, tmp_path: Path) -> None:
    status, out, _ = palisade("keys", "pseudonym", "carol", "--config", config(tmp_path))
    assert (status, out.strip()) == (0, PSEUDONYM("carol"))
