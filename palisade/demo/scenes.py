"""What a scene came to: judged by the HTTP clients' own log.

Nothing here asks the product whether it did well. Its signals and its journal are read from Kafka to tell when it saw and
when it acted; that it did, to whom, and that it stopped, is what the clients met.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from palisade.demo.load import REFUSED, Answer
from palisade.demo.tap import Record
from schemas.actions import JournalEntry
from schemas.signals import Signal
from schemas.wire import KIND_HEADER

SETTLE_S = 1.0
"""Calls so soon after a release may still have met the old directive; so far before its cause ended a release is early."""
OWN_CAUSES = frozenset({"timeout", "error"})
"""Causes of a fallback answer that a serving process gave by itself, without a directive."""


class SeenSignal(NamedTuple):
    """A signal on Kafka; `at_s` is the broker's time of its record."""

    at_s: float
    state: str
    kind: str
    endpoint: str
    subject: str
    severity: str


class SeenAction(NamedTuple):
    """A decision in the journal; `at_s` is the broker's time of its entry."""

    at_s: float
    kind: str
    endpoint: str
    caller: str | None
    reason: str
    outcome: str
    actor: str


def signal_in(record: Record) -> SeenSignal | None:
    """The signal of a record, or None if it is another kind. Raises ValueError if it cannot be read."""
    if record.headers.get(KIND_HEADER) != Signal.KIND.encode() or record.value is None:
        return None
    signal: Signal = Signal.from_bytes(record.value)
    return SeenSignal(record.at_s, signal.state, signal.kind, signal.endpoint, signal.subject, signal.severity)


def actions_in(record: Record) -> list[SeenAction]:
    """The decisions of a journal record; none if it is another kind. Raises ValueError if it cannot be read."""
    if record.headers.get(KIND_HEADER) != JournalEntry.KIND.encode() or record.value is None:
        return []
    entry: JournalEntry = JournalEntry.from_bytes(record.value)
    return [
        SeenAction(record.at_s, each.kind, each.endpoint, each.caller, each.reason, each.outcome, each.actor)
        for each in entry.decisions
    ]


@dataclass(frozen=True, slots=True)
class Expected:
    """The one answer that a scene must get, and how soon after its cause ended it must be taken back."""

    action: Literal["limit", "fallback"]
    endpoint: str
    caller: str | None
    release_within_s: float

    @property
    def target(self) -> Target:
        return Target(self.action, self.endpoint, self.caller)


class Target(NamedTuple):
    """What was done, and to whom."""

    action: str
    endpoint: str
    caller: str | None

    def __str__(self) -> str:
        return " ".join(part for part in self if part)


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene as the script ran it. Seconds since the epoch; `finished_s`: when the script went on to the next one."""

    name: str
    expected: Expected
    cause_set_s: float
    cause_ended_s: float
    finished_s: float


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What came of a scene: moments in seconds since the epoch, None where it never came to that.

    `released`: taken back when its cause had ended, and soon enough. `wrong` are actions on anybody or anything else, by
    the clients' log (`innocents`) or the journal. `problems` say in words what fell short.
    """

    scene: Scene
    first_event_s: float | None
    signal_s: float | None
    action_s: float | None
    enforced_s: float | None
    released_s: float | None
    released: bool
    wrong: tuple[Target, ...]
    innocents: tuple[Target, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems

    def since_first_event(self, moment_s: float | None) -> float | None:
        """Seconds from the first hostile event, to the millisecond."""
        if moment_s is None or self.first_event_s is None:
            return None
        return round(moment_s - self.first_event_s, 3)


_UNDO = {"restore": "fallback", "unlimit": "limit"}
_ENFORCED = {"fallback", "limit", "kill", "unkill"}


def judge_scene(
    scene: Scene, answers: Sequence[Answer], signals: Sequence[SeenSignal], actions: Sequence[SeenAction]
) -> SceneResult:
    """Judges one scene by the whole run's answers, signals and actions, from its cause to its end."""
    expected = scene.expected
    mine = sorted(answer for answer in answers if scene.cause_set_s <= answer.t_sent <= scene.finished_s)
    done = [action for action in actions if scene.cause_set_s <= action.at_s <= scene.finished_s]
    first = _first_event(scene, mine)
    signal = _first(s.at_s for s in signals if _answers(s, scene))
    action = _first(a.at_s for a in done if _target(a) == expected.target and a.kind in _ENFORCED)
    enforced = _first(answer.t_answered for answer in mine if _enforced(answer) == expected.target)
    released = _released(scene, mine) if enforced is not None else None
    lifted = any(a.kind in _UNDO and _target(a) == expected.target for a in done)
    late = _release_problem(scene, released, lifted)
    innocents = _sorted({met for answer in mine if (met := _enforced(answer)) and met != expected.target})
    wrong = _sorted({*innocents, *(target for a in done if (target := _target(a)) and target != expected.target)})
    steps = (
        (first, "no event of the cause was sent"),
        (signal, "no signal"),
        (action, "no action"),
        (enforced, "no call met the action"),
    )
    problems = [problem for moment, problem in steps if moment is None]
    problems += ["met only after its cause ended"] if enforced is not None and enforced > scene.cause_ended_s else []
    problems += [late] if late and enforced is not None else []
    problems += [f"wrong action: {target}" for target in wrong]
    return SceneResult(
        scene=scene,
        first_event_s=first,
        signal_s=signal,
        action_s=action,
        enforced_s=enforced,
        released_s=released,
        released=enforced is not None and late is None,
        wrong=wrong,
        innocents=innocents,
        problems=tuple(problems),
    )


def _first_event(scene: Scene, mine: Sequence[Answer]) -> float | None:
    """The first hostile call; where none is (a hanging model), the first call that met the cause."""
    at_endpoint = [answer for answer in mine if answer.endpoint == scene.expected.endpoint]
    hostile = _first(answer.t_sent for answer in at_endpoint if answer.hostile)
    return hostile if hostile is not None else _first(answer.t_sent for answer in at_endpoint)


def _answers(signal: SeenSignal, scene: Scene) -> bool:
    expected = scene.expected
    if signal.state not in ("opened", "updated") or not scene.cause_set_s <= signal.at_s <= scene.finished_s:
        return False
    return signal.endpoint == expected.endpoint and (expected.caller is None or signal.subject == expected.caller)


def _target(action: SeenAction) -> Target | None:
    """What a published decision does or undoes; None for what changes nothing (alerts, refusals, observations)."""
    kind = _UNDO.get(action.kind, action.kind)
    if action.outcome != "published" or kind not in _ENFORCED:
        return None
    return Target(kind, action.endpoint, action.caller if kind == "limit" else None)


def _enforced(answer: Answer) -> Target | None:
    """What the client met: a refusal, or a fallback that a directive asked for."""
    if answer.status == REFUSED:
        return Target("limit", answer.endpoint, answer.caller)
    if answer.served_by == "fallback" and answer.cause not in OWN_CAUSES:
        return Target("fallback", answer.endpoint, None)
    return None


def _released(scene: Scene, mine: Sequence[Answer]) -> float | None:
    """When the first call was sent after which no call of the target met the action again; None if the last one did. What a
    process fell back on by itself, as on a machine that is busy for a second, is no action."""
    expected = scene.expected
    affected = [
        answer
        for answer in mine
        if answer.endpoint == expected.endpoint and (expected.caller is None or answer.caller == expected.caller)
    ]
    released: float | None = None
    for answer in affected:
        if _enforced(answer) == expected.target:
            released = None
        elif released is None and answer.served_by == "primary":
            released = answer.t_sent
    return released


def _release_problem(scene: Scene, released: float | None, lifted: bool) -> str | None:
    if released is None:
        return "not released"
    after_s = released - scene.cause_ended_s
    if after_s > scene.expected.release_within_s:
        return f"released {after_s:.1f} s after its cause ended"
    if after_s < -SETTLE_S:
        return f"released {-after_s:.1f} s before its cause ended"
    return None if lifted else "the journal never took the action back"


def stray_actions(
    scenes: Sequence[Scene], answers: Sequence[Answer], actions: Sequence[SeenAction]
) -> tuple[Target, ...]:
    """Actions outside all scenes: enforced on a client, or published, while nothing was wrong."""

    def outside(moment_s: float) -> bool:
        return not any(scene.cause_set_s <= moment_s <= scene.finished_s + SETTLE_S for scene in scenes)

    met = {_enforced(answer) for answer in answers if outside(answer.t_sent)}
    done = {_target(action) for action in actions if outside(action.at_s) and action.kind in _ENFORCED}
    return _sorted({target for target in met | done if target is not None})


def _first(moments: Iterable[float]) -> float | None:
    return min(moments, default=None)


def _sorted(targets: Iterable[Target]) -> tuple[Target, ...]:
    return tuple(sorted(targets, key=str))
