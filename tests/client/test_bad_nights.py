"""What goes wrong around a serving process, and costs its calls nothing: no threads left, huge inputs, full queues."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from palisade_client import Emitter
from palisade_client._emitter import MAX_DRAIN
from palisade_client._encode import MAX_LISTED, MAX_TEXT, plain_features
from palisade_client._fallback import RETRY_S, Fallback
from palisade_client._pool import Pool, PoolFull
from palisade_client._transport import Done
from palisade_client.testing import FakeTransport, ManualClock

from tests.client.conftest import Bench


class NoThreads:
    """Stands in for `threading.Thread` where the process may start no more."""

    def __init__(self, **_: Any) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_a_pool_that_may_start_no_thread_is_full_and_later_is_as_large_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool(2, "test")
    with monkeypatch.context() as starved:
        starved.setattr(threading, "Thread", NoThreads)
        for _ in range(3):
            with pytest.raises(PoolFull):
                pool.call(lambda: 1, 5.0)

    together = threading.Barrier(2)
    tasks = [pool.submit(lambda: together.wait(10)) for _ in range(2)]

    assert all(task.done.acquire(timeout=10) and task.error is None for task in tasks)


def test_without_threads_a_model_with_a_timeout_is_answered_by_the_fallback(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = bench.guard(fallback=0.5, timeout_s=5.0).start()
    monkeypatch.setattr(threading, "Thread", NoThreads)

    assert guard.call(lambda features: 0.9, {"x": 1.0}, caller="a") == 0.5


def test_a_fallback_that_could_not_be_tried_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tried = ManualClock(), threading.Event()

    def function(features: Any) -> float:
        tried.set()
        return 0.5

    fallback = Fallback(function, clock)
    fallback.last_features = {"x": 1.0}
    with monkeypatch.context() as starved:
        starved.setattr(threading, "Thread", NoThreads)
        fallback.check(in_thread=True)
    clock.advance(RETRY_S)
    fallback.check(in_thread=True)

    assert tried.wait(10)


@pytest.mark.anyio
async def test_a_plain_model_that_ends_in_stop_iteration_is_answered_by_the_fallback(bench: Bench) -> None:
    """No future may hold StopIteration: awaited as one, the call would never end."""
    guard = bench.guard(fallback=0.5)

    answer = await asyncio.wait_for(guard.acall(lambda features: next(iter([])), {"x": 1.0}, caller="a"), 60)

    assert answer == 0.5


class Unreadable:
    def __str__(self) -> str:
        raise AssertionError("far inside a nested list nothing is read")


@pytest.mark.parametrize(
    "image",
    [
        [[[0.5] * 300] * 8 + [[Unreadable()]] * 300],
        [[0.5] * 4_000] * 5 + [[Unreadable()]] * 300,
        {f"embedding {n}": [0.5] * 4_000 for n in range(200)},
        {"pixels": [[[0.5, 1.0] * 300] * 300 for _ in range(3)], "more": {f"k{n}": [n] for n in range(10_000)}},
        np.zeros((3, 224, 224)),
        np.zeros((2, 2, 2, 2000)),
        {"pixels": np.zeros((224, 224)), "rows": [np.zeros(9_000)] * 900},
    ],
)
def test_a_call_pays_for_the_head_of_a_nested_input_alone(image: Any) -> None:
    plain, weight = plain_features(image)

    values = list(plain.values()) if isinstance(plain, Mapping) else plain
    assert sum(len(value) for value in values if isinstance(value, list)) <= MAX_LISTED
    assert all(len(value) <= MAX_TEXT for value in values if isinstance(value, str))
    assert weight < 700_000


def test_small_tables_keep_all_their_numbers() -> None:
    assert plain_features(np.arange(20.0).reshape(1, 20))[0] == [[float(n) for n in range(20)]]
    assert plain_features({"t": [[1, 2], [3, 4]]})[0] == {"t": "[[1, 2], [3, 4]]"}


def test_what_a_model_answers_weighs_in_the_queue_as_its_features_do() -> None:
    emitter = Emitter(transport=FakeTransport(), max_queued_bytes=1_000_000)

    taken = [emitter.emit("credit", {"x": 1.0}, [0.5] * 4_000) for _ in range(20)]

    assert 5 <= sum(taken) <= 8
    assert emitter.take_dropped("credit") == 20 - sum(taken)


class Busy(FakeTransport):
    """For each record that is sent one more prediction arrives, as from the threads of a busy service."""

    emitter: Emitter
    sends = 0

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        self.sends += 1
        assert self.sends < 100, "flush never ends"
        return self.emitter.emit("credit", {"x": 1.0}, 0.5)


@pytest.mark.parametrize("way", ["flush", "close"])
def test_flushing_ends_while_predictions_keep_coming(way: str) -> None:
    transport = Busy()
    transport.emitter = emitter = Emitter(transport=transport)
    for _ in range(MAX_DRAIN + 1):
        emitter.emit("credit", {"x": 1.0}, 0.5)

    getattr(emitter, way)(0.0)

    assert transport.sends < 10


class Grumbling(FakeTransport):
    """The first two deliveries end in a callback of the service's own that raises."""

    polls = 0

    def __init__(self) -> None:
        super().__init__(background=True)
        self.grumbled, self.arrived = threading.Event(), threading.Event()

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes], done: Done) -> bool:
        if self.grumbled.is_set():
            self.arrived.set()
        return super().send(topic, key, value, headers, done)

    def poll(self) -> None:
        self.polls += 1
        if self.polls <= 2:  # once after sending, once in the thread's turn
            if self.polls == 2:
                self.grumbled.set()
            raise KeyError("a callback of the service's Kafka settings")


def test_predictions_go_on_after_a_callback_that_raises() -> None:
    transport = Grumbling()
    emitter = Emitter(transport=transport, linger_s=0.001)
    emitter.emit("credit", {"x": 1.0}, 0.5)
    grumbled = transport.grumbled.wait(10)
    emitter.emit("credit", {"x": 1.0}, 0.5)
    arrived = transport.arrived.wait(10)  # before `close`, which sends what waits by itself
    emitter.close()

    assert (grumbled, arrived) == (True, True)
