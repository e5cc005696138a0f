"""`palisade publish`: what is sent, what the reports say of it, and what is told when it could not be sent."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from palisade.operate import send
from palisade.publish import RECORD_BYTES, publish
from palisade.recorded import Mapping as Columns
from palisade.recorded import read_predictions
from palisade.tables import UnusableFile
from responders.signing import Keyring, SigningKey
from schemas.events import ProfileActivated, Report
from schemas.topics import PREDICTIONS, PROFILES, REPORTS
from streams.audit.rows import rows_of
from streams.embedded_broker import EmbeddedBroker
from streams.profiles import Active, active_record, profile_record
from streams.reading import read_to_end
from streams.records import Outgoing, Records, listed
from tests.palisade.conftest import Run
from tests.palisade.test_recorded import MAPPING, ROWS, write
from tests.streams.log_of_predictions import profile


def table_of(folder: Path, rows: list[dict[str, Any]] = ROWS, mapping: Columns = MAPPING) -> pa.Table:
    return read_predictions(write(folder, rows), mapping).table


@pytest.mark.parametrize("recorded_pace", [True, False], ids=["at recorded pace", "flat out"])
def test_all_rows_and_signed_reports_of_them_are_confirmed(
    recorded_pace: bool, embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    signer, seen = SigningKey.generate(), []
    table = table_of(tmp_path)

    done = publish(
        table, broker.connection, recorded_pace=recorded_pace, speed=2.0, signer=signer, progress=seen.append
    )

    assert (done.rows, done.failed, sum(seen)) == (40, 0, 40)
    messages = list(read_to_end(broker.connection, PREDICTIONS, 0))
    records = Records([m.value() for m in messages], [m.key() for m in messages], [listed(m.headers()) for m in messages],
                      [m.offset() or 0 for m in messages], [0] * len(messages))  # fmt: skip
    rows = [row for part in rows_of(PREDICTIONS, 0, records)["predictions"] for row in part.to_pylist()]
    assert [json.loads(row["features"])["amount"] for row in rows] == [1.5 * k for k in range(40)]
    reports = list(read_to_end(broker.connection, REPORTS, 0))
    assert sum(Report.from_bytes(m.value() or b"").asked for m in reports) == 40
    assert len(reports) == done.reports
    for message in reports:
        keyring = Keyring([signer.public_base64])
        assert keyring.verify("report", message.value() or b"", listed(message.headers())) == signer.key_id


@pytest.mark.parametrize(
    ("signed", "own", "expected"),
    [(True, None, "verified"), (False, None, "claimed"), (True, "claimed", "claimed")],
    ids=["signed", "unsigned", "the file's own word"],
)
def test_predictions_and_reports_say_the_same_of_who_authenticated_a_caller(
    signed: bool,
    own: str | None,
    expected: str,
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker],
    tmp_path: Path,
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    rows = [row | ({"whose word": own} if own else {}) for row in ROWS]
    mapping = Columns("credit", "who", "at", fields=(("caller_auth", "whose word"),) if own else ())
    table = table_of(tmp_path, rows, mapping)

    publish(table, broker.connection, recorded_pace=False, signer=SigningKey.generate() if signed else None)

    reports = [Report.from_bytes(m.value() or b"") for m in read_to_end(broker.connection, REPORTS, 0)]
    assert {caller.caller_auth for report in reports for caller in report.callers} == {expected}
    (message,) = read_to_end(broker.connection, PREDICTIONS, 0)
    assert set(pa.ipc.open_stream(message.value()).read_all()["caller_auth"].to_pylist()) == {expected}


def test_a_broker_that_dies_ends_the_publishing_and_says_how_much_was_not_sent(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    connection = broker.connection.model_copy(update={"extra": {"message.timeout.ms": 300, "log_level": 0}})
    rows = [row | {"at": 1_700_000_000 + k} for k, row in enumerate(ROWS)]
    table = table_of(tmp_path, rows)

    done = publish(table, connection, recorded_pace=True, speed=2.0, progress=lambda _: broker.down())

    assert done.failed > 0
    assert 0 < done.rows < len(ROWS)
    assert "timed out" in done.error


def test_a_pace_without_times_is_refused(tmp_path: Path) -> None:
    from streams.transport.settings import KafkaConnection

    table = table_of(tmp_path, mapping=Columns("credit", drop=("at",)))
    with pytest.raises(UnusableFile, match="--flat-out"):
        publish(table, KafkaConnection(bootstrap="127.0.0.1:1"), recorded_pace=True)


def test_rows_that_are_too_much_for_one_record_go_in_several_and_a_row_that_is_has_to_be_mended(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    rows = [{"x": float(k), "text": f"{k:03}" + random.Random(k).randbytes(8_000).hex()} for k in range(200)]

    done = publish(table_of(tmp_path, rows, Columns("credit")), broker.connection, recorded_pace=False)

    records = [message.value() or b"" for message in read_to_end(broker.connection, PREDICTIONS, 0)]
    sent = [row["x"] for record in records for row in pa.ipc.open_stream(record).read_all()["features"].to_pylist()]
    assert (done.rows, done.failed, sent) == (200, 0, [row["x"] for row in rows])
    assert max(map(len, records)) <= RECORD_BYTES < sum(map(len, records))
    long = [{"text": random.Random(1).randbytes(RECORD_BYTES).hex()}]
    with pytest.raises(UnusableFile, match="leave out long texts"):
        publish(table_of(tmp_path, long, Columns("credit")), broker.connection, recorded_pace=False)


@pytest.mark.parametrize("works", [True, False])
def test_reports_say_of_the_fallback_what_the_user_says(
    works: bool, embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})

    publish(table_of(tmp_path), broker.connection, recorded_pace=False, fallback_works=works)

    reports = [Report.from_bytes(m.value() or b"") for m in read_to_end(broker.connection, REPORTS, 0)]
    assert {report.fallback_ok for report in reports} == {works}


def test_rows_without_a_caller_are_anonymous_in_reports_as_in_predictions(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1})
    rows = [{"who": who, "x": 1.0} for who in ("ann", "", None)]

    publish(table_of(tmp_path, rows, Columns("credit", "who")), broker.connection, recorded_pace=False)

    (report,) = (Report.from_bytes(m.value() or b"") for m in read_to_end(broker.connection, REPORTS, 0))
    assert {each.caller: each.asked for each in report.callers} == {"ann": 1, "anonymous": 2}


def test_a_feature_of_the_active_profile_that_no_row_has_is_named_and_the_rows_are_sent_all_the_same(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], palisade: Run, tmp_path: Path
) -> None:
    broker = embedded_broker({PREDICTIONS: 1, REPORTS: 1, PROFILES: 1})
    config = tmp_path / "palisade.yaml"
    config.write_text(f"kafka: {{bootstrap: '{broker.bootstrap}'}}\nendpoints: [{{name: credit}}]\n")
    wanted = profile()
    name, content = profile_record(wanted.to_bytes())
    activation = ProfileActivated(endpoint="credit", version="default", profile_hash=name)
    active = active_record(Active(activation, 0, 0, activation.to_bytes(), ()))
    send(broker.connection, [content, Outgoing(PROFILES, b"active|x|y", b"garbage", ()), active])
    first, *others = wanted.order
    kinds = {feature.name for feature in wanted.numeric}
    rows = [{each: 1.0 if each in kinds else "a" for each in others} | {"status": "married"}]
    file = write(tmp_path, rows)

    status, out, errors = palisade("publish", file, "--endpoint", "credit", "--flat-out", "--config", config)

    assert status == 0, errors
    assert f"credit@default: no row has {first}, which the profile has" in out
    assert f"--exclude {first}" in out
    assert "status is taken as a feature; if it is the status of the prediction, say --field status=status" in out
    assert f"features   {', '.join([*others, 'status'])}" in out
    assert "1 predictions and 1 reports sent" in out
    assert "palisade deadletter list" in out
    assert len(list(read_to_end(broker.connection, PREDICTIONS, 0))) == 1
