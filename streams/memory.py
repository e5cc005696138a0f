"""Where a worker's memory is, as metrics: whether one that grows holds more, or only has free pieces that it cannot give back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from resource import getpagesize

import pyarrow as pa
from prometheus_client.core import GaugeMetricFamily

GIVE_BACK_S = 30.0
KEPT_FREE = 8_000_000
"""Bytes that malloc may keep for what comes next."""


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2` (mallinfo(3)): sums over all heaps."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


_C = ctypes.CDLL(None)
_mallinfo2, _malloc_trim = getattr(_C, "mallinfo2", None), getattr(_C, "malloc_trim", None)  # glibc alone has them
if _mallinfo2 is not None:
    _mallinfo2.restype = _MallInfo


def memory() -> Mapping[str, int]:
    """Bytes by what they are; what this platform does not tell is left out.

    `resident`: of the whole process. `heap_used`, `heap_free`: of malloc's heaps; free pieces count also where their pages have been
    given back. `mapped`: large pieces that have pages of their own. `arrow`: of pyarrow's own pool. Called at each scrape: 0.1 ms."""
    found = {"arrow": pa.total_allocated_bytes()}
    with suppress(OSError):  # no Linux
        found["resident"] = int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    if _mallinfo2 is not None:
        told = _mallinfo2()
        found |= {"heap_used": told.uordblks, "heap_free": told.fordblks, "mapped": told.hblkhd}
    return found


def give_back_freed(ended: Callable[[float], bool]) -> None:
    """Until `ended(GIVE_BACK_S)` says so: gives what malloc keeps free back to the machine. It keeps what lies between pieces in use
    for good: after an outage a worker catches up, and holds on to the most that this took."""
    while _malloc_trim is not None and not ended(GIVE_BACK_S):
        if memory().get("heap_free", 0) > KEPT_FREE:
            _malloc_trim(KEPT_FREE // 2)


class MemoryCollector:
    """For a Prometheus registry."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("palisade_memory_bytes", "bytes of this process, by what they are", labels=["of"])
        for name, size in memory().items():
            family.add_metric([name], size)
        yield family
        blocks = GaugeMetricFamily("palisade_python_blocks", "pieces that Python's own allocator has given out")
        blocks.add_metric([], sys.getallocatedblocks())
        yield blocks
