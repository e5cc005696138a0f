"""What a worker has done before its event loop runs."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any

import pytest

ARRAY = """
import json, sys
from palisade.workers.common import without_pandas
{ahead}
before = set(sys.modules)
import pyarrow as pa
pa.array([1.0, None]), pa.array(["a"])
loaded = len(set(sys.modules) - before)
table = pa.table({{"a": [1, 2], "b": ["x", None]}}).to_pylist()
import pandas
print(json.dumps({{"loaded": loaded, "table": table, "pandas": pandas.__name__}}))
"""

HEAPS = """
import ctypes, os, sys, tempfile, threading
from palisade.workers import _bound_heaps
{ahead}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(6)

def take():
    together.wait()
    for _ in range(2_000):
        libc.malloc(64)

threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
path = os.path.join(tempfile.mkdtemp(), "info")
out = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
libc.malloc_info(0, out), libc.fclose(out)
print(open(path).read().count("<heap nr="))
"""


def heaps_of_six_threads(ahead: str) -> int:
    program = [sys.executable, "-c", HEAPS.format(ahead=ahead)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives each thread a heap")
def test_threads_of_a_worker_share_two_heaps() -> None:
    assert heaps_of_six_threads("_bound_heaps()") == 2
    assert heaps_of_six_threads("") > 2


def first_array(ahead: str) -> Any:
    program = [sys.executable, "-c", ARRAY.format(ahead=ahead)]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def test_the_first_array_of_a_worker_loads_no_module() -> None:
    found = first_array("without_pandas()")
    assert found["loaded"] == 0
    assert found["table"] == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


def test_who_wants_pandas_later_gets_it() -> None:
    assert first_array("without_pandas()")["pandas"] == "pandas"


def test_by_itself_the_first_array_would_load_pandas() -> None:
    assert first_array("")["loaded"] > 0
