import io
import json
import time

from rich.console import Console

from palisade.demo.checks import Totals
from palisade.demo.load import Answer
from palisade.demo.scenes import SceneResult, SeenAction, SeenSignal, Target
from palisade.demo.view import DemoView, final_line, scene_table
from tests.demo.test_scenes import FLOOD

GOOD = Totals(100, 100, 0, 0, 0, 0)
PASSED = SceneResult(FLOOD, 100.2, 100.6, 100.7, 100.9, 112.0, True, (), (), ())
INNOCENT = Target("limit", "flights-lga", "DL@LGA")
FAILED = SceneResult(
    FLOOD, 100.2, None, None, None, None, False, (INNOCENT,), (INNOCENT,), ("no signal", "not released")
)

FIGURES = {
    "scenes", "innocent_limited", "events_in", "scored", "dead_lettered", "rejected", "audit_missing", "audit_extra",
    "seed", "ok",
}  # fmt: skip
SCENE_FIGURES = {
    "name", "expected", "acted", "wrong_actions", "first_event_to_signal_s", "first_event_to_action_s",
    "first_event_to_enforced_s", "released",
}  # fmt: skip


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


def output(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def tell(view: DemoView) -> None:
    now = time.time()
    view.announce("one caller floods flights-lga")
    view.answer(Answer(now - 0.01, now, "flights-lga", "US@LGA", 429, "refused", "flood", True))
    view.answer(Answer(now - 0.01, now, "flights-jfk", "B6@JFK", 200, "fallback", "flood"))
    view.signal(SeenSignal(now, "opened", "caller_rate", "flights-lga", "US@LGA", "critical"))
    view.action(SeenAction(now, "limit", "flights-lga", "US@LGA", "caller_out_of_pattern", "published", "palisade"))
    view.signal(SeenSignal(now, "updated", "caller_rate", "flights-lga", "US@LGA", "critical"))


def test_without_a_terminal_each_event_is_one_plain_line():
    plain = console(terminal=False)
    with DemoView(plain, ["flights-jfk", "flights-lga"]) as view:
        tell(view)

    lines = output(plain).splitlines()
    assert len(lines) == 3
    assert "\x1b" not in output(plain)
    assert [line.split(" s  ")[1] for line in lines] == [
        "one caller floods flights-lga",
        "signal   caller_rate opened: flights-lga US@LGA (critical)",
        "action   limit flights-lga US@LGA: caller_out_of_pattern, published",
    ]


def test_on_a_terminal_routes_and_limited_callers_of_each_endpoint_are_seen():
    terminal = console(terminal=True)
    with DemoView(terminal, ["flights-jfk", "flights-lga"]) as view:
        tell(view)
        shown = console(terminal=False)
        shown.print(view.render())

    rows = {row.split()[1]: row for row in output(shown).splitlines() if "flights-" in row and row.startswith("│")}
    assert "fallback" in rows["flights-jfk"]
    assert "US@LGA" in rows["flights-lga"]
    assert "one caller floods" in output(terminal)


def test_the_last_line_has_every_key_of_the_figures_and_is_json():
    line = final_line([PASSED], (), GOOD, 3, python="3.12")

    assert set(line) >= FIGURES | {"python"}
    assert all(set(scene) >= SCENE_FIGURES for scene in line["scenes"])
    assert line["ok"] is True
    assert line["scenes"][0]["first_event_to_enforced_s"] == 0.7
    assert json.loads(json.dumps(line)) == line


def test_the_last_line_is_not_ok_if_anything_fell_short():
    assert final_line([PASSED, FAILED], (), GOOD, 1)["ok"] is False
    assert final_line([PASSED], (INNOCENT,), GOOD, 1)["innocent_limited"] == 1
    assert final_line([PASSED], (INNOCENT,), GOOD, 1)["ok"] is False
    assert final_line([PASSED], (), Totals(100, 99, 0, 0, 0, 0), 1)["ok"] is False
    assert final_line([], (), GOOD, 1)["ok"] is False


def test_the_table_says_what_fell_short():
    shown = console(terminal=False)
    shown.print(scene_table([PASSED, FAILED]))

    assert "passed" in output(shown)
    assert "no signal" in output(shown)
    assert "limit flights-lga DL@LGA" in output(shown)
    assert "0.70" in output(shown)
