# ruff: noqa: ARG002 - the signatures are Faust's
"""The Faust consumer: the loop side of the polling thread.

Faust's own offset bookkeeping is out of play (`acks=False`); what it still does is start, stop, suspend and resume.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, ClassVar, NoReturn, cast

import confluent_kafka
from faust.exceptions import ImproperlyConfigured
from faust.transport import base
from faust.types import TP as FaustTP
from faust.types import ConsumerMessage

from streams.failpoints import reach
from streams.transport.ledger import Ledger, TopicLimits
from streams.transport.polling import Poller
from streams.transport.refusals import refuse_settings, refuse_topics
from streams.transport.run import TP, Run
from streams.transport.seams import Halted, PollingBounds
from streams.transport.settings import Setting


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a role wants to know of its partitions. All run on the loop; an exception ends the process.

    on_assigned(tps): after a rebalance, before anything of them is read: restore state. Bounded by 90 s.
    on_revoked(tps): nothing of them is being worked on and what was done is committed: save state. Also at a stop.
    on_lost(tps): the session ran out, and somebody else may own them already: forget state, save none. None: on_revoked.
    start_at(committed): where to read from, per partition, when that is before the committed offset (a snapshot, the
    oldest open block); what it leaves out starts at the committed offset, and nothing starts above it. `committed` lacks
    partitions without a commit, and those whose commit lies above the log's end (it was made anew, or cut). Called at every rewind, so more than once for one assignment: whatever was handed over
    before is stale then and comes again.
    kept(): the oldest offset, per partition, that is still needed although its run is done (an event that waits for
    another one): nothing from there on is committed. Called in any thread, so it answers with a mapping that nobody changes.
    """

    on_assigned: Callable[[frozenset[TP]], Awaitable[None]] | None = None
    on_revoked: Callable[[frozenset[TP]], Awaitable[None]] | None = None
    start_at: Callable[[Mapping[TP, int]], Awaitable[Mapping[TP, int]]] | None = None
    on_lost: Callable[[frozenset[TP]], Awaitable[None]] | None = None
    kept: Callable[[], Mapping[TP, int]] = dict


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """What `install` hands to the consumer. drain_s: how long a rebalance or a stop waits for open runs."""

    settings: Mapping[str, Setting] = field(repr=False)  # the password is among them
    limits: Mapping[str, TopicLimits] = field(default_factory=dict)
    hooks: Hooks = Hooks()
    drain_s: float = 20.0
    commit_s: float = 90.0
    bounds: PollingBounds = field(default_factory=PollingBounds)
    client: Callable[[dict[str, Any]], Any] = confluent_kafka.Consumer  # makes a polling.Client


class NoReadOffset(dict[FaustTP, int | None]):
    """Faust drops what lies below the last offset read: after a rewind that is data loss. So it is never told."""

    def __missing__(self, tp: FaustTP) -> None:
        return None

    def __setitem__(self, tp: FaustTP, offset: int | None) -> None:
        return None

    def update(self, *_: Any, **__: Any) -> None:
        return None


class Consumer(base.Consumer):
    """One Faust message a run. `options` is set on a subclass by `install`."""

    options: ClassVar[ConsumerOptions]
    poller: Poller

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = NoReadOffset()
        self._fed = asyncio.Event()
        self._idle = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._told_revoked = False

    # -- start and stop

    async def on_start(self) -> None:
        refuse_settings(self.app)
        options = self.options
        self._main_loop = asyncio.get_running_loop()
        self.poller = Poller(
            options.client,
            options.settings,
            self,
            self._main_loop,
            restarts=options.hooks.start_at is not None,
            bounds=options.bounds,
        )
        self.poller.start()

    async def subscribe(self, topics: Iterable[str]) -> None:
        refuse_topics(self.app)
        self.poller.subscribe(topics)

    async def on_stop(self) -> None:
        if not hasattr(self, "poller"):
            return
        tps = self.poller.partitions
        await self.wait_empty()
        if tps and not self._told_revoked:
            await self._call_on_revoked(tps)
        self.poller.halt()
        ended = await self._main_loop.run_in_executor(None, self.poller.join, 30.0)
        if not ended:
            self.log.warning("the polling thread did not end within 30 s")

    # -- handing over: never blocks, the ledger's bytes are the bound

    async def _wait_next_records(self, timeout: float) -> Any:
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]  # any awaitable event serves
        active = self._get_active_partitions()
        return await self._getmany(active, timeout), active

    async def _getmany(self, active_partitions: set[FaustTP] | None, timeout: float) -> Any:
        active = cast("set[TP]", active_partitions or set())
        self._fed.clear()
        runs = self.poller.ledger.take(active)
        if not runs:
            try:
                async with asyncio.timeout(timeout):
                    await self._fed.wait()
            except TimeoutError:
                return {}
            runs = self.poller.ledger.take(active)
        return {FaustTP(*tp): taken for tp, taken in runs.items()}

    def _to_message(self, tp: FaustTP, record: Run) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.next - 1,
            0.0,
            0,
            None,
            None,
            record,  # type: ignore[arg-type]  # RunSchema passes it through as the event's value
            None,
            serialized_value_size=record.size,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def on_buffer_full(self, tp: FaustTP) -> None:
        """Channels are not a bound here."""

    def on_buffer_drop(self, tp: FaustTP) -> None:
        """Channels are not a bound here."""

    # -- commits

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is finished. A failure is a warning: the next commit tries again."""
        if not hasattr(self, "poller"):
            return False
        async with self._commit_lock:
            ledger = self.poller.ledger
            if not (due := ledger.due()):
                return False
            await self.app.producer.flush()
            if ledger.closed:
                return False
            reach("before_commit")
            future = asyncio.wrap_future(self.poller.commit(due))
            try:
                async with asyncio.timeout(self.options.commit_s):
                    await future
            except (confluent_kafka.KafkaException, Halted, TimeoutError) as error:
                self.log.warning("commit of %d partitions failed, kept for the next one: %s", len(due), error)
                return False
            ledger.committed(due)
            reach("after_commit")
            return True

    async def read_again(self) -> None:
        """Commit what is finished and read everything from `start_at` on, as after a crash: for a role whose state is not
        sound any more. What is being worked on meanwhile comes again."""
        await self.commit()
        self.poller.rewind()

    async def _commit(self, offsets: Mapping[FaustTP, int]) -> bool:
        raise NotImplementedError("the ledger commits")

    async def wait_empty(self) -> None:
        """Wait for the runs that are being worked on, at most the drain bound; then commit."""
        if not hasattr(self, "poller"):
            return
        deadline = monotonic() + self.options.drain_s
        while self.poller.ledger.busy and not self.should_stop and (left := deadline - monotonic()) > 0:
            self._idle.clear()
            if not self.poller.ledger.busy:
                break
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self._idle.wait()
            except TimeoutError:
                self.log.info("waiting for %d runs that are being worked on", self.poller.ledger.busy)
        await self.commit()

    # -- the flow and seeking: only ever a rewind of everything

    def stop_flow(self) -> None:
        super().stop_flow()
        if hasattr(self, "poller"):
            self.poller.ledger.withhold()

    def resume_flow(self) -> None:
        """Faust has just cleared every channel, so whatever was handed over until now is read again.

        A rewind asked any earlier, where Faust seeks, can hand runs over before they are cleared: lost without a trace.
        """
        super().resume_flow()
        if hasattr(self, "poller"):
            self.poller.rewind()

    async def perform_seek(self) -> None:
        """`resume_flow` does it."""

    async def seek_to_committed(self) -> Mapping[FaustTP, int]:
        return {}

    def assignment(self) -> set[FaustTP]:
        return {FaustTP(*tp) for tp in self.poller.partitions} if hasattr(self, "poller") else set()

    def highwater(self, tp: FaustTP) -> int:
        return self.poller.watermarks.get(TP(*tp), (0, 0))[1]

    # -- the polling thread's host

    async def assigned(self, tps: frozenset[TP]) -> None:
        """Also for a member that had no partition: Faust skips it, and its resume would clear what was handed over."""
        self._begin_rebalance()
        self.stop_flow()
        self.app.flow_control.suspend()
        self._told_revoked = False
        self.app.consumer_generation_id += 1
        if self.options.hooks.on_assigned is not None:
            await self.options.hooks.on_assigned(tps)
        await self.on_partitions_assigned({FaustTP(*tp) for tp in tps}, self.app.consumer_generation_id)

    async def revoked(self, tps: frozenset[TP]) -> None:
        self._begin_rebalance()
        await self.on_partitions_revoked({FaustTP(*tp) for tp in tps})
        await self._call_on_revoked(tps)

    async def lost(self, tps: frozenset[TP]) -> None:
        self._begin_rebalance()
        await self.on_partitions_revoked({FaustTP(*tp) for tp in tps})
        self._told_revoked = True
        hooks = self.options.hooks
        if (told := hooks.on_lost or hooks.on_revoked) is not None:
            await told(tps)

    async def start_at(self, committed: Mapping[TP, int]) -> Mapping[TP, int]:
        hook = self.options.hooks.start_at
        return await hook(committed) if hook is not None else {}

    def new_ledger(self, generation: int) -> Ledger:
        return Ledger(
            generation,
            self.options.limits,
            on_idle=lambda: self._soon(self._idle.set),
            on_failure=lambda _run, error: self.failed(error),
            on_ready=self.fed,
            kept=self.options.hooks.kept,
        )

    def fed(self) -> None:
        self._soon(self._fed.set)

    def failed(self, error: BaseException) -> None:
        """End the process, whatever the agent's supervisor is. From any thread."""
        self._soon(lambda: self.add_future(self.crash(error)))

    def _soon(self, call: Callable[[], Any]) -> None:
        try:
            self._main_loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the process is ending already
            self.log.info("the loop is closed")

    def _begin_rebalance(self) -> None:
        if not self.app.rebalancing:
            self.app.on_rebalance_start()

    async def _call_on_revoked(self, tps: frozenset[TP]) -> None:
        self._told_revoked = True
        self.poller.ledger.seal()
        if self.options.hooks.on_revoked is not None:
            await self.options.hooks.on_revoked(tps)

    # -- not supported: state is our own, topics are made by the admin command

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ImproperlyConfigured("the run transport has no Faust tables, no seeks and makes no topics")

    def _new_topicpartition(self, topic: str, partition: int) -> FaustTP:
        return FaustTP(topic, partition)

    async def _seek(self, partition: FaustTP, offset: int) -> None:
        self._refuse()

    async def seek_wait(self, partitions: Mapping[FaustTP, int]) -> None:
        self._refuse()

    async def position(self, tp: FaustTP) -> int | None:
        self._refuse()

    async def earliest_offsets(self, *partitions: FaustTP) -> Mapping[FaustTP, int]:
        self._refuse()

    async def highwaters(self, *partitions: FaustTP) -> Mapping[FaustTP, int]:
        self._refuse()

    async def create_topic(self, *_: Any, **__: Any) -> None:
        self._refuse()

    def topic_partitions(self, topic: str) -> int | None:
        self._refuse()

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        self._refuse()
