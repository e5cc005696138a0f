"""The command `palisade` of a release that does not exist: `python -m tests.faults.next_release KIND worker detect ...`.

detector: one detector's state has another layout. format: saved parts have another format altogether.
"""

from __future__ import annotations

import sys

import detectors.bank
import detectors.feature_drift
from palisade.cli.main import main

if __name__ == "__main__":
    kind = sys.argv.pop(1)
    if kind == "detector":
        detectors.feature_drift.VERSION = 1_000  # type: ignore[misc]
    elif kind == "format":
        detectors.bank.MAGIC = b"PALISADE-NEXT\0"  # type: ignore[misc]
    else:
        raise SystemExit(f"detector or format, not {kind}")
    main()
