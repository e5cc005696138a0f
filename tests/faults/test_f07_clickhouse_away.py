"""F7: ClickHouse is away, silent, slow, read-only, full, or its answers are lost: detection does not notice, the audit waits, and
in the end it has each row once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import PREDICTIONS, VERDICTS
from tests.faults.ground import Ground
from tests.faults.outages import alerted, await_beats, committed, written
from tests.faults.stage import Setup, Stage
from tests.support.clickhouse import TOKEN, USER, ClickHouseProcess, Fault, FaultyClickHouse
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

FAULTS: dict[str, tuple[Fault, ...]] = {
    "short": ("away", "full", "answer_lost"),
    "full": ("away", "readonly", "full", "too_many_parts", "denied", "answer_lost", "silent", "slow"),
}
BEATS = {"short": 30, "full": 600}
"""Of each fault, and between them."""


@contextmanager
def clickhouse_of(folder: Path) -> Iterator[tuple[FaultyClickHouse, dict[str, Any]]]:
    """A server whose answers can be spoilt, and the section of a configuration that names it."""
    with ClickHouseProcess(folder / "clickhouse") as server, FaultyClickHouse(server.url) as proxy:
        password = folder / "clickhouse.password"
        password.write_text(TOKEN)
        yield proxy, {"clickhouse": {"url": proxy.url, "user": USER, "password_file": str(password)}}


@pytest.mark.shared
@pytest.mark.fault("F7")
def test_detection_does_not_notice_and_the_audit_has_each_row_once_in_the_end(ground: Ground, tmp_path: Path) -> None:
    with clickhouse_of(tmp_path) as (clickhouse, config), ground.stage(Setup(kafka=True, config=config)) as stage:
        stage.load.start()
        away_in_each_way(stage, ground, clickhouse)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9", *(("I12",) if ground.full else ())))


def away_in_each_way(stage: Stage, ground: Ground, clickhouse: FaultyClickHouse) -> None:
    await_beats(stage, BEATS[ground.scale])
    for fault in FAULTS[ground.scale]:
        refused, begun_ms = clickhouse.refused, _now_ms()
        clickhouse.fault = fault
        if fault != "slow":
            until(lambda refused=refused: clickhouse.refused > refused, f"a request that is {fault}", 60)
        detected = written(stage, VERDICTS)
        await_beats(stage, BEATS[ground.scale])
        until(lambda detected=detected: written(stage, VERDICTS) > detected, "verdicts meanwhile", 60)
        clickhouse.fault = "none"
        stored = committed(stage, "audit", [PREDICTIONS])
        with stage.load.paused():
            until(
                lambda stored=stored: committed(stage, "audit", [PREDICTIONS]) > stored, f"inserts after {fault}", 120
            )
        if ground.full:
            stage.outages.append({"component": "audit", "from_ms": begun_ms, "to_ms": _now_ms()})
            await_beats(stage, BEATS[ground.scale])
        ground.made()
    assert stage.ended == []


@pytest.mark.shared
@pytest.mark.fault("F7")
def test_people_hear_of_an_audit_that_is_behind_half_of_what_is_kept_and_when_it_has_caught_up(
    ground: Ground, tmp_path: Path
) -> None:
    with clickhouse_of(tmp_path) as (clickhouse, config), ground.stage(Setup(config=config)) as stage:
        stage.load.start()
        behind_half_of_retention(stage, ground, clickhouse)
        stage.settle()
        stage.prove(must=("I1", "I2", "I4", "I6", "I9"))


def behind_half_of_retention(stage: Stage, ground: Ground, clickhouse: FaultyClickHouse) -> None:
    await_beats(stage, 20)
    clickhouse.fault = "away"
    told = until(lambda: _told_of_audit(stage, "reader_behind"), "people to hear that the audit is behind", 240, 1.0)
    assert "of what is kept is unread" in told[0]
    ground.made()
    clickhouse.fault = "none"
    with stage.load.paused():  # the broker keeps so many beats and no more
        until(lambda: _told_of_audit(stage, "reader_caught_up"), "people to hear that it is over", 240, 1.0)
    assert stage.ended == []


def _told_of_audit(stage: Stage, reason: str) -> list[str]:
    return [detail for detail in alerted(stage, reason) if detail.startswith("audit, ")]


def _now_ms() -> int:
    return int(time.time() * 1000)
