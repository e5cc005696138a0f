"""The demo on Apache Kafka, with a kill -9 in the middle of two scenes: standbys take over, nothing else changes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from palisade.demo.__main__ import perform
from palisade.demo.script import Seen, owner_of
from palisade.demo.stage import PARTITIONS, Stage, StageOptions
from tests.support.apache_kafka import ApacheKafka

REPLICAS = {"detect": 2, "respond": 2}


class KillerOfWorkers:
    """kill -9 of the detect worker that owns the flooded endpoint, and of the active responder while inputs drift."""

    def __init__(self) -> None:
        self.stage: Stage
        self.seen: Seen
        self.killed: list[str] = []

    def meet(self, stage: Stage, seen: Seen) -> None:
        self.stage, self.seen = stage, seen

    def __call__(self, scene: str, endpoint: str) -> None:
        if scene == "flood":
            owner = owner_of(self.seen, endpoint, PARTITIONS)
            assert owner is not None, "no tick was seen on the flooded endpoint's partition"
            self._kill(owner)
        elif scene == "drift":
            self._kill(self._active_responder())

    def _kill(self, name: str) -> None:
        self.killed.append(name)
        self.stage.supervisor.kill(name)

    def _active_responder(self) -> str:
        """The one whose log says so last: a second responder that joins may be given the partition."""
        lines = [
            (line[:23], name)
            for name in ("respond", "respond-2")
            for line in self.stage.supervisor.log(name).read_text().splitlines()
            if "respond is active" in line
        ]
        assert lines, "no responder took over"
        return max(lines)[1]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.alone
def test_all_scenes_pass_on_apache_kafka_though_workers_are_killed(tmp_path: Path) -> None:
    killer = KillerOfWorkers()
    output = io.StringIO()
    with ApacheKafka() as kafka:
        options = StageOptions(tmp_path, seed=3, kafka=kafka.bootstrap, replicas=REPLICAS)
        line = perform(options, Console(file=output, width=160), killer, killer.meet)

    logs = "\n".join(
        f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted((tmp_path / "logs").glob("*.log"))
    )
    assert line["ok"], f"{line['problems']}\n{output.getvalue()}\n{logs}"
    assert killer.killed[0].startswith("detect")
    assert killer.killed[1].startswith("respond")
    assert (line["audit_missing"], line["audit_extra"], line["innocent_limited"]) == (0, 0, 0)
