"""Where a worker's memory is, and that it gives back what it no longer needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest

from streams.memory import GIVE_BACK_S, KEPT_FREE, MemoryCollector, give_back_freed, memory

MEGABYTES = 60_000_000


def scattered() -> list[bytes]:
    """Some of a lot of pieces, with what was between them freed."""
    pieces = [bytes(6_000) for _ in range(MEGABYTES // 6_000)]
    return pieces[::10]


def test_what_is_freed_between_pieces_in_use_goes_back_to_the_machine() -> None:
    held = scattered()
    before = memory()
    asked: Iterator[bool] = iter((False, True))
    waits: list[float] = []

    def ended(seconds: float) -> bool:
        waits.append(seconds)
        return next(asked)

    give_back_freed(ended)
    after = memory()

    assert before["heap_free"] > MEGABYTES / 2
    assert before["resident"] - after["resident"] > MEGABYTES / 2
    assert abs(after["heap_used"] - before["heap_used"]) < KEPT_FREE
    assert waits == [GIVE_BACK_S, GIVE_BACK_S]
    assert len(held) == MEGABYTES // 60_000


def test_metrics_tell_each_kind_of_memory() -> None:
    registry = CollectorRegistry()
    registry.register(MemoryCollector())
    told = generate_latest(registry).decode()
    for kind in ("resident", "heap_used", "heap_free", "mapped", "arrow"):
        assert f'palisade_memory_bytes{{of="{kind}"}}' in told
    assert "palisade_python_blocks" in told


def test_asking_costs_no_memory() -> None:
    memory()
    gc.collect()
    before = len(gc.get_objects())
    gc.disable()
    try:
        for _ in range(50):
            memory()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
