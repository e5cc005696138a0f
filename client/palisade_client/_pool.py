"""A pool of daemon threads that a hung model cannot hold its callers in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any


class PoolFull(Exception):
    """Every thread is busy."""


class Expired(Exception):
    """The call did not finish in time; its thread goes on until it does."""


class Task:
    """One call on its way: `done` is unlocked when `value` or `error` is set."""

    __slots__ = ("context", "done", "error", "run", "then", "value")

    def __init__(self, run: Callable[[], Any], then: Callable[[Task], None] | None) -> None:
        self.run = run
        self.then = then
        self.context = copy_context()
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Pool:
    """At most `size` calls at once, each in a daemon thread; threads are made as they are needed."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._busy = 0
        self._threads = 0
        self._tasks: SimpleQueue[Task] = SimpleQueue()

    def call(self, run: Callable[[], Any], timeout_s: float | None) -> Any:
        """The result of `run`, or its exception; Expired after `timeout_s`, PoolFull at once."""
        task = self.submit(run)
        if not task.done.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise Expired
        if task.error is not None:
            raise task.error
        return task.value

    def submit(self, run: Callable[[], Any], then: Callable[[Task], None] | None = None) -> Task:
        """Starts `run` in a thread, with the context of this one; `then` is called in that thread. PoolFull if none."""
        with self._lock:
            if self._busy >= self._size:
                raise PoolFull
            self._busy += 1
            grow = self._busy > self._threads
            if grow:
                self._threads += 1
        if grow:
            self._grow()
        task = Task(run, then)
        self._tasks.put(task)
        return task

    def _grow(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the process may start no more threads: the pool is as large as it can be
            with self._lock:
                self._busy -= 1
                self._threads -= 1
            raise PoolFull from None

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task.value = task.context.run(task.run)
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                task.error = error
            with self._lock:
                self._busy -= 1
            task.done.release()
            if task.then is not None:
                task.then(task)
            del task
