"""Is a worker alive, and is it of use? Asked by whoever runs it, answered from what the transport knows of itself.

`live` is false before the watchdog ends the process, `ready` while the worker does not keep up with its partitions. Both name
their reasons. Everything here is called in threads of its own, so that a blocked event loop changes no answer but its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from streams.transport.polling import Poller
from streams.watchdog import Probe

LIVE_SHARE = 0.8
"""Of a probe's limit: what stands still for so long is told before the watchdog ends the process."""
BEHIND_S = 60.0
"""A worker whose oldest unfinished record is older is not ready: what it says is of a past that long ago."""
HELD_S = 10.0
"""A broker, or a store, that has taken nothing for so long is away."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a role adds: `numbers` for the answer, and a sentence for each reason why it is not ready."""

    numbers: Mapping[str, Any] = field(default_factory=dict)
    troubles: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class State:
    """An answer. `standby`: a member of its group, whose partitions all are others'."""

    live: bool
    ready: bool
    standby: bool
    why_not_live: list[str]
    why_not_ready: list[str]
    numbers: dict[str, Any]

    def body(self) -> dict[str, Any]:
        """As JSON. Times are seconds; lags are records."""
        return {
            "live": self.live,
            "ready": self.ready,
            "standby": self.standby,
            "why": [*self.why_not_live, *self.why_not_ready],
            **self.numbers,
        }


class Health:
    """Of one worker process. `follow` what runs in it once that is made; until then it is alive and not ready.

    clock: monotonic seconds; now_ms: the wall clock that broker time is compared with.
    """

    def __init__(
        self,
        role: str,
        name: str,
        *,
        clock: Callable[[], float] = monotonic,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._about = {"role": role, "name": name}
        self._clock = clock
        self._now_ms = now_ms
        self._probes: Sequence[Probe] = ()
        self._poller: Callable[[], Poller | None] = lambda: None
        self._held_s: Callable[[float], float | None] = lambda _: None
        self._parts: list[Callable[[float], Part]] = []

    def follow(
        self,
        probes: Sequence[Probe],
        poller: Callable[[], Poller | None],
        held_s: Callable[[float], float | None],
    ) -> None:
        """The watchdog's probes, the polling thread, and for how long the outbox has waited for the broker."""
        self._probes, self._poller, self._held_s = probes, poller, held_s

    def add(self, part: Callable[[float], Part]) -> None:
        """What a role knows of itself. Called in any thread, with the monotonic clock."""
        self._parts.append(part)

    def state(self) -> State:
        """How it is now."""
        now = self._clock()
        ages = {probe.name: probe.age(now) for probe in self._probes}
        dead = [
            f"{probe.name} without progress for {age:.1f} s: the watchdog ends the process after {probe.limit_s:.0f} s"
            for probe in self._probes
            if (age := ages[probe.name]) is not None and age > probe.limit_s * LIVE_SHARE
        ]
        numbers: dict[str, Any] = {**self._about, "without_progress_s": _rounded(ages)}
        standby, troubles = self._transport(now, numbers)
        for part in self._parts:
            told = part(now)
            numbers |= told.numbers
            troubles += [] if standby else told.troubles
        return State(not dead, not dead and not troubles, standby, dead, troubles, numbers)

    def _transport(self, now: float, numbers: dict[str, Any]) -> tuple[bool, list[str]]:
        """Whether this is a standby, and what keeps the reader from being ready; adds its numbers."""
        poller = self._poller()
        if poller is None:
            return False, ["it has not started to read yet: it waits for a broker, or loads what it needs"]
        assigned: dict[str, list[int]] = {}
        for tp in sorted(poller.partitions):
            assigned.setdefault(tp.topic, []).append(tp.partition)
        figures = poller.figures(now)
        behind = {tp: age for tp, ms in figures.oldest_ms.items() if (age := (self._now_ms() - ms) / 1000) > 0}
        held = self._held_s(now)
        numbers |= {
            "assigned": assigned,
            "lag": _by_topic(figures.lag, sum),
            "behind_s": _rounded(_by_topic(behind, max)),
            "uncommitted": sum(figures.uncommitted.values()),
            "last_commit_s": _round(figures.commit_age_s),
            "unconfirmed_s": _round(held),
        }
        troubles = []
        if not poller.joined:
            troubles.append("no partition is assigned: the group rebalances, or the broker is away")
        elif assigned and not poller.reading:
            troubles.append("what was assigned is not read yet: state is taken back")
        for topic, age in _by_topic(behind, max).items():
            if age > BEHIND_S:
                troubles.append(f"{topic} is handled {age:.0f} s late, more than {BEHIND_S:.0f} s")
        if held is not None and held > HELD_S:
            troubles.append(f"the broker has confirmed nothing for {held:.0f} s")
        return poller.joined and not assigned, troubles

    def collect(self) -> Iterable[Metric]:
        """The same as Prometheus gauges, read when somebody asks."""
        state = self.state()
        numbers = state.numbers
        yield _gauge("live", "1 while nothing stands still that the watchdog looks at", float(state.live))
        yield _gauge("ready", "1 while this worker keeps up with its partitions, or stands by", float(state.ready))
        yield _gauge("last_commit_seconds", "since offsets were last committed", numbers.get("last_commit_s"))
        yield _gauge(
            "unconfirmed_seconds", "for which the broker has confirmed nothing", numbers.get("unconfirmed_s") or 0
        )
        yield _gauge("last_snapshot_seconds", "since state was last saved", numbers.get("last_snapshot_s"))
        for name, text, label, values in (
            ("assigned_partitions", "partitions assigned, by topic", "topic", {k: len(v) for k, v in numbers.get("assigned", {}).items()}),
            ("lag_records", "records up to the end of the log that are not done, by topic", "topic", numbers.get("lag", {})),
            ("behind_seconds", "age of the oldest record that is not done, by topic", "topic", numbers.get("behind_s", {})),
            ("without_progress_seconds", "for which a probe of the watchdog has not moved", "probe", numbers["without_progress_s"]),
        ):  # fmt: skip
            family = GaugeMetricFamily(f"palisade_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value or 0.0)
            yield family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """One without a value has no sample."""
    family = GaugeMetricFamily(f"palisade_{name}", text, labels=[])
    if value is not None:
        family.add_metric([], value)
    return family


def _by_topic(values: Mapping[Any, Any], fold: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """One number a topic, of those of its partitions."""
    found: dict[str, list[Any]] = {}
    for tp, value in values.items():
        found.setdefault(tp.topic, []).append(value)
    return {topic: fold(found[topic]) for topic in sorted(found)}


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _round(value) for name, value in values.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
