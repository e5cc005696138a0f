"""What a worker has done before its event loop runs."""

from __future__ import annotations

import subprocess
import sys

ARRAY = """
import sys
from palisade.workers.common import import_pandas
{ahead}
before = set(sys.modules)
import pyarrow as pa
pa.array([1.0, None]), pa.array(["a"])
print(len(set(sys.modules) - before))
"""


def modules_loaded_by_an_array(ahead: str) -> int:
    program = [sys.executable, "-c", ARRAY.format(ahead=ahead)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def test_the_first_array_of_a_worker_loads_no_module_any_more() -> None:
    assert modules_loaded_by_an_array("import_pandas()") == 0


def test_without_loading_ahead_it_would() -> None:
    assert modules_loaded_by_an_array("") > 0
