"""`python -m palisade.demo`: the main job on real data, judged from outside. Ends with one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from palisade.demo.load import Answer
from palisade.demo.script import TAPPED, Fault, Script, Seen, balance, judge
from palisade.demo.stage import CITY_ENDPOINT, ENDPOINTS, Stage, StageOptions, policy_difference
from palisade.demo.tap import Record, Tap
from palisade.demo.view import DemoView, final_line, scene_table
from schemas.errors import PalisadeError


def perform(
    options: StageOptions,
    console: Console,
    fault: Fault | None = None,
    on_ready: Callable[[Stage, Seen], None] | None = None,
) -> dict[str, Any]:
    """Runs the whole demo and returns its last line. `fault` is called in the middle of each scene."""
    seen = Seen()
    started = time.monotonic()
    view = DemoView(console, (*ENDPOINTS, CITY_ENDPOINT))

    def on_record(record: Record) -> None:
        signal, actions = seen.record(record)
        if signal is not None:
            view.signal(signal)
        for action in actions:
            view.action(action)

    def on_answer(answer: Answer) -> None:
        seen.answer(answer)
        view.answer(answer)

    def on_exit(name: str, code: int) -> None:
        view.note(f"{name} ended with {code}")

    with Stage(options, on_answer, on_exit) as stage, view:
        view.announce("starting: broker, ingest, detect, respond, audit; training four models on even weeks of 2013")
        stage.open_broker()
        with Tap({"bootstrap.servers": stage.stack.bootstrap}, TAPPED, on_record) as tap:
            stage.start(view.note)
            if on_ready is not None:
                on_ready(stage, seen)
            scenes = Script(stage, seen, view, options.seed, fault).run()
            view.announce("counting: events on Kafka, verdicts, rows of the audit")
            stage.close_load()
            totals = balance(stage, seen, tap)
        results, stray = judge(scenes, seen)
        view.announce("stopping")
    console.print(scene_table(results))
    return final_line(results, stray, totals, options.seed, seconds=round(time.monotonic() - started, 1))


def main() -> int:
    """Exit status 0 if all held, 1 if anything fell short, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="palisade.demo", description="Palisade's main job on real data.")
    parser.add_argument("--seed", type=int, default=1, help="chooses the weeks and who plays which part")
    parser.add_argument("--kafka", help="use this broker instead of the embedded one")
    parser.add_argument("--folder", type=Path, help="keep configuration, logs and audit here")
    given = parser.parse_args()
    console = Console(highlight=False)
    console.print("[bold]The demo's policy is the shipped one except:[/]")
    console.print(policy_difference(), markup=False)
    with tempfile.TemporaryDirectory(prefix="palisade-demo-") as temporary:
        folder = given.folder or Path(temporary)
        try:
            line = perform(StageOptions(folder, given.seed, given.kafka), console)
        except PalisadeError as error:
            Console(stderr=True).print(f"[bold red]the demo could not run:[/] {error}", highlight=False)
            return 2
    for problem in line["problems"]:
        console.print(f"[red]{problem}[/]")
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
