"""`make soak MINUTES=30`: random faults on Apache Kafka for so long; no promise is broken, and no process grows.

Members that are killed have others beside them, whose memory is watched: `rss_slope_mb_per_h` is that of the process of each
role which lives longest, over what it lived after its first two minutes; the same of the second half says whether it came to
rest, and `memory_mb` of what: what each kind of memory (`palisade_memory_bytes`) was after the first two minutes, and at the end.
Last line JSON; status 0: nothing is violated.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from palisade.verify.finding import Verdict
from streams.failpoints import Point
from tests.faults.ground import RESULTS
from tests.faults.stage import Setup, Stage
from tests.support.ports import free_ports

WARM_UP_S = 120.0
SAMPLE_S = 5.0
FAULT_EVERY_S = (5.0, 25.0)
REPLICAS = {"detect": 2, "respond": 2, "ingest": 2}
SPARED = ("detect", "respond", "ingest", "audit")
"""Whose memory is watched: they are broken in ways that they survive."""
RAISING: tuple[tuple[str, Point], ...] = (("detect", "taken"), ("respond", "deciding"))
POISON = (b"\xff\xfe{", b'{"endpoint": "credit", "features": ' + b"[" * 400, b"[" + b"{}," * 2_000 + b"{}]", b"")


class Soak:
    """One run. `made`: how often each fault was made."""

    def __init__(self, stage: Stage, chance: random.Random, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._chance = chance
        self._say = say
        self._faults = (self.kill_second, self.raise_somewhere, self.poison, self.repeat, self.broker_restarts)
        self.made: Counter[str] = Counter()
        self.memory: dict[tuple[str, int], list[tuple[float, Mapping[str, float]]]] = defaultdict(list)

    def run(self, minutes: float) -> None:
        started = time.monotonic()
        ends, fault_at, sample_at = started + minutes * 60, started + 10, started
        while (now := time.monotonic()) < ends:
            if now >= sample_at:
                self._sample(now)
                sample_at = now + SAMPLE_S
            if now >= fault_at:
                fault = self._chance.choice(self._faults)
                fault()
                self.made[fault.__name__] += 1
                self._say(f"{(now - started) / 60:5.1f} min  {fault.__name__:16} {self._stage.load.beats:,} beats")
                fault_at = time.monotonic() + self._chance.uniform(*FAULT_EVERY_S)
            time.sleep(0.2)

    def kill_second(self) -> None:
        self._stage.kill(f"{self._chance.choice(tuple(REPLICAS))}-2")

    def raise_somewhere(self) -> None:
        role, point = self._chance.choice(RAISING)
        self._stage.arm(role, point, "raise")

    def poison(self) -> None:
        self._stage.load.send("palisade.predictions", "credit", self._chance.choice(POISON), "prediction", rows=0)

    def repeat(self) -> None:
        """A service that sends a request again, as a retry does."""
        self._stage.load.repeat()

    def broker_restarts(self) -> None:
        assert self._stage.broker is not None
        self._stage.broker.stop()
        time.sleep(self._chance.uniform(0, 5))
        self._stage.broker.start()

    def _sample(self, now: float) -> None:
        for name in SPARED:
            pid = self._stage.supervisor.pid(name)
            with suppress(OSError):  # it is just starting
                self.memory[name, pid].append((now, _memory_mb(self._stage.setup.metrics[name])))

    def samples(self) -> list[dict[str, float | str]]:
        """All that was measured: role, process, seconds, MB by what they are."""
        return [
            {"role": role, "pid": pid, "at_s": round(at_s, 1), **mb}
            for (role, pid), seen in self.memory.items()
            for at_s, mb in seen
        ]

    def slopes(self, after_s: float = WARM_UP_S) -> dict[str, float]:
        """MB an hour, by least squares, of the process of each name that was seen longest, without its first `after_s`."""
        found = {}
        for name, settled in self._longest(after_s):
            at_s, mb = zip(*((at_s / 3600, mb["resident"]) for at_s, mb in settled), strict=True)
            found[name] = round(float(np.polyfit(at_s, mb, 1)[0]), 1)
        return found

    def kinds(self) -> dict[str, dict[str, tuple[float, float]]]:
        """MB of each kind, after the warm-up and at the end: medians of a minute."""
        minute = int(60 / SAMPLE_S)
        return {
            name: {
                kind: (
                    float(np.median([mb[kind] for _, mb in settled[:minute]])),
                    float(np.median([mb[kind] for _, mb in settled[-minute:]])),
                )
                for kind in settled[0][1]
            }
            for name, settled in self._longest(WARM_UP_S)
        }

    def _longest(self, after_s: float) -> Iterator[tuple[str, list[tuple[float, Mapping[str, float]]]]]:
        for name in SPARED:
            longest = max((seen for (whose, _), seen in self.memory.items() if whose == name), key=len, default=[])
            settled = [each for each in longest if each[0] - longest[0][0] >= after_s]
            if len(settled) >= 12:
                yield name, settled


def _memory_mb(port: int) -> Mapping[str, float]:
    """What a worker says of its memory. OSError where it does not answer."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = {
        sample.labels["of"]: round(sample.value / 1e6, 2)
        for family in families
        if family.name == "palisade_memory_bytes"
        for sample in family.samples
    }
    if "resident" not in found:
        raise OSError("no memory is told")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    folder = RESULTS.parent / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    verdicts: list[Verdict] = []
    metrics = dict(zip(SPARED, free_ports(len(SPARED)), strict=True))
    setup = Setup(kafka=True, replicas=REPLICAS, metrics=metrics, seed=seed)
    with Stage(folder, setup, verdicts.extend) as stage:
        print(f"seed {seed}; logs in {folder / 'logs'}")
        stage.load.start()
        soak = Soak(stage, random.Random(seed), print)
        soak.run(given.minutes)
        (folder / "memory.json").write_text(json.dumps(soak.samples()))
        stage.settle(900)
        problem = ""
        try:
            stage.prove()
        except AssertionError as error:
            problem = str(error)
        events, renewed = sum(row["rows"] for row in stage.load.sent), stage.load.renewed
    for each in verdicts:
        print(f"{each.name:4} {each.status:10} {each.words}")
    violations = sum(each.status == "violated" for each in verdicts)
    line: dict[str, object] = {
        "violations": violations,
        "rss_slope_mb_per_h": soak.slopes(),
        "events": events,
        "minutes": given.minutes,
    }
    line["rss_slope_second_half_mb_per_h"] = soak.slopes(given.minutes * 60 / 2)
    line |= {"memory_mb": soak.kinds(), "load_renewed": renewed}
    sys.stdout.write(json.dumps(line | {"faults": dict(soak.made), "seed": seed, "ok": not problem}) + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    raise SystemExit(main())
