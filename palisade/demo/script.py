"""The demo's script: its scenes, each judged by what clients met and what lies on Kafka."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from palisade.demo.checks import EventCount, RowKey, Totals, audit_difference, rejected, spans
from palisade.demo.data import UNIT_CHANGES, caller_shares, origin_of
from palisade.demo.load import REFUSED, Answer
from palisade.demo.scenes import (
    OWN_CAUSES,
    Expected,
    Scene,
    SceneResult,
    SeenAction,
    SeenSignal,
    Target,
    actions_in,
    judge_scene,
    signal_in,
    stray_actions,
)
from palisade.demo.stage import CITY_ENDPOINT, ENDPOINTS, Stage
from palisade.demo.tap import Record, Tap
from palisade.demo.view import DemoView
from palisade.queries import reader
from palisade.settings import load
from schemas.topics import ACTIONS, PREDICTIONS, SIGNALS
from schemas.wire import KIND_HEADER
from streams.decode import partition_of

WARM_UP_S = 14.0
"""Traffic learns callers' peaks for ten seconds; nothing is judged as a scene before."""
FLOOD_PER_S = 300
FLOOD_S = 10.0
MET_S = 1.5
"""A cause is ended so long after its first enforced call: people should see the fallback."""
ENFORCED_WITHIN_S = 20.0
RELEASED_WITHIN_S = 40.0
"""Drift is over when its rows have faded from a window of 128: at 40 rows a second that takes some ten seconds."""
QUIET_S = 2.5
"""Between a release and the next scene: calls that met the old directive are answered by then."""
PAIRED_WITHIN_S = 10.0
AUDITED_WITHIN_S = 30.0
"""The audit may be behind on a busy machine, and is waited for while it goes on: it is done, or lost rows, when it has
stored nothing more for so long."""
COPY_PER_S = 4
COPY_S = 30.0
COPY_RELEASED_WITHIN_S = 70.0
"""Twenty usual rows, or half a minute without a strange one, and a limited caller may have one row a second judged."""
"""A thief asks at an ordinary rate: callers of its size ask 1.5 to 9 times a second."""
ALONE_SHARE = (0.01, 0.06)
"""Who floods or copies has such a share of all calls: enough to see its release, and not the airport's largest."""


@dataclass(slots=True)
class Seen:
    """What was seen from outside, appended by reader threads; guarded by `changed`."""

    answers: list[Answer] = field(default_factory=list)
    signals: list[SeenSignal] = field(default_factory=list)
    actions: list[SeenAction] = field(default_factory=list)
    events: EventCount = field(default_factory=EventCount)
    owners: dict[int, str] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, answer: Answer) -> None:
        with self.changed:
            self.answers.append(answer)
            self.changed.notify_all()

    def record(self, record: Record) -> tuple[SeenSignal | None, list[SeenAction]]:
        """Takes a record of the tap; gives what it says."""
        with self.changed:
            if record.topic == PREDICTIONS:
                self.events.add(record)
                self.changed.notify_all()
                if record.headers.get(KIND_HEADER) == b"tick" and record.value is not None:
                    self.owners[record.partition] = str(json.loads(record.value)["worker"])
                return None, []
            signal, actions = signal_in(record), actions_in(record)
            self.signals += [signal] if signal is not None else []
            self.actions += actions
            return signal, actions

    def wait(self, found: Callable[[Answer], bool], since: float, timeout_s: float) -> Answer | None:
        """The first answer to a call sent since `since` that fits, waited for."""
        looked = 0
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while True:
                for answer in self.answers[looked:]:
                    if answer.t_sent >= since and found(answer):
                        return answer
                looked = len(self.answers)
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    return None


Fault = Callable[[str, str], None]
"""Called in the middle of a scene, with its name and its endpoint: a test kills processes there."""
BREAKS = ("duration_h", "pressure_inhg")
"""Unit changes that leave the year's range of a block at each airport. Temperature in degrees Celsius does not: a cold day
looks like it, and only a test of several features together could tell. Distance in kilometres does at two of the three.
"""


@dataclass(slots=True)
class Script:
    """Runs the scenes on a stage. `seed` chooses who plays which part."""

    stage: Stage
    seen: Seen
    view: DemoView
    seed: int
    fault: Fault | None = None

    def run(self) -> list[Scene]:
        """All scenes; each begins after the release of the one before."""
        rng = random.Random(self.seed)
        flooded, drifting, hanging = rng.sample(ENDPOINTS, 3)
        flooder = self._one_of(rng, flooded)
        change = rng.choice(BREAKS)
        copied = rng.choice(ENDPOINTS)
        thief = self._one_of(rng, copied, but=flooder)
        city_change = rng.choice(BREAKS)
        for stream in ("replay", "city"):
            self.stage.load.ask({"do": stream}, stream)
        self.view.announce(f"warming up: {WARM_UP_S:.0f} s of ordinary traffic, 200 requests a second")
        time.sleep(WARM_UP_S)  # ordinary traffic has no event to wait for: it is the time itself that is needed
        return [
            self._flood(flooded, flooder),
            self._break("drift", "(b)", drifting, change),
            self._hang(hanging),
            self._copy(copied, thief),
            self._break("webhook", "(e)", CITY_ENDPOINT, city_change),
        ]

    @staticmethod
    def _one_of(rng: random.Random, endpoint: str, but: str | None = None) -> str:
        """A caller of the endpoint with a share within `ALONE_SHARE`."""
        low, high = ALONE_SHARE
        here = "@" + origin_of(endpoint)
        fit = [name for name, share in caller_shares().items() if low <= share <= high and name.endswith(here)]
        return rng.choice(sorted(name for name in fit if name != but))

    def _flood(self, endpoint: str, caller: str) -> Scene:
        self.view.announce(f"(a) {caller} floods {endpoint}: {FLOOD_PER_S} requests a second for {FLOOD_S:.0f} s")
        return self._alone("flood", endpoint, caller, FLOOD_PER_S, FLOOD_S, RELEASED_WITHIN_S)

    def _copy(self, endpoint: str, caller: str) -> Scene:
        said = f"{COPY_PER_S} rows a second, drawn over the ranges of its features"
        self.view.announce(f"(d) {caller} copies the model of {endpoint}: {said}")
        return self._alone("copy", endpoint, caller, COPY_PER_S, COPY_S, COPY_RELEASED_WITHIN_S)

    def _alone(self, do: str, endpoint: str, caller: str, per_s: float, seconds: float, within_s: float) -> Scene:
        """One caller does what the load calls `do`, and is limited."""
        load = self.stage.load
        expected = Expected("limit", endpoint, caller, within_s)
        load.ask({"do": "scene", "name": do}, "scene")
        command = {"do": do, "endpoint": endpoint, "caller": caller, "rate": per_s, "seconds": seconds}
        begun = float(load.ask(command, do)["at"])
        met = self.seen.wait(lambda answer: answer.status == REFUSED and answer.caller == caller, begun, seconds)
        self._say_met(met, begun, f"{caller} is limited")
        self._break_something(do, endpoint)
        self._sleep_until(begun + min(seconds, FLOOD_S))
        ended = time.time()
        load.ask({"do": "calm"}, "calm")
        return self._release(
            do, expected, begun, ended, lambda answer: answer.caller == caller and answer.status == 200
        )

    def _break(self, name: str, letter: str, endpoint: str, change: str) -> Scene:
        load = self.stage.load
        expected = Expected("fallback", endpoint, None, RELEASED_WITHIN_S)
        self.view.announce(
            f"{letter} the feature pipeline of {endpoint} breaks for everybody: {UNIT_CHANGES[change].said}"
        )
        load.ask({"do": "scene", "name": name}, "scene")
        begun = float(load.ask({"do": "break", "endpoint": endpoint, "change": change}, "break")["at"])
        met = self.seen.wait(lambda answer: _directed_fallback(answer, endpoint), begun, ENFORCED_WITHIN_S)
        self._say_met(met, begun, f"{endpoint} serves its fallback")
        self._break_something(name, endpoint)
        time.sleep(MET_S)
        ended = float(load.ask({"do": "mend", "endpoint": endpoint}, "mend")["at"])
        return self._release(name, expected, begun, ended, lambda answer: _primary(answer, endpoint))

    def _hang(self, endpoint: str) -> Scene:
        server = self.stage.servers[endpoint]
        expected = Expected("fallback", endpoint, None, RELEASED_WITHIN_S)
        self.view.announce(f"(c) the model of {endpoint} hangs")
        self.stage.load.ask({"do": "scene", "name": "hang"}, "scene")
        begun = float(server.ask({"do": "hang"}, "hang")["at"])
        met = self.seen.wait(lambda answer: _directed_fallback(answer, endpoint), begun, ENFORCED_WITHIN_S)
        self._say_met(met, begun, f"{endpoint} serves its fallback by directive")
        self._break_something("hang", endpoint)
        time.sleep(MET_S)
        ended = float(server.ask({"do": "clear"}, "clear")["at"])
        return self._release("hang", expected, begun, ended, lambda answer: _primary(answer, endpoint))

    def _release(
        self, name: str, expected: Expected, begun: float, ended: float, served: Callable[[Answer], bool]
    ) -> Scene:
        """Waits until the journal has taken the action back and a client was served again."""
        lifted = self._wait_lifted(expected.target, ended, expected.release_within_s)
        if lifted is not None:
            self.seen.wait(served, max(lifted, ended), RELEASED_WITHIN_S)
            self.view.note(f"released {time.time() - ended:.1f} s after its cause ended")
        time.sleep(QUIET_S)
        self.stage.load.ask({"do": "scene", "name": ""}, "scene")
        return Scene(name, expected, begun, ended, time.time())

    def _wait_lifted(self, target: Target, since: float, within_s: float) -> float | None:
        undo = {"fallback": "restore", "limit": "unlimit"}[target.action]
        deadline = since + within_s
        while time.time() < deadline:
            with self.seen.changed:
                for action in self.seen.actions:
                    same = action.endpoint == target.endpoint and action.caller == target.caller
                    if action.kind == undo and same and action.outcome == "published" and action.at_s >= since - 5:
                        return action.at_s
                self.seen.changed.wait(0.2)
        return None

    def _break_something(self, scene: str, endpoint: str) -> None:
        if self.fault is not None:
            self.fault(scene, endpoint)

    def _say_met(self, met: Answer | None, begun: float, text: str) -> None:
        self.view.note(f"{text} after {met.t_answered - begun:.2f} s" if met is not None else "no call met an action")

    @staticmethod
    def _sleep_until(moment: float) -> None:
        time.sleep(max(0.0, moment - time.time()))


def _directed_fallback(answer: Answer, endpoint: str) -> bool:
    return answer.endpoint == endpoint and answer.served_by == "fallback" and answer.cause not in OWN_CAUSES


def _primary(answer: Answer, endpoint: str) -> bool:
    return answer.endpoint == endpoint and answer.served_by == "primary"


def owner_of(seen: Seen, endpoint: str, partitions: int) -> str | None:
    """The detect worker that ticks the endpoint's partition."""
    with seen.changed:
        return seen.owners.get(partition_of(endpoint.encode(), partitions))


def balance(stage: Stage, seen: Seen, tap: Tap) -> Totals:
    """Events counted from outside against verdicts and rows of the audit, asked through its port."""
    events = _all_events(seen, tap)
    settings = load(stage.stack.config_path)
    engine = reader(settings)
    most, deadline = -1, 0.0
    try:
        while True:
            verdicts = [
                (RowKey(PREDICTIONS, *key[:3]), key[3])
                for key in _rows(
                    engine, "SELECT partition, offset, row, outcome FROM palisade.verdicts WHERE topic = {t:String}"
                )
            ]
            rows = [
                RowKey(PREDICTIONS, *key)
                for key in _rows(
                    engine, "SELECT partition, offset, row FROM palisade.predictions WHERE topic = {t:String}"
                )
            ]
            scored = {key for key, outcome in verdicts if outcome == 0}
            judged = audit_difference(events, (key for key, _ in verdicts))
            kept = audit_difference(scored, rows)
            if (stored := len(verdicts) + len(rows)) > most:
                most, deadline = stored, time.monotonic() + AUDITED_WITHIN_S
            if not (judged.missing or kept.missing) or time.monotonic() > deadline:
                break
            time.sleep(0.5)  # the audit inserts once a second; it has no event to wait for from outside
    finally:
        engine.close()
    with seen.changed:
        return Totals(
            events_in=len(events),
            scored=len(scored),
            dead_lettered=len(verdicts) - len(scored),
            rejected=rejected(seen.answers, seen.events),
            audit_missing=len(judged.missing) + len(kept.missing),
            audit_extra=len(judged.extra) + len(kept.extra),
            missing_at="; ".join(
                f"{table} of {spans(keys)}"
                for table, keys in (("verdicts", judged.missing), ("predictions", kept.missing))
                if keys
            ),
        )


def _all_events(seen: Seen, tap: Tap) -> set[RowKey]:
    """Every event, once each answered call has one: ingest may still be pairing the last requests."""
    with seen.changed:
        seen.changed.wait_for(lambda: rejected(seen.answers, seen.events) <= 0, PAIRED_WITHIN_S)
    tap.drain(PREDICTIONS)
    with seen.changed:
        return set(seen.events.identities())


def _rows(engine: object, sql: str) -> list[tuple[int, ...]]:
    table = engine.query_arrow(sql, {"t": PREDICTIONS})  # type: ignore[attr-defined]
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def judge(scenes: list[Scene], seen: Seen) -> tuple[list[SceneResult], tuple[Target, ...]]:
    """Each scene's result, and what was done outside all scenes."""
    with seen.changed:
        results = [judge_scene(scene, seen.answers, seen.signals, seen.actions) for scene in scenes]
        return results, stray_actions(scenes, seen.answers, seen.actions)


TAPPED = (PREDICTIONS, SIGNALS, ACTIONS)
