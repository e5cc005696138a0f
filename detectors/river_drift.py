"""river's ADWIN and HDDM_A, without what their package imports beside them.

`river.drift` imports data sets and a detector of scipy.stats, and with them pandas and scikit-learn where they are installed:
2.7 of the 4 CPU seconds in which a worker starts, while nobody sees anything. So the two modules are imported by
themselves. Whoever imports `river.drift` later gets the whole of it, with the same classes
(`tests/detectors/test_river_drift.py` holds river to that).
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import river

__all__ = ["ADWIN", "HDDMA"]

PACKAGES = ("river.drift", "river.drift.binary")


@contextmanager
def _as_folders(names: tuple[str, ...]) -> Iterator[None]:
    """Meanwhile these packages are folders of modules: what their `__init__.py` says is not done."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(river.__path__[0]).joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


if TYPE_CHECKING:
    from river.drift import ADWIN
    from river.drift.binary import HDDMA
else:
    with _as_folders(PACKAGES):
        ADWIN = importlib.import_module("river.drift.adwin").ADWIN
        HDDMA = importlib.import_module("river.drift.binary.hddm_a").HDDMA
