"""What is told from other evidence: webhooks from orders and the journal, processes from their notes; and the command."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from palisade.cli import main as cli
from palisade.cli.verify import _since_ms
from palisade.supervisor import ChildSpec, Supervisor
from palisade.verify.collect import _pieces, _Window
from palisade.verify.history import History, table_of
from palisade.verify.processes import NOTES, ProcessNotes, process_rows
from palisade.verify.webhook_events import webhook_rows
from schemas.errors import PalisadeError
from tests.verify.given import changed, history


def order(at_ms: int, epoch: int, *actions: str | None):
    same = {"partition": 0, "offset": at_ms, "at_ms": at_ms, "endpoint": "flip", "epoch": epoch}
    return [same | {"action_id": action} for action in actions]


def news(at_ms: int, reason: str, endpoint: str = "flip"):
    return {"at_ms": at_ms, "offset": at_ms, "endpoint": endpoint, "kind": "notify", "reason": reason}


def test_each_new_set_of_actions_is_a_webhook_that_the_next_one_supersedes():
    orders = [*order(10, 3, "a"), *order(20, 3, "a"), *order(30, 4, "a", "b"), *order(60, 5, None)]
    decisions = [
        news(15, "webhook_delivered"),
        news(16, "webhook_delivered", "other"),
        news(40, "webhook_failing"),
        news(70, "webhook_disabled"),
        news(80, "webhook_given_up"),
    ]
    found = webhook_rows(table_of("orders", orders), table_of("decisions", decisions), ["flip"])

    assert [(row["at_ms"], row["id"], row["event"]) for row in found] == [
        (10, "flip/3", "wanted"),
        (15, "flip/3", "delivered"),
        (30, "flip/3", "superseded"),
        (30, "flip/4", "wanted"),
        (60, "flip/4", "superseded"),
        (60, "flip/5", "wanted"),
        (70, "flip/5", "disabled"),
        (80, "flip/5", "given_up"),
    ]
    assert [row["reason"] for row in found[-2:]] == [
        "webhook_disabled at journal offset 70",
        "webhook_given_up at journal offset 80",
    ]


def test_what_a_supervisor_starts_and_loses_is_noted(tmp_path: Path):
    notes = ProcessNotes(tmp_path)
    ended = threading.Event()

    def exited(name: str, status: int) -> None:
        notes.exited(name, status)
        ended.set()

    with Supervisor(tmp_path / "logs", exited, notes.started) as supervisor:
        command = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
        supervisor.start(ChildSpec("child", command, ready="up", restart=False))
        pid = supervisor.pid("child")
        alive = process_rows(tmp_path)
        supervisor.kill("child")
        assert ended.wait(60)

    assert alive is not None
    assert [(row["event"], row["pid"]) for row in alive][:1] == [("started", pid)]
    assert alive[-1]["event"] == "rss"
    assert alive[-1]["rss_bytes"] > 1_000_000
    rows = process_rows(tmp_path)
    assert rows is not None
    assert [(row["event"], row["pid"], row.get("status")) for row in rows] == [
        ("started", pid, None),
        ("exited", pid, -9),
    ]
    assert not rows[-1]["asked"]
    assert process_rows(tmp_path / "logs") is None


def test_a_note_that_was_cut_short_takes_none_of_the_others_with_it(tmp_path: Path):
    notes = ProcessNotes(tmp_path)
    notes.started("detect", 2**22 + 1)  # above every process id of Linux: it lives no more
    notes.exited("detect", -9)
    path = tmp_path / NOTES
    whole = process_rows(tmp_path)
    path.write_text(path.read_text() + path.read_text()[:30])

    assert whole is not None
    assert [row["event"] for row in whole] == ["started", "exited"]
    assert process_rows(tmp_path) == whole


def test_the_audit_is_asked_for_so_many_events_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("palisade.verify.collect.ROWS_A_QUERY", 100)
    window = _Window(12, 40, np.array([10, 12, 13, 20, 30, 39]), np.cumsum(np.array([500, 60, 40, 300, 0, 5])))

    assert list(_pieces(window)) == [(12, 20), (20, 30), (30, 40)]
    assert list(_pieces(_Window(0, 0, np.array([], np.int64), np.array([], np.int64)))) == []


def verify(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["palisade", "verify", *map(str, words)])
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    out, errors = capsys.readouterr()
    return status, (out + errors).splitlines()


def test_a_saved_history_is_judged_and_the_last_line_is_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    history().save(tmp_path / "clean")
    changed(history(), "audit", lambda rows: rows[1:]).without("ledger").save(tmp_path / "broken")

    status, lines = verify(monkeypatch, capsys, "check", tmp_path / "clean")
    assert status == 0
    assert json.loads(lines[-1])["holds"] == 12
    status, lines = verify(monkeypatch, capsys, "check", tmp_path / "broken")
    said = json.loads(lines[-1])
    assert status == 1
    assert (said["verify"]["I4"], said["verify"]["I10"], said["violated"], said["not_judged"]) == (
        "violated",
        "not judged",
        1,
        1,
    )
    assert verify(monkeypatch, capsys, "check", tmp_path / "clean", "--finished")[0] == 1
    status, lines = verify(monkeypatch, capsys, "check", tmp_path / "nothing")
    assert status == 2
    assert "is no history" in " ".join(lines)


def test_the_states_of_another_history_are_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def observed(digest: str) -> History:
        rows = [row | {"digest": digest} for row in history()["states"].to_pylist() if row["run"] == "observed"]
        return history().with_tables(states=table_of("states", rows))

    for name, digest in (("ours", "same"), ("equal", "same"), ("other", "else")):
        observed(digest).save(tmp_path / name)

    def of(*words: object) -> str:
        return str(json.loads(verify(monkeypatch, capsys, "check", tmp_path / "ours", *words)[1][-1])["verify"]["I3"])

    assert of() == "not judged"
    assert of("--reference", tmp_path / "equal") == "holds"
    assert of("--reference", tmp_path / "other") == "violated"


def test_since_is_a_time_or_how_long_ago():
    assert _since_ms("") == 0
    assert _since_ms("2026-05-01T12:00:00+00:00") == 1_777_636_800_000
    assert abs(_since_ms("10m") - _since_ms("600s")) < 60_000
    with pytest.raises(PalisadeError, match="30s, 10m"):
        _since_ms("yesterday")
