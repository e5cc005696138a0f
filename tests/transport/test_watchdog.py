"""The watchdog: ends what stands still, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from streams.watchdog import LoopHeartbeat, Probe, Since, Watchdog


def watch(*probes: Probe, out: Path) -> tuple[Watchdog, list[int], threading.Event]:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    return Watchdog(probes, period_s=0.005, end=end, out=out.open("w+")), codes, ended


def test_no_progress_twice_in_a_row_dumps_the_state_and_ends_the_process(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dog, codes, ended = watch(Probe("runs", 1.0, lambda _: 2.0), Probe("loop", 1.0, lambda _: None), out=dump)
    dog.start()
    assert ended.wait(60)
    dog.stop()
    assert codes == [70]
    assert "no progress of runs" in dump.read_text()
    assert "loop idle" in dump.read_text()
    assert "watchdog.py" in dump.read_text()


def test_a_probe_that_cannot_look_ends_the_process_too(tmp_path: Path) -> None:
    dog, codes, ended = watch(Probe("broken", 1.0, lambda _: 1 / 0), out=tmp_path / "dump")
    dog.start()
    assert ended.wait(60)
    dog.stop()
    assert codes == [70]
    assert "ZeroDivisionError" in (tmp_path / "dump").read_text()


def test_one_bad_look_or_nothing_to_do_ends_nothing(tmp_path: Path) -> None:
    looks = iter([2.0, 0.0, 2.0, 0.0, 2.0])
    done = threading.Event()

    def age(_: float) -> float | None:
        value = next(looks, None)
        if value is None:
            done.set()
        return value

    dog, codes, _ = watch(Probe("runs", 1.0, age), out=tmp_path / "dump")
    dog.start()
    assert done.wait(60)
    dog.stop()
    assert codes == []


def test_a_condition_is_timed_from_its_start_and_anew_with_each_stamp() -> None:
    since = Since()
    assert since.age(10.0, True, "a") == 0.0
    assert since.age(12.0, True, "a") == 2.0
    assert since.age(13.0, True, "b") == 0.0
    assert since.age(14.0, False, "b") is None
    assert since.age(15.0, True, "b") == 0.0


@pytest.mark.anyio
async def test_a_blocked_loop_shows_and_a_free_one_answers() -> None:
    heartbeat = LoopHeartbeat(asyncio.get_running_loop())
    assert heartbeat.age(1.0) == 0.0
    assert heartbeat.age(6.0) == 5.0
    await asyncio.sleep(0)
    assert heartbeat.age(7.0) == 0.0


def test_a_worker_whose_loop_is_stuck_is_ended_with_code_70() -> None:
    program = """
import time
from streams.app import Hooks, KafkaConnection, WatchdogLimits, make_app, run_topic, run_worker
from streams.embedded_broker import EmbeddedBroker

async def block(tps):
    time.sleep(300)

async def handler(run): ...

with EmbeddedBroker({"t": 1}) as broker:
    app = make_app("stuck", connection=KafkaConnection(bootstrap=broker.bootstrap), hooks=Hooks(on_assigned=block))
    run_topic(app, "t", handler)
    raise SystemExit(run_worker(app, watchdog=WatchdogLimits(loop_s=3.0)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 70, done.stderr
    assert "no progress of loop" in done.stderr
    assert "in block" in done.stderr


WORKER = """
import asyncio
from streams import failpoints
from streams.app import KafkaConnection, WatchdogLimits, make_app, outbox_of, run_topic, run_worker
from streams.embedded_broker import EmbeddedBroker

failpoints.name_role("worker")

async def handler(run):
    with run:
        {body}

async def ask():
    await outbox_of(app).send("t", None, b"one")

with EmbeddedBroker({{"t": 1}}) as broker:
    app = make_app("zombie", connection=KafkaConnection(bootstrap=broker.bootstrap))
    run_topic(app, "t", handler)
    app.task(ask)
    raise SystemExit(run_worker(app, watchdog=WatchdogLimits(polling_s=2.0, handler_s=2.0)))
"""


@pytest.mark.parametrize(
    ("armed", "named"),
    [("begun stick", "no progress of handlers"), ("polled hang", "no progress of polling")],
)
def test_a_worker_of_which_one_part_stands_still_while_the_rest_lives_is_ended(
    tmp_path: Path, armed: str, named: str
) -> None:
    point, what = armed.split()
    (tmp_path / f"worker.{point}").write_text(what)
    done = subprocess.run(
        [sys.executable, "-c", WORKER.format(body="pass")],
        env={**os.environ, "PALISADE_FAILPOINTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 70, done.stderr
    assert named in done.stderr


def test_a_handler_that_is_long_at_work_and_says_so_is_left_alone() -> None:
    body = """for _ in range(50):
            run.sign()
            await asyncio.sleep(0.1)
        raise SystemExit(3)"""
    done = subprocess.run([sys.executable, "-c", WORKER.format(body=body)], capture_output=True, text=True, timeout=120)
    assert "no progress" not in done.stderr
    assert done.returncode == 3, done.stderr
