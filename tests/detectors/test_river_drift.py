"""What river's detectors cost a worker that starts, and that they are river's own all the same."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("scipy.stats", "scipy.io", "sklearn", "river.datasets", "river.stream")


def _said(program: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return ran.stdout.strip()


def test_a_worker_that_starts_imports_none_of_what_river_has_besides() -> None:
    found = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _said(f"import sys, palisade.workers.detect; {found}") == "[]"


def test_whoever_imports_river_afterwards_has_the_whole_of_it_with_the_same_classes() -> None:
    assert (
        _said(
            "from detectors.river_drift import ADWIN, HDDMA; import river.drift as whole; "
            "print(whole.ADWIN is ADWIN, whole.binary.HDDMA is HDDMA, whole.KSWIN.__name__, whole.datasets.__name__)"
        )
        == "True True KSWIN river.drift.datasets"
    )


def test_a_river_that_is_there_already_is_taken_as_it_is() -> None:
    assert (
        _said(
            "import river.drift as whole; from detectors.river_drift import ADWIN, HDDMA; import river.drift; "
            "print(whole.ADWIN is ADWIN, whole.binary.HDDMA is HDDMA, river.drift is whole)"
        )
        == "True True True"
    )
