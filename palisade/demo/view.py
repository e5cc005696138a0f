"""What the demo shows: a live view on a terminal, plain lines elsewhere; the table at the end; the last line."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from palisade.demo.checks import Totals
from palisade.demo.load import REFUSED, Answer
from palisade.demo.scenes import SceneResult, SeenAction, SeenSignal, Target

WINDOW_S = 2.0
"""Rates and routes are of the last so many seconds; answers older than this are forgotten."""
KEPT_LINES = 8
REFRESH_PER_S = 8

_ROUTE_STYLE = {"primary": "green", "fallback": "yellow", "none": "red"}


class DemoView:
    """Thread-safe: any thread may tell it what happened. On a terminal it redraws itself, else it prints each line once.

    Bounded: `WINDOW_S` of answers, `KEPT_LINES` lines.
    """

    def __init__(self, console: Console, endpoints: Sequence[str]) -> None:
        self._console = console
        self._endpoints = endpoints
        self._lock = Lock()
        self._answers: deque[Answer] = deque()
        self._lines: deque[Text] = deque(maxlen=KEPT_LINES)
        self._headline = "starting"
        self._started = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=self.render, refresh_per_second=REFRESH_PER_S, transient=True
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def announce(self, headline: str) -> None:
        """A new part of the demo begins."""
        with self._lock:
            self._headline = headline
        self._say(Text(headline, style="bold cyan"))

    def answer(self, answer: Answer) -> None:
        """One call as its client saw it."""
        with self._lock:
            self._answers.append(answer)
            self._forget()

    def signal(self, signal: SeenSignal) -> None:
        """A signal of the product; those that only renew it, or say that data lack yet, are not shown."""
        if signal.state not in ("updated", "unknown"):
            whom = signal.endpoint if signal.subject == signal.endpoint else f"{signal.endpoint} {signal.subject}"
            self._say(Text(f"signal   {signal.kind} {signal.state}: {whom} ({signal.severity})", style="magenta"))

    def action(self, action: SeenAction) -> None:
        """A decision of the product; renewals are not shown."""
        if action.reason != "evidence_renewed":
            target = Target(action.kind, action.endpoint, action.caller)
            style = "yellow" if action.outcome == "published" else "dim"
            self._say(Text(f"action   {target}: {action.reason}, {action.outcome}", style=style))

    def note(self, text: str) -> None:
        """Anything else worth a line."""
        self._say(Text(text))

    def render(self) -> Group:
        """The present state, as the terminal shows it."""
        with self._lock:
            self._forget()
            answers, lines, headline = list(self._answers), list(self._lines), self._headline
        by_endpoint = Table(box=None, padding=(0, 3, 0, 0))
        for name in ("endpoint", "answers/s", "served by", "median ms", "limited callers"):
            by_endpoint.add_column(name, justify="right" if name in ("answers/s", "median ms") else "left")
        for endpoint in self._endpoints:
            by_endpoint.add_row(endpoint, *_cells([answer for answer in answers if answer.endpoint == endpoint]))
        title = f"{headline}   {time.monotonic() - self._started:.0f} s"
        return Group(Panel(by_endpoint, title=title, title_align="left"), *lines)

    def _say(self, line: Text) -> None:
        with self._lock:
            stamped = Text(f"{time.monotonic() - self._started:6.1f} s  ", style="dim").append_text(line)
            self._lines.append(stamped)
        if self._live is None:
            self._console.print(stamped, soft_wrap=True)

    def _forget(self) -> None:
        oldest = time.time() - WINDOW_S
        while self._answers and self._answers[0].t_answered < oldest:
            self._answers.popleft()


def _cells(answers: Sequence[Answer]) -> tuple[str | Text, ...]:
    """Rate, route, latency and limited callers of one endpoint."""
    served = [answer for answer in answers if answer.status != REFUSED]
    routes = Counter(answer.served_by for answer in served if answer.served_by != "probe")
    route = routes.most_common(1)[0][0] if routes else "-"
    latency = sorted(1000 * (answer.t_answered - answer.t_sent) for answer in served)
    limited = sorted({answer.caller for answer in answers if answer.status == REFUSED})
    return (
        f"{len(answers) / WINDOW_S:.0f}",
        Text(route, style=_ROUTE_STYLE.get(route, "")),
        f"{latency[len(latency) // 2]:.1f}" if latency else "-",
        Text(" ".join(limited), style="red"),
    )


def scene_table(results: Sequence[SceneResult]) -> Table:
    """A row a scene: first hostile event → signal → action → first enforced call → release, in seconds."""
    table = Table(title="seconds since the first hostile event; release since its cause ended", title_justify="left")
    for name in ("scene", "expected", "signal", "action", "enforced", "released", "wrong", "verdict"):
        table.add_column(name, justify="right" if name in ("signal", "action", "enforced", "released") else "left")
    for result in results:
        release = None if result.released_s is None else result.released_s - result.scene.cause_ended_s
        moments = (result.signal_s, result.action_s, result.enforced_s)
        table.add_row(
            result.scene.name,
            str(result.scene.expected.target),
            *(_seconds(result.since_first_event(moment)) for moment in moments),
            _seconds(release),
            "\n".join(map(str, result.wrong)) or "none",
            Text("passed", style="green") if result.passed else Text("\n".join(result.problems), style="red"),
        )
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def final_line(
    results: Sequence[SceneResult], stray: Sequence[Target], totals: Totals, seed: int, **more: object
) -> dict[str, Any]:
    """The demo's last line. `stray`: actions outside all scenes; `more`: further keys. `ok` says whether all held."""
    innocents = {target for result in results for target in result.innocents if target.action == "limit"}
    innocents |= {target for target in stray if target.action == "limit"}
    problems = [f"{result.scene.name}: {problem}" for result in results for problem in result.problems]
    problems += [f"outside all scenes: {target}" for target in stray] + list(totals.problems())
    return {
        "scenes": [
            {
                "name": result.scene.name,
                "expected": str(result.scene.expected.target),
                "acted": str(result.scene.expected.target) if result.action_s is not None else None,
                "wrong_actions": len(result.wrong),
                "first_event_to_signal_s": result.since_first_event(result.signal_s),
                "first_event_to_action_s": result.since_first_event(result.action_s),
                "first_event_to_enforced_s": result.since_first_event(result.enforced_s),
                "released": result.released,
            }
            for result in results
        ],
        "innocent_limited": len(innocents),
        "events_in": totals.events_in,
        "scored": totals.scored,
        "dead_lettered": totals.dead_lettered,
        "rejected": totals.rejected,
        "audit_missing": totals.audit_missing,
        "audit_extra": totals.audit_extra,
        "seed": seed,
        **more,
        "problems": problems,
        "ok": bool(results) and not problems,
    }
