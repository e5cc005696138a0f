"""Where the runs of faults are counted, and the scale at which they are driven."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from palisade.verify.finding import Verdict
from tests.faults.stage import Setup, Stage

Scale = Literal["short", "full"]
NAMES = tuple(f"F{number}" for number in range(1, 17))
INVARIANTS = tuple(f"I{number}" for number in range(1, 13))
RESULTS = Path(__file__).resolve().parents[2] / ".cache" / "faults.json"


@dataclass(slots=True)
class Ran:
    """One fault: how many faults were made, and what the checker said of the runs."""

    runs: int = 0
    verdicts: list[list[Verdict]] = field(default_factory=list)

    @property
    def violations(self) -> int:
        return sum(each.status == "violated" for verdicts in self.verdicts for each in verdicts)

    def add(self, other: Ran) -> None:
        self.runs += other.runs
        self.verdicts += other.verdicts

    def told(self) -> dict[str, Any]:
        """As JSON's kinds of values."""
        return {"runs": self.runs, "verdicts": [[asdict(each) for each in verdicts] for verdicts in self.verdicts]}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Ran:
        """Of what `told` gave."""
        return cls(told["runs"], [[Verdict(**each) for each in verdicts] for verdicts in told["verdicts"]])

    def on(self, invariant: str) -> str:
        """`holds`, `violated`, or `-` where no run of this fault shows anything of it."""
        said = {each.status for verdicts in self.verdicts for each in verdicts if each.name == invariant}
        return "violated" if "violated" in said else "holds" if "holds" in said else "-"


class Ground:
    """Hands out stages and notes what the checker says of them, for the faults that are made there."""

    def __init__(self, folder: Path, scale: Scale, rans: Mapping[str, Ran]) -> None:
        self._folder = folder
        self._rans = rans
        self._stages = 0
        self.scale = scale

    @property
    def full(self) -> bool:
        return self.scale == "full"

    @contextmanager
    def stage(self, setup: Setup | None = None) -> Iterator[Stage]:
        """A stage of its own, with everything running and a load that has not begun."""
        self._stages += 1
        with Stage(self._folder / f"stage-{self._stages}", setup or Setup(), self._note) as stage:
            yield stage

    def of(self, fault: str) -> Ground:
        """The same, for one of several faults."""
        return Ground(self._folder, self.scale, {fault: self._rans[fault]})

    def made(self, faults: int = 1) -> None:
        """So many were made, of the only fault."""
        (ran,) = self._rans.values()
        ran.runs += faults

    def _note(self, verdicts: list[Verdict]) -> None:
        for ran in self._rans.values():
            ran.verdicts.append(verdicts)


def line(results: dict[str, Ran]) -> dict[str, object]:
    """What the last line of `make test-faults` says of the faults."""
    faults = [{"fault": name, "runs": ran.runs, "violations": ran.violations} for name, ran in results.items()]
    return {"faults": faults, "violations": sum(ran.violations for ran in results.values())}


def table(results: dict[str, Ran]) -> Sequence[str]:
    """Fault by invariant, as Markdown."""
    head = f"| fault | runs | {' | '.join(INVARIANTS)} |"
    rule = "|---" * (len(INVARIANTS) + 2) + "|"
    rows = [f"| {name} | {ran.runs} | {' | '.join(map(ran.on, INVARIANTS))} |" for name, ran in results.items()]
    return [head, rule, *rows]


def save(results: dict[str, Ran], path: Path = RESULTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"line": line(results), "table": table(results)}))
